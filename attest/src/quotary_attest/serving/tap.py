# SPDX-License-Identifier: Apache-2.0
"""What the proxy and the middleware do with the bytes of an answer, whatever carries them.

A `StreamTap` looks at a stream: what may go out at once, what of it is hashed and read, and what stands in its end.
`whole_account` does the same for an answer that is held whole.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from quotary_attest.serving.delivery import Terms
from quotary_attest.serving.formats import Announce, meaning_of, nobody
from quotary_attest.serving.formats.responses import Response
from quotary_attest.serving.ndjson import MEDIA_TYPES, LineHolder, LineReader
from quotary_attest.serving.paths import Api
from quotary_attest.serving.refusals import error_event, refusal_of_agent, unexpected
from quotary_attest.serving.sse import BATCH_BYTES, StreamReader, TailHolder
from quotary_attest.serving.ticket import Account
from quotary_verifier.wire.inband import stream_span
from quotary_verifier.wire.records import State

EVENT_STREAM: Final = "text/event-stream"
NOT_ATTESTED_EVENT: Final = b": quotary-attested: no\n\n"
"""A comment, which event streams may have anywhere between events and clients pass over."""


class StreamTap:
    """One stream on its way: events, lines of JSON, or bytes of any kind."""

    __slots__ = ("_enough", "_pieces", "_reader", "_sent", "_size", "_status", "_terms", "holder")

    def __init__(
        self, terms: Terms, media_type: str, status: int, key: bytes, announce: Announce = nobody
    ) -> None:
        """`key` is the request key; `announce` is told the engine's own id as soon as it is read."""
        meaning = meaning_of(terms.api, key, announce)
        self._terms = terms
        self._status = status
        self._sent = hashlib.sha256()
        self.holder: TailHolder | LineHolder | None = None
        """Splits off what is not sent at once; None for bytes of no known API."""
        self._reader: StreamReader | LineReader | None = None
        if meaning is not None and media_type == EVENT_STREAM:
            self.holder, self._reader = TailHolder(), StreamReader(meaning)
        elif meaning is not None and media_type in MEDIA_TYPES:
            self.holder, self._reader = LineHolder(), LineReader(meaning)
        self._pieces: list[bytes] = []
        self._size = 0
        self._enough = 1  # what came first is read at once: the engine's id stands in it

    def sent(self, data: bytes) -> None:
        """Take in what went out. It is hashed and read in batches: piece by piece that costs several times as much."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= self._enough:
            self._settle()

    def _settle(self) -> None:
        """Hash and read what was taken in."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._sent.update(data)
        reader = self._reader
        if reader is not None:
            reader.feed(data)
        self._enough = self._size + (BATCH_BYTES if reader is None or reader.begun else 1)

    def finish(self) -> tuple[bytes, bytes, bool]:
        """End the stream: return what still goes out before the place of the span, the tail after it, and whether
        there is such a place, which is one between events."""
        return (b"", b"", False) if self.holder is None else self.holder.finish()

    def close(self, tail: bytes = b"") -> None:
        """Read to the end what went out, and a tail that will."""
        self._settle()
        self._sent.update(tail)
        self._size += len(tail)
        if self._reader is not None:
            self._reader.finish(tail)

    def account(self, *, clean: bool, client_gone: bool = False) -> Account:
        """Return what the record will say; `clean` if the transfer ended as it must. Call `close` before."""
        reader, state = self._reader, self._state(clean, client_gone)
        digests = {"body": self._sent.digest()}
        if reader is None:
            return Account(state, digests, self._status)
        meaning = reader.meaning
        if reader.readable:
            digests |= meaning.texts.digests()
        return Account(state, digests, self._status, meaning.facts(), meaning.upstream_id)

    def _state(self, clean: bool, client_gone: bool) -> State:
        if client_gone:
            return State.CLIENT_GONE
        meaning = None if self._reader is None else self._reader.meaning
        if self._status >= 400 or (meaning is not None and meaning.error):
            return State.ENGINE_ERROR
        if not clean or not (meaning.complete if meaning is not None else self._has_body):
            return State.ENGINE_TRUNCATED
        return State.COMPLETE

    @property
    def _has_body(self) -> bool:
        """Tell whether there is what must be there: no API answers with nothing."""
        return self._size > 0 or self._terms.api is Api.OPAQUE

    def span(self, attestation: bytes) -> bytes:
        """Return the span that carries an attestation at its place; empty where it is fetched by id."""
        head = None if self._reader is None else self._reader.head
        if head is None or not self._terms.in_stream or len(attestation) > self._terms.max_inband:
            return b""
        return stream_span(head, attestation)

    @property
    def mark(self) -> bytes:
        """What says, between events, that an answer is not attested after all; empty where nothing can."""
        return NOT_ATTESTED_EVENT if isinstance(self.holder, TailHolder) else b""

    def error(self, error: Exception) -> bytes:
        """Return what tells a client between two events that its answer cannot be attested."""
        meaning = None if self._reader is None else self._reader.meaning
        sequence = meaning.sequence + 1 if isinstance(meaning, Response) else 0
        return error_event(refusal_of_agent(error) or unexpected(error), self._terms.api, sequence)


def is_json(media_type: str) -> bool:
    """Tell whether a media type is JSON."""
    return media_type == "application/json" or media_type.endswith("+json")


def whole_account(terms: Terms, media_type: str, status: int, key: bytes, body: bytes) -> Account:
    """Return what the record will say of an answer that came whole; `key` is the request key."""
    digests = {"body": hashlib.sha256(body).digest()}
    failed = status >= 400
    meaning = meaning_of(terms.api, key)
    if meaning is None or not is_json(media_type):
        empty = not body and meaning is not None
        state = State.ENGINE_ERROR if failed else State.ENGINE_TRUNCATED if empty else State.COMPLETE
        return Account(state, digests, status)
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return Account(State.ENGINE_ERROR if failed else State.ENGINE_TRUNCATED, digests, status)
    if isinstance(payload, dict):
        meaning.whole(payload)
    state = State.ENGINE_ERROR if failed or meaning.error else State.COMPLETE
    digests |= meaning.texts.digests()
    return Account(state, digests, status, meaning.facts(), meaning.upstream_id)
