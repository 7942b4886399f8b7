# SPDX-License-Identifier: Apache-2.0
"""Figures, health and readiness over HTTP, on a listener of their own (docs/reference/metrics.md).

`/metrics` is Prometheus' text format. `/live` answers as long as the event loop runs. `/ready` is 200 where outputs can
be attested now, else 503 with the reason. None of them tells anything of requests or outputs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final

from aiohttp import web

from quotary_attest.serving.errors import http_logger, typed_errors

Outage = Callable[[], Exception | None]
"""Why nothing can be attested now; None while something can."""

_NO_STORE: Final = {"Cache-Control": "no-store"}


async def live(_: web.Request) -> web.StreamResponse:
    """Answer that the event loop runs."""
    return web.json_response({"live": True}, headers=_NO_STORE)


def readiness(outage: Outage) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return the handler that says whether outputs can be attested now, and if not, why."""

    async def ready(_: web.Request) -> web.StreamResponse:
        reason = outage()
        if reason is None:
            return web.json_response({"ready": True}, headers=_NO_STORE)
        body = {"ready": False, "reason": str(reason), "hint": str(getattr(reason, "hint", ""))}
        return web.json_response(body, status=503, headers=_NO_STORE)

    return ready


class HealthServer:
    """The listener as an aiohttp application. Use it as an async context manager, then `listen`."""

    def __init__(self, outage: Outage, figures: Callable[[], bytes], content_type: str) -> None:
        """`figures` returns the text of `/metrics`, which `content_type` names; it is called in a thread."""
        self._figures, self._type = figures, content_type
        app = web.Application(middlewares=[typed_errors])
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/live", live)
        app.router.add_get("/ready", readiness(outage))
        self._runner = web.AppRunner(app, access_log=None, logger=http_logger, shutdown_timeout=1.0)

    async def __aenter__(self) -> HealthServer:
        """Get ready to listen."""
        await self._runner.setup()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def listen(self, host: str, port: int) -> int:
        """Listen on a TCP address; return the port (of use where 0 was asked for)."""
        await web.TCPSite(self._runner, host, port).start()
        bound: int = self._runner.addresses[-1][1]
        return bound

    async def listen_on(self, listener: socket.socket) -> None:
        """Listen on a socket that is bound already."""
        await web.SockSite(self._runner, listener).start()

    async def _metrics(self, _: web.Request) -> web.StreamResponse:
        figures = await asyncio.to_thread(self._figures)  # it asks the disk, too
        return web.Response(body=figures, headers={"Content-Type": self._type, **_NO_STORE})
