# SPDX-License-Identifier: Apache-2.0
"""Refusals: answers of our own that are not successes, without an HTTP library (docs/spec/serving.md).

The proxy's side of them is `quotary_attest.serving.errors`. The middleware uses these as they are, inside engines
that may have no HTTP library of ours.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Final

from quotary_attest.engine.errors import AgentError, Busy, NotQuotable, NotServed, Unavailable, UnknownOutput
from quotary_attest.log.errors import NotFound, StoreError
from quotary_attest.roots import RootError
from quotary_attest.serving.paths import Api

logger = logging.getLogger("quotary.serving")

INVALID = "invalid_request_error"
SERVER = "server_error"

_OLLAMA: Final = frozenset((Api.OLLAMA_CHAT, Api.OLLAMA_GENERATE))


class Refusal(Exception):  # noqa: N818 - it is an answer
    """An answer of our own that is not a success. `message` is for people and holds nothing of the request."""

    def __init__(
        self, status: int, code: str, message: str, *, kind: str = "", retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.kind = kind or (SERVER if status >= 500 else INVALID)
        self.retry_after = retry_after


def error_body(refusal: Refusal, api: Api = Api.NONE) -> bytes:
    """Return the JSON text of a refusal, in the shape that clients of the API know."""
    return json.dumps(_error(refusal, api)).encode()


def _error(refusal: Refusal, api: Api) -> dict[str, Any]:
    message = str(refusal)
    if api in _OLLAMA:
        return {"error": message, "code": refusal.code}
    if api is Api.MESSAGES:
        kind = "api_error" if refusal.kind == SERVER else refusal.kind
        return {"type": "error", "error": {"type": kind, "message": message, "code": refusal.code}}
    return {"error": {"message": message, "type": refusal.kind, "param": None, "code": refusal.code}}


def error_event(refusal: Refusal, api: Api = Api.CHAT, sequence: int = 0) -> bytes:
    """Return what ends a running stream of an API with an error; `sequence` numbers an event of responses."""
    if api in _OLLAMA:
        return error_body(refusal, api) + b"\n"
    if api is Api.RESPONSES:
        error = _error(refusal, api)
        named = {key: error["error"][key] for key in ("code", "message", "param")}
        # the members are those of the API's event; official clients raise for a member named `error` only
        data = {"type": "error", **named, "sequence_number": sequence, **error}
        return b"event: error\ndata: " + json.dumps(data).encode() + b"\n\n"
    kind = b"event: error\n" if api is Api.MESSAGES else b""
    return kind + b"data: " + error_body(refusal, api) + b"\n\n"


# The first type that fits counts, so what is special stands before what is general.
_MEANINGS: tuple[tuple[type[Exception], int, str, str, int | None], ...] = (
    (UnknownOutput, 404, "unknown_output", "there is no attestation of this output", None),
    (NotFound, 404, "not_found", "nothing is published at this path", None),
    (StoreError, 503, "log_unavailable", "the log cannot be read now", 10),
    (Busy, 503, "overloaded", "too many outputs wait to be attested", 1),
    (NotServed, 503, "model_not_measured", "the model behind this path is not measured on this host", None),
    (
        NotQuotable,
        501,
        "not_quotable",
        "this origin has no tpm that could quote: send a nonce with a request",
        None,
    ),
    (Unavailable, 503, "attestation_unavailable", "this host cannot attest outputs now", 10),
    (RootError, 503, "attestation_unavailable", "this host cannot attest outputs now", 10),
    (AgentError, 503, "attestation_failed", "this output could not be attested", None),
)


def refusal_of_agent(error: Exception) -> Refusal | None:
    """Translate what the agent or the log raised; None for an error of another kind."""
    if isinstance(error, Refusal):
        return error
    for kind, status, code, message, retry_after in _MEANINGS:
        if isinstance(error, kind):
            return Refusal(status, code, message, retry_after=retry_after)
    return None


def coded() -> Refusal:
    """Return 502 for an answer with a content coding: what clients read is attested, so none was asked for."""
    return Refusal(
        502,
        "upstream_coding",
        "the model server coded the content of its answer although it was asked not to",
    )


def unexpected(error: Exception) -> Refusal:
    """Return 500 for an error that nobody expects, without a word of it."""
    logger.error("unexpected %s while answering a request", type(error).__name__)
    return Refusal(500, "internal_error", "the request could not be answered")
