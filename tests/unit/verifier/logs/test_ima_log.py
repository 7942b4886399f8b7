# SPDX-License-Identifier: Apache-2.0
"""IMA logs: reading, replay to the prefix that fits, and the fields of records (docs/spec/boot-logs.md)."""

from __future__ import annotations

import hashlib
import time
import tracemalloc

import pytest
from ima_logs import SIZES, counted, file_data, host_log, ima_entry, ng, replayed

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs import ima
from quotary_verifier.logs.ima import ImaTolerance, ReplayedIma, parse_ima_ascii, parse_ima_binary
from quotary_verifier.logs.ima_fields import boot_aggregate, check_boot_aggregate, decode, fields_of

PCRS = {pcr: hashlib.sha256(b"pcr %d" % pcr).digest() for pcr in range(10)}
DATAS = host_log(PCRS, 6)
LOG = b"".join(map(ima_entry, DATAS))
QUOTED = {10: replayed(DATAS)}
DIGEST = hashlib.sha256(b"file").digest()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bank", [0x0B, 0x0C, 0x0D])
def test_a_log_replays_into_any_bank_whatever_the_size_of_its_template_hashes(size: int, bank: int) -> None:
    data = b"".join(ima_entry(one, size=size) for one in DATAS)
    name = {0x0B: "sha256", 0x0C: "sha384", 0x0D: "sha512"}[bank]
    log = parse_ima_binary(data).replay({10: replayed(DATAS, name)}, bank=bank)
    assert [record.data for record in log.records()] == DATAS
    assert (log.count, log.unconfirmed, log.violations, log.tolerances) == (len(DATAS), 0, (), ())


def test_there_is_no_way_to_make_a_replayed_log_without_replay() -> None:
    with pytest.raises(TypeError, match="replay alone"):
        ReplayedIma(object(), parse_ima_binary(LOG), 0x0B, None, ())  # type: ignore[arg-type]


def test_the_sha1_bank_is_replayed_only_under_its_name_and_the_result_says_so() -> None:
    quoted = {10: replayed(DATAS, "sha1")}
    with pytest.raises(EvidenceError, match="SHA-1"):
        parse_ima_binary(LOG).replay(quoted, bank=0x04)
    log = parse_ima_binary(LOG).replay(quoted, bank=0x04, tolerate={ImaTolerance.SHA1})
    assert log.tolerances == (ImaTolerance.SHA1,)


def test_a_bank_that_an_old_kernel_extended_with_padded_sha1_needs_its_tolerance() -> None:
    value = bytes(32)
    for data in DATAS:
        value = hashlib.sha256(value + hashlib.sha1(data).digest() + bytes(12)).digest()
    with pytest.raises(EvidenceError, match="no prefix"):
        parse_ima_binary(LOG).replay({10: value})
    log = parse_ima_binary(LOG).replay({10: value}, tolerate={ImaTolerance.SHA1_PADDED})
    assert log.tolerances == (ImaTolerance.SHA1_PADDED,)
    assert parse_ima_binary(LOG).replay(QUOTED, tolerate=set(ImaTolerance)).tolerances == ()


@pytest.mark.parametrize("length", range(1, len(DATAS) + 1))
def test_a_quote_proves_the_prefix_it_was_made_after(length: int) -> None:
    log = parse_ima_binary(LOG).replay({10: replayed(DATAS[:length])})
    assert log.count == length
    assert [record.data for record in log.records()] == DATAS[:length]
    assert log.unconfirmed == len(b"".join(map(ima_entry, DATAS[length:])))


def test_what_lies_behind_the_prefix_may_be_cut_off_or_nonsense() -> None:
    for tail in (LOG[:30], b"\xff" * 100, b"x"):
        log = parse_ima_binary(LOG + tail).replay(QUOTED)
        assert (log.count, log.unconfirmed) == (len(DATAS), len(tail))


def test_a_log_with_a_record_missing_doubled_or_exchanged_has_no_prefix_that_fits() -> None:
    for number in range(len(DATAS)):
        others = [*DATAS[:number], *DATAS[number + 1 :]]
        for wrong in (others, [DATAS[number], *DATAS], [*others, DATAS[number]][: number + 2]):
            if wrong == DATAS:
                continue
            with pytest.raises(EvidenceError, match="no prefix"):
                parse_ima_binary(b"".join(map(ima_entry, wrong))).replay(QUOTED)


def test_a_template_hash_of_other_data_is_named() -> None:
    entries = list(map(ima_entry, DATAS))
    entries[2] = entries[2][:4] + b"x" * 20 + entries[2][24:]
    with pytest.raises(EvidenceError, match=r"in record 2$"):
        parse_ima_binary(b"".join(entries)).replay(QUOTED)
    many = [entry[:4] + b"x" * 20 + entry[24:] for entry in map(ima_entry, DATAS)]
    with pytest.raises(EvidenceError, match="in record 0, 1, 2, 3, 4 and more"):
        parse_ima_binary(b"".join(many)).replay(QUOTED)


def test_a_violation_extends_ones_and_is_listed() -> None:
    datas = [DATAS[0], b"", *DATAS[1:]]
    entries = [ima_entry(DATAS[0]), ima_entry(file_data(9), violation=True), *map(ima_entry, DATAS[1:])]
    log = parse_ima_binary(b"".join(entries)).replay({10: replayed(datas)})
    assert log.violations == (1,)
    assert [record.violation for record in log.records()][:3] == [False, True, False]
    with pytest.raises(EvidenceError, match="no prefix"):
        parse_ima_binary(b"".join(entries)).replay(QUOTED)


def test_records_of_several_pcrs_are_replayed_together() -> None:
    entries = [ima_entry(data, pcr=11 if number % 3 == 2 else 10) for number, data in enumerate(DATAS)]
    of_11 = [data for number, data in enumerate(DATAS) if number % 3 == 2]
    of_10 = [data for number, data in enumerate(DATAS) if number % 3 != 2]
    quoted = {10: replayed(of_10), 11: replayed(of_11)}
    assert parse_ima_binary(b"".join(entries)).replay(quoted).values == quoted
    early = {10: replayed(of_10[:3]), 11: replayed(of_11[:1])}
    assert parse_ima_binary(b"".join(entries)).replay(early).count == 4
    with pytest.raises(EvidenceError, match="extends PCR 11, which is not quoted"):
        parse_ima_binary(b"".join(entries)).replay({10: quoted[10]})


def test_a_prefix_fits_only_if_every_pcr_it_extended_does() -> None:
    data = ima_entry(DATAS[0], pcr=11) + ima_entry(DATAS[1])
    quoted = {10: replayed([DATAS[1]]), 11: replayed([DATAS[2]])}
    with pytest.raises(EvidenceError, match="no prefix"):
        parse_ima_binary(data).replay(quoted)


def test_a_log_that_is_cut_off_before_the_quote_is_malformed() -> None:
    with pytest.raises(MalformedError, match="record 6 "):
        parse_ima_binary(LOG[:-1]).replay(QUOTED)


def test_a_pcr_may_begin_with_what_the_caller_knows_of_it() -> None:
    start = hashlib.sha256(b"earlier").digest()
    value = hashlib.sha256(start + hashlib.sha256(DATAS[0]).digest()).digest()
    log = parse_ima_binary(ima_entry(DATAS[0]))
    assert log.replay({10: value}, initial={10: start}).count == 1
    with pytest.raises(EvidenceError, match="no prefix"):
        log.replay({10: value})


def test_an_empty_log_proves_nothing_but_a_zero_pcr() -> None:
    assert parse_ima_binary(b"").replay({10: bytes(32)}).count == 0
    for log, value in ((b"", QUOTED[10]), (LOG, bytes(32))):
        with pytest.raises(EvidenceError, match="no prefix"):
            parse_ima_binary(log).replay({10: value})


@pytest.mark.parametrize("name", [b"ima-custom", b"d-ng|n-ng|new"])
def test_a_record_of_an_unknown_template_counts_by_its_bytes(name: bytes) -> None:
    data = b"whatever bytes a template has"
    log = parse_ima_binary(ima_entry(data, name=name)).replay({10: replayed([data])})
    (record,) = log.records()
    assert (record.template, record.data) == (name, data)
    with pytest.raises(UnsupportedError, match="not known"):
        decode(record.template, record.data)


def test_the_first_template_is_hashed_with_its_name_padded() -> None:
    digest, path = hashlib.sha1(b"init").digest(), b"/init"
    hashed = digest + path.ljust(256, b"\0")
    head = (10).to_bytes(4, "little") + hashlib.sha1(hashed).digest() + (3).to_bytes(4, "little") + b"ima"
    entry = head + digest + len(path).to_bytes(4, "little") + path
    log = parse_ima_binary(entry * 2).replay({10: replayed([hashed, hashed])})
    fields = [decode(record.template, record.data) for record in log.records()]
    assert [(one.digest.algorithm, one.digest.value, one.path) for one in fields if one.digest] == [
        ("sha1", digest, path)
    ] * 2
    text = f"10 {hashlib.sha1(hashed).hexdigest()} ima {digest.hex()} /init\n".encode()
    assert parse_ima_ascii(text * 2).replay({10: replayed([hashed, hashed])}).count == 2


def test_the_ascii_form_gives_the_same_records() -> None:
    lines = []
    for data in DATAS:
        fields = decode(b"ima-ng", data)
        assert fields.path is not None and fields.digest is not None
        text = f"sha256:{fields.digest.value.hex()} {fields.path.decode()}"
        lines.append(f"10 {hashlib.sha1(data).hexdigest()} ima-ng {text}\n")
    log = parse_ima_ascii("".join(lines).encode())
    assert list(log.replay(QUOTED).records()) == list(parse_ima_binary(LOG).replay(QUOTED).records())


@pytest.mark.parametrize(
    ("template", "text", "data"),
    [
        (b"ima-sig", "sha256:{d} /a 0302", ng("/a", DIGEST, b"\x03\x02")),
        (b"ima-sig", "sha256:{d} /a ", ng("/a", DIGEST, b"")),
        (b"ima-sig", "sha256:{d} /a", ng("/a", DIGEST, b"")),
        (b"ima-buf", "sha256:{d} .ima 3000", ng(".ima", DIGEST, b"0\0")),
        (b"ima-ngv2", "verity:sha256:{d} /a", ng("/a", DIGEST, label=b"verity:sha256")),
        (b"ima-sigv2", "ima:sha256:{d} /a 06", ng("/a", DIGEST, b"\x06", label=b"ima:sha256")),
        (b"ima-ng", "sha256:{d} /a b", ng("/a b", DIGEST)),
    ],
)
def test_each_template_has_the_same_bytes_in_both_forms(template: bytes, text: str, data: bytes) -> None:
    line = b"10 %s %s %s\n" % (
        hashlib.sha1(data).hexdigest().encode(),
        template,
        text.format(d=DIGEST.hex()).encode(),
    )
    (record,) = parse_ima_ascii(line).replay({10: replayed([data])}).records()
    assert record.data == data
    (same,) = parse_ima_binary(ima_entry(data, name=template)).replay({10: replayed([data])}).records()
    assert decode(template, same.data) == decode(template, record.data)


def test_the_fields_of_each_template_are_taken_apart() -> None:
    found = decode(b"ima-modsig", ng("/a", DIGEST, b"sig", b"sha1:\0" + bytes(20), b"modsig"))
    assert (found.signature, dict(found.others)) == (
        b"sig",
        {"d-modsig": b"sha1:\0" + bytes(20), "modsig": b"modsig"},
    )
    found = decode(b"ima-buf", ng("kexec-cmdline", DIGEST, b"quiet"))
    assert (found.path, found.buffer, found.signature) == (b"kexec-cmdline", b"quiet", None)
    found = decode(b"ima-sigv2", ng("/a", DIGEST, b"", label=b"verity:sha256"))
    assert found.digest is not None
    assert (found.digest.kind, found.digest.algorithm, found.signature) == ("verity", "sha256", None)
    assert decode(b"d-ng|n-ng", ng("/a", DIGEST)).path == b"/a"
    assert fields_of(b"evm-sig")[-1] == "imode"


@pytest.mark.parametrize(
    ("template", "data"),
    [
        (b"ima-ng", ng("/a", DIGEST) + b"x"),
        (b"ima-ng", ng("/a", DIGEST)[:-1]),
        (b"ima-ng", ng("/a", DIGEST[:-1])),
        (b"ima-ng", ng("/a", DIGEST, label=b"unknown")),
        (b"ima-ng", ng("/a", DIGEST, label=b"ima:sha256")),
        (b"ima-ngv2", ng("/a", DIGEST)),
        (b"ima-ngv2", ng("/a", DIGEST, label=b"else:sha256")),
        (b"ima-ng", counted(b"sha256" + DIGEST, b"/a\0")),
        (b"ima-ng", counted(b"sha256:\0" + DIGEST, b"/a")),
        (b"ima-ng", counted(b"sha256:\0" + DIGEST, b"/a\0b\0")),
        (b"n-ng|n-ng", counted(b"/a\0", b"/a\0")),
        (b"ima-ng", b"\xff\xff\xff\xff"),
    ],
)
def test_fields_that_are_not_as_the_template_says_are_malformed(template: bytes, data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(template, data)


@pytest.mark.parametrize(
    "line",
    [
        b"10",
        b"24 %(h)s ima-ng sha256:%(d)s /a",
        b"5 %(h)s ima-ng sha256:%(d)s /a",
        b"010 %(h)s ima-ng sha256:%(d)s /a",
        b"10 %(h)s ima-ng sha256:%(d)s",
        b"10 %(h)s ima-ng sha256:zz /a",
        b"10 %(h)sab ima-ng sha256:%(d)s /a",
        b"10 %(u)s ima-ng sha256:%(d)s /a",
        b"10  %(h)s ima-ng sha256:%(d)s /a",
        b"\xff\xfe",
    ],
)
def test_a_line_of_another_form_is_malformed(line: bytes) -> None:
    digest = hashlib.sha1(ng("/a", DIGEST)).hexdigest().encode()
    good = b"10 %s ima-ng sha256:%s /a\n" % (digest, DIGEST.hex().encode())
    names = {b"h": digest, b"d": DIGEST.hex().encode(), b"u": digest.upper()}
    assert parse_ima_ascii(good).replay({10: replayed([ng("/a", DIGEST)])}).count == 1
    with pytest.raises(MalformedError):
        list(parse_ima_ascii(good + line % names).unverified_records_do_not_trust())


def test_a_line_of_an_unknown_template_cannot_be_replayed_as_its_bytes_do_not_follow() -> None:
    with pytest.raises(UnsupportedError, match="not known"):
        parse_ima_ascii(b"10 " + b"0" * 40 + b" ima-custom abc").replay(QUOTED)
    with pytest.raises(UnsupportedError, match="iuid"):
        parse_ima_ascii(b"10 " + b"1" * 40 + b" iuid 0").replay(QUOTED)


def test_pcrs_of_one_digit_stand_behind_a_space_in_the_ascii_form() -> None:
    data = ng("/a", DIGEST)
    text = f" 5 {hashlib.sha1(data).hexdigest()} ima-ng sha256:{DIGEST.hex()} /a\n"
    assert parse_ima_ascii(text.encode()).replay({5: replayed([data])}).values == {5: replayed([data])}


@pytest.mark.parametrize("last", [7, 9])
def test_the_boot_aggregate_is_over_pcr_0_to_7_or_0_to_9(last: int) -> None:
    fields = decode(b"ima-ng", ng("boot_aggregate", boot_aggregate(PCRS, last)))
    assert check_boot_aggregate(fields, PCRS) == last
    with pytest.raises(EvidenceError, match="not that of the quoted"):
        check_boot_aggregate(fields, {**PCRS, 3: bytes(32)})
    with pytest.raises(EvidenceError, match="no boot aggregate"):
        check_boot_aggregate(decode(b"ima-ng", file_data(1)), PCRS)
    with pytest.raises(UnsupportedError, match="sha1 bank"):
        check_boot_aggregate(decode(b"ima-ng", ng("boot_aggregate", bytes(20), label=b"sha1")), PCRS)


def test_more_records_or_bytes_than_a_log_may_have_are_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"".join(
        b"10 %s ima-ng sha256:%s /a\n" % (b"0" * 40, DIGEST.hex().encode()) for _ in range(len(DATAS))
    )
    with monkeypatch.context() as patch:
        patch.setattr(ima, "MAX_IMA_RECORDS", len(DATAS) - 1)
        for log in (parse_ima_binary(LOG), parse_ima_ascii(text)):
            with pytest.raises(MalformedError, match="more than"):
                list(log.unverified_records_do_not_trust())
    with monkeypatch.context() as patch:
        patch.setattr(ima, "MAX_IMA_LOG", 100)
        for parse in (parse_ima_binary, parse_ima_ascii):
            with pytest.raises(MalformedError, match="longer than"):
                parse(LOG)


def test_a_record_larger_than_one_may_be_is_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ima, "_MAX_TEMPLATE_DATA", 20)
    with pytest.raises(MalformedError, match="bytes"):
        list(parse_ima_binary(LOG).unverified_records_do_not_trust())


def test_a_file_name_longer_than_the_first_template_takes_is_malformed() -> None:
    head = (10).to_bytes(4, "little") + bytes(20) + (3).to_bytes(4, "little") + b"ima"
    for size in (256, 2**32 - 1):
        data = head + bytes(20) + size.to_bytes(4, "little") + b"a" * 300
        with pytest.raises(MalformedError, match="file name"):
            list(parse_ima_binary(data).unverified_records_do_not_trust())
    line = b"10 " + b"0" * 40 + b" ima " + b"0" * 40 + b" " + b"a" * 256
    with pytest.raises(MalformedError, match="file name"):
        list(parse_ima_ascii(line).unverified_records_do_not_trust())


def test_a_file_that_is_no_log_is_malformed() -> None:
    for data in (b"x" * 100, b"\n", b"10 abc ima", bytes(80)):
        with pytest.raises(MalformedError):
            list(parse_ima_binary(data).unverified_records_do_not_trust())
        with pytest.raises(MalformedError):
            list(parse_ima_ascii(data).unverified_records_do_not_trust())
    with pytest.raises(MalformedError, match="not well formed"):
        list(parse_ima_binary(ima_entry(DATAS[0], pcr=24)).unverified_records_do_not_trust())
    with pytest.raises(MalformedError, match="cannot have 21"):
        parse_ima_binary(LOG, digest_size=21)


def test_a_replay_needs_no_memory_that_grows_with_the_log() -> None:
    datas = [file_data(number) for number in range(20_000)]
    data, quoted = b"".join(ima_entry(one, size=32) for one in datas), {10: replayed(datas)}
    tracemalloc.start()
    log = parse_ima_binary(data).replay(quoted)
    assert sum(1 for _ in log.records()) == len(datas)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000, peak


def test_a_hundred_thousand_records_are_replayed_within_a_second() -> None:
    datas = [file_data(number) for number in range(100_000)]
    data, quoted = b"".join(map(ima_entry, datas)), {10: replayed(datas)}
    best = 9.0
    for _ in range(3):
        began = time.process_time()
        assert parse_ima_binary(data).replay(quoted).count == len(datas)
        best = min(best, time.process_time() - began)
    assert best < 1.0, best
