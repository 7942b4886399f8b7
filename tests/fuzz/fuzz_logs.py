# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets for the logs: firmware, UEFI structures, IMA, CEL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

from fuzz_base import Target, corpus_files, tried, vector_files
from ima_logs import counted, file_data, ima_entry, ng
from tcg_logs import TcgWriter, good_boot, secure_boot_variables, variable, vendor_of

from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.banks import HASHES
from quotary_verifier.logs.ccel import parse_ccel_table
from quotary_verifier.logs.cel import encode_record, parse_log
from quotary_verifier.logs.cel_launcher import parse_launcher_log
from quotary_verifier.logs.ima import ImaLog, ImaRecord, ImaTolerance, parse_ima_ascii, parse_ima_binary
from quotary_verifier.logs.ima_fields import TEMPLATES, decode
from quotary_verifier.logs.ima_signature import parse_ima_signature
from quotary_verifier.logs.tcg import ReplayedLog, TcgLog, parse_tcg_log
from quotary_verifier.logs.tcg_boot import read_boot
from quotary_verifier.logs.tcg_loaders import read_loader_events
from quotary_verifier.logs.tcg_secureboot import read_secure_boot
from quotary_verifier.logs.tcg_types import Coverage, Registers, Tolerance
from quotary_verifier.logs.uefi import (
    parse_gpt,
    parse_image_load,
    parse_signature_lists,
    parse_variable,
    variable_end,
)
from quotary_verifier.logs.workload import WorkloadEvent, read_log, separator

ALL = set(Tolerance)
BOOT_LOG = 65_536
KINDS = sorted(t.TYPE_NAMES)


def read_everything(log: ReplayedLog) -> None:
    """What a verifier reads out of a log that replayed."""
    for event in log.events:
        if event.coverage is Coverage.STRUCTURE:  # the digest is of a few bytes more than the structure
            assert event.covered is not None
            ends = range(len(event.covered), len(event.untrusted_data) + 1)
            digests = {HASHES[log.bank](event.untrusted_data[:end]).digest() for end in ends}
            assert event.untrusted_data.startswith(event.covered)
            assert event.digest in digests
        elif event.covered is not None:
            assert HASHES[log.bank](event.covered).digest() == event.digest
    for tolerated in ((), ALL):
        tried(read_boot, log, tolerate=tolerated)
        tried(read_secure_boot, log, tolerate=tolerated)
    tried(read_loader_events, log)


def replay_everything(log: TcgLog) -> None:
    """Replay a log to what its own events lead to: so all is reached that a host can make a verifier read."""
    for bank in log.banks:
        values = tried(log.unverified_values_do_not_trust, bank, weak=True)
        if values is None:
            continue
        replayed = log.replay(values, bank=bank, required=values.keys(), tolerate={Tolerance.SHA1})
        assert replayed.values == values
        assert not replayed.unconfirmed
        read_everything(replayed)
        for register in values:
            assert (
                tried(log.replay, values | {register: b"\x01" * 20}, bank=bank, required={register}) is None
            )


def tcg_log(data: bytes) -> None:
    """A firmware log: all but the first byte, which chooses between PCRs and RTMRs and whether padding is tolerated."""
    registers = Registers.CC if data[:1] == b"\x01" else Registers.TPM
    tolerate = ALL if data[:1] == b"\x02" else set()
    log = tried(parse_tcg_log, data[1:], registers=registers, tolerate=tolerate)
    if log is not None:
        assert len(log.unverified_events_do_not_trust()) <= len(data) // 8 + 1
        replay_everything(log)


def tcg_seeds() -> Iterator[bytes]:
    """Logs of the tests' own firmware, of our machines and of others."""
    for boot in (good_boot(), good_boot(False, (0x0B,)), good_boot(banks=(0x04, 0x0B, 0x0C, 0x0D))):
        yield b"\0" + boot.agile()
        yield b"\2" + boot.agile() + b"\xff" * 16
        yield b"\0" + boot.old()
    for log in corpus_files("tpm/eventlog", most=BOOT_LOG):
        yield b"\0" + log
    for log in vector_files("vm/**/*tcg*", "vm/**/binary_bios_measurements*", most=BOOT_LOG):
        yield b"\0" + log
    for log in corpus_files("tpm/ccel", most=BOOT_LOG):
        yield b"\1" + log


def tcg_events(data: bytes) -> None:
    """Events whose digests fit: register, type, whether the digest is of the data, two bytes of length, data."""
    writer = events_of(data)
    log = tried(parse_tcg_log, writer.agile())  # a startup locality may stand at a wrong place
    if log is not None:
        assert len(log.unverified_events_do_not_trust()) == 1 + len(writer.events)
        replay_everything(log)


def events_of(data: bytes) -> TcgWriter:
    """The events of bytes as `tcg_events` takes them."""
    writer = TcgWriter((0x0B,))
    at = 0
    while at + 5 <= len(data):
        register, kind, foreign = data[at], KINDS[data[at + 1] % len(KINDS)], data[at + 2] & 1
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        content = data[at + 5 : at + 5 + size]
        writer.add(register % 16, kind, content, b"an image" if foreign else None)
        at += 5 + size
    return writer


def as_events(writer: TcgWriter) -> bytes:
    """A log in the form that `tcg_events` takes."""
    out = b""
    for event in writer.events:
        head = bytes((event.register, KINDS.index(event.type), event.measured is not None))
        out += head + len(event.data).to_bytes(2, "big") + event.data
    return out


def event_seeds() -> Iterator[bytes]:
    """The events of a good boot with and without Secure Boot, and those of other hosts' logs."""
    yield as_events(good_boot())
    yield as_events(good_boot(False))
    for data in corpus_files("tpm/eventlog", most=BOOT_LOG):
        log = tried(parse_tcg_log, data)
        writer = TcgWriter()
        for event in log.unverified_events_do_not_trust()[1:] if log else ():
            if event.type in KINDS and event.register < 16 and len(event.data) < 4000:
                covered = any(HASHES[bank](event.data).digest() == d for bank, d in event.digests.items())
                writer.add(event.register, event.type, event.data, None if covered else b"")
        if len(seed := as_events(writer)) <= BOOT_LOG:
            yield seed


def uefi(data: bytes) -> None:
    """UEFI's structures and the CCEL table; a variable that can be read ends where it says."""
    for parse in (parse_variable, parse_signature_lists, parse_image_load, parse_gpt, parse_ccel_table):
        tried(parse, data)
    end = tried(variable_end, data)
    if end is not None:
        found = parse_variable(data[:end])
        assert variable(found.vendor, "", found.data)[:16] == data[:16]
        assert len(found.data) <= end
    lists = tried(parse_signature_lists, data)
    assert lists is None or sum(len(item.data) + 16 for item in lists) <= len(data)


def uefi_seeds() -> Iterator[bytes]:
    """The variables of Secure Boot, and the data of every event of the corpus's logs."""
    for name, content in secure_boot_variables().items():
        yield variable(vendor_of(name), name, content)
        yield content
    for data in corpus_files("tpm/eventlog", most=BOOT_LOG):
        log = tried(parse_tcg_log, data)
        for event in log.unverified_events_do_not_trust() if log else ():
            if len(event.data) <= 4096:
                yield event.data
    yield from corpus_files("tpm/ccel", most=4096)


def replayed_values(records: list[ImaRecord], bank: int) -> dict[int, bytes]:
    """PCR → what records extend a bank to, written as the kernel does it and not as the verifier does."""
    size = HASHES[bank](b"").digest_size
    values: dict[int, bytes] = {}
    for record in records:
        digest = b"\xff" * size if record.violation else HASHES[bank](record.data).digest()
        values[record.pcr] = HASHES[bank](values.get(record.pcr, bytes(size)) + digest).digest()
    return values


def read_ima(parse: Callable[[], ImaLog]) -> None:
    """Read all records of a log, replay it to where it leads, take each record apart."""
    log = tried(parse)
    records = None if log is None else tried(lambda: list(log.unverified_records_do_not_trust()))
    if log is None or records is None:
        return
    for bank in (0x04, 0x0B, 0x0C):
        values: Mapping[int, bytes] = replayed_values(records, bank)
        proved = tried(log.replay, values, bank=bank, tolerate=set(ImaTolerance))
        if proved is not None and records:
            assert list(proved.records()) == records
            assert proved.count == len(records)
            assert not proved.unconfirmed
    for record in records:
        read_record(record.template, record.data)
    rebuilt = b"".join(
        ima_entry(each.data, pcr=each.pcr, violation=each.violation, name=each.template) for each in records
    )
    legacy = any(record.template == b"ima" for record in records)
    if records and not legacy and all(len(record.digest) == 20 for record in records):
        again = [
            each[3:] for each in parse_ima_binary(rebuilt, digest_size=20).unverified_records_do_not_trust()
        ]
        assert again == [each[3:] for each in records]


def read_record(template: bytes, data: bytes) -> None:
    """Take one record apart, with its signature."""
    fields = tried(decode, template, data)
    if fields is not None and fields.signature:
        tried(parse_ima_signature, fields.signature)


def ima_binary(data: bytes) -> None:
    """A binary IMA log."""
    read_ima(lambda: parse_ima_binary(data))


def ima_ascii(data: bytes) -> None:
    """An ASCII IMA log."""
    read_ima(lambda: parse_ima_ascii(data))


def ima_fields(data: bytes) -> None:
    """A record's template data, by every template, and a signature."""
    templates = sorted(TEMPLATES)
    read_record(templates[data[0] % len(templates)] if data else b"ima-ng", data[1:])
    read_record(data[:8].partition(b"\0")[0], data[8:])
    tried(parse_ima_signature, data)


def ima_seeds() -> Iterator[bytes]:
    """A few records of several templates, violations, and the beginnings of other hosts' logs."""
    yield b"".join(ima_entry(file_data(number)) for number in range(3))
    signed = ng("/signed", bytes(32), b"\x03\x02\x04abcd\x00\x08" + bytes(8))
    yield ima_entry(signed, name=b"ima-sig") + ima_entry(bytes(20), violation=True)
    yield ima_entry(ng("/x", bytes(32), b"buffer"), name=b"ima-buf", size=32)
    yield ima_entry(file_data(1), size=64)
    for data in corpus_files("tpm/ima", most=1 << 24):
        yield data[:6000]
    for data in vector_files("vm/**/*ima*", most=1 << 24):
        yield data[:6000]


def field_seeds() -> Iterator[bytes]:
    """Template data behind the byte or name that chooses the template."""
    for number in range(len(TEMPLATES)):
        yield bytes((number,)) + ng("/usr/bin/x", bytes(32), b"\x03\x02\x04abcd\x00\x08" + bytes(8))
        yield bytes((number,)) + counted(b"ima:sha256:\0" + bytes(32), b"/x\0", b"", b"", b"\0" * 4)
    yield b"d-ngv2\0\0" + counted(b"verity:sha256:\0" + bytes(32))
    yield b"\x03\x02\x04abcd\x00\x08" + bytes(8)


def cel(data: bytes) -> None:
    """A launcher's log, and a workload log with its events, which encodes to the same bytes again."""
    launched = tried(parse_launcher_log, data)
    if launched is not None:
        value = bytes(HASHES[launched.bank](b"").digest_size)
        tried(launched.replay, value)
        assert launched.unverified_events_do_not_trust()
    records = tried(lambda: list(parse_log(data, pcr=13)))
    if records is not None:
        assert b"".join(encode_record(each.number, each.pcr, each.content) for each in records) == data
        log = tried(read_log, [each.content for each in records])
        digests = tried(read_log, [each.digest for each in records])
        assert log is None or digests is None or log.value == digests.value


def cel_seeds() -> Iterator[bytes]:
    """Launchers' logs of the corpus, and a workload log of two epochs."""
    yield from corpus_files("tpm/cel", most=BOOT_LOG)
    model = WorkloadEvent("model", "m", hashlib.sha256(b"w").digest(), {"path": b"x" * 32}).encode()
    contents, closed = [], []
    for epoch in range(2):
        contents += [model, separator(epoch, [hashlib.sha256(_content(model)).digest()])]
        closed.append(b"".join(encode_record(number, 13, item) for number, item in enumerate(contents)))
    yield from closed


def _content(event: bytes) -> bytes:
    return b"\xc8" + len(event).to_bytes(4, "big") + event


TARGETS = {
    "tcg-events": Target(tcg_events, event_seeds, most=16_384),
    "tcg-log": Target(tcg_log, tcg_seeds, most=BOOT_LOG),
    "uefi": Target(uefi, uefi_seeds),
    "ima-binary": Target(ima_binary, ima_seeds, most=8192),
    "ima-ascii": Target(ima_ascii, ima_seeds, most=8192),
    "ima-fields": Target(ima_fields, field_seeds, most=1024),
    "cel": Target(cel, cel_seeds, most=8192),
}
