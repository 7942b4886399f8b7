# SPDX-License-Identifier: Apache-2.0
"""The text digests of an answer: `text/N`, `reasoning/N` and `tool/N/M` (docs/spec/serving.md, design section 3).

They cover what a client assembles out of an answer, so that the text alone can be verified later. A key stands if
and only if at least one string, even an empty one, was sent for it; a text with an unpaired surrogate has no UTF-8
and gets none. Hashing is incremental: no text is kept.
"""

from __future__ import annotations

import hashlib
from typing import Any

from quotary_verifier.wire.limits import MAX_OUTPUT_DIGESTS

MAX_INDEX = 65535
"""Choices and tool calls with a greater index are left out: no engine has them."""

_HIGH_SURROGATES = ("\ud800", "\udbff")


class _Text:
    """One text as it grows: the hash of its UTF-8, and a high surrogate that waits for its other half."""

    __slots__ = ("_broken", "_hash", "_waiting")

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._waiting = ""
        self._broken = False

    def add(self, text: str) -> None:
        """Append `text`."""
        if self._waiting:
            text, self._waiting = self._waiting + text, ""
        try:
            self._hash.update(text.encode())
        except UnicodeEncodeError:
            self._add_with_surrogates(text)

    def _add_with_surrogates(self, text: str) -> None:
        low, high = _HIGH_SURROGATES
        if low <= text[-1] <= high:
            text, self._waiting = text[:-1], text[-1]
        try:
            # JSON escapes a character beyond U+FFFF as a pair; two chunks may carry one half each
            paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            self._broken = True
            return
        self._hash.update(paired.encode())

    def digest(self) -> bytes | None:
        """Return the SHA-256, None if the text has an unpaired surrogate."""
        return None if self._broken or self._waiting else self._hash.digest()


class Texts:
    """Collects the texts of one answer by their keys."""

    __slots__ = ("_crowded", "_texts")

    def __init__(self) -> None:
        self._texts: dict[str, _Text] = {}
        self._crowded = False

    def add(self, key: str, text: Any) -> None:
        """Append `text` to the text of a key; what is no string is left out."""
        if not isinstance(text, str):
            return
        held = self._texts.get(key)
        if held is None:
            if len(self._texts) >= MAX_OUTPUT_DIGESTS - 1:
                self._crowded = True
                return
            held = self._texts[key] = _Text()
        held.add(text)

    def digests(self) -> dict[str, bytes]:
        """Return key → SHA-256 of what was taken in so far.

        Empty if a record has no room for all keys: some of them would look like all of them.
        """
        if self._crowded:
            return {}
        found = ((key, text.digest()) for key, text in self._texts.items())
        return {key: digest for key, digest in found if digest is not None}


def index_of(item: dict[str, Any], position: int, name: str = "index") -> int | None:
    """Return an item's index by its member `name`, or its position where it has none; None if it is not usable."""
    index = item.get(name, position)
    return index if type(index) is int and 0 <= index <= MAX_INDEX else None
