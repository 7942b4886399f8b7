# SPDX-License-Identifier: Apache-2.0
"""Blocking calls to a device, one at a time, each in a thread of its own and with a deadline.

A call into a driver cannot be broken off. So a caller who gives up leaves its thread behind; the next one waits for
that thread within its own deadline, and nothing is started beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from quotary_attest.tee.errors import TeeGone

T = TypeVar("T")

_Outcome = tuple[Any, BaseException | None]


class Calls:
    """Calls to the device that `name` names in messages; `deadline` in seconds, waiting for others included."""

    def __init__(self, name: str, deadline: float) -> None:
        self._name = name
        self._deadline = deadline
        self._running: asyncio.Future[_Outcome] | None = None
        self._turn = asyncio.Lock()

    async def run(self, job: Callable[[], T]) -> T:
        """Return what `job` returns, or raise what it raises; TeeGone when the deadline passes."""
        try:
            async with asyncio.timeout(self._deadline):
                async with self._turn:
                    result, error = await self._run(job)
        except TimeoutError:
            raise TeeGone(
                f"{self._name} did not answer within {self._deadline:g} seconds",
                hint="see the kernel's log (`dmesg`), and whether other programs ask it all the time",
            ) from None
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    async def _run(self, job: Callable[[], T]) -> _Outcome:
        if self._running is not None:
            await asyncio.wait({self._running})
        loop = asyncio.get_running_loop()
        running: asyncio.Future[_Outcome] = loop.create_future()
        self._running = running
        threading.Thread(target=_work, args=(job, loop, running), name="quotary-tee", daemon=True).start()
        await asyncio.wait({running})  # unlike awaiting it, this leaves it alone where we are cancelled
        return running.result()


def _work(job: Callable[[], Any], loop: asyncio.AbstractEventLoop, done: asyncio.Future[_Outcome]) -> None:
    outcome: _Outcome = (None, None)
    try:
        outcome = (job(), None)
    except BaseException as error:
        outcome = (None, error)
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(done.set_result, outcome)
