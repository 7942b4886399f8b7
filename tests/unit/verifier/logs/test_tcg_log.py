# SPDX-License-Identifier: Apache-2.0
"""TCG event logs: reading, replay, and what a digest covers (docs/spec/boot-logs.md)."""

from __future__ import annotations

import hashlib
import time

import pytest
from tcg_logs import TcgWriter, Written, good_boot, variable

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs import tcg
from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.tcg import ReplayedLog, parse_tcg_log
from quotary_verifier.logs.tcg_types import Coverage, Registers, Tolerance
from quotary_verifier.logs.uefi import GLOBAL

BOOT = good_boot()


def replayed(writer: TcgWriter, **options: object) -> ReplayedLog:
    return parse_tcg_log(writer.agile()).replay(writer.values(), **options)


def test_a_log_that_replays_gives_its_events_with_their_digests_in_order() -> None:
    log = replayed(BOOT)
    assert [event.number for event in log.events] == list(range(1, len(BOOT.events) + 1))
    assert [event.digest for event in log.events] == [event.digest(0x0B) for event in BOOT.events]
    assert log.values == BOOT.values()
    assert log.unconfirmed == ()
    assert log.tolerances == ()


def test_events_that_are_never_extended_are_not_given_out() -> None:
    writer = TcgWriter().add(0, t.EV_NO_ACTION, b"SP800-155 Event\0" + bytes(20))
    writer.add(0, t.EV_S_CRTM_VERSION, b"1.0")
    assert [event.number for event in replayed(writer).events] == [2]


def test_there_is_no_way_to_make_a_replayed_log_without_replay() -> None:
    log = parse_tcg_log(BOOT.agile())
    with pytest.raises(TypeError, match="replay alone"):
        ReplayedLog(object(), log, 0x0B, {}, (), (), ())


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_pcr_0_begins_with_the_locality_of_the_start(locality: int) -> None:
    writer = TcgWriter().add(0, t.EV_NO_ACTION, b"StartupLocality\0" + bytes([locality]))
    writer.add(0, t.EV_S_CRTM_VERSION, b"1.0")
    log = parse_tcg_log(writer.agile())
    assert log.locality == locality
    assert log.replay(writer.values(locality=locality)).values == writer.values(locality=locality)
    with pytest.raises(EvidenceError, match="register 0"):
        log.replay(writer.values(locality=(locality + 3) % 6))


@pytest.mark.parametrize(
    ("register", "data", "after"),
    [(0, b"\x01", False), (0, b"", False), (0, b"\x03\x03", False), (1, b"\x03", False), (0, b"\x03", True)],
)
def test_a_startup_locality_that_is_not_where_or_what_it_must_be_is_malformed(
    register: int, data: bytes, after: bool
) -> None:
    locality = Written(register, t.EV_NO_ACTION, b"StartupLocality\0" + data)
    first = Written(0, t.EV_S_CRTM_VERSION, b"1.0")
    writer = TcgWriter(events=[first, locality] if after else [locality, first])
    with pytest.raises(MalformedError, match="startup locality"):
        parse_tcg_log(writer.agile())


def test_two_startup_localities_are_malformed() -> None:
    locality = Written(0, t.EV_NO_ACTION, b"StartupLocality\0\x03")
    with pytest.raises(MalformedError, match="stands twice"):
        parse_tcg_log(TcgWriter(events=[locality, locality]).agile())


def test_an_event_without_a_digest_of_the_bank_stops_its_replay() -> None:
    writer = TcgWriter(banks=(0x04, 0x0B)).add(4, t.EV_EFI_ACTION, b"one")
    other = TcgWriter(banks=(0x04,)).add(4, t.EV_EFI_ACTION, b"two")
    data = writer.agile() + other.encode(other.events[0])
    log = parse_tcg_log(data)
    with pytest.raises(EvidenceError, match="event 2 has no digest of the sha256 bank"):
        log.replay(writer.values())
    assert 4 in log.unverified_values_do_not_trust(0x04, weak=True)


def test_the_sha1_bank_is_replayed_only_under_its_name_and_the_result_says_so() -> None:
    log = parse_tcg_log(BOOT.old())
    assert (log.agile, log.banks) == (False, (0x04,))
    with pytest.raises(EvidenceError, match="tolerance 'sha-1'"):
        log.replay(BOOT.values(0x04), bank=0x04)
    assert log.replay(BOOT.values(0x04), bank=0x04, tolerate={Tolerance.SHA1}).tolerances == (Tolerance.SHA1,)
    with pytest.raises(EvidenceError, match="no digests of the sha256 bank"):
        log.replay(BOOT.values())


def test_a_bank_of_an_unknown_hash_is_read_past_and_never_replayed() -> None:
    header = TcgWriter(banks=(0x0B,)).header().replace(b"\x0b\0\x20\0", b"\x12\0\x20\0")
    event = TcgWriter(banks=(0x0B,)).add(0, t.EV_S_CRTM_VERSION, b"1.0")
    data = header + event.encode(event.events[0]).replace(b"\x0b\0", b"\x12\0", 1)
    log = parse_tcg_log(data)
    assert log.banks == (0x12,)
    with pytest.raises(UnsupportedError, match="0x0012"):
        log.replay({}, bank=0x12)


def test_a_spec_id_of_another_version_is_not_supported() -> None:
    with pytest.raises(UnsupportedError, match="version"):
        parse_tcg_log(BOOT.agile().replace(b"Spec ID Event03", b"Spec ID Event04"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x02\0\0\0\x04\0\x14\0\x0b\0\x20\0", b"\0\0\0\0\x04\0\x14\0\x0b\0\x20\0"),
        (b"\x02\0\0\0\x04\0\x14\0\x0b\0\x20\0", b"\xff\xff\xff\xff\x04\0\x14\0\x0b\0\x20\0"),
        (b"\x02\0\0\0\x04\0\x14\0\x0b\0\x20\0", b"\x02\0\0\0\x0b\0\x20\0\x0b\0\x20\0"),
        (b"\x02\0\0\0\x04\0\x14\0\x0b\0\x20\0", b"\x02\0\0\0\x04\0\x14\0\x0b\0\x21\0"),
        (b"\x02\0\0\0\x04\0\x14\0\x0b\0\x20\0", b"\x03\0\0\0\x04\0\x14\0\x0b\0\x20\0"),
        (b"\x02\0\0\0\x04\0\x14\0\x0b\0\x20\0", b"\x01\0\0\0\x04\0\x14\0\x0b\0\x20\0"),
    ],
)
def test_a_spec_id_event_whose_banks_do_not_fit_is_malformed(old: bytes, new: bytes) -> None:
    assert BOOT.agile().count(old) == 1
    with pytest.raises(MalformedError, match="Spec ID"):
        parse_tcg_log(BOOT.agile().replace(old, new))


@pytest.mark.parametrize("count", [0, 3, 2**32 - 1])
def test_an_event_with_another_number_of_digests_is_malformed(count: int) -> None:
    data = bytearray(BOOT.agile())
    at = len(BOOT.header()) + 8
    data[at : at + 4] = count.to_bytes(4, "little")
    with pytest.raises(MalformedError, match="digests"):
        parse_tcg_log(bytes(data))


def test_a_digest_given_twice_is_malformed_even_where_the_count_fits() -> None:
    one = TcgWriter(banks=(0x0B,)).add(4, t.EV_EFI_ACTION, b"one")
    body = one.encode(one.events[0])
    twice = body[:8] + b"\2\0\0\0" + body[12:46] * 2 + body[46:]
    assert parse_tcg_log(TcgWriter().header() + body).banks == (0x04, 0x0B)
    with pytest.raises(MalformedError, match="twice"):
        parse_tcg_log(TcgWriter().header() + twice)


def test_bytes_behind_the_vendors_part_of_the_spec_id_event_are_malformed() -> None:
    header = BOOT.header()
    size = int.from_bytes(header[28:32], "little")
    longer = header[:28] + (size + 1).to_bytes(4, "little") + header[32:] + b"\0"
    with pytest.raises(MalformedError, match="trailing"):
        parse_tcg_log(longer)
    vendor = header[:28] + (size + 3).to_bytes(4, "little") + header[32:-1] + b"\3IBM"
    assert parse_tcg_log(vendor).banks == BOOT.banks


def test_more_events_or_data_than_a_log_may_have_are_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, value in (("MAX_TCG_EVENTS", len(BOOT.events)), ("MAX_TCG_DATA", 20), ("MAX_BOOT_LOG", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(tcg, limit, value)
            with pytest.raises(MalformedError):
                parse_tcg_log(BOOT.agile())


def test_a_digest_given_twice_or_of_a_bank_the_log_does_not_have_is_malformed() -> None:
    data = BOOT.agile()
    at = len(BOOT.header()) + 12
    for bank in (b"\x0b\0", b"\x0c\0"):
        with pytest.raises(MalformedError):
            parse_tcg_log(data[:at] + bank + data[at + 2 :])


@pytest.mark.parametrize("size", [0xFFFFFFF0, 5 * 1024 * 1024])
def test_an_event_that_says_it_is_larger_than_the_log_is_malformed(size: int) -> None:
    data = bytearray(BOOT.agile())
    at = len(BOOT.header()) + 12 + 2 + 20 + 2 + 32
    data[at : at + 4] = size.to_bytes(4, "little")
    with pytest.raises(MalformedError, match="bytes of data"):
        parse_tcg_log(bytes(data))


def test_registers_that_do_not_exist_are_malformed() -> None:
    with pytest.raises(MalformedError, match="register 24"):
        parse_tcg_log(TcgWriter().add(24, t.EV_IPL, b"x").agile())
    with pytest.raises(MalformedError, match="register 5"):
        parse_tcg_log(TcgWriter().add(5, t.EV_IPL, b"x").agile(), registers=Registers.CC)


def test_padding_is_refused_until_named_and_then_reported() -> None:
    padded = BOOT.agile() + b"\xff" * 100 + bytes(50)
    with pytest.raises(MalformedError):
        parse_tcg_log(padded)
    log = parse_tcg_log(padded, tolerate={Tolerance.PADDING})
    assert log.padding == 150
    assert log.replay(BOOT.values()).tolerances == (Tolerance.PADDING,)
    with pytest.raises(MalformedError):
        parse_tcg_log(padded + b"x", tolerate={Tolerance.PADDING})


def test_events_that_begin_as_padding_does_cost_no_look_at_all_that_follows() -> None:
    writer = TcgWriter()
    for _ in range(8000):
        writer.add(0, 0, b"")
    for _ in range(3):
        writer.add(1, t.EV_S_CRTM_VERSION, b"x" * (4 << 20))
    data = writer.agile()
    started = time.process_time()
    assert parse_tcg_log(data, tolerate={Tolerance.PADDING}).padding == 0
    assert time.process_time() - started < 2  # it was 20 s


def test_a_register_that_the_log_does_not_mention_must_be_at_its_initial_value() -> None:
    events = [event for event in BOOT.events if event.register != 7]
    log = parse_tcg_log(TcgWriter(BOOT.banks, events).agile())
    with pytest.raises(EvidenceError, match="register 7"):
        log.replay(BOOT.values())
    assert 7 not in log.replay({**BOOT.values(), 7: bytes(32)}).values


def test_late_registers_that_differ_are_withheld_and_can_be_required() -> None:
    quoted = {**BOOT.values(), 9: hashlib.sha256(b"moved").digest()}
    log = parse_tcg_log(BOOT.agile())
    partly = log.replay(quoted)
    assert partly.unconfirmed == (9,)
    assert all(event.register != 9 for event in partly.events)
    with pytest.raises(EvidenceError, match="register 9"):
        partly.of(9)
    with pytest.raises(EvidenceError, match="register 9 is quoted as"):
        log.replay(quoted, required=range(10))
    with pytest.raises(EvidenceError, match="register 12 is not quoted"):
        log.replay(BOOT.values(), required={12})


def test_registers_that_a_dynamic_root_resets_begin_with_ones() -> None:
    writer = TcgWriter().add(17, t.EV_IPL, b"x")
    value = hashlib.sha256(b"\xff" * 32 + hashlib.sha256(b"x").digest()).digest()
    assert parse_tcg_log(writer.agile()).replay({17: value}, required={17}).values == {17: value}


@pytest.mark.parametrize(
    ("event", "coverage", "covered"),
    [
        (Written(4, t.EV_EFI_ACTION, b"Calling"), Coverage.DATA, b"Calling"),
        (Written(1, t.EV_EFI_VARIABLE_BOOT, variable(GLOBAL, "B", b"one"), b"one"), Coverage.VARIABLE_DATA, b"one"),
        (Written(8, t.EV_IPL, b"grub_cmd: set x=1\0", b"set x=1"), Coverage.TEXT, b"set x=1"),
        (Written(8, t.EV_IPL, b"kernel_cmdline: a: b\0", b"a: b"), Coverage.TEXT, b"a: b"),
        (Written(8, t.EV_IPL, b"grub_kernel_cmdline quiet\0", b"quiet"), Coverage.TEXT, b"quiet"),
        (Written(8, t.EV_IPL, b"plain\0", b"plain"), Coverage.TEXT, b"plain"),
        (Written(11, t.EV_IPL, ".linux\0".encode("utf-16-le"), b".linux\0"), Coverage.NAME, b".linux\0"),
        (Written(9, t.EV_IPL, b"/vmlinuz\0", b"the kernel"), Coverage.NOTHING, None),
        (Written(4, t.EV_EFI_BOOT_SERVICES_APPLICATION, b"path", b"image"), Coverage.NOTHING, None),
        (Written(7, t.EV_EFI_VARIABLE_AUTHORITY, b"no variable", b"else"), Coverage.NOTHING, None),
    ],
)  # fmt: skip
def test_what_a_digest_covers_is_found_by_hashing(
    event: Written, coverage: Coverage, covered: bytes | None
) -> None:
    writer = TcgWriter(events=[event])
    (found,) = parse_tcg_log(writer.agile()).replay(writer.values(), required={event.register}).events
    assert (found.coverage, found.covered) == (coverage, covered)
    assert found.untrusted_data == event.data


def test_old_shims_stray_bytes_behind_a_variable_are_not_covered() -> None:
    structure = variable(GLOBAL, "db", b"certificate")
    writer = TcgWriter().add(7, t.EV_EFI_VARIABLE_AUTHORITY, structure + b"stray!", structure + b"stray")
    (found,) = replayed(writer).events
    assert (found.coverage, found.covered) == (Coverage.STRUCTURE, structure)
    far = TcgWriter().add(7, t.EV_EFI_VARIABLE_AUTHORITY, structure + bytes(40), structure + bytes(20))
    assert replayed(far).events[0].covered is None


def test_a_value_exchanged_under_an_old_digest_is_not_covered() -> None:
    number = next(n for n, event in enumerate(BOOT.events) if event.type == t.EV_EFI_VARIABLE_DRIVER_CONFIG)
    old = BOOT.events[number]
    false = BOOT.altered(number, data=old.data[:-1] + b"\0", measured=old.data)
    log = parse_tcg_log(false.agile()).replay(BOOT.values())
    assert (log.events[number].coverage, log.events[number].covered) == (Coverage.NOTHING, None)


@pytest.mark.parametrize("change", ["drop", "double", "swap", "digest", "register"])
def test_a_log_with_one_event_changed_does_not_replay(change: str) -> None:
    for number, event in enumerate(BOOT.events):
        events = list(BOOT.events)
        same = [n for n, other in enumerate(events) if other.register == event.register and n > number]
        if change == "drop":
            del events[number]
        elif change == "double":
            events.insert(number, event)
        elif change == "swap":
            if not same or events[same[0]].digest(0x0B) == event.digest(0x0B):
                continue
            events[number], events[same[0]] = events[same[0]], event
        elif change == "digest":
            events[number] = Written(event.register, event.type, event.data, b"else")
        else:
            events[number] = Written(3 if event.register != 3 else 2, event.type, event.data, event.measured)
        log = parse_tcg_log(TcgWriter(BOOT.banks, events).agile())
        with pytest.raises(EvidenceError, match="does not replay"):
            log.replay(BOOT.values(), required=BOOT.values().keys())


def test_a_log_of_a_hundred_events_is_read_and_replayed_in_ten_milliseconds() -> None:
    writer = good_boot()
    for number in range(100):
        writer.add(8, t.EV_IPL, b"grub_cmd: set n=%d\0" % number, b"set n=%d" % number)
    data, values = writer.agile(), writer.values()
    best = min(_timed(data, values) for _ in range(5))
    assert best < 0.010, best


def _timed(data: bytes, values: dict[int, bytes]) -> float:
    began = time.process_time()
    assert parse_tcg_log(data).replay(values).values == values
    return time.process_time() - began
