# SPDX-License-Identifier: Apache-2.0
"""The engines behind a running agent's doors: what ties their answers to the models, and those that the agent
starts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from quotary_attest.config import claimed_model
from quotary_attest.enginelink import CONFIGURED_LINK, EngineLink
from quotary_attest.linking.checked import CheckedLink, MeasuredFiles
from quotary_attest.linking.started import (
    EngineFailed,
    EnginePlan,
    StartedEngine,
    StartedLink,
    fill,
    free_port,
)
from quotary_attest.serving.swap import Standing
from quotary_cli.agent_workload import engine_variables

if TYPE_CHECKING:
    from pathlib import Path

    from quotary_attest.config import AgentConfig
    from quotary_attest.inventory import Inventory
    from quotary_attest.measure import Measurement
    from quotary_attest.workload import ServedModel


class Engines:
    """Makes engines ready and says what ties them. `ended` is set when one that the agent started is gone for
    good."""

    def __init__(self, config: AgentConfig, inventory: Inventory) -> None:
        self._config, self._inventory = config, inventory
        self._checked: CheckedLink | None = None
        if inventory.engine is not None and (config.engine.check or config.engine.start):
            self._checked = CheckedLink(inventory.engine, inventory.files)
        self.ended = asyncio.Event()
        self._watching: set[asyncio.Task[None]] = set()

    @property
    def link(self) -> EngineLink:
        """What ties an engine that somebody else started."""
        return CONFIGURED_LINK if self._checked is None else self._checked

    async def first(self) -> Standing | None:
        """Start the configured engine if the agent is to; None where it is not.

        Raises:
            EngineFailed: it could not be started from the measured files, or is not ready in time.
        """
        if not self._config.engine.start:
            return None
        proxy = self._config.proxy[0]
        name = claimed_model(self._config, proxy) or ""
        model = self._inventory.workload.model(name)
        if model is None:
            raise EngineFailed(f"no model {name!r} is measured")
        return await self._start(
            model, self._inventory.files[name], self._inventory.paths[name], proxy.upstream
        )

    async def standing(self, model: ServedModel, measured: Measurement, upstream: str | None) -> Standing:
        """Make an engine ready for a newly measured model: start one, or take that at `upstream`.

        Raises:
            EngineFailed: as `first`.
            ValueError: the operator named an upstream, and the agent starts its engines itself; or a file is missing.
        """
        if not self._config.engine.start:
            return Standing(upstream, self.link, _nothing_to_stop)
        if upstream is not None:
            raise ValueError("this agent starts its engine itself, at an address of its own choice")
        if measured.folder is None and len(measured.files) != 1:
            raise ValueError("an engine is started with one file or one folder")
        path = measured.folder or measured.files[0].path
        assert path is not None
        address = f"http://127.0.0.1:{free_port()}"
        return await self._start(model, MeasuredFiles.of(measured), path, address)

    async def _start(self, model: ServedModel, files: MeasuredFiles, path: Path, upstream: str) -> Standing:
        section, engine = self._config.engine, self._inventory.engine
        assert engine is not None
        assert self._checked is not None
        plan = EnginePlan(
            engine,
            fill(section.arguments, path, urlsplit(upstream).port or 80),
            engine_variables(self._config),
            upstream.rstrip("/") + section.ready_path,
            files,
            section.on_exit,
            section.ready_seconds,
        )
        started = await StartedEngine(plan).__aenter__()
        watching = asyncio.create_task(self._watch(started))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)

        async def stop() -> None:
            watching.cancel()
            await started.__aexit__(None, None, None)

        return Standing(
            upstream, StartedLink(started, self._checked, frozenset((model.key, model.name))), stop
        )

    async def _watch(self, started: StartedEngine) -> None:
        await started.ended.wait()
        self.ended.set()


async def _nothing_to_stop() -> None:
    """Leave an engine that somebody else started alone."""
