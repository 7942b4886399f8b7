# SPDX-License-Identifier: Apache-2.0
"""Where a client may stop reading a stream: nothing from there on may go out before there is a verdict.

Whoever stands between chooses media type, line ends, comments, fields and spaces, and every client reads those a
little differently: many take `data:[DONE]` or `data: [DONE] x` for the end, whatever the media type. All of them need
these words, though, so the words alone count, wherever they stand; in an answer that says them itself, what follows
waits too.
"""

from __future__ import annotations

import re
from typing import Final

_NAMES: Final = ("response.completed", "response.incomplete", "response.failed", "message_stop")
_BLANK_LINES: Final = (b"\n\n", b"\n\r\n")
_REMEMBERED: Final = 6 * max(map(len, _NAMES))


def _spelled(name: str) -> bytes:
    """Return a pattern of all ways in which JSON can write a name."""
    escaped = (f"{ord(letter):02x}" for letter in name)
    hexes = ("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in code) for code in escaped)
    pairs = zip(name, hexes, strict=True)
    return "".join(rf"(?:{re.escape(letter)}|\\u00{code})" for letter, code in pairs).encode()


_LAST: Final = re.compile(rb"\[DONE\]|" + b"|".join(map(_spelled, _NAMES)))


class Endings:
    """Looks through what goes out, piece by piece."""

    __slots__ = ("_before", "_found")

    def __init__(self) -> None:
        self._before = b""
        self._found = False

    def allowed(self, out: bytes) -> int:
        """Return how many bytes of the next piece may go out: up to the event after which a client may stop."""
        if self._found:
            return 0
        known = len(self._before)
        looked = self._before + out
        found = _LAST.search(looked)
        if found is None:
            self._before = looked[-_REMEMBERED:]
            return len(out)
        self._found = True
        at = max(0, found.start() - known)
        return max(
            0, *(start + len(line) for line in _BLANK_LINES if (start := out.rfind(line, 0, at)) >= 0), 0
        )
