# SPDX-License-Identifier: Apache-2.0
"""Canonical Event Log records in TLV encoding (TCG Canonical Event Log Format 1.0 section 5).

A TLV is one byte of type, four bytes of length, and the value. A record is four of them: the record number, the
PCR, the digests (themselves TLVs of hash algorithm and digest), and the content, whose type names its meaning.
The digest is computed over the whole content TLV, type and length included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_EVENT, MAX_EVENTS

TYPE_RECNUM = 0
TYPE_PCR = 1
TYPE_DIGESTS = 3
ALG_SHA256 = 0x0B

CONTENT_WORKLOAD = 0xC8
"""Our private content type: a workload event, deterministic CBOR (docs/spec/workload-log.md)."""

_HEADER = 5


@frozen
class CelRecord:
    """One record with its digest recomputed from the content, so that `digest` speaks for `content`."""

    number: int
    pcr: int
    digest: bytes
    content: bytes


def content_tlv(content: bytes) -> bytes:
    """Return the content TLV of a workload event."""
    return _tlv(CONTENT_WORKLOAD, content)


def content_digest(content: bytes) -> bytes:
    """Return the SHA-256 digest of a workload event: over its content TLV."""
    return hashlib.sha256(content_tlv(content)).digest()


def encode_record(number: int, pcr: int, content: bytes) -> bytes:
    """Return the record's TLVs for the SHA-256 bank."""
    digests = _tlv(ALG_SHA256, content_digest(content))
    return (
        _tlv(TYPE_RECNUM, number.to_bytes(8))
        + _tlv(TYPE_PCR, bytes((pcr,)))
        + _tlv(TYPE_DIGESTS, digests)
        + content_tlv(content)
    )


def parse_log(data: bytes, *, pcr: int) -> Iterator[CelRecord]:
    """Yield the records of a workload log in order, every digest recomputed.

    Raises:
        MalformedError: not a sequence of records, or another PCR, bank or content type.
        EvidenceError: a record number is not the next one, or a digest is not that of its content.
    """
    position = 0
    number = 0
    while position < len(data):
        if number >= MAX_EVENTS:
            raise MalformedError(f"the workload log has more than {MAX_EVENTS} events")
        octets, position = _take(data, position, TYPE_RECNUM, 8)
        if int.from_bytes(octets) != number:
            raise EvidenceError(f"workload log: record {number} has number {int.from_bytes(octets)}")
        octets, position = _take(data, position, TYPE_PCR, 1)
        if octets[0] != pcr:
            raise MalformedError(f"workload log: record {number} is for PCR {octets[0]}")
        digests, position = _take(data, position, TYPE_DIGESTS, _HEADER + 32)
        digest, _ = _take(digests, 0, ALG_SHA256, 32)
        content, position = _take(data, position, CONTENT_WORKLOAD, None)
        if content_digest(content) != digest:
            raise EvidenceError(f"workload log: the digest of record {number} is not that of its content")
        yield CelRecord(number, pcr, digest, content)
        number += 1


def _tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(4) + value


def _take(data: bytes, position: int, kind: int, length: int | None) -> tuple[bytes, int]:
    """Return the value of the TLV at `position`, which must be of `kind` and `length`, and the end of it."""
    header = data[position : position + _HEADER]
    if len(header) != _HEADER or header[0] != kind:
        raise MalformedError(f"workload log: no TLV of type {kind} at byte {position}")
    size = int.from_bytes(header[1:])
    if size > MAX_EVENT or (length is not None and size != length):
        raise MalformedError(f"workload log: the TLV at byte {position} has {size} bytes")
    value = data[position + _HEADER : position + _HEADER + size]
    if len(value) != size:
        raise MalformedError(f"workload log: it ends within the TLV at byte {position}")
    return value, position + _HEADER + size
