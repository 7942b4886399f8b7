# SPDX-License-Identifier: Apache-2.0
"""Proxy processes beside the agent, for more requests than one process can relay (docs/reference/workers.md).

The agent keeps engine, log and TPM; each worker is a process that speaks HTTP on both sides and hands its outputs to
the agent over a socket that it was born with. Every worker has a listening socket of its own on the same address
(SO_REUSEPORT), which the agent keeps open: a worker that dies loses its own streams and nothing else, and connections
that wait for it are served by its successor.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final

from quotary_attest.engine.errors import AgentError
from quotary_attest.enginelink import CONFIGURED_LINK, EngineLink
from quotary_attest.linking.started import StartedLink
from quotary_attest.serving.link.door import LinkDoor
from quotary_attest.serving.orders import READY, Leave, Start, Switch, write_order
from quotary_attest.serving.proxy import ProxyConfig
from quotary_attest.serving.refusals import logger
from quotary_attest.serving.route import Route
from quotary_attest.serving.upstream import Upstream

_START_SECONDS: Final = 30.0
_KILL_SECONDS: Final = 10.0
_FOLLOW_SECONDS: Final = 0.5
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_BACKLOG: Final = 1024


class WorkerFailed(AgentError):  # noqa: N818 - the state reads as itself where it is caught
    """A worker did not come up."""


@dataclass(frozen=True, slots=True)
class WorkerLogs:
    """How workers log (`quotary_attest.logs.set_up`)."""

    form: str = "text"
    level: str = "info"


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


class _One:
    """One worker that runs, and what it has said."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.said: set[str] = set()
        self.news = asyncio.Condition()
        self.ended = False
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        """Take in what it says until it ends."""
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            async with self.news:
                self.said.add(line.decode().rstrip("\n"))
                self.news.notify_all()
        async with self.news:
            self.ended = True
            self.news.notify_all()

    async def heard(self, word: str) -> bool:
        """Wait until it says something; false where it ended without."""
        async with self.news:
            await self.news.wait_for(lambda: word in self.said or self.ended)
            return word in self.said

    def tell(self, order: Start | Switch | Leave) -> None:
        """Give an order; one that has ended takes none."""
        assert self.process.stdin is not None
        with suppress(ConnectionError, RuntimeError):
            self.process.stdin.write(write_order(order))


class Workers:
    """Runs one proxy process for each listening socket; to the rest of the agent it is one proxy.

    An async context manager; the sockets are closed with it.
    """

    def __init__(
        self,
        door: LinkDoor,
        config: ProxyConfig,
        listeners: Sequence[socket.socket],
        *,
        link: EngineLink = CONFIGURED_LINK,
        grace: float = 30.0,
        logs: WorkerLogs = WorkerLogs(),
    ) -> None:
        """`door` takes the workers' outputs. `grace` is how long, in seconds, running answers may take to end when
        the workers are stopped.

        Raises ValueError if the upstream is not a usable URL.
        """
        self._door, self._config, self._listeners = door, config, list(listeners)
        self._grace, self._logs = grace, logs
        self._link = link
        self._sent = _portable(link)
        self._route = Route(Upstream(config.upstream), config.model, link)
        self._switches = 0
        self._numbers: dict[Route, int] = {}
        self._running: dict[int, _One] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers that run."""
        return tuple(worker.process.pid for worker in self._running.values())

    async def __aenter__(self) -> Workers:
        """Start all workers and wait until each listens.

        Raises:
            WorkerFailed: one did not come up; all are stopped then.
        """
        places = range(len(self._listeners))
        starts = [asyncio.create_task(self._start(place)) for place in places]
        try:
            await asyncio.wait(starts)
            for start in starts:
                start.result()
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await self.__aexit__(None, None, None)
            raise
        self._tasks += [asyncio.create_task(self._keep(place)) for place in places]
        self._tasks.append(asyncio.create_task(self._follow()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let every worker stop listening and finish what it has begun."""
        await self.drain(self._grace)
        for listener in self._listeners:
            listener.close()

    async def drain(self, seconds: float, hurry: asyncio.Event | None = None) -> None:
        """Let no request in any more, and running answers end, at most `seconds` or until `hurry` is set."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        workers = list(self._running.values())
        if not workers:
            return
        ended = asyncio.create_task(self._end_all())
        hurrying = asyncio.create_task((hurry or asyncio.Event()).wait())
        limit = min(seconds, self._grace)
        await asyncio.wait((ended, hurrying), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if not ended.done():
            for worker in workers:
                _signal(worker.process)
        await ended

    # -- what a swap asks of a proxy

    @property
    def route(self) -> Route:
        """Where requests go that come now."""
        return self._route

    async def switch(self, upstream: str, model: str | None, link: EngineLink) -> Route:
        """Send the requests that come from now on elsewhere; return where they went. Raises ValueError."""
        before, self._route = self._route, Route(Upstream(upstream), model, link)
        self._switches += 1
        number = self._numbers[before] = self._switches
        self._config = replace(self._config, upstream=upstream, model=model)
        self._link, self._sent = link, _portable(link)
        workers = list(self._running.values())
        for worker in workers:
            worker.tell(Switch(number, upstream, model, self._sent))
        await asyncio.gather(*[worker.heard(f"switched {number}") for worker in workers])
        return before

    async def leave(self, before: Route) -> None:
        """Wait until nothing is on its way on a route that was left."""
        number = self._numbers.pop(before)
        workers = [each for each in self._running.values() if f"switched {number}" in each.said]
        for worker in workers:
            worker.tell(Leave(number))
        await asyncio.gather(*[worker.heard(f"left {number}") for worker in workers])

    async def _follow(self) -> None:
        """Tell the workers which process an engine is that the agent started anew."""
        while True:
            await asyncio.sleep(_FOLLOW_SECONDS)
            if isinstance(self._link, StartedLink) and _portable(self._link) != self._sent:
                route = self._route
                await self.leave(await self.switch(route.upstream.base, route.model, self._link))

    # -- processes

    async def _start(self, place: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            listener = self._listeners[place].fileno()
            order = Start(
                *(self._config, self._sent, theirs.fileno(), listener, self._grace),
                *(self._logs.form, self._logs.level),
            )
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "quotary_attest.serving.worker"),
                stdin=PIPE,
                stdout=PIPE,
                pass_fds=(order.connection, order.listener),
                start_new_session=True,  # Ctrl-C is for the agent, which stops its workers
            )
        worker = self._running[place] = _One(process)
        await self._door.adopt(ours)
        worker.tell(order)
        ready = False
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                ready = await worker.heard(READY)
        if not ready:
            await self._end(place)
            raise WorkerFailed("a proxy worker did not come up", hint="see what it wrote to standard error")
        logger.info("worker %d serves", process.pid)

    async def _keep(self, place: int) -> None:
        """Start a worker anew whenever it dies."""
        pause = _FIRST_PAUSE
        while True:
            worker = self._running.get(place)
            if worker is not None:
                status = await worker.process.wait()
                self._running.pop(place, None)
                logger.error(
                    "worker %d ended with status %d; its streams are lost", worker.process.pid, status
                )
            await asyncio.sleep(pause)
            try:
                await self._start(place)
                pause = _FIRST_PAUSE
            except (WorkerFailed, OSError) as error:
                logger.error("no worker could be started: %s", error)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _end_all(self) -> None:
        await asyncio.gather(*[self._end(place) for place in list(self._running)])

    async def _end(self, place: int) -> None:
        worker = self._running.pop(place)
        process = worker.process
        _signal(process)
        try:
            async with asyncio.timeout(self._grace + _KILL_SECONDS):
                await process.wait()
        except TimeoutError:
            logger.error("worker %d does not stop and is killed", process.pid)
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _signal(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)


def _portable(link: EngineLink) -> EngineLink:
    """Return a link that can be given to another process, and says what `link` says now."""
    return link.now() if isinstance(link, StartedLink) else link
