# SPDX-License-Identifier: Apache-2.0
"""The middleware's own paths: attestations by id, the host's statement, and the published log.

They never reach the application. Knowing an output's id is the right to fetch its attestation; the rest is public.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final
from urllib.parse import parse_qs

from quotary_attest.engine.errors import UnknownOutput
from quotary_attest.serving.aliases import alias_of, credential_of, is_upstream_id
from quotary_attest.serving.asgi.types import Fields, Scope, Send, answer, field
from quotary_attest.serving.attester import STATEMENT_ID, Attester
from quotary_attest.serving.fields import ATTESTED, OUTPUT
from quotary_attest.serving.fulllogs import LOGS, wants_logs, with_logs
from quotary_attest.serving.paths import OWN_PREFIX, Api
from quotary_attest.serving.refusals import Refusal, error_body, refusal_of_agent, unexpected
from quotary_verifier.errors import MalformedError
from quotary_verifier.wire.attestation import MEDIA_TYPE
from quotary_verifier.wire.names import format_output_id, parse_output_id

_OWN: Final = OWN_PREFIX + "/v1/"
_PUBLISHED: Final = re.compile(r"checkpoint|(?:tile|history|blob|cosigned)/.+")


async def serve(route: str, scope: Scope, send: Send, attester: Attester, seconds: float) -> None:
    """Answer a request to a path of the middleware's own; a fetch waits up to `seconds`."""
    try:
        if scope["method"] not in ("GET", "HEAD"):
            raise Refusal(405, "http_error", "method not allowed")
        fields, body = await _found(route.removeprefix(_OWN), scope, attester, seconds)
    except Exception as error:
        await refuse(send, refusal_of_agent(error) or unexpected(error))
        return
    if scope["method"] == "HEAD":
        fields.append(field("content-length", str(len(body))))
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    await answer(send, 200, fields, body)


async def refuse(send: Send, refusal: Refusal, api: Api = Api.NONE, output: str | None = None) -> None:
    """Send an answer of our own that is no success, in the shape of the API."""
    fields = [field("content-type", "application/json"), field(ATTESTED, "no")]
    if output is not None:
        fields.append(field(OUTPUT, output))
    if refusal.retry_after is not None:
        fields.append(field("retry-after", str(refusal.retry_after)))
    if refusal.status == 405:
        fields.append(field("allow", "GET, HEAD"))
    await answer(send, refusal.status, fields, error_body(refusal, api))


async def _found(path: str, scope: Scope, attester: Attester, seconds: float) -> tuple[Fields, bytes]:
    if path.startswith("attestations/"):
        return await _attestation(path.removeprefix("attestations/"), scope, attester, seconds)
    if path == "statement":
        return await _statement(attester, seconds)
    if not _PUBLISHED.fullmatch(path):
        raise Refusal(404, "not_found", "there is nothing at this path")
    data = await asyncio.to_thread(attester.store.serve, path)
    note = path == "checkpoint" or path.startswith("cosigned/")
    fixed = path.startswith(("tile/", "blob/"))
    return [
        field("content-type", "text/plain; charset=utf-8" if note else "application/octet-stream"),
        field("cache-control", "public, max-age=31536000, immutable" if fixed else "no-cache"),
        field("x-content-type-options", "nosniff"),
    ], data


async def _attestation(text: str, scope: Scope, attester: Attester, seconds: float) -> tuple[Fields, bytes]:
    output_id = await _output_id(text, scope, attester)
    query = parse_qs(bytes(scope.get("query_string", b"")).decode("latin-1"), keep_blank_values=True)
    logs = wants_logs(query.get(LOGS, []))
    try:
        attestation = await attester.fetch(output_id, seconds)
    except TimeoutError:
        raise Refusal(504, "not_yet", "this output is not attested yet", retry_after=1) from None
    if logs:
        attestation = await asyncio.to_thread(with_logs, attestation, attester.store)
    # whoever knows the id may fetch, so no cache on the way may keep the answer
    return [
        field("content-type", MEDIA_TYPE),
        field("cache-control", "no-store"),
        field(OUTPUT, format_output_id(output_id)),
    ], attestation


async def _output_id(text: str, scope: Scope, attester: Attester) -> bytes:
    """Return the output that a path names, by our id or, for the same credential, by the engine's."""
    try:
        return parse_output_id(text)
    except MalformedError as error:
        if not is_upstream_id(text):
            raise Refusal(400, "bad_output_id", str(error)) from None
    found = await attester.resolve(alias_of(attester.alias_secret, credential(scope), text))
    if found is None:
        raise UnknownOutput("no output is known by this id")
    return found


async def _statement(attester: Attester, seconds: float) -> tuple[Fields, bytes]:
    try:
        attestation = await attester.fetch(STATEMENT_ID, seconds)
    except UnknownOutput:
        raise Refusal(404, "no_statement", "this host states nothing of what it attests") from None
    return [field("content-type", MEDIA_TYPE), field("cache-control", "no-cache")], attestation


def credential(scope: Scope) -> str:
    """Return what a request identifies its client by."""
    return credential_of(
        {bytes(name).decode("latin-1"): bytes(value).decode("latin-1") for name, value in scope["headers"]}
    )
