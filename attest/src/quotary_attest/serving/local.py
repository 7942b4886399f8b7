# SPDX-License-Identifier: Apache-2.0
"""The local HTTP interface of the agent, on a Unix socket (docs/spec/serving.md).

======  =======================  ==========================================================================
POST    /v1/attest               attest bytes or digests, one or many
GET     /v1/attestations/{id}    an attestation by output id; waits while it is on its way
POST    /v1/quote                a fresh quote over the caller's nonce
GET     /v1/status               the agent's state
POST    /v1/swap                 exchange a model (root and the agent's own user only)
GET     /v1/swap                 how the last exchange goes
GET     /checkpoint, /tile/…, /history/…, /blob/…, /cosigned/…    the published log
======  =======================  ==========================================================================

Every connection's peer is checked, by the credentials that the kernel took when it connected, on every route.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from aiohttp import web

from quotary_attest.engine.outputs import Delivered, NewOutput
from quotary_attest.metrics import NO_METRICS, ServingMetrics
from quotary_attest.serving.attester import Attester
from quotary_attest.serving.errors import Handler, Refusal, http_logger, logger, typed_errors
from quotary_attest.serving.health import live, readiness
from quotary_attest.serving.jsonbody import (
    hexadecimal,
    malformed,
    nonce,
    octets,
    parse_object,
    read_limited,
    take,
)
from quotary_attest.serving.peers import Allowed, listen_on, peer_of
from quotary_attest.serving.reading import FETCH_SECONDS, PUBLISHED, fetching, publishing
from quotary_attest.serving.swap import Swapper, may_swap, order_of
from quotary_attest.serving.ticket import Recorder
from quotary_attest.serving.traffic import Traffic
from quotary_verifier.wire.fresh import MEDIA_TYPE
from quotary_verifier.wire.limits import MAX_OUTPUT_DIGESTS
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.records import Source

MAX_ITEMS: Final = 1024
"""Outputs in one call."""

MAX_QUOTE_REQUEST: Final = 4096
"""Bytes of a request for a fresh quote."""

MAX_SWAP_REQUEST: Final = 8 * 1024 * 1024
"""Bytes of a request to exchange a model, which names all its files."""

_NUMBER = r"(?:0|[1-9][0-9]{0,4})"
_DIGEST_NAME: Final = re.compile(rf"body|(?:text|reasoning)/{_NUMBER}|tool/{_NUMBER}/{_NUMBER}")
_REQUEST: Final = frozenset(("items", "nonce"))
_BYTES: Final = frozenset(("bytes",))
_DIGESTS: Final = frozenset(("digests",))
_QUOTE: Final = frozenset(("nonce",))
_SWAP: Final = frozenset(("model", "paths", "upstream", "replaces", "signature"))
_LONG_BODY: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """What an operator sets. By default only the agent's own user may connect."""

    path: Path
    allowed: Allowed = field(default_factory=lambda: Allowed(frozenset((os.geteuid(),))))
    group: int | None = None
    """The gid that shall own the socket; None leaves the agent's own."""
    mode: int = 0o660
    """Who gets as far as being asked who they are: 0666 where allowed users share no group with the agent."""
    max_request: int = 64 * 1024 * 1024
    """Bytes of a request to attest."""
    fetch_seconds: float = FETCH_SECONDS
    listener: socket.socket | None = None
    """A Unix socket that listens already, such as systemd passes on; group and mode are then its maker's."""


class LocalInterface:
    """The interface as an aiohttp application. An async context manager that listens while it is open."""

    def __init__(
        self,
        attester: Attester,
        config: LocalConfig,
        swapper: Swapper | None = None,
        metrics: ServingMetrics = NO_METRICS,
    ) -> None:
        """Without `swapper` models cannot be exchanged."""
        self._attester = attester
        self._swapper = swapper
        self._config = config
        self._recorder = Recorder(attester)
        self._traffic = Traffic(metrics)
        app = web.Application(middlewares=[self._traffic.middleware, typed_errors, self._only_allowed_peers])
        app.router.add_post("/v1/attest", self._attest)
        app.router.add_get("/v1/attestations/{id}", fetching(attester, seconds=config.fetch_seconds))
        app.router.add_post("/v1/quote", self._quote)
        app.router.add_get("/v1/status", self._status)
        app.router.add_post("/v1/swap", self._swap)
        app.router.add_get("/v1/swap", self._swap)
        app.router.add_get("/v1/live", live)
        app.router.add_get("/v1/ready", readiness(lambda: attester.outage))
        app.router.add_get("/" + PUBLISHED, publishing(attester))
        self._runner = web.AppRunner(app, auto_decompress=False, access_log=None, logger=http_logger)

    async def __aenter__(self) -> LocalInterface:
        """Listen. Raises SocketInUse or OSError."""
        await self._runner.setup()
        config = self._config
        listener = config.listener or listen_on(config.path, mode=config.mode, group=config.group)
        await web.SockSite(self._runner, listener).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening, remove the socket, and wait until every output that was handed in is answered."""
        await self._runner.cleanup()
        if self._config.listener is None:
            self._config.path.unlink(missing_ok=True)
        await self._recorder.close()

    @web.middleware
    async def _only_allowed_peers(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        peer = peer_of(request.transport)
        if peer is None or not self._config.allowed.admits(peer):
            logger.warning("a process of uid %s was refused", "unknown" if peer is None else peer.uid)
            raise Refusal(403, "peer_not_allowed", "this user may not use the agent", kind="permission_error")
        return await handler(request)

    async def _attest(self, request: web.Request) -> web.StreamResponse:
        body = await read_limited(request, self._config.max_request)
        if len(body) <= _LONG_BODY:
            digests, bound = _read_items(body)
        else:  # hashing megabytes must not hold up the streams of the proxy
            digests, bound = await asyncio.to_thread(_read_items, body)
        tasks = [self._start(each, bound) for each in digests]
        # shielded: a caller that goes away does not take back what is on its way into the log
        results = await asyncio.gather(*map(asyncio.shield, tasks))
        answers = [
            {
                "output_id": format_output_id(delivered.output_id),
                "attestation": base64.b64encode(delivered.encoded).decode(),
            }
            for delivered in results
        ]
        return web.json_response({"outputs": answers})

    def _start(self, digests: dict[str, bytes], bound: bytes | None) -> asyncio.Task[Delivered]:
        output_id = self._attester.new_output_id()
        output = NewOutput(output_id, digests, nonce=bound, source=Source.SUBMITTED)
        return self._recorder.start(self._attester.submit(output))

    async def _quote(self, request: web.Request) -> web.StreamResponse:
        value = take(parse_object(await read_limited(request, MAX_QUOTE_REQUEST)), _QUOTE, "the request")
        quote = await self._attester.fresh_quote(nonce(value.get("nonce")))
        return web.Response(body=quote, headers={"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"})

    async def _swap(self, request: web.Request) -> web.StreamResponse:
        peer = peer_of(request.transport)
        if peer is None or not may_swap(peer.uid):
            raise Refusal(
                403, "peer_not_allowed", "this user may not exchange models", kind="permission_error"
            )
        if self._swapper is None:
            raise Refusal(404, "not_found", "this agent exchanges no models")
        if request.method == "POST":
            body = await read_limited(request, MAX_SWAP_REQUEST)
            self._swapper.begin(order_of(take(parse_object(body), _SWAP, "the request")))
        return web.json_response(self._swapper.state())

    async def _status(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(dict(self._attester.status()))


def _read_items(body: bytes) -> tuple[list[dict[str, bytes]], bytes | None]:
    """Return the digests of each item of a request to attest, and the nonce for all of them. Raises Refusal."""
    value = take(parse_object(body), _REQUEST, "the request")
    bound = nonce(value["nonce"]) if "nonce" in value else None
    items = value.get("items")
    if type(items) is not list or not 0 < len(items) <= MAX_ITEMS:
        raise malformed(f"items is not a list of 1 to {MAX_ITEMS}")
    return [_digests(item) for item in items], bound


def _digests(item: Any) -> dict[str, bytes]:
    """Return the output digests of one item of a request. Raises Refusal."""
    if type(item) is not dict:
        raise malformed("an item is not an object")
    if "bytes" in item:
        return {"body": hashlib.sha256(octets(take(item, _BYTES, "an item")["bytes"], "bytes")).digest()}
    digests = take(item, _DIGESTS, "an item").get("digests")
    if type(digests) is not dict or not 0 < len(digests) <= MAX_OUTPUT_DIGESTS:
        raise malformed(f"an item has neither bytes nor 1 to {MAX_OUTPUT_DIGESTS} digests")
    for name in digests:
        if not _DIGEST_NAME.fullmatch(name):
            raise malformed("a digest is not named body, text/N, reasoning/N or tool/N/M")
    return {name: hexadecimal(digest, 32, 32, "a digest") for name, digest in digests.items()}
