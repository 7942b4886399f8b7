# SPDX-License-Identifier: Apache-2.0
"""What `attest agent run` measures before it serves: the configuration's models and engine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from quotary_cli.output import note

if TYPE_CHECKING:
    from quotary_attest.config import AgentConfig
    from quotary_attest.workload import Workload


def measure(config: AgentConfig) -> Workload:
    """Hash the files that the configuration names; minutes for large weights. Raises MeasureError."""
    from quotary_attest.measure import ModelFile, measure_file
    from quotary_attest.workload import Engine, Workload, measure_models

    engine = None
    if config.engine.binary is not None:
        digest = measure_file(config.engine.binary).digest
        engine = Engine(config.engine.name or config.engine.binary.name, digest, config.engine.arguments)
    files = [ModelFile(model.name, model.files) for model in config.model]
    if not files:
        return Workload((), engine)
    total = sum(path.stat().st_size for file in files for path in file.paths)
    note(f"measuring {total / 1e6:.0f} MB of weights")
    with click.progressbar(
        length=total, label="weights", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        return Workload(measure_models(files, bar.update), engine)
