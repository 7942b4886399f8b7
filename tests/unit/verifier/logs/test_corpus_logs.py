# SPDX-License-Identifier: Apache-2.0
"""Every event log, IMA log and CEL of the corpus, with the outcome that its index states."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import tcg_judge
from corpus import corpus_bytes, corpus_root, entries, entry, needs_corpus
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.logs.banks import bank_name
from quotary_verifier.logs.ccel import parse_ccel_table
from quotary_verifier.logs.cel_launcher import LAUNCHER_TYPES, SEPARATOR, parse_launcher_log
from quotary_verifier.logs.ima import ImaLog, ImaTolerance, parse_ima_ascii, parse_ima_binary
from quotary_verifier.logs.ima_fields import HASH_BYTES, decode
from quotary_verifier.logs.ima_signature import verify_ima_signature
from quotary_verifier.logs.tcg import TcgLog, parse_tcg_log
from quotary_verifier.logs.tcg_boot import read_boot
from quotary_verifier.logs.tcg_secureboot import read_secure_boot
from quotary_verifier.logs.tcg_types import IMAGE_TYPES, Registers, Tolerance, type_name

pytestmark = needs_corpus

Entry = dict[str, Any]
FOLDERS = ("tpm/eventlog/", "tpm/ccel/", "tpm/ima/", "tpm/cel/")
ENTRIES = [one for folder in FOLDERS for one in entries(folder)]
BANKS = {"sha1": 4, "sha256": 11, "sha384": 12, "sha512": 13}

PLAIN: tuple[Tolerance, ...] = ()
NO_EXIT = (Tolerance.NO_EXIT_BOOT_SERVICES,)
NO_CALL = (Tolerance.NO_CALLING_ACTION,)
NEITHER = (Tolerance.NO_CALLING_ACTION, Tolerance.NO_EXIT_BOOT_SERVICES)
BOOTS: dict[str, tuple[Tolerance, ...] | str] = {
    "tcg1-gce-debian10-sha1only.bin": NO_EXIT,
    "tcg1-laptop-option-rom-sha1.bin": NO_CALL,
    "tcg1-tools-uefi-sha1.bin": NEITHER,
    "tcg2-crypto-agile-small.bin": NEITHER,
    "tcg2-gce-coreos36-mok.bin": PLAIN,
    "tcg2-gce-cos101-sev.bin": PLAIN,
    "tcg2-gce-cos85-sev.bin": PLAIN,
    "tcg2-gce-rhel8-secureboot.bin": PLAIN,
    "tcg2-gce-sp800155-noaction.bin": PLAIN,
    "tcg2-gce-ubuntu1804-sev.bin": PLAIN,
    "tcg2-gce-ubuntu2104-no-secureboot.bin": PLAIN,
    "tcg2-gce-ubuntu2404-sevsnp.bin": PLAIN,
    "tcg2-ibm-acs-small.bin": "the separator of PCR 0 has a digest that no separator has",
    "tcg2-ibm-debian-desktop.bin": PLAIN,
    "tcg2-ibm-hp-laptop.bin": NEITHER,
    "tcg2-keylime-fedora-locality3.bin": NEITHER,
    "tcg2-one-short-noaction.bin": "has 0 separators",
    "tcg2-tools-bootorder.bin": PLAIN,
    "tcg2-tools-moklisttrusted.bin": PLAIN,
    "tcg2-tools-small.bin": "has 0 separators",
    "tcg2-tools-uefiaction.bin": "has 0 separators",
    "tcg2-tools-uefivar.bin": "has 0 separators",
}
"""What it takes to read the boot of each log: named tolerances, or why none helps."""

SECURE_BOOT: dict[str, tuple[int, int, int, int, int] | str] = {
    "tcg1-gce-debian10-sha1only.bin": (1, 1, 2, 186, 2),
    "tcg1-laptop-option-rom-sha1.bin": (1, 2, 3, 78, 2),
    "tcg1-tools-uefi-sha1.bin": "neither 0 nor 1",
    "tcg2-crypto-agile-small.bin": "neither 0 nor 1",
    "tcg2-gce-coreos36-mok.bin": (1, 1, 2, 186, 2),
    "tcg2-gce-cos101-sev.bin": (1, 1, 1, 4, 3),
    "tcg2-gce-cos85-sev.bin": (1, 1, 1, 4, 3),
    "tcg2-gce-rhel8-secureboot.bin": (1, 1, 2, 186, 2),
    "tcg2-gce-sp800155-noaction.bin": (1, 1, 1, 4, 4),
    "tcg2-gce-ubuntu1804-sev.bin": (1, 1, 2, 77, 0),
    "tcg2-gce-ubuntu2104-no-secureboot.bin": (1, 1, 2, 186, 1),
    "tcg2-gce-ubuntu2404-sevsnp.bin": (1, 1, 2, 371, 1),
    "tcg2-ibm-acs-small.bin": "has a digest that no separator has",
    "tcg2-ibm-debian-desktop.bin": (1, 1, 1, 0, 5),
    "tcg2-ibm-hp-laptop.bin": (1, 2, 3, 83, 1),
    "tcg2-keylime-fedora-locality3.bin": (1, 2, 4, 460, 1),
    "tcg2-one-short-noaction.bin": "has 0 separators",
    "tcg2-tools-bootorder.bin": (0, 0, 0, 0, 0),
    "tcg2-tools-moklisttrusted.bin": (1, 2, 2, 1, 4),
    "tcg2-tools-small.bin": "has 0 separators",
    "tcg2-tools-uefiaction.bin": "has 0 separators",
    "tcg2-tools-uefivar.bin": "has 0 separators",
}
"""How many entries PK, KEK, db and dbx have and how many authorities were used after the separator, or why it fails."""


def name_of(item: Entry) -> str:
    return str(item["file"].rpartition("/")[2])


def stated(item: Entry, bank: str) -> dict[int, bytes]:
    return {int(pcr): bytes.fromhex(value) for pcr, value in item["expected"]["pcrs"][bank].items()}


def check_uefi_log(item: Entry) -> None:
    data = corpus_bytes(item["file"])
    if item["expect"] == "reject":
        with pytest.raises(MalformedError):
            parse_tcg_log(data)
        return
    log, expected = parse_tcg_log(data), item["expected"]
    events = log.unverified_events_do_not_trust()
    assert len(events) - log.agile == expected["events"]
    assert log.locality == expected.get("startup_locality", log.locality)
    if item["expect"] == "reject-by-default":
        assert log.banks == (BANKS["sha1"],)
        for bank in BANKS.values():
            with pytest.raises(EvidenceError, match=r"SHA-1 bank|no digests of the"):
                log.replay(stated(item, "sha1"), bank=bank)
    for bank in expected.get("pcrs", {}):
        replays(item, log, bank)
    assert expected.get("stated_pcrs", {}).items() <= expected.get("pcrs", {}).items()
    bank = "sha256" if BANKS["sha256"] in log.banks else "sha1"
    if bank not in expected.get("pcrs", {}):
        assert len(events) == 1
        return
    reads_boot(item, log, bank)
    reads_secure_boot(item, log, bank)


def replays(item: Entry, log: TcgLog, bank: str) -> None:
    quoted, tolerate = stated(item, bank), {Tolerance.SHA1}
    replayed = log.replay(quoted, bank=BANKS[bank], tolerate=tolerate)
    assert replayed.values == quoted
    assert not replayed.unconfirmed
    assert Tolerance.SHA1 in replayed.tolerances or bank != "sha1"
    digests = item["expected"].get("efi_application_digests", {}).get(bank)
    if digests:
        started = [event.digest.hex() for event in replayed.of(4) if event.untrusted_type in IMAGE_TYPES]
        assert started == digests
    for pcr, value in quoted.items():
        wrong = quoted | {pcr: hashlib.sha512(value).digest()[: len(value)]}
        with pytest.raises(EvidenceError, match="does not replay"):
            log.replay(wrong, bank=BANKS[bank], required=wrong.keys(), tolerate=tolerate)


def reads_boot(item: Entry, log: TcgLog, bank: str) -> None:
    replayed = log.replay(stated(item, bank), bank=BANKS[bank], tolerate={Tolerance.SHA1})
    needed = BOOTS[name_of(item)]
    if isinstance(needed, str):
        with pytest.raises(EvidenceError, match=needed):
            read_boot(replayed, tolerate=set(Tolerance))
        return
    for left_out in needed:
        with pytest.raises(EvidenceError, match=f"tolerance '{left_out.value}'"):
            read_boot(replayed, tolerate=set(needed) - {left_out})
    assert read_boot(replayed, tolerate=needed).tolerances == tuple(sorted(needed))


def reads_secure_boot(item: Entry, log: TcgLog, bank: str) -> None:
    replayed = log.replay(stated(item, bank), bank=BANKS[bank], tolerate={Tolerance.SHA1})
    wanted = SECURE_BOOT[name_of(item)]
    if isinstance(wanted, str):
        with pytest.raises(EvidenceError, match=wanted):
            read_secure_boot(replayed, tolerate=set(Tolerance))
        return
    read = read_secure_boot(replayed)
    found = (len(read.pk), len(read.kek), len(read.db), len(read.dbx), len(read.late_authorities))
    assert found == wanted
    assert bytes([read.enabled]).hex() == item["expected"]["secure_boot_variable_hex"]
    assert item["expected"].get("post_separator_authorities", wanted[4]) == wanted[4]


def check_ccel(item: Entry) -> None:
    data, expected = corpus_bytes(item["file"]), item["expected"]
    padded = expected.get("trailing_bytes", 0)
    if padded:
        with pytest.raises(MalformedError):
            parse_tcg_log(data, registers=Registers.CC)
    log = parse_tcg_log(data, registers=Registers.CC, tolerate={Tolerance.PADDING} if padded else ())
    assert log.padding == padded
    assert len(log.unverified_events_do_not_trust()) - 1 == expected["events"]
    (bank,) = expected["pcrs"]
    replayed = log.replay(stated(item, bank), bank=BANKS[bank])
    assert replayed.values == stated(item, bank)
    assert replayed.tolerances == ((Tolerance.PADDING,) if padded else ())
    if len(expected["secure_boot_variable_hex"]) == 2:
        assert read_secure_boot(replayed).enabled == (expected["secure_boot_variable_hex"] == "01")
    else:
        with pytest.raises(EvidenceError, match="neither 0 nor 1"):
            read_secure_boot(replayed)


def check_ccel_table(item: Entry) -> None:
    data, expected = corpus_bytes(item["file"]), item["expected"]
    table = parse_ccel_table(data)
    assert table.name == expected.get("cc_type", "TDX")
    assert table.minimum_length == expected.get("log_area_minimum_length", table.minimum_length)
    for wrong in (data[:-1], b"XXEL" + data[4:], data[:40] + bytes([data[40] ^ 1]) + data[41:]):
        with pytest.raises(MalformedError):
            parse_ccel_table(wrong)


def check_expected_parse(item: Entry) -> None:
    """A field-by-field parse by another program: ours agrees with it."""
    file = item["file"].rpartition(".expected.")[0] + ".bin"
    assert item["file"] in entry(file)["needs"]
    if item["file"].endswith(".yaml"):
        judged = tcg_judge.read_judge(corpus_bytes(item["file"]).decode())
        events, pcrs = tcg_judge.read_ours(parse_tcg_log(corpus_bytes(file)))
        assert events == judged[0]
        assert {bank: values for bank, values in pcrs.items() if bank in judged[1]} == judged[1]
        return
    log = parse_tcg_log(corpus_bytes(file), registers=Registers.CC, tolerate={Tolerance.PADDING})
    theirs = json.loads(corpus_bytes(item["file"]))["uefi_event_logs"]
    ours = log.unverified_events_do_not_trust()[-len(theirs) :]
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.register, type_name(mine.type)) == (other["index"], other["type_name"])
        assert mine.data == base64.b64decode(other["event"])
        digests = {
            bank_name(bank).replace("sha", "SHA-"): value.hex() for bank, value in mine.digests.items()
        }
        assert digests == {one["alg"]: one["digest"] for one in other["digests"]}


def check_ima_log(item: Entry) -> None:
    data, expected = corpus_bytes(item["file"]), item["expected"]
    log = parse_ima_binary(data) if item["kind"] == "ima-log-binary" else parse_ima_ascii(data)
    if item["expect"] == "reject":
        with pytest.raises((MalformedError, EvidenceError)):
            appraise(log)
        return
    records = list(log.unverified_records_do_not_trust())
    assert len(records) == expected.get("records", len(records))
    for bank, value in expected.get("pcr10", {}).items():
        replayed = log.replay({10: bytes.fromhex(value)}, bank=BANKS[bank], tolerate={ImaTolerance.SHA1})
        assert (replayed.count, replayed.unconfirmed) == (expected["records"], 0)
        assert list(replayed.violations) == expected["violation_records"]
        assert list(replayed.records()) == records
    if "templates" in expected:
        templates = [record.template.decode() for record in records]
        assert {name: templates.count(name) for name in templates} == expected["templates"]
    if "file_digest" in expected:
        algorithms = {decode(one.template, one.data).digest.algorithm for one in records}
        assert algorithms == {expected["file_digest"]}
    if "signatures" in expected:
        keys = [load_pem_public_key(corpus_bytes(file)) for file in item["needs"]]
        for record, key in zip(records, keys, strict=True):
            fields = decode(record.template, record.data)
            assert verify_ima_signature(fields.signature, fields.digest, keys) is key
            with pytest.raises(EvidenceError, match="no given key"):
                verify_ima_signature(fields.signature, fields.digest, [one for one in keys if one is not key])


def appraise(log: ImaLog) -> None:
    """What a verifier does with each record: take it apart, verify a signature that it has."""
    key = load_pem_public_key(corpus_bytes("tpm/ima/ima-keylime-key-secp256k1.pem"))
    for record in log.unverified_records_do_not_trust():
        fields = decode(record.template, record.data)
        verify_ima_signature(fields.signature, fields.digest, [key])


def allowed(records: list[Any], digests: Mapping[str, list[str]], besides: set[str]) -> bool:
    fields = [decode(record.template, record.data) for record in records]
    return all(
        one.path.decode() in besides or one.digest.value.hex() in digests.get(one.path.decode(), ())
        for one in fields
    )


def check_ima_policy(item: Entry) -> None:
    """An allow list is judged with the log that names it."""
    found = json.loads(corpus_bytes(item["file"]))
    (log,) = [one for one in ENTRIES if item["file"] in one.get("needs", ())]
    records = list(parse_ima_ascii(corpus_bytes(log["file"])).unverified_records_do_not_trust())
    if "policy-output" in item["file"]:  # of another program's making, without the paths of the log
        sizes = {len(bytes.fromhex(digest)) for digests in found["digests"].values() for digest in digests}
        assert sizes == {HASH_BYTES[log["expected"]["file_digest"]]}
        return
    assert allowed(records, found["digests"], {"boot_aggregate"}) == ("wrong" not in item["file"])


def check_pcr_dump(item: Entry) -> None:
    text = corpus_bytes(item["file"]).decode().replace(" ", "").lower()
    for value in item["expected"].values():
        assert value in text.replace("\n", "")


def check_public_key(item: Entry) -> None:
    assert load_pem_public_key(corpus_bytes(item["file"]))
    assert item["file"] in entry("tpm/ima/ima-keylime-signed.txt")["needs"]


def check_launcher_log(item: Entry) -> None:
    data, expected = base64.b64decode(corpus_bytes(item["file"])), item["expected"]
    assert hashlib.sha256(data).hexdigest() == expected["decoded_sha256"]
    log = parse_launcher_log(data)
    assert (log.register, log.confidential) == (expected["register_index"], True)
    assert bank_name(log.bank) == expected["digest"]
    value = bytes.fromhex(expected["register_value"])
    records = log.replay(value)
    assert len(records.launch) == expected["records"]
    assert records.launch[-1].type == SEPARATOR
    assert not records.late
    assert {event.type for event in records.launch} <= LAUNCHER_TYPES.keys()
    with pytest.raises(EvidenceError, match="does not replay"):
        log.replay(value[::-1])


CHECKS: dict[str, Callable[[Entry], None]] = {
    "ccel": check_ccel,
    "ccel-acpi-table": check_ccel_table,
    "cel-tlv": check_launcher_log,
    "expected-parse": check_expected_parse,
    "ima-log-ascii": check_ima_log,
    "ima-log-binary": check_ima_log,
    "ima-policy": check_ima_policy,
    "pcr-dump": check_pcr_dump,
    "public-key": check_public_key,
    "uefi-log": check_uefi_log,
}


@pytest.mark.parametrize("item", ENTRIES, ids=name_of)
def test_a_log_of_the_corpus_has_its_stated_outcome(item: Entry) -> None:
    CHECKS[item["kind"]](item)


def test_every_log_of_the_corpus_is_in_the_index_and_every_kind_has_a_test() -> None:
    top = corpus_root()
    assert top is not None
    present = {file.relative_to(top).as_posix() for folder in FOLDERS for file in (top / folder).iterdir()}
    assert present == {one["file"] for one in ENTRIES}
    elsewhere = {
        one["file"] for one in entries("") if one["kind"] in CHECKS and one["file"].startswith("tpm/")
    }
    assert {file for file in elsewhere - present if not file.startswith(("tpm/quote/", "tpm/cert/"))} == set()


def test_the_event_log_beside_a_quote_replays_to_what_was_quoted_in_every_bank() -> None:
    found = json.loads(corpus_bytes("tpm/quote/gce-cos85-rsa-nonce9009.json"))
    log = parse_tcg_log(base64.b64decode(found["event_log_b64"]))
    for quote, bank in zip(found["quotes"], ("sha1", "sha256", "sha384"), strict=True):
        quoted = {int(number): bytes.fromhex(value) for number, value in quote["pcrs"].items()}
        replayed = log.replay(quoted, bank=BANKS[bank], tolerate={Tolerance.SHA1})
        assert set(range(10)) <= set(replayed.values)
        assert read_secure_boot(replayed).enabled
