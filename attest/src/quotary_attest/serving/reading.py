# SPDX-License-Identifier: Apache-2.0
"""Handlers that only read: attestations by id, the host's statement, and the published log (docs/spec/serving.md)."""

from __future__ import annotations

import asyncio
import re
from hashlib import sha256

from aiohttp import web

from quotary_attest.engine.errors import UnknownOutput
from quotary_attest.serving.aliases import alias_of, credential_of, is_upstream_id
from quotary_attest.serving.attester import STATEMENT_ID, Attester
from quotary_attest.serving.errors import Handler, Refusal
from quotary_attest.serving.fulllogs import LOGS, wants_logs, with_logs
from quotary_attest.serving.headers import OUTPUT
from quotary_verifier.errors import MalformedError
from quotary_verifier.wire.attestation import MEDIA_TYPE
from quotary_verifier.wire.names import format_output_id, parse_output_id

FETCH_SECONDS = 30.0
"""How long a fetch waits for an output that is still being made or committed."""

_FROM = re.compile(r"bytes=([0-9]{1,12})-")
_IMMUTABLE = "public, max-age=31536000, immutable"
_MOVING = "no-cache"
_BYTES = "application/octet-stream"
_TEXT = "text/plain; charset=utf-8"


async def find_output(attester: Attester, request: web.Request, *, aliases: bool) -> bytes:
    """Return the id of the output that the path's `{id}` names: an output id, or, with `aliases`, the id that the
    engine gave it, for the credential that the request carries.

    Raises:
        Refusal: it is neither.
        UnknownOutput: no output has it; the answer is the same whether or not one has it for another credential.
    """
    text = request.match_info["id"]
    try:
        return parse_output_id(text)
    except MalformedError as error:
        if not (aliases and is_upstream_id(text)):
            raise Refusal(400, "bad_output_id", str(error)) from None
    alias = alias_of(attester.alias_secret, credential_of(request.headers), text)
    found = await attester.resolve(alias)
    if found is None:
        raise UnknownOutput("no output is known by this id")
    return found


async def fetch_waiting(attester: Attester, output_id: bytes, seconds: float) -> bytes:
    """Return an attestation, waiting until its commit is durable. Raises Refusal where that takes too long."""
    try:
        return await attester.fetch(output_id, seconds)
    except TimeoutError:
        raise Refusal(504, "not_yet", "this output is not attested yet", retry_after=1) from None


def fetching(attester: Attester, *, seconds: float = FETCH_SECONDS, aliases: bool = False) -> Handler:
    """Return the handler of `GET …/attestations/{id}`, which waits until the output's commit is durable.

    With `aliases` the id may also be the one that the engine gave the output. `?logs=full` asks for the boot logs in
    full.
    """

    async def fetch(request: web.Request) -> web.StreamResponse:
        output_id = await find_output(attester, request, aliases=aliases)
        logs = wants_logs(request.query.getall(LOGS, []))
        attestation = await fetch_waiting(attester, output_id, seconds)
        if logs:
            attestation = await asyncio.to_thread(with_logs, attestation, attester.store)
        # whoever knows the id may fetch, so no cache on the way may keep the answer
        headers = {
            "Content-Type": MEDIA_TYPE,
            "Cache-Control": "no-store",
            OUTPUT: format_output_id(output_id),
        }
        return web.Response(body=attestation, headers=headers)

    return fetch


def stating(attester: Attester, *, seconds: float = FETCH_SECONDS) -> Handler:
    """Return the handler of `GET …/statement`: the attestation of what this host states now."""

    async def state(request: web.Request) -> web.StreamResponse:
        try:
            attestation = await attester.fetch(STATEMENT_ID, seconds)
        except UnknownOutput:
            raise Refusal(404, "no_statement", "this host states nothing of what it attests") from None
        return _tagged(request, attestation, {"Content-Type": MEDIA_TYPE, "Cache-Control": _MOVING})

    return state


def publishing(attester: Attester) -> Handler:
    """Return the handler of the published log: `checkpoint`, `tile/…`, `history/…`, `blob/…`, `cosigned/…`."""

    async def publish(request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        data = await asyncio.to_thread(attester.store.serve, path)
        note = path == "checkpoint" or path.startswith("cosigned/")
        headers = {
            "Content-Type": _TEXT if note else _BYTES,
            "Cache-Control": _IMMUTABLE if path.startswith(("tile/", "blob/")) else _MOVING,
            "X-Content-Type-Options": "nosniff",
        }
        return _ranged(request, data, headers) or _tagged(request, data, headers)

    return publish


def _ranged(request: web.Request, data: bytes, headers: dict[str, str]) -> web.Response | None:
    """Return what follows the first bytes of a blob, for who has these already (RFC 9110 section 14); None for every
    other request, which gets all of it."""
    wanted = _FROM.fullmatch(request.headers.get("Range", ""))
    if wanted is None or request.method != "GET" or not request.match_info["path"].startswith("blob/"):
        return None
    first, size = int(wanted[1]), len(data)
    if first >= size:
        return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
    headers = headers | {"Content-Range": f"bytes {first}-{size - 1}/{size}"}
    return web.Response(status=206, body=data[first:], headers=headers)


def _tagged(request: web.Request, data: bytes, headers: dict[str, str]) -> web.Response:
    """Return an answer with an entity tag, or 304 where the client has these very bytes (RFC 9110 section 13)."""
    response = web.Response(body=data, headers=headers)
    tag = sha256(data).hexdigest()[:32]
    response.etag = tag
    known = request.if_none_match or ()
    if any(etag.value in (tag, "*") for etag in known):
        response = web.Response(status=304, headers={"Cache-Control": headers["Cache-Control"]})
        response.etag = tag
    return response


PUBLISHED = "{path:checkpoint|(?:tile|history|blob|cosigned)/.+}"
"""The route of what is published, below a prefix."""
