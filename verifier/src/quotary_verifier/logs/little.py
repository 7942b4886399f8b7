# SPDX-License-Identifier: Apache-2.0
"""A bounded little-endian reader for the logs of firmware and kernel.

Every length is checked against what is left before anything is taken, so that no input makes the reader allocate
or loop beyond its own size. What does not fit is a `MalformedError`, nothing else.
"""

from __future__ import annotations

from quotary_verifier.errors import MalformedError


class Reader:
    """Reads one structure from front to end; `what` names it in error messages."""

    __slots__ = ("_data", "_what", "at")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self.at

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes; MalformedError if fewer are left."""
        end = self.at + count
        if end > len(self._data):
            raise MalformedError(f"{self._what} ends at byte {len(self._data)} within a field")
        found = self._data[self.at : end]
        self.at = end
        return found

    def number(self, size: int) -> int:
        """Return the next `size` bytes as an unsigned little-endian number."""
        return int.from_bytes(self.take(size), "little")

    def rest(self) -> bytes:
        """Return everything that is left."""
        return self.take(self.left)

    def end(self) -> None:
        """MalformedError unless every byte has been read."""
        if self.left:
            raise MalformedError(f"{self._what} has {self.left} trailing bytes")
