# SPDX-License-Identifier: Apache-2.0
"""What is said over the serving link, and how errors cross it (docs/spec/serving.md, "The serving link")."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final

from quotary_attest.engine.errors import AgentError, Busy, NotServed, StartRefused, Unavailable, UnknownOutput
from quotary_attest.engine.outputs import NewOutput
from quotary_attest.log.errors import NotFound, StoreError
from quotary_attest.roots import RootError
from quotary_verifier.errors import MalformedError
from quotary_verifier.wire import cbor
from quotary_verifier.wire.limits import (
    MAX_CONTEXT_ENTRIES,
    MAX_NONCE,
    MAX_OUTPUT_DIGESTS,
    MAX_TEXT,
    MIN_NONCE,
)
from quotary_verifier.wire.names import OUTPUT_ID_BYTES
from quotary_verifier.wire.records import Link, Source, State

VERSION: Final = 1

STOCK: Final = 2048
"""Output ids that a client has in hand: as many outputs can begin before the agent's next word reaches it."""

MAX_PENDING: Final = 16384
"""Requests of one connection that may wait for their answers, and outputs of it that may be announced."""

_MAX_MESSAGE: Final = 1000
_DIGEST: Final = 32


class Ask(IntEnum):
    """Operations of a client. Those without an answer have the number 0."""

    SUBMIT = 1
    RESERVE = 2
    ABANDON = 3
    ALIAS = 4
    RESOLVE = 5
    FETCH = 6
    CANCEL = 7
    QUOTE = 8
    SERVE = 9
    PING = 10
    COUNT = 11


class Tell(IntEnum):
    """What the agent says of itself, with the number 0."""

    HELLO = 1
    OUTAGE = 2
    IDS = 3
    REFUSED = 4


OK: Final = 0
"""The status of an answer that is a result; any other is an error."""

# The first type that fits counts, so what is special stands before what is general.
_ERRORS: Final[tuple[tuple[int, type[Exception]], ...]] = (
    (1, Unavailable),
    (2, Busy),
    (3, NotServed),
    (4, UnknownOutput),
    (5, NotFound),
    (6, StoreError),
    (7, TimeoutError),
    (8, ValueError),
    (9, StartRefused),
    (10, AgentError),
    (11, RootError),
)
_INTERNAL: Final = 31
_KINDS: Final = dict(_ERRORS)


def error_parts(error: Exception) -> list[Any]:
    """Return status, message and hint of an error; of one that nobody expects, only that there was one."""
    for status, kind in _ERRORS:
        if isinstance(error, kind):
            hint = str(getattr(error, "hint", ""))
            return [status, str(error)[:_MAX_MESSAGE], hint[:_MAX_MESSAGE]]
    return [_INTERNAL, "the agent failed", ""]


def error_of(status: int, parts: list[Any]) -> Exception:
    """Return the error that an answer carries. Raises MalformedError where it carries none."""
    if len(parts) != 2 or type(parts[0]) is not str or type(parts[1]) is not str:
        raise MalformedError("an error is not a message and a hint")
    message, hint = parts
    kind = _KINDS.get(status, AgentError)
    if issubclass(kind, AgentError | StoreError | RootError):
        return kind(message, hint=hint)
    return kind(message)


def output_map(output: NewOutput) -> dict[int, Any]:
    """Return an output as a client hands it in. Where it came from is not in it: that is the door's to say, and what
    ties it to its engine (`link`) counts only where a worker of the agent's own says it."""
    digests = output.digests
    message: dict[int, Any] = {
        0: output.output_id,
        1: dict(digests) if len(digests) == 1 else _in_order(digests),
        2: int(output.state),
    }
    for key, value in (
        (3, output.request),
        (4, output.request_key),
        (5, output.nonce),
        (6, output.model),
        (7, _in_order(output.context) if output.context else None),
        (8, output.alias),
        (9, None if output.link is None else int(output.link)),
    ):
        if value is not None:
            message[key] = value
    return message


def read_output(value: Any, *, source: Source) -> NewOutput:
    """Return the output that a client hands in through a door of that source.

    Raises:
        MalformedError: it has another form.
    """
    fields = cbor.Fields(value, "an output")
    output = NewOutput(
        fields.octets(0, OUTPUT_ID_BYTES),
        fields.mapping(1, MAX_OUTPUT_DIGESTS),
        State(fields.uint(2, max(State))),
        fields.maybe_octets(3, _DIGEST),
        fields.maybe_octets(4, _DIGEST),
        fields.maybe_octets(5, MIN_NONCE, MAX_NONCE),
        fields.text(6, MAX_TEXT) if fields.has(6) else None,
        fields.mapping(7, MAX_CONTEXT_ENTRIES) if fields.has(7) else {},
        source,
        fields.maybe_octets(8, _DIGEST),
        Link(fields.uint(9, max(Link))) if fields.has(9) else None,
    )
    fields.finish()
    cbor.texts(output.digests, "output digests")
    cbor.texts(output.context, "a context")
    if any(type(digest) is not bytes for digest in output.digests.values()):
        raise MalformedError("an output digest is not a byte string")
    return output


def _in_order(value: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(value.items(), key=lambda item: (len(item[0].encode()), item[0].encode())))
