# SPDX-License-Identifier: Apache-2.0
"""`strip` for a body that comes piece by piece (docs/spec/inband.md).

A client that shows a stream while it arrives cannot wait for the whole body. `Stripper` lets through what no later
byte can turn into a span, and takes the span out at the end, by the very rules of `strip`: for every body, however it
was cut into pieces, what it lets through is what `strip` returns, and it refuses what `strip` refuses.
"""

from __future__ import annotations

from quotary_verifier.errors import MalformedError
from quotary_verifier.wire.inband import (
    DONE,
    last_event,
    last_head,
    may_name,
    opens_event,
    opens_object,
    stream_place,
    strip,
    strip_at,
)
from quotary_verifier.wire.limits import MAX_ATTESTATION

MAX_HELD = MAX_ATTESTATION // 3 * 4 + 1024 * 1024
"""Bytes held back at most: the longest span there can be, and the chunk whose members it copies."""

_BLANK_LINES = (b"\n\n", b"\n\r\n")
_DONE_LINES = (DONE + b"\n", DONE + b"\r\n")
_JSON_SPACE = b" \t\n\r"
_CONTEXT = 4
_BATCH = 16 * 1024


class Stripper:
    """Takes the in-band attestation out of a body that is fed in pieces.

    Whole events of a stream go out at once; an event that is still open is held, and a whole one that may be the span
    until the next begins. From `data: [DONE]` on everything is held, and so is all of a JSON object. `most` limits
    the bytes held.
    """

    __slots__ = (
        "_base",
        "_head",
        "_maybe",
        "_most",
        "_place",
        "_recent",
        "_stream",
        "_window",
        "attestation",
    )

    def __init__(self, most: int = MAX_HELD) -> None:
        self._most = most
        self._window = bytearray()  # the last few bytes that went out, then what is held
        self._base = 0  # where in the window the held bytes begin: always where an event may begin
        self._recent = bytearray()  # what went out and was not yet looked through for a chunk to copy from
        self._head: bytes | None = None
        self._stream: bool | None = None
        self._maybe = (
            False  # a whole event that may be the span is held, and nothing but empty lines after it
        )
        self._place: int | None = None
        self.attestation: bytes | None = None
        """What the span carried; known after `finish`."""

    @property
    def held(self) -> int:
        """The number of bytes held back now."""
        return len(self._window) - self._base

    def feed(self, data: bytes) -> bytes:
        """Take in `data` and return what of the body may go out now.

        Raises:
            MalformedError: more than `most` bytes would have to be held back.
        """
        if self._stream and not self.held and self._only_whole_events(data):
            self._window += data[-_CONTEXT:]
            return self._gone(data)
        known = len(self._window)
        self._window += data
        if self._stream is None and data.strip(_JSON_SPACE):
            self._stream = not opens_object(bytes(self._window))
        out = b""
        if self._stream and self._place is None and not (self._maybe and not data.strip(b"\r\n")):
            out = self._release(self._cut(max(self._base, known - len(DONE) - 2)))
        if self.held > self._most:
            self._window[self._base : self._base] = out
            raise MalformedError(f"more than {self._most} bytes of the body have no end of an event")
        return out

    def finish(self) -> bytes:
        """End the body: return the rest of it, and set `attestation`.

        Raises:
            MalformedError: at the place of the span stands something else that names `attestation`.
        """
        window = bytes(self._window)
        if not self._stream:
            rest, self.attestation = strip(window)
            return rest
        place = self._place if self._place is not None else stream_place(window)
        if place is None:
            return window[self._base :]
        rest, self.attestation = strip_at(window, place, self._heads())
        return rest[self._base :]

    def give_up(self) -> bytes:
        """Return what is held, as it came: for who goes on with a body that `feed` or `finish` refused."""
        held = bytes(self._window[self._base :])
        self._window.clear()
        self._base = 0
        return held

    def _only_whole_events(self, data: bytes) -> bool:
        """Tell whether all of `data` may go out, as nearly always: whole events of which none is the last."""
        return data.endswith(b"\n\n") and len(data) >= _CONTEXT and DONE not in data and not may_name(data)

    def _cut(self, scan: int) -> int:
        """Return where in the window holding begins; nothing before `scan` has to be looked at again for `[DONE]`."""
        self._maybe = False
        window = self._window
        at = window.find(DONE, scan)
        while at >= 0:
            if window.startswith(_DONE_LINES, at) and opens_event(window, at):
                self._place = at
                break
            at = window.find(DONE, at + len(DONE))
        end = self._place if self._place is not None else self._boundary(scan)
        if end <= self._base:
            return self._base
        event = last_event(bytes(window[:end]), end) if may_name(bytes(window[self._base : end])) else b""
        held = may_name(event)
        self._maybe = held and end == len(window)
        return max(self._base, end - len(event)) if held else end

    def _boundary(self, scan: int) -> int:
        """Return the last position of the window, from `scan` on, where an event may begin; 0 if there is none."""
        found = [self._window.rfind(blank, max(0, scan - 3)) + len(blank) for blank in _BLANK_LINES]
        ends = [end for end, blank in zip(found, _BLANK_LINES, strict=True) if end >= len(blank)]
        if ends:
            return max(ends)
        return max(
            (end for end in (1, 2) if len(self._window) >= end and opens_event(self._window, end)), default=0
        )

    def _release(self, cut: int) -> bytes:
        if cut <= self._base:
            return b""
        out = bytes(self._window[self._base : cut])
        dropped = max(0, cut - _CONTEXT)
        del self._window[:dropped]
        self._base = cut - dropped
        if self._place is not None:
            self._place -= dropped
        self._note(out)
        return out

    def _gone(self, data: bytes) -> bytes:
        """Note that `data` goes out past the window, whose end it already is."""
        del self._window[:-_CONTEXT]
        self._base = _CONTEXT
        self._note(data)
        return data

    def _note(self, out: bytes) -> None:
        self._recent += out
        if len(self._recent) > _BATCH:
            self._heads()

    def _heads(self) -> bytes | None:
        """Return the span's beginning as the last chunk that went out gives it."""
        if self._recent:
            self._head = last_head(bytes(self._recent), len(self._recent)) or self._head
            self._recent.clear()
        return self._head
