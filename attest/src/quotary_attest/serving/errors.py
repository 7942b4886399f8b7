# SPDX-License-Identifier: Apache-2.0
"""Errors as HTTP answers: always `{"error": {"message", "type", "code"}}`, never a traceback (docs/spec/serving.md).

The shape is that of the APIs that the proxy stands in front of, so that their clients raise what they raise for an
engine's own errors. Nothing of a request or an answer goes into an error or into the log of the process.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from quotary_attest.engine.errors import AgentError, Busy, NotServed, Unavailable, UnknownOutput
from quotary_attest.log.errors import NotFound, StoreError
from quotary_attest.roots import RootError

logger = logging.getLogger("quotary.serving")


class _Discreet(logging.Filter):
    """Takes the errors of the HTTP library down to their types: their texts quote what a peer sent."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite a record that carries an exception."""
        if record.exc_info:
            kind = record.exc_info[0]
            record.msg, record.args = "http error: %s", (kind.__name__ if kind else "unknown",)
            record.exc_info = None
        return True


http_logger = logging.getLogger("quotary.serving.http")
"""What the HTTP library logs to."""
http_logger.addFilter(_Discreet())

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

INVALID = "invalid_request_error"
SERVER = "server_error"


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


def error_body(refusal: Refusal) -> bytes:
    """Return the JSON text of a refusal."""
    error = {"message": str(refusal), "type": refusal.kind, "param": None, "code": refusal.code}
    return json.dumps({"error": error}).encode()


def error_event(refusal: Refusal) -> bytes:
    """Return the event that ends a running stream of chat completions or completions with an error."""
    return b"data: " + error_body(refusal) + b"\n\n"


def answer(refusal: Refusal) -> web.Response:
    """Return the answer of a refusal."""
    response = web.Response(status=refusal.status, body=error_body(refusal), content_type="application/json")
    if refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    return response


# The first type that fits counts, so what is special stands before what is general.
_MEANINGS: tuple[tuple[type[Exception], int, str, str, int | None], ...] = (
    (UnknownOutput, 404, "unknown_output", "there is no attestation of this output", None),
    (NotFound, 404, "not_found", "nothing is published at this path", None),
    (StoreError, 503, "log_unavailable", "the log cannot be read now", 10),
    (Busy, 503, "overloaded", "too many outputs wait to be attested", 1),
    (NotServed, 503, "model_not_measured", "the model behind this path is not measured on this host", None),
    (Unavailable, 503, "attestation_unavailable", "this host cannot attest outputs now", 10),
    (RootError, 503, "attestation_unavailable", "this host cannot attest outputs now", 10),
    (AgentError, 503, "attestation_failed", "this output could not be attested", None),
    (web.HTTPRequestEntityTooLarge, 413, "request_too_large", "the request is too large", None),
)


def refusal_of(error: Exception) -> Refusal:
    """Translate what the agent, the log or aiohttp raised; what is unexpected becomes 500 without a word of it."""
    if isinstance(error, Refusal):
        return error
    for kind, status, code, message, retry_after in _MEANINGS:
        if isinstance(error, kind):
            return Refusal(status, code, message, retry_after=retry_after)
    if isinstance(error, web.HTTPException):
        return Refusal(error.status, "http_error", error.reason.lower())
    logger.error("unexpected %s while answering a request", type(error).__name__)
    return Refusal(500, "internal_error", "the request could not be answered")


@web.middleware
async def typed_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception of a handler into an error answer."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        response = answer(refusal_of(error))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception as error:  # the last line of defence before a traceback
        return answer(refusal_of(error))
