# SPDX-License-Identifier: Apache-2.0
"""Errors as HTTP answers: `{"error": {"message", "type", "code"}}` or the like (docs/spec/serving.md).

The shape is that of the APIs that the proxy stands in front of, so that their clients raise what they raise for an
engine's own errors. Nothing of a request or an answer goes into an error or into the log of the process.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from quotary_attest.engine.errors import AgentError
from quotary_attest.roots import RootError
from quotary_attest.serving.notes import note_refusal
from quotary_attest.serving.paths import Api
from quotary_attest.serving.refusals import (
    Refusal,
    error_body,
    logger,
    refusal_of_agent,
    unexpected,
)


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

NOT_ATTESTED: Final = (AgentError, RootError, ValueError)
"""What submitting an output raises where it cannot be attested."""

__all__ = [
    "NOT_ATTESTED",
    "Handler",
    "Refusal",
    "answer",
    "error_body",
    "http_logger",
    "logger",
    "refusal_of",
    "typed_errors",
]


def answer(refusal: Refusal, api: Api = Api.NONE) -> web.Response:
    """Return the answer of a refusal, in the shape that clients of the API know."""
    response = web.Response(
        status=refusal.status, body=error_body(refusal, api), content_type="application/json"
    )
    if refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    note_refusal(response, refusal.code)
    return response


def refusal_of(error: Exception) -> Refusal:
    """Translate what the agent, the log or aiohttp raised; what is unexpected becomes 500 without a word of it."""
    refusal = refusal_of_agent(error)
    if refusal is not None:
        return refusal
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return Refusal(413, "request_too_large", "the request is too large")
    if isinstance(error, web.HTTPException):
        return Refusal(error.status, "http_error", error.reason.lower())
    return unexpected(error)


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
