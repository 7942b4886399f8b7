# SPDX-License-Identifier: Apache-2.0
"""An engine that the agent starts itself from the files that it measured, and keeps running (docs/howto/models.md).

Before every start all files must be as they were measured, and the engine is told their paths by the agent, not by
the operator's command line. What answers later is this process or one that it started, or the link is not *started*.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from asyncio.subprocess import DEVNULL
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

import aiohttp

from quotary_attest.enginelink import Peer
from quotary_attest.linking.checked import CheckedLink, MeasuredFiles
from quotary_attest.linking.process_link import ProcessLink
from quotary_attest.linking.processes import Process
from quotary_attest.measuring.files import Identity, MeasuredFile
from quotary_verifier.wire.records import Link

_POLL_SECONDS: Final = 0.1
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
_STDERR: Final = 2
MODEL: Final = "{model}"
PORT: Final = "{port}"

KEPT_ENVIRONMENT: Final = (
    "PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH",
    "PYTHONHOME", "VIRTUAL_ENV", "OMP_NUM_THREADS", "NVIDIA_VISIBLE_DEVICES",
)  # fmt: skip
KEPT_PREFIXES: Final = (
    "LLAMA_", "GGML_", "VLLM_", "SGLANG_", "HF_", "TRANSFORMERS_", "TORCH_", "CUDA_", "NCCL_", "HIP_", "ROCR_",
)  # fmt: skip

_LOG = logging.getLogger("quotary.engine")


class EngineFailed(Exception):  # noqa: N818 - the state reads as itself where it is caught
    """The engine could not be started from the measured files, or did not become ready."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def engine_environment(environ: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that an engine is started with: those that matter to engines, and the operator's own. The
    agent's others stay with it: they may hold its secrets."""
    kept = {
        name: value
        for name, value in environ.items()
        if name in KEPT_ENVIRONMENT or name.startswith(KEPT_PREFIXES)
    }
    return kept | dict(more)


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """How an engine is started. In `arguments` each `{model}` stands for the path of the model's file or folder, and
    `{port}` for a port; `ready_url` answers with a status below 500 once the engine serves."""

    engine: MeasuredFile
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    ready_url: str
    files: MeasuredFiles
    on_exit: Literal["restart", "stop"] = "restart"
    ready_seconds: float = 600.0
    stop_seconds: float = 10.0
    folder: Path | None = field(default=None)
    """The folder that it runs in; None for the agent's own."""


def fill(arguments: Sequence[str], model: Path, port: int) -> tuple[str, ...]:
    """Return a command line's arguments with the model's path and the port in their places.

    Raises ValueError where none has a place for the model: the engine would load something else.
    """
    if not any(MODEL in argument for argument in arguments):
        raise ValueError(f"the engine's arguments have no {MODEL}, so it would not load what was measured")
    return tuple(argument.replace(MODEL, str(model)).replace(PORT, str(port)) for argument in arguments)


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class StartedEngine:
    """Runs one engine. An async context manager: inside it the engine was ready once, and is started again if it ends
    (or `ended` is set, as its plan says)."""

    def __init__(
        self, plan: EnginePlan, *, sleep: Callable[[float], asyncio.Future[None]] | None = None
    ) -> None:
        self.plan = plan
        self.ended = asyncio.Event()
        """Set when the engine is gone and will not be started again."""
        self._child: asyncio.subprocess.Process | None = None
        self.process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._sleep = sleep or asyncio.sleep

    async def __aenter__(self) -> StartedEngine:
        """Start the engine and wait until it is ready.

        Raises:
            EngineFailed: a file is not as it was measured, or the engine ended or was not ready in time.
        """
        try:
            await self._start()
            await self._until_ready()
        except BaseException:
            await self._stop()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="quotary-engine-process")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the engine, with all that it started."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._stop()

    async def _start(self) -> None:
        plan = self.plan
        self._check_files()
        assert plan.engine.path is not None
        try:
            self._child = await asyncio.create_subprocess_exec(
                str(plan.engine.path),
                *plan.arguments,
                stdin=DEVNULL,
                stdout=_STDERR,  # the agent's own standard output is its answer
                env=dict(plan.environment),
                cwd=plan.folder,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineFailed(
                f"the engine cannot be started: {(error.strerror or 'it failed').lower()}"
            ) from error
        self.process = Process.of(self._child.pid)
        _LOG.info("the engine runs as process %d", self._child.pid)

    def _check_files(self) -> None:
        engine = self.plan.engine
        changed = self.plan.files.changed()
        if changed is None and engine.path is not None:
            try:
                same = Identity.of(engine.path.stat()) == engine.identity
            except OSError:
                same = False
            changed = None if same else engine.path
        if changed is not None:
            raise EngineFailed(
                f"{changed.name} is not as it was measured, and the engine is not started from it",
                hint="swap the model, or restart the agent, to measure it anew",
            )

    async def _until_ready(self) -> None:
        assert self._child is not None
        try:
            async with asyncio.timeout(self.plan.ready_seconds), aiohttp.ClientSession() as client:
                while not await _answers(client, self.plan.ready_url):
                    if self._child.returncode is not None:
                        raise EngineFailed(
                            f"the engine ended with status {self._child.returncode} before it was ready",
                            hint="what it wrote stands above",
                        )
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise EngineFailed(f"the engine was not ready within {self.plan.ready_seconds:.0f} s") from None
        self._check_files()  # what it has loaded by now is what was measured

    async def _keep(self) -> None:
        """Start the engine anew whenever it ends, or say that it has ended."""
        pause = _FIRST_PAUSE
        while True:
            assert self._child is not None
            status = await self._child.wait()
            self.process = None
            _LOG.error("the engine ended with status %d", status)
            self._kill_group()
            while self.plan.on_exit == "restart":
                await self._sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                try:
                    await self._start()
                    await self._until_ready()
                except EngineFailed as error:
                    _LOG.error("%s", error)
                    await self._stop()
                    continue
                pause = _FIRST_PAUSE
                break
            else:
                self.ended.set()
                return

    async def _stop(self) -> None:
        child, self.process = self._child, None
        if child is None:
            return
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(self.plan.stop_seconds):
                    await child.wait()
            except TimeoutError:
                _LOG.warning("the engine does not stop and is killed")
        self._kill_group()
        await child.wait()

    def _kill_group(self) -> None:
        """End what the engine may have left behind in its process group. Once, and soon after its end: later the
        number may be another group's."""
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)


async def _answers(client: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with client.get(url, timeout=aiohttp.ClientTimeout(total=2.0)) as answer:
            return answer.status < 500
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


class StartedLink:
    """The link to an engine that the agent started: STARTED for it, and for any other process what a check says."""

    def __init__(self, engine: StartedEngine, checked: CheckedLink, models: frozenset[str]) -> None:
        """`models` is how the model that the engine was started with may be called: its name and key."""
        self._engine, self._checked, self._models = engine, checked, models

    def now(self) -> ProcessLink:
        """Return the same of the process that runs now."""
        return ProcessLink(self._engine.process, self._checked, self._models)

    def link(self, model: str, peer: Peer | None = None) -> Link:
        """Return STARTED where the engine at the other end is the agent's own, else as `CheckedLink.link`."""
        return self.now().link(model, peer)

    def holds(self, model: str) -> bool:
        """Tell whether the model's files are as they were measured."""
        return self._checked.holds(model)
