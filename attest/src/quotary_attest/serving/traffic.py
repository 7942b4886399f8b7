# SPDX-License-Identifier: Apache-2.0
"""The requests that are being answered: what there is to count of each, and how they end where the agent stops.

Whoever makes an answer notes on it what it is (`quotary_attest.serving.notes`); the middleware counts it once, when
the handler is done.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from quotary_attest.metrics import NO_METRICS, ServingMetrics
from quotary_attest.serving.errors import Handler
from quotary_attest.serving.notes import count_answer


class Traffic:
    """Counts, and knows which requests are being answered. `middleware` must be the outermost."""

    def __init__(self, metrics: ServingMetrics = NO_METRICS) -> None:
        self._metrics = metrics
        self._running: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._follow(request, handler)

        self.middleware = middleware

    @property
    def running(self) -> int:
        """How many requests are being answered."""
        return len(self._running)

    async def _follow(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a handler runs in a task")
        self._running.add(task)
        self._idle.clear()
        try:
            response = await handler(request)
        finally:
            self._running.discard(task)
            if not self._running:
                self._idle.set()
        count_answer(response, self._metrics)
        return response

    async def until_idle(self, seconds: float, hurry: asyncio.Event | None = None) -> bool:
        """Wait until nothing is being answered, at most `seconds` or until `hurry` is set; return whether it is so."""
        waits = [asyncio.create_task(event.wait()) for event in (self._idle, hurry) if event is not None]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        return self._idle.is_set()

    def cancel(self) -> None:
        """Break off whatever is still being answered."""
        for task in self._running:
            task.cancel()
