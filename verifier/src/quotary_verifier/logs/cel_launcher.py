# SPDX-License-Identifier: Apache-2.0
"""The launcher's log of Google's Confidential Space: CEL in TLV encoding, extended into PCR 13 or RTMR 3.

Record: number, register (type 1 a PCR, type 108 a measurement register of a confidential VM), digests, content of type
80, which holds one TLV of the launcher's own. Every digest is recomputed over the exact bytes of the content TLV.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs.banks import HASHES
from quotary_verifier.logs.cel import TYPE_DIGESTS, TYPE_PCR, TYPE_RECNUM
from quotary_verifier.wire.limits import MAX_BOOT_LOG, MAX_EVENT, MAX_EVENTS
from quotary_verifier.wire.tpm_algorithms import ALG_SHA1, HASH_SIZES

TYPE_CC_REGISTER: Final = 108
CONTENT_LAUNCHER: Final = 80
SEPARATOR: Final = 8
LAUNCHER_TYPES: Final = {
    0: "image-reference", 1: "image-digest", 2: "restart-policy", 3: "image-id", 4: "argument", 5: "environment",
    6: "override-argument", 7: "override-environment", SEPARATOR: "launch-separator", 9: "memory-monitor",
    10: "gpu-cc-mode",
}  # fmt: skip
"""What the launcher measures."""

_HEADER = 5


class LauncherEvent(NamedTuple):
    """One thing that the launcher measured: its type (`LAUNCHER_TYPES`) and value."""

    number: int
    type: int
    value: bytes


class LauncherRecords(NamedTuple):
    """What a log replays to, and its events: those up to the launch separator, and what came later."""

    launch: tuple[LauncherEvent, ...]
    late: tuple[LauncherEvent, ...]


class LauncherLog:
    """A launcher's log whose digests are those of its contents. `replay` is the way to its events."""

    __slots__ = ("_digests", "_events", "bank", "confidential", "register")

    def __init__(self, register: int, confidential: bool, bank: int, records: list[_Record]) -> None:
        self.register = register
        """The PCR or measurement register."""
        self.confidential = confidential
        """Whether the register is one of a confidential VM; 4 is then RTMR 3."""
        self.bank = bank
        """The hash algorithm."""
        self._digests = [record.digest for record in records]
        self._events = tuple([record.event for record in records])

    def unverified_events_do_not_trust(self) -> tuple[LauncherEvent, ...]:
        """Return all events as the log gives them. Nothing shows that any of them happened."""
        return self._events

    def unverified_digests_do_not_trust(self) -> tuple[bytes, ...]:
        """Return the digest of each event: that of its content, which does not show that it was ever extended."""
        return tuple(self._digests)

    def replay(self, value: bytes) -> LauncherRecords:
        """Replay the log against the value of its register in verified evidence, and give its events out.

        Raises:
            EvidenceError: it leads to another value.
        """
        function, reached = HASHES[self.bank], bytes(HASH_SIZES[self.bank])
        for digest in self._digests:
            reached = function(reached + digest).digest()
        if reached != value:
            raise EvidenceError("the launcher's log does not replay to the register's value")
        types = [event.type for event in self._events]
        end = types.index(SEPARATOR) + 1 if SEPARATOR in types else len(types)
        return LauncherRecords(self._events[:end], self._events[end:])


class _Record(NamedTuple):
    register: tuple[int, int]
    bank: int
    digest: bytes
    event: LauncherEvent


def parse_launcher_log(data: bytes) -> LauncherLog:
    """Read a launcher's log; all records are of one register and one bank.

    Raises:
        MalformedError: it is none.
        EvidenceError: a record number is not the next one, or a digest is not that of its content.
        UnsupportedError: a record's hash is not known.
    """
    if not 0 < len(data) <= MAX_BOOT_LOG:
        raise MalformedError(f"a launcher's log of {len(data)} bytes is none")
    records: list[_Record] = []
    at = 0
    while at < len(data):
        if len(records) >= MAX_EVENTS:
            raise MalformedError(f"the launcher's log has more than {MAX_EVENTS} events")
        record, at = _record(data, at, len(records))
        records.append(record)
        if record.register != records[0].register or record.bank != records[0].bank:
            raise MalformedError("the launcher's log has records of several registers or banks")
    kind, register = records[0].register
    return LauncherLog(register, kind == TYPE_CC_REGISTER, records[0].bank, records)


def _record(data: bytes, at: int, number: int) -> tuple[_Record, int]:
    kind, octets, at = _tlv(data, at)
    if kind != TYPE_RECNUM or len(octets) != 8:
        raise MalformedError(f"launcher's log: record {number} does not begin with a number")
    if int.from_bytes(octets) != number:
        raise EvidenceError(f"launcher's log: record {number} has number {int.from_bytes(octets)}")
    kind, register, at = _tlv(data, at)
    if kind not in {TYPE_PCR, TYPE_CC_REGISTER} or len(register) != 1:
        raise MalformedError(f"launcher's log: record {number} is for no register")
    digests, listed, at = _tlv(data, at)
    bank, digest, end = _tlv(listed, 0)
    if digests != TYPE_DIGESTS or end != len(listed):
        raise MalformedError(f"launcher's log: record {number} does not have one digest")
    if bank not in HASHES or bank == ALG_SHA1:
        raise UnsupportedError(f"launcher's log: the bank of hash algorithm 0x{bank:02x} is not supported")
    start = at
    content, inner, at = _tlv(data, at)
    if content != CONTENT_LAUNCHER:
        raise MalformedError(f"launcher's log: record {number} has content of type {content}")
    if HASHES[bank](data[start:at]).digest() != digest:
        raise EvidenceError(f"launcher's log: the digest of record {number} is not that of its content")
    event, value, end = _tlv(inner, 0)
    if end != len(inner):
        raise MalformedError(f"launcher's log: record {number} has trailing bytes in its content")
    return _Record((kind, register[0]), bank, digest, LauncherEvent(number, event, value)), at


def _tlv(data: bytes, at: int) -> tuple[int, bytes, int]:
    head = data[at : at + _HEADER]
    size = int.from_bytes(head[1:])
    end = at + _HEADER + size
    if len(head) != _HEADER or size > MAX_EVENT or end > len(data):
        raise MalformedError(f"launcher's log: it ends within a TLV at byte {at}, or that is too long")
    return head[0], data[at + _HEADER : end], end
