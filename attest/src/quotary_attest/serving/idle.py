# SPDX-License-Identifier: Apache-2.0
"""Ends answers of engines that have fallen silent (docs/reference/upstream-behaviour.md).

A timer for each piece of each stream would cost more than all else that the proxy does with a piece. One task looks
at all streams from time to time instead, and at how many bytes came of each.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from aiohttp import StreamReader

_LOOKS = 4
"""Looks for each time that an engine may be silent: it is found out at most a quarter late."""


class Waiting:
    """One answer that is being read. Set `engine` while the engine is waited for, and for nobody else."""

    __slots__ = ("content", "engine", "looks", "seen")

    def __init__(self, content: StreamReader) -> None:
        self.content = content
        self.engine = False
        self.seen = -1
        """Bytes that had come at the last look."""
        self.looks = 0
        """Looks in a row at which no more had come."""


class IdleWatch:
    """Watches all answers of a proxy. Use it as an async context manager."""

    def __init__(self, seconds: float | None) -> None:
        """`seconds` is how long an engine may be silent within an answer; None: for ever.

        Raises:
            ValueError: it is not above 0.
        """
        if seconds is not None and not seconds > 0:
            raise ValueError("the time that an engine may be silent is not above 0 seconds")
        self._seconds = seconds
        self._all: set[Waiting] = set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> IdleWatch:
        """Begin to look."""
        if self._seconds is not None:
            self._task = asyncio.create_task(self._look(self._seconds))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def add(self, content: StreamReader) -> Waiting:
        """Watch the body of an answer until it is taken out again."""
        waiting = Waiting(content)
        self._all.add(waiting)
        return waiting

    def remove(self, waiting: Waiting) -> None:
        """Watch a body no more."""
        self._all.discard(waiting)

    async def _look(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds / _LOOKS)
            for waiting in tuple(self._all):
                total = waiting.content.total_bytes
                if not waiting.engine or total != waiting.seen:
                    waiting.seen, waiting.looks = total, 0
                    continue
                # counted in looks, not in time: while this process is held up nobody is silent
                waiting.looks += 1
                if waiting.looks >= _LOOKS:
                    # whoever reads it finds it broken off
                    waiting.content.set_exception(TimeoutError("the model server fell silent"))
                    self._all.discard(waiting)
