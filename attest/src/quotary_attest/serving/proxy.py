# SPDX-License-Identifier: Apache-2.0
"""The attesting proxy in front of an OpenAI-compatible server (docs/spec/serving.md, design sections 3 and 4).

`POST /v1/chat/completions` and `POST /v1/completions` are attested, plain and streamed. Below `/quotary/v1/` the proxy
answers itself: attestations by id, and the published log. Everything else passes through and says that it is not
attested.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import aiohttp
from aiohttp import web

from quotary_attest.serving.attester import Attester
from quotary_attest.serving.doors import PREFIXES as DOOR_PREFIXES
from quotary_attest.serving.doors import add_doors
from quotary_attest.serving.errors import (
    Handler,
    Refusal,
    answer,
    http_logger,
    logger,
    refusal_of,
    typed_errors,
)
from quotary_attest.serving.headers import (
    ATTESTED,
    OUTPUT,
    drop_body_digests,
    is_identity,
    nonce_of,
    request_headers,
    response_headers,
)
from quotary_attest.serving.pages import open_to_pages
from quotary_attest.serving.reading import FETCH_SECONDS, PUBLISHED, fetching, publishing, stating
from quotary_attest.serving.relay import StreamRelay, WholeRelay, is_json, pass_through
from quotary_attest.serving.ticket import Recorder, Ticket
from quotary_attest.serving.upstream import Upstream
from quotary_verifier.wire.records import ContextValue

CHAT_PATH: Final = "/v1/chat/completions"
COMPLETIONS_PATH: Final = "/v1/completions"
_OWN: Final = "/quotary/v1"


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """What an operator sets. Sizes are in bytes.

    `model` is the name under which the agent measured the weights that the engine behind this proxy serves, None to
    claim no model; `engine` is the engine's name as the record's context states it.
    """

    upstream: str
    model: str | None = None
    engine: str | None = None
    max_request: int = 64 * 1024 * 1024
    max_held: int = 16 * 1024 * 1024
    """The longest answer that is held whole; a longer one streams, and its attestation is fetched by id."""
    max_inband: int = 256 * 1024
    """The longest attestation that goes into a body."""
    fetch_seconds: float = FETCH_SECONDS
    connect_timeout: float = 10.0
    doors: bool = True
    """Whether the proxy itself answers the paths of `quotary_attest.serving.doors`; else they pass to the engine."""


class Proxy:
    """The proxy as an aiohttp application. Use it as an async context manager, then `listen`."""

    def __init__(self, attester: Attester, config: ProxyConfig) -> None:
        """Raises ValueError if the upstream is not a usable URL."""
        self._config = config
        self._recorder = Recorder(attester)
        self._upstream = Upstream(config.upstream, connect_timeout=config.connect_timeout)
        app = web.Application(
            middlewares=[_own_errors_marked, typed_errors], client_max_size=config.max_request
        )
        app.router.add_post(CHAT_PATH, self._attested)
        app.router.add_post(COMPLETIONS_PATH, self._attested)
        doors = DOOR_PREFIXES if config.doors else ()
        open_to_pages(app, _OWN + "/", *doors)
        if config.doors:
            add_doors(app, attester, seconds=config.fetch_seconds)
        fetch = fetching(attester, seconds=config.fetch_seconds, aliases=True)
        app.router.add_get(_OWN + "/attestations/{id}", fetch)
        app.router.add_get(_OWN + "/statement", stating(attester))
        app.router.add_get(f"{_OWN}/{PUBLISHED}", publishing(attester))
        app.router.add_route("*", "/quotary{rest:(?:/.*)?}", _nothing_here)
        app.router.add_route("*", "/{path:.*}", self._forwarded)
        # A client that goes away must not leave the engine working, so its handler is cancelled.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, auto_decompress=False, access_log=None, logger=http_logger
        )

    async def __aenter__(self) -> Proxy:
        """Open the client towards the engine."""
        await self._upstream.__aenter__()
        await self._runner.setup()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening, end what runs, and wait until every output that was handed in is answered."""
        await self._runner.cleanup()
        await self._recorder.close()
        await self._upstream.__aexit__(kind, error, trace)

    async def listen(self, host: str, port: int) -> int:
        """Listen on a TCP address; return the port (of use where 0 was asked for)."""
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        bound: int = self._runner.addresses[-1][1]
        return bound

    async def _attested(self, request: web.Request) -> web.StreamResponse:
        ticket = Ticket(self._recorder, model=self._config.model, context=self._context(request))
        try:
            return await self._exchange(request, ticket)
        except Exception as error:
            response = answer(refusal_of(error))
            response.headers[OUTPUT] = ticket.text
            response.headers[ATTESTED] = "no"
            return response
        finally:
            ticket.abandon()

    def _context(self, request: web.Request) -> dict[str, ContextValue]:
        context: dict[str, ContextValue] = {"endpoint": request.path}
        if self._config.engine is not None:
            context["engine"] = self._config.engine
        return context

    async def _exchange(self, request: web.Request, ticket: Ticket) -> web.StreamResponse:
        nonce = nonce_of(request.headers)
        body = await request.read()
        await ticket.announce(body, nonce)
        upstream = await self._upstream.send(request, request_headers(request.headers), body)
        try:
            return await self._relay(request, ticket, upstream)
        finally:
            upstream.close()

    async def _relay(
        self, request: web.Request, ticket: Ticket, upstream: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        headers = response_headers(upstream.headers)
        headers[OUTPUT] = ticket.text
        if not is_identity(upstream.headers):
            logger.warning("output %s has a content coding and is not attested", ticket.text)
            ticket.abandon()
            return await pass_through(request, upstream, headers)
        drop_body_digests(headers)
        chat = request.path == CHAT_PATH
        limits = self._config
        stream = StreamRelay(ticket, request, upstream, chat=chat, max_inband=limits.max_inband)
        if not _is_held(upstream, limits.max_held):
            return await stream.run(headers)
        whole = WholeRelay(ticket, upstream, chat=chat, max_inband=limits.max_inband)
        try:
            body, ended = await whole.read(limits.max_held)
            if ended:
                return await whole.run(headers, body)
        except asyncio.CancelledError:
            whole.client_gone()
            raise
        return await stream.run(headers, body)

    async def _forwarded(self, request: web.Request) -> web.StreamResponse:
        headers = request_headers(request.headers)
        body = request.content if request.body_exists else None
        if body is not None and "Content-Length" in request.headers:
            headers["Content-Length"] = request.headers["Content-Length"]
        upstream = await self._upstream.send(request, headers, body)
        try:
            return await pass_through(request, upstream, response_headers(upstream.headers))
        finally:
            upstream.close()


def _is_held(upstream: aiohttp.ClientResponse, limit: int) -> bool:
    """Tell whether an answer is held whole: JSON, or of a known length that is not too long; never a stream."""
    if upstream.content_type == "text/event-stream":
        return False
    length = upstream.content_length
    return length <= limit if length is not None else is_json(upstream)


@web.middleware
async def _own_errors_marked(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Say of every error of the proxy's own that it is not attested."""
    response = await handler(request)
    if response.status >= 400 and not response.prepared and OUTPUT not in response.headers:
        response.headers[ATTESTED] = "no"
    return response


async def _nothing_here(_: web.Request) -> web.StreamResponse:
    raise Refusal(404, "not_found", "there is nothing at this path")
