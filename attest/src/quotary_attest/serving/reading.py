# SPDX-License-Identifier: Apache-2.0
"""Handlers that only read: attestations by id, and the published log (docs/spec/serving.md)."""

from __future__ import annotations

import asyncio

from aiohttp import web

from quotary_attest.serving.attester import Attester
from quotary_attest.serving.errors import Handler, Refusal
from quotary_verifier.errors import MalformedError
from quotary_verifier.wire.attestation import MEDIA_TYPE
from quotary_verifier.wire.names import parse_output_id

FETCH_SECONDS = 30.0
"""How long a fetch waits for an output that is still being made or committed."""

_IMMUTABLE = "public, max-age=31536000, immutable"
_MOVING = "no-cache"
_BYTES = "application/octet-stream"
_TEXT = "text/plain; charset=utf-8"


def fetching(attester: Attester, *, seconds: float = FETCH_SECONDS) -> Handler:
    """Return the handler of `GET …/attestations/{id}`, which waits until the output's commit is durable."""

    async def fetch(request: web.Request) -> web.StreamResponse:
        try:
            output_id = parse_output_id(request.match_info["id"])
        except MalformedError as error:
            raise Refusal(400, "bad_output_id", str(error)) from None
        try:
            attestation = await attester.fetch(output_id, seconds)
        except TimeoutError:
            raise Refusal(504, "not_yet", "this output is not attested yet", retry_after=1) from None
        # whoever knows the id may fetch, so no cache on the way may keep the answer
        headers = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"}
        return web.Response(body=attestation, headers=headers)

    return fetch


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
        return web.Response(body=data, headers=headers)

    return publish


PUBLISHED = "{path:checkpoint|(?:tile|history|blob|cosigned)/.+}"
"""The route of what is published, below a prefix."""
