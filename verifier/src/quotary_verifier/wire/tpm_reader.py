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
        end = self._at + count
        if end > len(self._data):
            raise MalformedError(f"{self._what} is truncated at byte {len(self._data)}")
        chunk = self._data[self._at : end]
        self._at = end
        return chunk

    def u8(self) -> int:
        """One byte as a number."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Two bytes, big endian."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """Four bytes, big endian."""
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        """Eight bytes, big endian."""
        return int.from_bytes(self.take(8), "big")

    def sized(self, maximum: int, field: str) -> bytes:
        """A TPM2B: u16 length, then that many bytes, at most `maximum`."""
        size = self.u16()
        if size > maximum:
            raise MalformedError(f"{self._what}: {field} has {size} bytes, at most {maximum} are allowed")
        return self.take(size)

    def yes_no(self, field: str) -> bool:
        """A TPMI_YES_NO: one byte that is 0 or 1."""
        value = self.u8()
        if value > 1:
            raise MalformedError(f"{self._what}: {field} is {value}, neither 0 nor 1")
        return value == 1

    def end(self) -> None:
        """MalformedError unless every byte has been read."""
        if self._at != len(self._data):
            raise MalformedError(f"{self._what} has {len(self._data) - self._at} trailing bytes")


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
