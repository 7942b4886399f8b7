# SPDX-License-Identifier: Apache-2.0
"""Servers of the kind that take ASGI middleware, real ones, whose applications answer as a test scripts it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from quotary_attest.serving.asgi import Attest, Settings
from quotary_attest.serving.link.door import LinkConfig, LinkDoor

Answer = Callable[[Request], Awaitable[Response]]
CHAT = "/v1/chat/completions"


@dataclass
class Served:
    """A server with the middleware in it, and a client of it."""

    client: aiohttp.ClientSession
    url: str
    requests: list[Request] = field(default_factory=list)
    socket: Path = Path()

    def post(self, body: bytes = b"{}", path: str = CHAT, **kwargs: Any) -> Any:
        """Send a request."""
        return self.client.post(self.url + path, data=body, **kwargs)

    def get(self, path: str, **kwargs: Any) -> Any:
        """Get something."""
        return self.client.get(self.url + path, **kwargs)


@asynccontextmanager
async def uvicorn_on(app: Any) -> AsyncIterator[str]:
    """Run an application on a port of its own, in this loop."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=2))
    running = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(20):
            while not server.started:
                assert not running.done()
                await asyncio.sleep(0.002)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await running


@asynccontextmanager
async def served(
    attester: Any, script: Answer, folder: Path, *, agent: bool = True, **settings: Any
) -> AsyncIterator[Served]:
    """Run an application whose every POST is answered by `script`, with the middleware, and an agent's door."""
    path = folder / "link.sock"
    state: list[Request] = []

    async def endpoint(request: Request) -> Response:
        state.append(request)
        return await script(request)

    routes = [Route("/{path:path}", endpoint, methods=["GET", "POST", "PUT"])]
    made = Settings(path, **settings)
    app = Starlette(routes=routes, middleware=[Middleware(Attest, settings=made)])
    door = LinkDoor(attester, LinkConfig(path))
    if agent:
        await door.__aenter__()
    try:
        async with uvicorn_on(app) as url, aiohttp.ClientSession(auto_decompress=False) as client:
            yield Served(client, url, state, path)
    finally:
        if agent:
            await door.__aexit__(None, None, None)
