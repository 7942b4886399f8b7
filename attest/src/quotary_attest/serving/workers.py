# SPDX-License-Identifier: Apache-2.0
"""Proxy processes beside the agent, for more requests than one process can relay (docs/reference/workers.md).

The agent keeps engine, log and TPM; each worker is a process that speaks HTTP on both sides and hands its outputs to
the agent over a socket that it was born with. Every worker has a listening socket of its own on the same address
(SO_REUSEPORT), which the agent keeps open: a worker that dies loses its own streams and nothing else, and connections
that wait for it are served by its successor.
"""

from __future__ import annotations

import asyncio
import pickle
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from quotary_attest.serving.link.door import LinkDoor
from quotary_attest.serving.proxy import ProxyConfig
from quotary_attest.serving.refusals import logger

READY: Final = b"ready\n"
"""What a worker writes to its standard output once it listens."""

_START_SECONDS: Final = 30.0
_KILL_SECONDS: Final = 10.0
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_BACKLOG: Final = 1024


class WorkerFailed(Exception):  # noqa: N818 - the state reads as itself where it is caught
    """A worker did not come up."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is told as it starts, on its standard input."""

    proxy: ProxyConfig
    link: int
    """File descriptor of its end of the serving link."""
    listener: int
    """File descriptor of its listening socket."""
    log_level: int


def bind_shared(host: str, port: int, count: int) -> list[socket.socket]:
    """Return `count` listening sockets on one TCP address; port 0 takes a free one. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listeners: list[socket.socket] = []
    try:
        for _ in range(count):
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
            address = listener.getsockname()
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


class Workers:
    """Runs one proxy process for each listening socket. An async context manager; the sockets are closed with it."""

    def __init__(
        self,
        door: LinkDoor,
        config: ProxyConfig,
        listeners: Sequence[socket.socket],
        *,
        grace: float = 30.0,
        log_level: int = 20,
    ) -> None:
        """`door` takes the workers' outputs. `grace` is how long, in seconds, running answers may take to end when
        the workers are stopped; `log_level` is one of `logging`."""
        self._door = door
        self._config = config
        self._listeners = list(listeners)
        self._grace = grace
        self._log_level = log_level
        self._running: dict[int, Process] = {}
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers that run."""
        return tuple(process.pid for process in self._running.values())

    async def __aenter__(self) -> Workers:
        """Start all workers and wait until each listens.

        Raises:
            WorkerFailed: one did not come up; all are stopped then.
        """
        starts = [asyncio.create_task(self._start(place)) for place in range(len(self._listeners))]
        try:
            await asyncio.wait(starts)
            for start in starts:
                start.result()
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await self._stop()
            raise
        self._keepers = [asyncio.create_task(self._keep(place)) for place in range(len(self._listeners))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let every worker stop listening and finish what it has begun."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await self._stop()

    async def _start(self, place: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            spec = WorkerSpec(self._config, theirs.fileno(), self._listeners[place].fileno(), self._log_level)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "quotary_attest.serving.worker",
                stdin=PIPE,
                stdout=PIPE,
                pass_fds=(spec.link, spec.listener),
                start_new_session=True,  # Ctrl-C is for the agent, which stops its workers
            )
        self._running[place] = process
        await self._door.adopt(ours)
        assert process.stdin is not None
        assert process.stdout is not None
        said = b""
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                process.stdin.write(pickle.dumps(spec))
                process.stdin.close()
                said = await process.stdout.readline()
        if said != READY:
            await self._end(place)
            raise WorkerFailed("a proxy worker did not come up")
        logger.info("worker %d serves", process.pid)

    async def _keep(self, place: int) -> None:
        """Start a worker anew whenever it dies."""
        pause = _FIRST_PAUSE
        while True:
            process = self._running.get(place)
            if process is not None:
                status = await process.wait()
                self._running.pop(place, None)
                logger.error("worker %d ended with status %d; its streams are lost", process.pid, status)
            await asyncio.sleep(pause)
            try:
                await self._start(place)
                pause = _FIRST_PAUSE
            except (WorkerFailed, OSError) as error:
                logger.error("no worker could be started: %s", error)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _stop(self) -> None:
        await asyncio.gather(*[self._end(place, self._grace) for place in list(self._running)])
        for listener in self._listeners:
            listener.close()

    async def _end(self, place: int, grace: float = 0.0) -> None:
        process = self._running.pop(place)
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace + _KILL_SECONDS):
                await process.wait()
        except TimeoutError:
            logger.error("worker %d does not stop and is killed", process.pid)
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


__all__ = ["READY", "WorkerFailed", "WorkerSpec", "Workers", "bind_shared"]
