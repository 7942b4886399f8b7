# SPDX-License-Identifier: Apache-2.0
"""A bounded reader for TPM structures, and the writers that mirror it (TPM 2.0 Library, Part 2, big endian).

Every length is checked against a bound and against what is left before anything is taken, so that no input
makes the reader allocate or loop beyond its own size. What does not fit is a `MalformedError`, nothing else.
"""

from __future__ import annotations

import struct

from quotary_verifier.errors import MalformedError

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


class Reader:
    """Reads one structure from front to end; `what` names it in error messages."""

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    def take(self, count: int) -> bytes:
        """The next `count` bytes; MalformedError if fewer are left."""
        at = self._at
        end = at + count
        if end > len(self._data):
            raise self._truncated()
        self._at = end
        return self._data[at:end]

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """The next numbers, several at once; MalformedError if fewer bytes are left."""
        at = self._at
        end = at + layout.size
        if end > len(self._data):
            raise self._truncated()
        self._at = end
        return layout.unpack_from(self._data, at)

    def u8(self) -> int:
        """One byte as a number."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Two bytes, big endian."""
        at = self._at
        end = at + 2
        if end > len(self._data):
            raise self._truncated()
        self._at = end
        value: int = _U16.unpack_from(self._data, at)[0]
        return value

    def u32(self) -> int:
        """Four bytes, big endian."""
        return self.unpack(_U32)[0]

    def u64(self) -> int:
        """Eight bytes, big endian."""
        return self.unpack(_U64)[0]

    def sized(self, maximum: int, field: str) -> bytes:
        """A TPM2B: u16 length, then that many bytes, at most `maximum`."""
        data = self._data
        start = self._at + 2
        if start > len(data):
            raise self._truncated()
        size: int = _U16.unpack_from(data, self._at)[0]
        if size > maximum:
            raise MalformedError(f"{self._what}: {field} has {size} bytes, at most {maximum} are allowed")
        end = start + size
        if end > len(data):
            raise self._truncated()
        self._at = end
        return data[start:end]

    def end(self) -> None:
        """MalformedError unless every byte has been read."""
        if self._at != len(self._data):
            raise MalformedError(f"{self._what} has {len(self._data) - self._at} trailing bytes")

    def _truncated(self) -> MalformedError:
        return MalformedError(f"{self._what} is truncated at byte {len(self._data)}")


def u16(value: int) -> bytes:
    """`value` as two bytes, big endian."""
    return _U16.pack(value)


def u32(value: int) -> bytes:
    """`value` as four bytes, big endian."""
    return _U32.pack(value)


def u64(value: int) -> bytes:
    """`value` as eight bytes, big endian."""
    return _U64.pack(value)


def sized(data: bytes) -> bytes:
    """`data` as a TPM2B: its length as u16, then itself. MalformedError above 65535 bytes."""
    if len(data) > 0xFFFF:
        raise MalformedError(f"{len(data)} bytes do not fit a 16-bit length")
    return _U16.pack(len(data)) + data
