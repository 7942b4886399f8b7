# SPDX-License-Identifier: Apache-2.0
"""The requests that are being answered: what there is to count of each, and how they end where the agent stops.

Whoever makes an answer notes on it what it is (`note_refusal`, `note_delivery`, `note_unattested`); the middleware
counts it once, when the handler is done.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from quotary_attest.metrics import NO_METRICS, Carried, ServingMetrics, Unattested
from quotary_attest.serving.errors import Handler

_REFUSAL: Final = web.ResponseKey("refusal", str)
_DELIVERY: Final = web.ResponseKey("delivery", Carried)
_UNATTESTED: Final = web.ResponseKey("unattested", Unattested)


def note_refusal(response: web.StreamResponse, code: str) -> None:
    """Note that the answer is, or ended with, an error of our own."""
    response[_REFUSAL] = code


def note_delivery(response: web.StreamResponse, how: Carried) -> None:
    """Note that the answer is attested, and how its client gets the attestation."""
    response[_DELIVERY] = how


def note_unattested(response: web.StreamResponse, why: Unattested) -> None:
    """Note that the answer goes out without an attestation."""
    response[_UNATTESTED] = why


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
        self._count(response)
        return response

    def _count(self, response: web.StreamResponse) -> None:
        if (code := response.get(_REFUSAL)) is not None:
            self._metrics.refused(code)
        elif (how := response.get(_DELIVERY)) is not None:
            self._metrics.delivered(how)
        elif (why := response.get(_UNATTESTED)) is not None:
            self._metrics.unattested(why)

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
