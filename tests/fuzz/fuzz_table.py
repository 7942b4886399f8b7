# SPDX-License-Identifier: Apache-2.0
"""The table of fuzz targets, the most exposed first, and where their files lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from fuzz_base import Target
from fuzz_mutate import Change, cbor_mutator

FOLDER = Path(__file__).resolve().parent
REGRESSIONS = FOLDER / "regressions"
RESULTS = FOLDER / "RESULTS.json"

MODULES: dict[str, tuple[str, ...]] = {
    "fuzz_recipe": ("verify", "policy", "certificates"),
    "fuzz_audit": ("audit",),
    "fuzz_policy": ("appraise", "policy-files"),
    "fuzz_logs": ("tcg-events", "tcg-log", "uefi", "ima-binary", "ima-ascii", "ima-fields", "cel"),
    "fuzz_tee": ("tee",),
    "fuzz_tee_signed": ("snp", "amd-certificate", "tdx", "tdx-documents", "tdx-platform", "cca", "tee-line"),
    "fuzz_tee_origins": ("tee-alone", "hcl-text", "ak-endorsements", "cca-key"),
    "fuzz_wire": ("cbor", "records", "artefacts", "note", "tiles", "inband", "tpm"),
}
"""Module → its targets. One is loaded with its module only, as what it needs takes seconds to instrument."""


class Table(Mapping[str, Target]):
    """The targets by their names."""

    def __init__(self) -> None:
        self._modules = {name: module for module, names in MODULES.items() for name in names}

    def module(self, name: str) -> ModuleType:
        """The module of a target."""
        return import_module(self._modules[name])

    def __getitem__(self, name: str) -> Target:
        found: Target = self.module(name).TARGETS[name]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


TARGETS = Table()


def target(name: str, change: Change | None = None) -> Target:
    """A target by its name, with its mutator where one is needed and `change` can change bytes."""
    module = TARGETS.module(name)
    found: Target = module.TARGETS[name]
    if change is None or name not in getattr(module, "CBOR_TARGETS", ()):
        return found
    return replace(found, mutate=getattr(module, "wrapped", _as_it_is)(cbor_mutator(change)))


def _as_it_is(mutate: object) -> object:
    return mutate


def regressions(name: str) -> Iterator[bytes]:
    """The inputs that once made a target fail."""
    folder = REGRESSIONS / name
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        yield file.read_bytes()


def write_seeds(name: str, folder: Path) -> int:
    """Put a target's seeds and regressions into a folder, each under its digest; return how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    found = TARGETS[name]
    seeds = {seed[: found.most] for seed in (*found.seeds(), *regressions(name))}
    for seed in seeds:
        (folder / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
    return len(seeds)
