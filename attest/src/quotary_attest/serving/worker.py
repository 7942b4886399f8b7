# SPDX-License-Identifier: Apache-2.0
"""One proxy worker, as a process: `python -m quotary_attest.serving.worker`. Only an agent starts it.

It is told what to do on its standard input (`quotary_attest.serving.orders`) and says on its standard output when that
is done. It never outlives its agent: where the serving link is lost it stops listening, and its answers end in errors.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from contextlib import suppress
from typing import Final

from quotary_attest import logs, memory
from quotary_attest.metrics import Tally
from quotary_attest.serving.link.client import RemoteAttester
from quotary_attest.serving.orders import READY, Leave, Start, Switch, read_order
from quotary_attest.serving.proxy import Proxy
from quotary_attest.serving.route import Route

_LINK_SECONDS: Final = 20.0
_ORPHAN_SECONDS: Final = 1.0
_TELL_SECONDS: Final = 1.0
_LOG: Final = logging.getLogger("quotary.serving")


class Worker:
    """A proxy, and the orders that it follows."""

    def __init__(self, start: Start, orders: asyncio.StreamReader) -> None:
        self._start, self._orders = start, orders
        self._tally = Tally()
        self._left: dict[int, Route] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told)

    def _told(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self) -> bool:
        """Serve until SIGTERM, or until the agent is gone; tell whether it came up."""
        start = self._start
        async with RemoteAttester(socket.socket(fileno=start.connection)) as attester:
            if not await attester.ready(_LINK_SECONDS):
                return False
            proxy = Proxy(attester, start.proxy, self._tally, link=start.link)
            await proxy.__aenter__()
            try:
                await proxy.listen_on(socket.socket(fileno=start.listener))
                memory.settle()
                say(READY)
                chores = (self._follow(proxy), self._count(attester))
                self._tasks |= {asyncio.create_task(chore) for chore in chores}
                await _first(self._stop, attester.gone)
                if not attester.gone.is_set():
                    await proxy.drain(start.grace, self._hurry)
            finally:
                for task in self._tasks:
                    task.cancel()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_ORPHAN_SECONDS if attester.gone.is_set() else None):
                        await proxy.__aexit__(None, None, None)
                attester.count(self._tally.take())
        return True

    async def _follow(self, proxy: Proxy) -> None:
        """Do what the agent says; a worker that cannot makes way for one that can."""
        try:
            await self._obey(proxy)
        except Exception as error:
            _LOG.error("a worker cannot do what it is told: %s", type(error).__name__)
            self._stop.set()

    async def _obey(self, proxy: Proxy) -> None:
        while (order := await read_order(self._orders)) is not None:
            if isinstance(order, Switch):
                self._left[order.number] = await proxy.switch(order.upstream, order.model, order.link)
                say(f"switched {order.number}")
            elif isinstance(order, Leave) and (route := self._left.pop(order.number, None)) is not None:
                # others may be told meanwhile
                task = asyncio.create_task(self._leave(proxy, order.number, route))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _leave(self, proxy: Proxy, number: int, route: Route) -> None:
        await proxy.leave(route)
        say(f"left {number}")

    async def _count(self, attester: RemoteAttester) -> None:
        """Hand over, now and then, what was counted."""
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            if sums := self._tally.take():
                attester.count(sums)


async def _first(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


def say(word: str) -> None:
    """Tell the agent."""
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def work() -> bool:
    """Be told how to start, and serve."""
    orders = asyncio.StreamReader(limit=1 << 20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    start = await read_order(orders)
    if not isinstance(start, Start):
        return False
    logs.set_up(start.log_format, start.log_level)
    try:
        return await Worker(start, orders).run()
    except (OSError, ValueError) as error:
        _LOG.error("a worker cannot serve: %s", error)
        return False


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(work()) else 1)
