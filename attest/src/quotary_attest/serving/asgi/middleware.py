# SPDX-License-Identifier: Apache-2.0
"""The middleware itself: which requests are attested, which are its own, and the link to the agent.

Each process of a server has its own link; the agent tells them apart. The middleware is usually outermost, before
authentication, so it signs nothing of an answer that says who may not ask, and answers its own paths itself.
"""

from __future__ import annotations

import asyncio
from typing import Final

from quotary_attest.serving.asgi import routes
from quotary_attest.serving.asgi.exchange import Exchange
from quotary_attest.serving.asgi.settings import Settings, from_environment
from quotary_attest.serving.asgi.types import (
    OURS,
    App,
    Message,
    Receive,
    Scope,
    Send,
    field,
    route_of,
    without,
)
from quotary_attest.serving.fields import ATTESTED
from quotary_attest.serving.link.client import RemoteAttester
from quotary_attest.serving.paths import OWN_PREFIX, Api
from quotary_attest.serving.ticket import Recorder
from quotary_verifier.wire.records import Source

_FIRST_SECONDS: Final = 2.0
"""How long the very first requests wait for the link; later ones never wait."""


class Attest:
    """Pure ASGI middleware. Made with the application alone, it is configured by the environment."""

    def __init__(self, app: App, settings: Settings | None = None) -> None:
        """Where the environment, or the file it names, cannot be used, the server's start fails, and every request."""
        self._app = app
        self._unusable = ""
        try:
            self._settings = settings or from_environment()
        except ValueError as error:  # raised here, it would pass for an application without a lifespan
            self._settings, self._unusable = Settings(), str(error)
        self._link: RemoteAttester | None = None
        self._recorder: Recorder | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI. Raises ValueError where the settings cannot be used."""
        if self._unusable:
            await self._refuse_start(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _refuse_start(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            raise ValueError(self._unusable)
        await receive()
        await send({"type": "lifespan.startup.failed", "message": self._unusable})

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await self._close()
            await send(message)

        await self._open()
        await self._app(scope, receive, watched)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = route_of(scope)
        if route == OWN_PREFIX or route.startswith(OWN_PREFIX + "/"):
            recorder = await self._open()
            await routes.serve(route, scope, send, recorder.attester, self._settings.fetch_seconds)
            return
        api = self._settings.paths.api_of(scope["method"], route)
        if api is Api.NONE:
            await self._app(scope, receive, _marked(send))
            return
        recorder = await self._open()
        exchange = Exchange(recorder, self._settings, api, scope, receive, send)
        await exchange.run(self._app)

    async def _open(self) -> Recorder:
        """Return what hands outputs to the agent from the loop that runs."""
        link = self._link
        if link is None or self._recorder is None or link.loop is not asyncio.get_running_loop():
            link = self._link = RemoteAttester(self._settings.socket)
            self._recorder = Recorder(link, Source.MIDDLEWARE)
            await link.__aenter__()
        recorder = self._recorder
        if not link.tried.is_set():
            await link.first(_FIRST_SECONDS)
        return recorder

    async def _close(self) -> None:
        link, recorder, self._link, self._recorder = self._link, self._recorder, None, None
        if link is not None and recorder is not None:
            await recorder.close()
            await link.__aexit__(None, None, None)


def _marked(send: Send) -> Send:
    """Say of an answer that it is not attested."""

    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            fields = [*without(message.get("headers", ()), OURS), field(ATTESTED, "no")]
            message = {**message, "headers": fields}
        await send(message)

    return marked
