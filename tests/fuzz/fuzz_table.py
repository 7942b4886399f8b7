# SPDX-License-Identifier: Apache-2.0
"""The table of fuzz targets, the most exposed first, and where their files lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fuzz_audit
import fuzz_logs
import fuzz_policy
import fuzz_recipe
import fuzz_tee
import fuzz_tee_signed
import fuzz_wire
from fuzz_base import Target
from fuzz_mutate import Change, cbor_mutator

FOLDER = Path(__file__).resolve().parent
REGRESSIONS = FOLDER / "regressions"
RESULTS = FOLDER / "RESULTS.json"

TARGETS: dict[str, Target] = (
    fuzz_recipe.TARGETS
    | fuzz_policy.TARGETS
    | fuzz_audit.TARGETS
    | fuzz_logs.TARGETS
    | fuzz_tee.TARGETS
    | fuzz_tee_signed.TARGETS
    | fuzz_wire.TARGETS
)
_CBOR = (
    *fuzz_recipe.CBOR_TARGETS,
    *fuzz_policy.CBOR_TARGETS,
    *fuzz_tee.CBOR_TARGETS,
    *fuzz_tee_signed.CBOR_TARGETS,
    *fuzz_wire.CBOR_TARGETS,
)


def target(name: str, change: Change | None = None) -> Target:
    """A target by its name, with its mutator where one is needed and `change` can change bytes."""
    found = TARGETS[name]
    if change is None:
        return found
    if name in fuzz_audit.TARGETS:
        return replace(found, mutate=fuzz_audit.behind_the_number(cbor_mutator(change)))
    return replace(found, mutate=cbor_mutator(change)) if name in _CBOR else found


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
