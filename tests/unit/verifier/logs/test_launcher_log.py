# SPDX-License-Identifier: Apache-2.0
"""The log of Google's launcher: CEL in TLV (docs/spec/boot-logs.md has no step for it yet; the readers do)."""

from __future__ import annotations

import hashlib

import pytest

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs.cel_launcher import SEPARATOR, LauncherEvent, parse_launcher_log

EVENTS = [(0, b"image"), (1, b"sha256:00"), (5, b"PATH=/bin"), (SEPARATOR, b"")]


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(4) + value


def record(
    number: int,
    kind: int,
    value: bytes,
    *,
    register: int = 4,
    at: int = 108,
    content: int = 80,
    bank: int = 12,
) -> bytes:
    octets = tlv(content, tlv(kind, value))
    digest = hashlib.new({4: "sha1", 11: "sha256", 12: "sha384", 18: "sha256"}[bank], octets).digest()
    return tlv(0, number.to_bytes(8)) + tlv(at, bytes((register,))) + tlv(3, tlv(bank, digest)) + octets


def log(events: list[tuple[int, bytes]] = EVENTS, **options: int) -> bytes:
    return b"".join(record(number, *event, **options) for number, event in enumerate(events))


def value_of(events: list[tuple[int, bytes]] = EVENTS, name: str = "sha384") -> bytes:
    value = bytes(hashlib.new(name).digest_size)
    for event in events:
        value = hashlib.new(name, value + hashlib.new(name, tlv(80, tlv(*event))).digest()).digest()
    return value


def test_a_log_that_replays_gives_its_events_up_to_the_separator_and_those_behind_it() -> None:
    late = [*EVENTS, (9, b"\x01")]
    records = parse_launcher_log(log(late)).replay(value_of(late))
    assert records.launch == tuple(LauncherEvent(number, *event) for number, event in enumerate(EVENTS))
    assert records.late == (LauncherEvent(4, 9, b"\x01"),)


def test_a_log_of_a_pcr_is_read_like_one_of_a_confidential_vm() -> None:
    parsed = parse_launcher_log(log(register=13, at=1, bank=11))
    assert (parsed.register, parsed.confidential) == (13, False)
    assert parsed.replay(value_of(name="sha256")).launch


@pytest.mark.parametrize("number", range(len(EVENTS)))
def test_a_log_with_a_record_missing_or_exchanged_does_not_replay(number: int) -> None:
    fewer = [*EVENTS[:number], *EVENTS[number + 1 :]]
    with pytest.raises(EvidenceError, match="does not replay"):
        parse_launcher_log(log(fewer)).replay(value_of())
    other = [*EVENTS[:number], (2, b"Always"), *EVENTS[number + 1 :]]
    with pytest.raises(EvidenceError, match="does not replay"):
        parse_launcher_log(log(other)).replay(value_of())


def test_record_numbers_are_consecutive() -> None:
    for numbers in ([0, 2], [1, 2], [0, 0], [1, 0]):
        data = b"".join(record(number, *EVENTS[0]) for number in numbers)
        with pytest.raises(EvidenceError, match="has number"):
            parse_launcher_log(data)


def test_content_and_digest_fit_byte_for_byte() -> None:
    data = log()
    for position in range(len(data)):
        altered = data[:position] + bytes((data[position] ^ 1,)) + data[position + 1 :]
        with pytest.raises((EvidenceError, MalformedError, UnsupportedError)):
            parse_launcher_log(altered).replay(value_of())
    for length in range(len(data)):
        with pytest.raises((EvidenceError, MalformedError)):
            parse_launcher_log(data[:length]).replay(value_of())


def test_bytes_behind_an_event_or_a_second_digest_are_malformed() -> None:
    octets = tlv(80, tlv(0, b"image") + b"x")
    digest = hashlib.sha384(octets).digest()
    head = tlv(0, bytes(8)) + tlv(108, b"\4")
    with pytest.raises(MalformedError, match="trailing bytes"):
        parse_launcher_log(head + tlv(3, tlv(12, digest)) + octets)
    with pytest.raises(MalformedError, match="one digest"):
        parse_launcher_log(head + tlv(3, tlv(12, digest) * 2) + octets)
    with pytest.raises(MalformedError):
        parse_launcher_log(b"")


def test_another_content_type_or_several_registers_are_malformed() -> None:
    with pytest.raises(MalformedError, match="content of type 81"):
        parse_launcher_log(log(content=81))
    mixed = record(0, *EVENTS[0]) + record(1, *EVENTS[1], register=3)
    with pytest.raises(MalformedError, match="several registers"):
        parse_launcher_log(mixed)


@pytest.mark.parametrize("bank", [4, 18])
def test_sha1_and_unknown_banks_are_not_supported(bank: int) -> None:
    with pytest.raises(UnsupportedError, match="not supported"):
        parse_launcher_log(log(bank=bank))
