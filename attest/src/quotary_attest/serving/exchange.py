# SPDX-License-Identifier: Apache-2.0
"""One request to an attested path and its answer, or one that passes through (docs/spec/serving.md)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web

from quotary_attest.enginelink import TcpPeer
from quotary_attest.metrics import Unattested
from quotary_attest.serving.aliases import credential_of
from quotary_attest.serving.delivery import DELIVER, Terms, delivery_of
from quotary_attest.serving.errors import NOT_ATTESTED, answer, logger, refusal_of
from quotary_attest.serving.headers import (
    ATTESTED,
    OUTPUT,
    drop_body_digests,
    is_identity,
    nonce_of,
    request_headers,
    response_headers,
)
from quotary_attest.serving.held import Budget, Share, read_request
from quotary_attest.serving.idle import IdleWatch
from quotary_attest.serving.passing import pass_through
from quotary_attest.serving.paths import Api, PathTable
from quotary_attest.serving.reading import FETCH_SECONDS
from quotary_attest.serving.refusals import coded
from quotary_attest.serving.relay import StreamRelay
from quotary_attest.serving.route import Route
from quotary_attest.serving.ticket import Recorder, Ticket
from quotary_attest.serving.whole import WholeRelay, is_held
from quotary_verifier.wire.records import ContextValue


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
    paths: PathTable = field(default_factory=PathTable)
    """Which API each path speaks."""
    when_unavailable: Literal["refuse", "pass"] = "refuse"
    """What becomes of answers while nothing can be attested: refused, or passed on and marked unattested."""
    max_held_total: int = 512 * 1024 * 1024
    """Bytes of requests and answers that are held at a time, all together."""
    idle_seconds: float | None = 600.0
    """How long an engine may be silent within an answer before it counts as gone; None: for ever."""


class Exchanges:
    """All that goes between clients and one engine."""

    def __init__(self, config: ProxyConfig, recorder: Recorder, route: Route, watch: IdleWatch) -> None:
        """`route` is where requests go; another may be put in its place at any time."""
        self._config = config
        self._recorder = recorder
        self.route = route
        self._watch = watch
        self._budget = Budget(config.max_held_total)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request that is not for the proxy itself, by the API that its path speaks."""
        api = self._config.paths.api_of(request.method, request.rel_url.raw_path)
        return await (self._passed(request) if api is Api.NONE else self._attested(request, api))

    async def _passed(self, request: web.Request) -> web.StreamResponse:
        headers = request_headers(request.headers)
        body = request.content if request.body_exists else None
        if body is not None and "Content-Length" in request.headers:
            headers["Content-Length"] = request.headers["Content-Length"]
        with self.route.carrying() as route:
            upstream = await route.upstream.send(request, headers, body)
            try:
                return await pass_through(request, upstream, response_headers(upstream.headers))
            finally:
                upstream.close()

    async def _attested(self, request: web.Request, api: Api) -> web.StreamResponse:
        with self.route.carrying() as route:
            return await self._answered(request, api, route)

    async def _answered(self, request: web.Request, api: Api, route: Route) -> web.StreamResponse:
        ticket = Ticket(
            self._recorder,
            model=route.model,
            context=self._context(request),
            credential=credential_of(request.headers),
        )
        try:
            with self._budget.share() as share:
                return await self._exchange(request, ticket, api, share, route)
        except Exception as error:
            response = answer(refusal_of(error), api)
            response.headers[OUTPUT] = ticket.text
            response.headers[ATTESTED] = "no"
            return response
        finally:
            ticket.abandon()

    def _context(self, request: web.Request) -> dict[str, ContextValue]:
        context: dict[str, ContextValue] = {"endpoint": request.rel_url.raw_path}
        if self._config.engine is not None:
            context["engine"] = self._config.engine
        return context

    async def _exchange(
        self, request: web.Request, ticket: Ticket, api: Api, share: Share, route: Route
    ) -> web.StreamResponse:
        config = self._config
        delivery = delivery_of(request.headers.getall(DELIVER, ()))
        terms = Terms(api, delivery, config.max_inband, config.when_unavailable == "pass")
        nonce = nonce_of(request.headers)
        headers = request_headers(request.headers)
        body = await read_request(request, config.max_request, share)
        try:
            await ticket.announce(body, nonce)
        except NOT_ATTESTED as error:
            if not terms.lenient:
                raise
            logger.warning("output %s goes out unattested: %s", ticket.text, type(error).__name__)
        peers: list[TcpPeer] = []
        upstream = await route.upstream.send(request, headers, body, note=peers.append)
        del body
        share.release()
        try:
            ticket.tie = route.tie(peers[-1] if peers else None)
            return await self._relay(request, ticket, terms, upstream, share)
        finally:
            upstream.close()

    async def _relay(
        self,
        request: web.Request,
        ticket: Ticket,
        terms: Terms,
        upstream: aiohttp.ClientResponse,
        share: Share,
    ) -> web.StreamResponse:
        headers = response_headers(upstream.headers)
        headers[OUTPUT] = ticket.text
        if ticket.open and not is_identity(upstream.headers):
            if not terms.lenient:
                raise coded()
            logger.warning("output %s goes out unattested: it has a content coding", ticket.text)
            ticket.abandon()
            return await pass_through(request, upstream, headers, Unattested.CODING)
        if not ticket.open:
            return await pass_through(request, upstream, headers, Unattested.OUTAGE)
        if terms.in_stream or terms.in_object:
            drop_body_digests(headers)
        begun = b""
        if is_held(upstream, self._config.max_held):
            whole = WholeRelay(ticket, upstream, terms)
            try:
                begun, ended = await whole.read(self._config.max_held, share, self._watch)
                if ended:
                    return await whole.run(request, headers, begun)
            except asyncio.CancelledError:
                whole.client_gone()
                raise
        stream = StreamRelay(ticket, request, upstream, terms, self._watch)
        return await stream.run(headers, begun)
