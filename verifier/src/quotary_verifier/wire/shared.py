# SPDX-License-Identifier: Apache-2.0
"""What all attestations of one commit share, and reading what is left of one that shares it.

An attestation is a map in deterministic encoding (docs/spec/attestation.md), so the fields 3, 6, 7 and 9 of two outputs
of one commit are the same bytes. Where they are, only record, index, path and request key need to be read, and where
each of these has the one encoding that deterministic CBOR allows, the whole is what `Attestation.decode` accepts.
"""

from __future__ import annotations

from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import DIGEST_BYTES, REQUEST_KEY_BYTES, Attestation
from quotary_verifier.wire.limits import MAX_ATTESTATION, MAX_PATH, MAX_RECORD

_FIELDS = 0xA8
"""A map of the eight fields that every attestation has."""
_HEAD = b"\x00\x10\x01\x01\x02"
"""Kind 16, version 1, and the key of the record."""
_REQUEST_KEY = b"\x08\x58\x20"
_KEY_ITEM = len(_REQUEST_KEY) + REQUEST_KEY_BYTES
_BYTES = 0x40
_INDIRECT = 24


class SharedParts:
    """Genesis record, note, supports and boot logs of one commit, as they stand in every attestation of it."""

    __slots__ = ("_bare", "_first", "_genesis", "_keyed", "_logs", "_tail")

    def __init__(self, first: Attestation) -> None:
        """Take the parts from an attestation that `Attestation.decode` read."""
        self._first = first
        self._genesis = b"\x03" + cbor.encode(first.genesis) + b"\x04"
        self._tail = b"\x06" + cbor.encode(first.note) + b"\x07" + cbor.encode(first.support_fields())
        self._logs = b"\x09" + cbor.encode(dict(first.boot_logs)) if first.boot_logs else b""
        fields = _FIELDS + bool(first.boot_logs)
        self._bare, self._keyed = bytes((fields,)) + _HEAD, bytes((fields + 1,)) + _HEAD

    def read(self, data: bytes) -> Attestation | None:
        """Return what `Attestation.decode` returns for an attestation that has these parts and nothing optional besides
        but the request key; None for everything else, malformed or not."""
        head = data[:6]
        if len(data) > MAX_ATTESTATION or head not in (self._bare, self._keyed):
            return None
        start, end = _octets(data, 6)
        if not 0 < end - start <= MAX_RECORD or not data.startswith(self._genesis, end):
            return None
        index, position = _uint(data, end + len(self._genesis))
        if data[position : position + 1] != b"\x05":
            return None
        path, path_end = _octets(data, position + 1)
        if (path_end - path) % DIGEST_BYTES or path_end - path > MAX_PATH:
            return None
        if not data.startswith(self._tail, path_end):
            return None
        rest, key = path_end + len(self._tail), None
        if head == self._keyed:
            if not data.startswith(_REQUEST_KEY, rest):
                return None
            rest += _KEY_ITEM
            key = data[rest - REQUEST_KEY_BYTES : rest]
        if len(data) != rest + len(self._logs) or not data.endswith(self._logs):
            return None
        first = self._first
        return Attestation(
            data[start:end],
            first.genesis,
            index,
            data[path:path_end],
            first.note,
            first.supports,
            key,
            first.boot_logs,
            tees=first.tees,
        )


def _octets(data: bytes, position: int) -> tuple[int, int]:
    """Return begin and end of the byte string at `position`, of fewer than 65,536 bytes; (0, -1) if there is none."""
    head = data[position : position + 3]
    if len(head) < 3 or head[0] < _BYTES:
        return 0, -1
    size = head[0] - _BYTES
    position += 1
    if size == 24:
        size = head[1]
        position += 1
        if size < _INDIRECT:
            return 0, -1
    elif size == 25:
        size = head[1] << 8 | head[2]
        position += 2
        if size < 256:
            return 0, -1
    elif size > 25:
        return 0, -1
    if position + size > len(data):
        return 0, -1
    return position, position + size


def _uint(data: bytes, position: int) -> tuple[int, int]:
    """Return the unsigned integer at `position`, of fewer than 2^32, and where it ends; (0, -1) if there is none."""
    head = data[position : position + 1]
    if not head or head[0] > 26:
        return 0, -1
    value = head[0]
    position += 1
    if value < _INDIRECT:
        return value, position
    size = 1 << (value - _INDIRECT)
    value = int.from_bytes(data[position : position + size])
    if position + size > len(data) or value < (_INDIRECT, 1 << 8, 1 << 16)[size >> 1]:
        return 0, -1
    return value, position + size
