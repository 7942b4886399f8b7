# SPDX-License-Identifier: Apache-2.0
"""A running proxy between a client and a scripted engine."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from memory_attester import MemoryAttester
from scripted_engine import Script, ScriptedEngine, scripted_engine
from yarl import URL

from quotary_attest.serving.proxy import Proxy, ProxyConfig
from quotary_verifier.wire.names import parse_output_id

CHAT = "/v1/chat/completions"
REQUEST = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"a secret question"}]}'


class Setup:
    """A proxy between a client session and a scripted engine."""

    def __init__(
        self, engine: ScriptedEngine, attester: MemoryAttester, client: aiohttp.ClientSession, url: str
    ) -> None:
        self.engine, self.attester, self.client, self.url = engine, attester, client, url

    def post(self, body: bytes = REQUEST, path: str = CHAT, **kwargs: Any) -> Any:
        """Send a request."""
        return self.client.post(URL(self.url + path, encoded=True), data=io.BytesIO(body), **kwargs)

    async def raw(self, request: bytes) -> bytes:
        """Send bytes on a connection of their own and return what comes until the proxy closes it."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def running(
    script: Script, attester: MemoryAttester | None = None, **config: Any
) -> AsyncIterator[Setup]:
    """Run engine, proxy and client. Another `upstream` than the engine may be given."""
    attester = attester or MemoryAttester()
    async with (
        scripted_engine(script) as engine,
        Proxy(attester, ProxyConfig(**{"upstream": engine.url, **config})) as proxy,
        aiohttp.ClientSession(auto_decompress=False) as client,
    ):
        port = await proxy.listen("127.0.0.1", 0)
        yield Setup(engine, attester, client, f"http://127.0.0.1:{port}")


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def id_of(answer: aiohttp.ClientResponse) -> bytes:
    return parse_output_id(answer.headers["Quotary-Output"])


async def read_cut_off(answer: aiohttp.ClientResponse) -> bytes:
    """Read a body that must break off, and return what came of it."""
    body = b""
    try:
        while piece := await answer.content.readany():
            body += piece
    except aiohttp.ClientPayloadError:
        return body
    raise AssertionError("the answer ended properly")
