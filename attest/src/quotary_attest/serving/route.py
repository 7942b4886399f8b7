# SPDX-License-Identifier: Apache-2.0
"""Where a proxy's requests go: an engine, the model that its answers claim, and what ties the one to the other.

A proxy has one route at a time. Another can take its place while answers of the first are still on their way; each
request keeps the route that it began with (docs/howto/models.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from quotary_attest.enginelink import CONFIGURED_LINK, EngineLink, TcpPeer, Tie
from quotary_attest.serving.upstream import Upstream


class Route:
    """One engine behind a proxy. `model` is a name or key of the epoch in force, None to claim no model."""

    def __init__(self, upstream: Upstream, model: str | None, link: EngineLink = CONFIGURED_LINK) -> None:
        self.upstream = upstream
        self.model = model
        self._link = link
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def busy(self) -> int:
        """How many requests are on their way."""
        return self._busy

    @contextmanager
    def carrying(self) -> Iterator[Route]:
        """Count one request for the block: from its first byte to the hand-in of its output."""
        self._busy += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until nothing is on its way."""
        await self._idle.wait()

    def tie(self, peer: TcpPeer | None) -> Tie | None:
        """Check the engine at the other end of a request's connection; None where no model is claimed."""
        return None if self.model is None else Tie(self._link, self.model, peer)
