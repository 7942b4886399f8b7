# SPDX-License-Identifier: Apache-2.0
"""Answers of one JSON object a line (NDJSON, as Ollama streams) on their way through the proxy.

They have no place for a span, so nothing of them is held back: `LineHolder` only knows where an object ends, and
`LineReader` reads them for their meaning, off the way of the bytes.
"""

from __future__ import annotations

import json

from quotary_attest.serving.formats import Meaning
from quotary_attest.serving.sse import BATCH_BYTES, MAX_EVENT

MEDIA_TYPES = frozenset(("application/x-ndjson", "application/ndjson", "application/jsonl"))


class LineHolder:
    """Holds nothing back; as `sse.TailHolder` for streams that have a place for a span."""

    __slots__ = ("between_events",)

    def __init__(self) -> None:
        self.between_events = True
        """True while what went out so far ends with a whole line, so that another may follow."""

    def feed(self, data: bytes) -> bytes:
        """Take in `data` and return what may go out now: all of it."""
        if data:
            self.between_events = data.endswith(b"\n")
        return data

    def rest_of_event(self, data: bytes) -> bytes:
        """Return what of `data`, not yet fed, belongs to the line that has begun to go out."""
        return b"" if self.between_events else data[: data.find(b"\n") + 1] or data

    def finish(self) -> tuple[bytes, bytes, bool]:
        """End the stream: nothing is held, and another line may follow or not."""
        return b"", b"", self.between_events


class LineReader:
    """Reads lines for their meaning, after they were sent."""

    __slots__ = ("_batch", "_given_up", "_size", "meaning")

    begun = True
    head = None

    def __init__(self, meaning: Meaning) -> None:
        """`meaning` takes in the objects."""
        self.meaning = meaning
        self._batch: list[bytes] = []
        self._size = 0
        self._given_up = False

    def feed(self, data: bytes) -> None:
        """Take in bytes of the stream, in order, cut anywhere."""
        self._batch.append(data)
        self._size += len(data)
        if self._size >= BATCH_BYTES:
            self._read()

    def finish(self, tail: bytes = b"") -> None:
        """Read what is left. A line that was cut off is no object; a last one without its LF may be."""
        self._batch += (tail, b"\n")
        self._read()

    @property
    def readable(self) -> bool:
        """Tell whether everything was read; not so if a line was too long: then texts are not known."""
        return not self._given_up

    def _read(self) -> None:
        data = b"".join(self._batch)
        self._batch.clear()
        self._size = 0
        if self._given_up:
            return
        *lines, rest = data.split(b"\n")
        if rest:
            self._batch.append(rest)
            # a long line is looked at again only when as much again has come
            self._size = -len(rest) if len(rest) >= BATCH_BYTES else 0
        self._given_up = max(map(len, (*lines, rest))) > MAX_EVENT
        if self._given_up:
            return
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            payload = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(payload, dict):
            self.meaning.event(payload, "")
