# SPDX-License-Identifier: Apache-2.0
"""The workload log: what the agent measured, in epochs (docs/spec/workload-log.md, design section 3).

Each epoch lists everything that may serve and ends with one separator, whose content follows from the digests of
the epoch's events. A separator is therefore recognised by its digest even where the log gives digests only, and no
other event can pass for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs.cel import content_digest, content_tlv
from quotary_verifier.wire import cbor
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_EVENT

KIND_EVENT = 18
TYPE_SEPARATOR = "separator"
TYPE_AGENT = "agent"
TYPE_ENGINE = "engine"
TYPE_MODEL = "model"
TYPE_CONFIGURATION = "configuration"

SECRET_SALT_BYTES = 16
_MAX_NAME = 512
_MAX_DETAILS = 64


@frozen
class WorkloadEvent:
    """The content of one event: what was measured, under which name, with which SHA-256 digest."""

    type: str
    name: str
    digest: bytes
    details: Mapping[str, Any]

    def encode(self) -> bytes:
        """Return the content, deterministic CBOR."""
        return cbor.encode(
            {0: KIND_EVENT, 1: 1, 2: self.type, 3: self.name, 4: self.digest, 5: dict(self.details)}
        )

    @classmethod
    def decode(cls, content: bytes) -> WorkloadEvent:
        """Read the content of an event.

        Raises:
            MalformedError: it is none.
            UnsupportedError: its version is unknown.
        """
        fields = cbor.Fields.artefact(
            cbor.decode(content, max_bytes=MAX_EVENT, what="workload event"), "workload event", KIND_EVENT
        )
        event = cls(
            type=fields.text(2, 64),
            name=fields.text(3, _MAX_NAME),
            digest=fields.octets(4, 32),
            details=fields.mapping(5, _MAX_DETAILS),
        )
        cbor.texts(event.details, "details of a workload event")
        if any(type(value) not in (str, int, bool, bytes) for value in event.details.values()):
            raise MalformedError("workload event: a detail is neither text, number, boolean nor bytes")
        fields.finish()
        return event


def separator(epoch: int, event_digests: Sequence[bytes]) -> bytes:
    """Return the content of the separator that closes epoch number `epoch` (from 0) over its events' digests."""
    return _separator(epoch, hashlib.sha256(b"".join(event_digests)).digest())


def _separator(epoch: int, digest: bytes) -> bytes:
    return cbor.encode_ordered(
        {0: KIND_EVENT, 1: 1, 2: TYPE_SEPARATOR, 3: f"epoch {epoch}", 4: digest, 5: {}}
    )


def _around_digest(epoch: int) -> tuple[bytes, bytes]:
    """Return the content TLV of an epoch's separator up to the digest in it, and from there on: a log may be given
    by digests alone, and then each event may be the one that closes the epoch."""
    before, _, after = content_tlv(_separator(epoch, ZERO)).partition(ZERO)
    return before, after


def secret_commitment(salt: bytes, content: bytes) -> bytes:
    """Return `SHA-256(salt || content)`, which stands in an event for what may hold secrets."""
    return hashlib.sha256(salt + content).digest()


class LoggedEvent(NamedTuple):
    """One event of a log: its record number, digest, and its content where the log gives it in full."""

    number: int
    digest: bytes
    event: WorkloadEvent | None


@frozen
class WorkloadLog:
    """A log that was read in full: the PCR value it replays to, and the last closed epoch.

    Only a caller who compares `value` with a quoted PCR may rely on anything here. `unknown` says which event is of a
    version that this verifier does not know, empty where none is: the log replays all the same.
    """

    value: bytes
    epoch: int
    current: tuple[LoggedEvent, ...]
    unknown: str = ""

    def find(self, number: int) -> LoggedEvent | None:
        """Return the event of the last closed epoch with this record number."""
        for event in self.current:
            if event.number == number:
                return event
        return None


def read_log(items: Sequence[bytes]) -> WorkloadLog:
    """Replay a log given as digests (32 bytes) and contents (longer), and find its epochs.

    An empty log replays to zeros and has no epoch (-1).

    Raises:
        MalformedError: an item is not an event.
        EvidenceError: events stand after the last separator, or one that calls itself a separator is none.
    """
    value = ZERO
    epoch = 0
    unknown = ""
    open_events: list[LoggedEvent] = []
    closed: tuple[LoggedEvent, ...] = ()
    running = hashlib.sha256()
    before, after = _around_digest(epoch)
    for number, item in enumerate(items):
        digest = item if len(item) == 32 else content_digest(item)
        value = hashlib.sha256(value + digest).digest()
        if open_events and digest == hashlib.sha256(before + running.digest() + after).digest():
            closed = tuple(open_events)
            open_events = []
            running = hashlib.sha256()
            epoch += 1
            before, after = _around_digest(epoch)
            continue
        event = None
        try:
            event = None if len(item) == 32 else WorkloadEvent.decode(item)
        except UnsupportedError as error:
            unknown = unknown or f"event {number}: {error}"
        if event is not None and event.type == TYPE_SEPARATOR:
            raise EvidenceError(f"workload log: event {number} is a separator that does not fit its epoch")
        open_events.append(LoggedEvent(number, digest, event))
        running.update(digest)
    if open_events:
        raise EvidenceError("workload log: events stand after the last separator")
    return WorkloadLog(value, epoch - 1, closed, unknown)


def opaque(items: Sequence[bytes]) -> tuple[int, ...]:
    """Return the record numbers of the items that are given as digests only."""
    return tuple([number for number, item in enumerate(items) if len(item) == 32])


def reveal(contents: Sequence[bytes], keep: frozenset[int]) -> tuple[bytes, ...]:
    """Return the log with the events numbered in `keep` in full and all others as digests.

    Raises:
        MalformedError: a content has 32 bytes, which no event has.
    """
    if any(len(content) == 32 for content in contents):
        raise MalformedError("an event's content cannot have 32 bytes")
    return tuple(
        content if number in keep else content_digest(content) for number, content in enumerate(contents)
    )
