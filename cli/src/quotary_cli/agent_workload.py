# SPDX-License-Identifier: Apache-2.0
"""What `attest agent run` measures before it serves: the configuration's models, engine and parts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quotary_cli.output import note

if TYPE_CHECKING:
    from quotary_attest.config import AgentConfig
    from quotary_attest.inventory import EngineFile, Inventory
    from quotary_attest.measure import KnownDigests, Progress

_KNOWN = "verity-digests"


def measure(config: AgentConfig, tell: Callable[[str], object] = note) -> Inventory:
    """Hash the files that the configuration names; minutes for large weights. Raises MeasureError."""
    from quotary_attest.inventory import PartFile, measure_inventory
    from quotary_attest.measure import ModelFile, model_size
    from quotary_attest.measuring.openssf import load_signers

    models = [ModelFile(model.name, model.files, signature=model.signature) for model in config.model]
    parts = [PartFile(part.kind, part.name, part.path) for part in config.part]
    signers = load_signers(config.signers.keys, config.signers.authorities)
    engine, known = engine_file(config), known_digests(config)
    paths: list[Sequence[Path]] = [
        *(model.files for model in config.model),
        *((part.path,) for part in parts),
    ]
    paths += [(folder,) for folder in config.engine.code]
    total = sum(model_size(each) for each in paths) + (0 if engine is None else model_size((engine.binary,)))
    if models:
        tell(f"measuring {total / 1e6:.0f} MB of weights")
    with progress_of(total) as progress:
        found = measure_inventory(models, engine, parts, signers=signers, known=known, progress=progress)
    known.save()
    return found


def known_digests(config: AgentConfig) -> KnownDigests:
    """Return the digests that need not be computed again, where the file system has fs-verity."""
    from quotary_attest.measure import KnownDigests

    return KnownDigests(config.state.folder / _KNOWN)


def engine_file(config: AgentConfig) -> EngineFile | None:
    """Return the engine as it is to be measured; None where none is configured."""
    from quotary_attest.inventory import EngineFile

    section = config.engine
    if section.binary is None:
        return None
    return EngineFile(
        section.name or section.binary.name,
        section.binary,
        section.arguments,
        engine_variables(config),
        section.code,
        section.version or "",
        section.image or "",
    )


def engine_variables(config: AgentConfig) -> dict[str, str]:
    """Return the environment that an engine runs with: all of it where the agent starts it, else as configured."""
    from quotary_attest.linking.started import engine_environment

    section = config.engine
    return engine_environment(os.environ, section.environment) if section.start else dict(section.environment)


@contextmanager
def progress_of(total: int, label: str = "weights") -> Iterator[Progress]:
    """Show how far measuring has come, on a terminal."""
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=total, label=label, file=sys.stderr, hidden=hidden) as bar:
        yield bar.update
