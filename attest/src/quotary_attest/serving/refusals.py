# SPDX-License-Identifier: Apache-2.0
"""Refusals: answers of our own that are not successes, without an HTTP library (docs/spec/serving.md).

The proxy's side of them is `quotary_attest.serving.errors`. The middleware uses these as they are, inside engines
that may have no HTTP library of ours.
"""

from __future__ import annotations

import json
import logging

from quotary_attest.engine.errors import AgentError, Busy, NotServed, Unavailable, UnknownOutput
from quotary_attest.log.errors import NotFound, StoreError
from quotary_attest.roots import RootError

logger = logging.getLogger("quotary.serving")

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
)


def refusal_of_agent(error: Exception) -> Refusal | None:
    """Translate what the agent or the log raised; None for an error of another kind."""
    if isinstance(error, Refusal):
        return error
    for kind, status, code, message, retry_after in _MEANINGS:
        if isinstance(error, kind):
            return Refusal(status, code, message, retry_after=retry_after)
    return None


def unexpected(error: Exception) -> Refusal:
    """Return 500 for an error that nobody expects, without a word of it."""
    logger.error("unexpected %s while answering a request", type(error).__name__)
    return Refusal(500, "internal_error", "the request could not be answered")
