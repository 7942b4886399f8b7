# SPDX-License-Identifier: Apache-2.0
"""The attesting proxy in front of an inference server (docs/spec/serving.md, design sections 3 and 4).

What a table of paths knows is attested, plain and streamed. Below `/quotary/v1/` the proxy answers itself: attestations
by id, and the published log. Everything else passes through and says that it is not attested.
"""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType
from typing import Final

from aiohttp import web

from quotary_attest.engine.errors import Unavailable
from quotary_attest.enginelink import CONFIGURED_LINK, EngineLink
from quotary_attest.metrics import NO_METRICS, ServingMetrics
from quotary_attest.serving.attester import Attester
from quotary_attest.serving.doors import PREFIXES as DOOR_PREFIXES
from quotary_attest.serving.doors import add_doors
from quotary_attest.serving.errors import Refusal, http_logger, logger, typed_errors
from quotary_attest.serving.exchange import Exchanges, ProxyConfig
from quotary_attest.serving.headers import ATTESTED, OUTPUT
from quotary_attest.serving.idle import IdleWatch
from quotary_attest.serving.pages import open_to_pages
from quotary_attest.serving.paths import OWN_PREFIX
from quotary_attest.serving.reading import PUBLISHED, fetching, publishing, stating
from quotary_attest.serving.route import Route
from quotary_attest.serving.ticket import Recorder
from quotary_attest.serving.traffic import Traffic
from quotary_attest.serving.upstream import Upstream

__all__ = ["Proxy", "ProxyConfig"]

_OWN: Final = OWN_PREFIX + "/v1"
_LAST_WORDS_SECONDS: Final = 2.0
_BACKLOG: Final = 1024
"""Connections that the kernel takes while the loop is busy; the library's 128 are 60 ms of a load of 2,000 a second."""


class Proxy:
    """The proxy as an aiohttp application. Use it as an async context manager, then `listen`."""

    def __init__(
        self,
        attester: Attester,
        config: ProxyConfig,
        metrics: ServingMetrics = NO_METRICS,
        *,
        link: EngineLink = CONFIGURED_LINK,
    ) -> None:
        """`link` says how the engine behind each connection is tied to the model that is claimed.

        Raises ValueError if the upstream is not a usable URL.
        """
        self._recorder = Recorder(attester)
        upstream = Upstream(config.upstream, connect_timeout=config.connect_timeout)
        self._watch = IdleWatch(config.idle_seconds)
        self._connect_timeout = config.connect_timeout
        self._exchanges = Exchanges(config, self._recorder, Route(upstream, config.model, link), self._watch)
        self._traffic = Traffic(metrics)
        app = web.Application(middlewares=[self._traffic.middleware, typed_errors])
        app.on_response_prepare.append(_mark_own_errors)
        doors = DOOR_PREFIXES if config.doors else ()
        open_to_pages(app, _OWN + "/", *doors)
        if config.doors:
            add_doors(app, attester, lambda: self._exchanges.route.model, seconds=config.fetch_seconds)
        fetch = fetching(attester, seconds=config.fetch_seconds, aliases=True)
        app.router.add_get(_OWN + "/attestations/{id}", fetch)
        app.router.add_get(_OWN + "/statement", stating(attester))
        app.router.add_get(f"{_OWN}/{PUBLISHED}", publishing(attester))
        app.router.add_route("*", OWN_PREFIX + "{rest:(?:/.*)?}", _nothing_here)
        app.router.add_route("*", "/{path:.*}", self._exchanges.handle)
        # A client that goes away must not leave the engine working, so its handler is cancelled.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, auto_decompress=False, access_log=None, logger=http_logger
        )

    async def __aenter__(self) -> Proxy:
        """Open the client towards the engine."""
        await self._exchanges.route.upstream.__aenter__()
        await self._watch.__aenter__()
        await self._runner.setup()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening, end what runs, and wait until every output that was handed in is answered."""
        await self._runner.cleanup()
        await self._recorder.close()
        await self._watch.__aexit__(kind, error, trace)
        await self._exchanges.route.upstream.__aexit__(kind, error, trace)

    @property
    def route(self) -> Route:
        """Where requests go that come now."""
        return self._exchanges.route

    async def switch(self, upstream: str, model: str | None, link: EngineLink) -> Route:
        """Send the requests that come from now on to another engine, or claim another model for the same one.

        Those that began before go on; `leave` waits for them. Returns the route that was in place.

        Raises:
            ValueError: the upstream is not a usable URL.
        """
        server = Upstream(upstream, connect_timeout=self._connect_timeout)
        await server.__aenter__()
        before, self._exchanges.route = self._exchanges.route, Route(server, model, link)
        return before

    async def leave(self, before: Route) -> None:
        """Wait until nothing is on its way on a route that was left, then close its connections."""
        await before.idle()
        await before.upstream.__aexit__(None, None, None)

    async def drain(self, seconds: float, hurry: asyncio.Event | None = None) -> None:
        """Stop listening, and let running answers end.

        After `seconds`, or as soon as `hurry` is set, those that still run end as in an outage: with an error and
        without a proper end. What was handed in by then is attested all the same.
        """
        for site in list(self._runner.sites):
            await site.stop()
        if self._runner.server is not None:
            self._runner.server.pre_shutdown()  # idle connections close, the others after their answer
        if await self._traffic.until_idle(seconds, hurry):
            return
        logger.warning("%d answers are broken off", self._traffic.running)
        self._recorder.cut = Unavailable("the agent is stopping")
        if not await self._traffic.until_idle(_LAST_WORDS_SECONDS):
            self._traffic.cancel()

    async def listen(self, host: str, port: int) -> int:
        """Listen on a TCP address; return the port (of use where 0 was asked for)."""
        site = web.TCPSite(self._runner, host, port, backlog=_BACKLOG)
        await site.start()
        bound: int = self._runner.addresses[-1][1]
        return bound

    async def listen_on(self, listener: socket.socket) -> None:
        """Listen on a socket that is bound already; it is closed with the proxy."""
        await web.SockSite(self._runner, listener, backlog=_BACKLOG).start()


async def _mark_own_errors(_: web.Request, response: web.StreamResponse) -> None:
    """Say of every error of the proxy's own, and of its HTTP library's, that it is not attested."""
    if response.status >= 400 and OUTPUT not in response.headers:
        response.headers[ATTESTED] = "no"


async def _nothing_here(_: web.Request) -> web.StreamResponse:
    raise Refusal(404, "not_found", "there is nothing at this path")
