# SPDX-License-Identifier: Apache-2.0
"""Logs from an attacker: whatever the bytes, a typed error or events that replay refuses; time and memory bounded."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ima_logs import file_data, ima_entry, ng, replayed
from tcg_logs import TcgWriter, good_boot

from quotary_verifier.errors import EvidenceError, MalformedError, QuotaryError, UnsupportedError
from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.cel_launcher import parse_launcher_log
from quotary_verifier.logs.ima import parse_ima_ascii, parse_ima_binary
from quotary_verifier.logs.ima_fields import decode
from quotary_verifier.logs.tcg import ReplayedLog, parse_tcg_log
from quotary_verifier.logs.tcg_boot import read_boot
from quotary_verifier.logs.tcg_loaders import read_loader_events
from quotary_verifier.logs.tcg_secureboot import read_secure_boot
from quotary_verifier.logs.tcg_types import Coverage, Tolerance

TYPED = (MalformedError, EvidenceError, UnsupportedError)
BOOT = good_boot(banks=(0x0B,))
VALUES = BOOT.values()
TCG = BOOT.agile()
OLD = good_boot().old()
DATAS = [ng("boot_aggregate", bytes(32)), file_data(1), ng("/signed", bytes(32), b"sig")]
IMA = b"".join(
    ima_entry(data, name=b"ima-sig" if number == 2 else b"ima-ng") for number, data in enumerate(DATAS)
)
QUOTED = {10: replayed(DATAS)}


def read_everything(log: ReplayedLog) -> None:
    for read in (read_boot, read_secure_boot):
        try:
            read(log, tolerate=set(Tolerance))
        except TYPED:
            continue
    read_loader_events(log)


def altered(data: bytes) -> Iterator[tuple[int, bytes]]:
    for position in range(len(data)):
        for flip in (0x01, 0x80):
            yield position, data[:position] + bytes((data[position] ^ flip,)) + data[position + 1 :]


def test_a_firmware_log_cut_off_anywhere_is_malformed_or_does_not_replay() -> None:
    for length in range(len(TCG)):
        with pytest.raises((MalformedError, EvidenceError)):
            parse_tcg_log(TCG[:length]).replay(VALUES, required=VALUES.keys())
    for length in range(len(OLD)):
        with pytest.raises((MalformedError, EvidenceError)):
            parse_tcg_log(OLD[:length]).replay(
                good_boot().values(0x04), bank=0x04, required=VALUES.keys(), tolerate={Tolerance.SHA1}
            )


def test_a_firmware_log_with_any_byte_altered_is_refused_or_claims_nothing_new() -> None:
    """What no digest covers can be exchanged: types, and data that is not covered. Nothing else."""
    true = parse_tcg_log(TCG).replay(VALUES, required=VALUES.keys())
    facts = [(event.register, event.digest) for event in true.events]
    covered = [event.covered for event in true.events]
    for _, data in altered(TCG):
        try:
            log = parse_tcg_log(data).replay(VALUES, required=VALUES.keys())
        except TYPED:
            continue
        assert [(event.register, event.digest) for event in log.events] == facts
        for event, before in zip(log.events, covered, strict=True):
            assert event.covered in {before, None} or event.coverage is Coverage.TEXT
        read_everything(log)


def test_an_ima_log_cut_off_or_altered_anywhere_is_refused() -> None:
    for length in range(len(IMA)):
        with pytest.raises(TYPED):
            parse_ima_binary(IMA[:length]).replay(QUOTED)
    for position, data in altered(IMA):
        try:
            log = parse_ima_binary(data).replay(QUOTED)
        except TYPED:
            continue
        # A template's name is what the data is read by, and no hash covers it.
        assert [record.data for record in log.records()] == DATAS, position
        assert any(record.template not in {b"ima-ng", b"ima-sig"} for record in log.records()), position


def test_an_altered_template_name_takes_no_record_apart_in_another_way() -> None:
    renamed = ima_entry(DATAS[2], name=b"ima-buf")
    (record,) = parse_ima_binary(renamed).replay({10: replayed(DATAS[2:])}).records()
    assert decode(record.template, record.data).path == b"/signed"
    with pytest.raises(MalformedError):
        decode(b"ima-ng", record.data)


PARSERS: list[Callable[[bytes], object]] = [
    lambda data: read_everything(parse_tcg_log(data).replay(VALUES)),
    lambda data: read_everything(parse_tcg_log(data, tolerate=set(Tolerance)).replay(VALUES, required=())),
    lambda data: list(parse_ima_binary(data).replay(QUOTED).records()),
    lambda data: list(parse_ima_ascii(data).unverified_records_do_not_trust()),
    lambda data: parse_launcher_log(data).replay(bytes(48)),
    lambda data: decode(b"ima-sig", data),
]


@given(
    st.binary(max_size=400)
    | st.tuples(st.sampled_from([TCG, OLD, IMA]), st.integers(0, 4000), st.binary(max_size=12)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :]
    )
)
def test_any_bytes_give_a_typed_error_or_what_replays(data: bytes) -> None:
    for parse in PARSERS:
        try:
            parse(data)
        except QuotaryError:
            continue


@given(st.text(alphabet="0123456789abcdefima-ngsu: /\n", max_size=300))
def test_any_text_gives_a_typed_error_or_records(text: str) -> None:
    try:
        for record in parse_ima_ascii(text.encode()).unverified_records_do_not_trust():
            decode(record.template, record.data)
    except QuotaryError:
        pass


def small_events(count: int) -> bytes:
    writer = TcgWriter((0x0B,)).add(8, t.EV_IPL, b"")
    return writer.header() + writer.encode(writer.events[0]) * count


HUGE = {
    "events": lambda: small_events(9_000),
    "data": lambda: TcgWriter((0x0B,)).add(8, t.EV_IPL, bytes(3_000_000)).agile(),
    "labels": lambda: TcgWriter((0x0B,)).add(8, t.EV_IPL, b": " * 1_000_000).agile(),
    "variables": lambda: (
        TcgWriter((0x0B,)).add(7, t.EV_EFI_VARIABLE_AUTHORITY, bytes(16) + b"\xff" * 100_000).agile()
    ),
    "too long": lambda: bytes(17 * 1024 * 1024),
    "ima": lambda: (
        (10).to_bytes(4, "little") + bytes(20) + b"\x06\0\0\0ima-ng" + b"\xff\xff\xff\x7f" + bytes(100)
    ),
    "ima records": lambda: ima_entry(b"", violation=True) * 20_000,
    "ima lines": lambda: b"10 " + b"0" * 40 + b" ima-ng " + b"sha256:" * 200_000,
}


@pytest.mark.parametrize("name", HUGE)
def test_time_and_memory_are_bounded_by_the_logs_own_size(name: str) -> None:
    data = HUGE[name]()
    tracemalloc.start()
    began = time.process_time()
    for parse in PARSERS:
        try:
            parse(data)
        except QuotaryError:
            continue
    spent, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < 10.0, spent
    assert peak < 16 * len(data) + 16 * 1024 * 1024, (peak, len(data))
