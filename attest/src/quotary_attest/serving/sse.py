# SPDX-License-Identifier: Apache-2.0
"""Event streams on their way through the proxy (docs/spec/inband.md, docs/spec/serving.md).

Two things look at the same bytes. `TailHolder` decides what may go to the client at once: everything, but for the
tail that stands after the place of the in-band span. `StreamReader` reads what was sent for its meaning: texts, usage,
errors, and the chunk whose values the span copies. It works on batches of events, off the way of the bytes.
"""

from __future__ import annotations

import json
import re
from typing import Any

from quotary_attest.serving.formats import Meaning
from quotary_attest.serving.pattern import Pattern
from quotary_verifier.wire.inband import DONE, last_head, opens_event

MAX_TAIL = 64 * 1024
"""Bytes held back after `data: [DONE]`; a stream that sends more goes out, and its attestation is fetched by id."""

MAX_EVENT = 4 * 1024 * 1024
"""Bytes of an event that is read for its meaning; a stream with a longer one has only its `body` digest."""

BATCH_BYTES = 16 * 1024
"""Bytes that are read for their meaning at once."""
_CONTEXT = 4
_DONE_LINES = (DONE + b"\n", DONE + b"\r\n")
_LONGEST_DONE = len(DONE) + 2
_LINE_END = re.compile(rb"\r\n|\n|\r")
_LONE_CR = re.compile(rb"\r(?!\n)")
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r){2,}")
_EVENT_END = re.compile(rb"\n\r?\n")
_BOM = b"\xef\xbb\xbf"
_DECODER = json.JSONDecoder()


class TailHolder:
    """Splits a stream into what goes out now and the tail before which the span will stand."""

    __slots__ = ("_context", "_held", "_overrun", "_plain", "done")

    def __init__(self) -> None:
        self._context = b""
        self._held = b""
        self._plain = True  # nothing is held, and nothing was that went out since
        self._overrun = False
        self.done = False
        """True once the event `data: [DONE]` has begun: everything from it on is held."""

    def feed(self, data: bytes) -> bytes:
        """Take in `data` and return what may go out now, in order, nothing changed."""
        if self._plain and data.endswith(b"\n\n") and DONE not in data and len(data) >= _CONTEXT:
            self._context = data  # whole events, as nearly always; only its last bytes matter
            return data
        return self._feed(data)

    def _feed(self, data: bytes) -> bytes:
        if self._overrun:
            return data
        if self.done:
            return self._lengthen(data)
        window = self._context + self._held + data
        base = len(self._context)
        cut = self._cut(window, base)
        # no more than the context and the next bytes decide where an event opens
        self._context = window[max(0, cut - _CONTEXT) : cut]
        self._held = window[cut:]
        self._plain = not self._held
        if self.done and len(self._held) > MAX_TAIL:
            return window[base:cut] + self._lengthen(b"")
        return window[base:cut]

    def _cut(self, window: bytes, base: int) -> int:
        """Return where in the window holding begins."""
        at = window.find(DONE, base)
        while at >= 0:
            if window.startswith(_DONE_LINES, at) and opens_event(window, at):
                self.done = True
                return at
            at = window.find(DONE, at + len(DONE))
        line = max(window.rfind(b"\n") + 1, base)
        rest = len(window) - line
        if 0 < rest < _LONGEST_DONE and opens_event(window, line):
            begun = window[line:]
            if any(wanted.startswith(begun) for wanted in _DONE_LINES):
                return line
        return len(window)

    def _lengthen(self, data: bytes) -> bytes:
        if len(self._held) + len(data) <= MAX_TAIL:
            self._held += data
            return b""
        held, self._held, self._overrun = self._held + data, b"", True
        self._context = b""
        return held

    def finish(self) -> tuple[bytes, bytes, bool]:
        """End the stream: return what still goes out before the place, the tail after it, and if there is a place."""
        held, self._held = self._held, b""
        if self._overrun:
            return held, b"", False
        if self.done:
            return b"", held, True
        if held == DONE:
            self.done = True
            return b"", held, True
        window = self._context + held
        return held, b"", opens_event(window, len(window))

    def rest_of_event(self, data: bytes) -> bytes:
        """Return what of `data`, not yet fed, belongs to the event that has begun to go out.

        That is all of it if the event does not end in it.
        """
        if self.between_events:
            return b""
        start = len(self._context)
        ends = (found.end() for found in _EVENT_END.finditer(self._context + data))
        end = next((end for end in ends if end > start), start + len(data))
        return data[: end - start]

    @property
    def between_events(self) -> bool:
        """Tell whether what went out so far ends with a whole event, so that another may follow."""
        return not self._overrun and opens_event(self._context, len(self._context))


class StreamReader:
    """Reads a stream for its meaning, after it was sent."""

    __slots__ = (
        "_batch", "_begun", "_enough", "_given_up", "_head", "_no_span", "_pattern", "_size", "done", "meaning",
    )  # fmt: skip

    def __init__(self, meaning: Meaning) -> None:
        """`meaning` takes in the events."""
        self.meaning = meaning
        self._batch: list[bytes] = []
        self._size = 0
        self._enough = 1  # the first event is read at once: the engine's id stands in it
        self._begun = False
        self._given_up = False
        self._head: bytes | None = None
        self._no_span = False
        self._pattern = Pattern()
        self.done = False
        """True once `[DONE]` was read; no text after it counts."""

    def feed(self, data: bytes) -> None:
        """Take in bytes of the stream that stand before the place of the span, in order, cut anywhere."""
        self._batch.append(data)
        self._size += len(data)
        if self._size >= self._enough:
            self._read(last=False)

    def finish(self, tail: bytes = b"") -> None:
        """Read what is left, then the tail after the place.

        An event that is still open is not dispatched, as event streams define it.
        """
        self._read(last=True)
        head = self._head
        self._batch.append(tail)
        self._read(last=True)
        self._head = head

    @property
    def begun(self) -> bool:
        """Tell whether an event was read: until then every piece is worth a look, after it a batch is."""
        return self._enough > 1

    @property
    def head(self) -> bytes | None:
        """The head of the span (`inband.span_head`) of the last chunk that has one; None: there is no span.

        There is none either where an event was too long, a line ended in a lone CR, or the body opens an object.
        """
        return None if self._given_up or self._no_span else self._head

    @property
    def readable(self) -> bool:
        """Tell whether everything was read; not so if an event was too long: then texts are not known."""
        return not self._given_up

    def _read(self, *, last: bool) -> None:
        data = b"".join(self._batch)
        self._batch.clear()
        self._size = 0
        if self._given_up or not data:
            return
        end = _complete_end(data, last=last)
        rest = data[end:]
        if rest:
            self._batch.append(rest)
            # a long event is looked at again only when as much again has come
            self._size = -len(rest) if len(rest) >= BATCH_BYTES else 0
            self._given_up = len(rest) > MAX_EVENT
        if end:
            self._take(data[:end])

    def _take(self, events: bytes) -> None:
        """Take in whole events."""
        if len(events) > MAX_EVENT and max(map(len, _BLANK_LINE.split(events))) > MAX_EVENT:
            self._given_up = True
            return
        self._head = last_head(events, len(events)) or self._head
        crlf = b"\r" in events
        self._no_span = self._no_span or (crlf and _LONE_CR.search(events) is not None)
        if not self._begun and (start := events.lstrip()):
            self._begun = True
            self._no_span = self._no_span or start.startswith(b"{")
            events = events.removeprefix(_BOM)
        if not crlf:
            self._take_plain(events.decode(errors="replace").split("\n\n"))
            return
        for raw in _BLANK_LINE.split(events):
            self._take_lines(_LINE_END.sub(b"\n", raw).decode(errors="replace"))

    def _take_plain(self, events: list[str]) -> None:
        """Take in events whose lines end in LF; those that fit the pattern of the stream go fast."""
        pattern, pieces = self._pattern, list[str]()
        for event in events:
            piece = None if self.done else pattern.piece(event)
            if piece is not None:
                pieces.append(piece)
                continue
            if pieces:
                self.meaning.more(pattern.payload, "".join(pieces))
                pieces = []
            if event.startswith("data: ") and "\n" not in event:
                payload = self._dispatch(event[6:], "")
                if payload is not None:
                    pattern.learn(event, payload, self.meaning.text_place)
            else:
                self._take_lines(event)
        if pieces:
            self.meaning.more(pattern.payload, "".join(pieces))

    def _take_lines(self, event: str) -> None:
        """Read an event of any form: lines ended by LF, `data` and `event` fields, comments."""
        data: list[str] = []
        kind = ""
        for line in event.split("\n"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "event":
                kind = value
        if data:
            self._dispatch("\n".join(data), kind)

    def _dispatch(self, data: str, kind: str) -> dict[str, Any] | None:
        """Take in the data of one event; return the object that it is, None if it is none."""
        if self.done:
            return None
        meaning = self.meaning
        if data == "[DONE]":
            self.done = meaning.ended = True
            return None
        self._enough = BATCH_BYTES
        try:
            payload = _DECODER.decode(data)
        except (ValueError, RecursionError):
            payload = None
        if isinstance(payload, dict):
            meaning.event(payload, kind)
            return payload
        meaning.error = meaning.error or kind == "error"
        return None


def _complete_end(data: bytes, *, last: bool) -> int:
    """Return where the last whole event ends: after the last blank line, 0 if there is none."""
    at = data.rfind(b"\n\n")
    end = at + 2 if at >= 0 else 0
    if end < len(data) and b"\r" in data:
        # a CR at the very end may be half of a CRLF
        stop = len(data) - 1 if data.endswith(b"\r") and not last else len(data)
        for found in _BLANK_LINE.finditer(data, 0 if end == 0 else end - 1, stop):
            end = max(end, found.end())
    return end
