# SPDX-License-Identifier: Apache-2.0
"""TCG event logs of PC firmware: reading, and replay against quoted registers.

Formats: TCG PC Client Platform Firmware Profile 1.06, section 10 (crypto-agile TCG_PCR_EVENT2 behind a Spec ID event,
and the older SHA-1 TCG_PCR_EVENT). Confidential VMs use the same records with other register numbers (CCEL).

A log is written by software and proves nothing. Its digests are true where replaying them gives the value that a TPM
quoted; `TcgLog.replay` compares, and only its result gives events out. Even then an event's *type* is whatever the
writer of the log says, and its *data* is true only where the digest was computed over it (`Event.covered`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Mapping
from typing import Final

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs.banks import bank_hash, bank_name
from quotary_verifier.logs.little import Reader
from quotary_verifier.logs.tcg_cover import cover
from quotary_verifier.logs.tcg_types import EV_NO_ACTION, Coverage, Registers, Tolerance
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_BOOT_LOG
from quotary_verifier.wire.tpm_algorithms import ALG_SHA1, ALG_SHA256, HASH_SIZES

MAX_TCG_EVENTS: Final = 8 * 1024
"""Events of one log."""
MAX_TCG_DATA: Final = 4 * 1024 * 1024
"""Bytes of one event's data; a full dbx has some tens of kilobytes."""

BOOT_REGISTERS: Final = {Registers.TPM: frozenset({0, 1, 2, 3, 4, 6, 7, 8}), Registers.CC: frozenset({1, 2})}
"""Registers that the firmware's log must explain in full. Into the others (PCR 5, 9, 11-15; RTMR 2, 3) the running
system may extend what no firmware log holds."""

_MAX_BANKS: Final = 8
_MAX_DIGEST: Final = 64
_REGISTERS: Final = {Registers.TPM: 24, Registers.CC: 5}
_SPEC_ID_3: Final = b"Spec ID Event03\0"
_SPEC_ID_SHA1: Final = (b"Spec ID Event00\0", b"Spec ID Event02\0")
_LOCALITY: Final = b"StartupLocality\0"
_LOCALITIES: Final = (0, 3, 4)
_PADDING: Final = re.compile(rb"[\0\xff]++\Z")
_HEAD = struct.Struct("<II20sI")
_HEAD2 = struct.Struct("<III")


@frozen
class RawEvent:
    """An event as the log gives it: not one field of it is trusted. `digests` maps a bank to the digest for it."""

    number: int
    register: int
    type: int
    digests: Mapping[int, bytes]
    data: bytes


@frozen
class Event:
    """An event of a log that replayed.

    `number` (the place in the log), `register` and `digest` are what the quoted value follows from. `covered` is the
    bytes that the digest was computed over, where they are in the log, and `coverage` says which they are. The type is
    never covered: who relies on it has to find it confirmed by what is (`quotary_verifier.logs.tcg_boot`).
    """

    number: int
    register: int
    digest: bytes
    covered: bytes | None
    coverage: Coverage
    untrusted_type: int
    untrusted_data: bytes


_TOKEN: Final = object()


class ReplayedLog:
    """The part of a log that is proved by register values the caller gave. Only `TcgLog.replay` makes one."""

    __slots__ = ("bank", "events", "registers", "tolerances", "unconfirmed", "values")

    def __init__(
        self,
        token: object,
        log: TcgLog,
        bank: int,
        values: Mapping[int, bytes],
        unconfirmed: tuple[int, ...],
        events: tuple[Event, ...],
        tolerances: tuple[Tolerance, ...],
    ) -> None:
        if token is not _TOKEN:
            raise TypeError("a replayed log is made by replay alone")
        self.registers = log.registers
        """What the register numbers mean."""
        self.bank = bank
        """The hash algorithm of the bank."""
        self.values = values
        """Register → value, for each register that has events in the log and replayed to the given value."""
        self.unconfirmed = unconfirmed
        """Registers with events in the log that were not given, or have another value: their events are withheld."""
        self.events = events
        """The events of the confirmed registers, in order, without those that are never extended."""
        self.tolerances = tolerances
        """Named departures from the specification that were used."""

    def of(self, register: int) -> tuple[Event, ...]:
        """Return the events of one register.

        Raises:
            EvidenceError: the register was not confirmed.
        """
        if register in self.unconfirmed:
            raise EvidenceError(f"the log does not replay to the value of register {register}")
        return tuple([event for event in self.events if event.register == register])


class TcgLog:
    """A log that was parsed and is not trusted. `replay` is the way to its events."""

    __slots__ = ("_events", "_tolerances", "agile", "banks", "locality", "padding", "registers")

    def __init__(
        self,
        registers: Registers,
        agile: bool,
        banks: tuple[int, ...],
        events: tuple[RawEvent, ...],
        padding: int,
        tolerances: tuple[Tolerance, ...],
    ) -> None:
        self.registers = registers
        self.agile = agile
        """Whether the log is of the crypto-agile format."""
        self.banks = banks
        """Hash algorithms for which each event has a digest."""
        self.padding = padding
        """Bytes behind the last event, 0 unless the tolerance was named."""
        self.locality = _startup_locality(events) if registers is Registers.TPM else 0
        """The locality of TPM2_Startup as the log says; PCR 0 begins with it, so replay confirms it."""
        self._events = events
        self._tolerances = tolerances

    def unverified_events_do_not_trust(self) -> tuple[RawEvent, ...]:
        """Return all events as the log gives them. Nothing shows that any of them happened."""
        return self._events

    def unverified_values_do_not_trust(self, bank: int, *, weak: bool = False) -> dict[int, bytes]:
        """Return what each register with events would hold, had they happened.

        Raises:
            EvidenceError: the log or an event has no digest of the bank, or it is SHA-1 and `weak` is not set.
            UnsupportedError: the bank's hash is not known.
        """
        if bank not in self.banks:
            raise EvidenceError(f"the log has no digests of the {bank_name(bank)} bank")
        function, size = bank_hash(bank, weak=weak), HASH_SIZES[bank]
        values: dict[int, bytes] = {}
        for event in self._events:
            if event.type == EV_NO_ACTION:
                continue
            value = values.get(event.register)
            if value is None:
                value = self._initial(event.register, size)
            digest = event.digests.get(bank)
            if digest is None:
                raise EvidenceError(f"event {event.number} has no digest of the {bank_name(bank)} bank")
            values[event.register] = function(value + digest).digest()
        return values

    def _initial(self, register: int, size: int) -> bytes:
        if register == 0 and self.locality:
            return self.locality.to_bytes(size)
        if self.registers is Registers.TPM and 17 <= register <= 22:
            return b"\xff" * size
        return bytes(size)

    def replay(
        self,
        quoted: Mapping[int, bytes],
        *,
        bank: int = ALG_SHA256,
        required: Collection[int] | None = None,
        tolerate: Collection[Tolerance] = (),
    ) -> ReplayedLog:
        """Replay the log against register values that a quote authenticated, and give its events out.

        `required` registers (by default `BOOT_REGISTERS` as far as they are quoted) must hold exactly what the log
        says, also where it says nothing: a register without events must then be at its initial value. Of the others,
        those that differ or are not quoted are listed as unconfirmed and their events are withheld.

        Raises:
            EvidenceError: a required register has another value or is not quoted, or the bank is not acceptable.
            UnsupportedError: the bank's hash is not known.
        """
        if required is None:
            required = BOOT_REGISTERS[self.registers] & quoted.keys()
        weak = Tolerance.SHA1 in tolerate
        values = self.unverified_values_do_not_trust(bank, weak=weak)
        for register in sorted(required):
            if quoted.get(register) != values.get(register, self._initial(register, HASH_SIZES[bank])):
                shown = "not quoted" if register not in quoted else f"quoted as {quoted[register].hex()}"
                raise EvidenceError(f"the event log does not replay: register {register} is {shown}")
        confirmed = {register: value for register, value in values.items() if quoted.get(register) == value}
        unconfirmed = tuple(sorted(values.keys() - confirmed.keys()))
        tolerances = (*self._tolerances, *((Tolerance.SHA1,) if bank == ALG_SHA1 else ()))
        events = self._confirmed(bank, confirmed, weak)
        return ReplayedLog(_TOKEN, self, bank, confirmed, unconfirmed, events, tolerances)

    def _confirmed(self, bank: int, registers: Collection[int], weak: bool) -> tuple[Event, ...]:
        function = bank_hash(bank, weak=weak)
        events = []
        for raw in self._events:
            if raw.type == EV_NO_ACTION or raw.register not in registers:
                continue
            digest = raw.digests[bank]
            coverage, covered = cover(raw.type, raw.data, digest, function)
            events.append(Event(raw.number, raw.register, digest, covered, coverage, raw.type, raw.data))
        return tuple(events)


def parse_tcg_log(
    data: bytes, *, registers: Registers = Registers.TPM, tolerate: Collection[Tolerance] = ()
) -> TcgLog:
    """Read an event log, of the crypto-agile format where it begins with a Spec ID event of that format.

    Raises:
        MalformedError: it is none.
    """
    if len(data) > MAX_BOOT_LOG:
        raise MalformedError(f"an event log of {len(data)} bytes is longer than {MAX_BOOT_LOG}")
    if not data:
        raise MalformedError("the event log is empty")
    first, at = _old_event(data, 0, 0)
    sizes = _spec_id(first)
    events = [first]
    padding = 0
    while at < len(data):
        if Tolerance.PADDING in tolerate and _is_padding(data, at):
            padding = len(data) - at
            break
        if len(events) >= MAX_TCG_EVENTS:
            raise MalformedError(f"the event log has more than {MAX_TCG_EVENTS} events")
        number = len(events)
        event, at = _new_event(data, at, number, sizes) if sizes else _old_event(data, at, number)
        events.append(event)
    for event in events:
        if event.register >= _REGISTERS[registers] and event.type != EV_NO_ACTION:
            raise MalformedError(
                f"event {event.number} is for register {event.register}, which does not exist"
            )
    banks = tuple(sizes) if sizes else (ALG_SHA1,)
    used = (Tolerance.PADDING,) if padding else ()
    return TcgLog(registers, bool(sizes), banks, tuple(events), padding, used)


def _is_padding(data: bytes, at: int) -> bool:
    """Tell whether nothing but 0x00 and 0xff follows. No event begins with eight such bytes and holds no others."""
    return _PADDING.match(data, at) is not None


def _old_event(data: bytes, at: int, number: int) -> tuple[RawEvent, int]:
    """Read a TCG_PCR_EVENT: register, type, SHA-1 digest, size, data."""
    if at + _HEAD.size > len(data):
        raise MalformedError(f"event {number} of the log is truncated")
    register, kind, digest, size = _HEAD.unpack_from(data, at)
    return _with_data(data, at + _HEAD.size, size, number, register, kind, {ALG_SHA1: digest})


def _new_event(data: bytes, at: int, number: int, sizes: Mapping[int, int]) -> tuple[RawEvent, int]:
    """Read a TCG_PCR_EVENT2: register, type, a digest for each of some of the log's banks in any order, size, data."""
    if at + _HEAD2.size > len(data):
        raise MalformedError(f"event {number} of the log is truncated")
    register, kind, count = _HEAD2.unpack_from(data, at)
    if not 1 <= count <= len(sizes):
        raise MalformedError(f"event {number} has {count} digests where the log has {len(sizes)} banks")
    at += _HEAD2.size
    digests: dict[int, bytes] = {}
    for _ in range(count):
        bank = int.from_bytes(data[at : at + 2], "little")
        size = sizes.get(bank)
        if size is None or bank in digests:
            raise MalformedError(
                f"event {number} has a digest of bank 0x{bank:04x} twice, or the log has none such"
            )
        digests[bank] = data[at + 2 : at + 2 + size]
        at += 2 + size
    if at + 4 > len(data):
        raise MalformedError(f"event {number} of the log is truncated")
    size = int.from_bytes(data[at : at + 4], "little")
    return _with_data(data, at + 4, size, number, register, kind, digests)


def _with_data(
    data: bytes, at: int, size: int, number: int, register: int, kind: int, digests: Mapping[int, bytes]
) -> tuple[RawEvent, int]:
    if size > MAX_TCG_DATA or at + size > len(data):
        raise MalformedError(f"event {number} of the log has {size} bytes of data")
    return RawEvent(number, register, kind, digests, data[at : at + size]), at + size


def _spec_id(first: RawEvent) -> dict[int, int]:
    """Return bank → digest size as the Spec ID event states them; empty for a log of the SHA-1 format."""
    if first.type != EV_NO_ACTION or not first.data.startswith(_SPEC_ID_3):
        if first.data.startswith(_SPEC_ID_SHA1) or not first.data.startswith(b"Spec ID Event"):
            return {}
        raise UnsupportedError("the event log is of a version that is not known")
    reader = Reader(first.data, "the Spec ID event")
    reader.take(len(_SPEC_ID_3) + 8)
    count = reader.number(4)
    if not 1 <= count <= _MAX_BANKS:
        raise MalformedError(f"the Spec ID event names {count} banks")
    sizes: dict[int, int] = {}
    for _ in range(count):
        bank, size = reader.number(2), reader.number(2)
        if bank in sizes or not 1 <= size <= _MAX_DIGEST or size != HASH_SIZES.get(bank, size):
            raise MalformedError(f"the Spec ID event names bank 0x{bank:04x} twice or with {size} bytes")
        sizes[bank] = size
    reader.take(reader.number(1))
    reader.end()
    return sizes


def _startup_locality(events: tuple[RawEvent, ...]) -> int:
    """Return the locality in the one StartupLocality event that may precede everything extended into PCR 0."""
    found: int | None = None
    extended = False
    for event in events:
        if event.type == EV_NO_ACTION and event.data.startswith(_LOCALITY):
            locality = event.data[len(_LOCALITY) :]
            if found is not None or extended or event.register:
                raise MalformedError("the startup locality stands twice, or behind an event of PCR 0")
            if len(locality) != 1 or locality[0] not in _LOCALITIES:
                raise MalformedError("the startup locality is not 0, 3 or 4")
            found = locality[0]
        extended = extended or (event.register == 0 and event.type != EV_NO_ACTION)
    return found or 0
