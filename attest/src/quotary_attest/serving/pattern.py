# SPDX-License-Identifier: Apache-2.0
"""Chunks that differ from the one before in their piece of text alone, read without parsing each.

Nearly all chunks of a stream are such, and parsing them would be most of the proxy's own work. A pattern is the
bytes of a chunk before and after its text. It is taken from a chunk that was parsed, and only if the chunk with another
text in that place parses to the same value with that text; a chunk that fits it then means the same but for its text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

Place = Callable[[dict[str, Any]], tuple[dict[str, Any], str] | None]

_DECODER: Final = json.JSONDecoder()
_PROBE: Final = "probe of a pattern"
# A piece that is written as it reads: no quote, escape or control character.
_PLAIN: Final = re.compile(r'[^"\\\x00-\x1f]+')
_REST: Final = 32
"""Chunks to wait before the next try, after a pattern that fitted no chunk."""


class Pattern:
    """The form of the chunks of one stream, as far as it is known."""

    __slots__ = ("_after", "_before", "_hits", "_rest", "payload")

    def __init__(self) -> None:
        self._before = ""
        self._after = ""
        self._hits = 1
        self._rest = 0
        self.payload: dict[str, Any] = {}
        """The chunk that the pattern was taken from."""

    def piece(self, event: str) -> str | None:
        """Return the text of an event that fits, None if it does not fit."""
        before, after = self._before, self._after
        if not before or not event.startswith(before) or not event.endswith(after):
            return None
        piece = event[len(before) : len(event) - len(after)]
        if _PLAIN.fullmatch(piece) is None:
            return None
        self._hits += 1
        return piece

    def learn(self, event: str, payload: dict[str, Any], place: Place) -> None:
        """Take the pattern from an event that was parsed to `payload` and fitted no pattern; or leave it.

        `place` returns the object and the member of the text in a payload, None where there is no such place.
        """
        if self._rest:
            self._rest -= 1
            return
        if not self._hits:
            self._rest, self._before = _REST, ""
        self._hits = 0
        found = place(payload)
        if found is None:
            return
        holder, name = found
        text = holder.get(name)
        if not isinstance(text, str) or _PLAIN.fullmatch(text) is None:
            return
        for colon in (":", ": "):
            marked = f'"{name}"{colon}"{text}"'
            start = event.find(marked) + len(marked) - len(text) - 1
            if event.count(marked) == 1:
                self._try(event, start, start + len(text), payload, holder, name)
                return

    def _try(
        self, event: str, start: int, end: int, payload: dict[str, Any], holder: dict[str, Any], name: str
    ) -> None:
        before, after = event[:start], event[end:]
        probed = _DECODER.decode(before.removeprefix("data: ") + _PROBE + after)
        text, holder[name] = holder[name], _PROBE
        same = probed == payload
        holder[name] = text
        if same:
            self._before, self._after = before, after
            self.payload = payload
