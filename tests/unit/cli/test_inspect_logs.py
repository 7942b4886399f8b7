# SPDX-License-Identifier: Apache-2.0
"""`attest inspect` on event logs: lines for people, values for programs, and nothing that passes for verified."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from corpus import corpus_bytes, entries, needs_corpus
from forge import Forge
from ima_logs import file_data, ima_entry, ng
from tcg_logs import TcgWriter, good_boot

from quotary_cli.inspect import inspect
from quotary_cli.kinds import describe
from quotary_cli.logkinds import log_lines
from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.cel import encode_record
from quotary_verifier.wire.attestation import Attestation

BOOT = good_boot()


def shown(data: bytes, tmp_path: Path, *options: str) -> str:
    file = tmp_path / "log"
    file.write_bytes(data)
    done = CliRunner().invoke(inspect, [str(file), *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_each_event_is_one_line_with_whether_its_digest_covers_it(tmp_path: Path) -> None:
    text = shown(BOOT.agile(), tmp_path)
    assert "event log" in text.splitlines()[0]
    assert "(parsed, not verified)" in text.splitlines()[0]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "3 7 efi_variable_driver_config = SecureBoot 01" in lines
    assert "7 7 efi_variable_driver_config = dbx (2 entries)" in lines
    assert any(line.endswith("ipl = kernel_cmdline: /vmlinuz quiet") for line in lines)
    assert any(line.endswith("ipl ? /vmlinuz") for line in lines)


def test_programs_get_every_event_with_its_digests_and_what_the_log_would_replay_to(tmp_path: Path) -> None:
    found = json.loads(shown(BOOT.agile(), tmp_path, "--json"))
    assert (found["kind"], found["status"]) == ("event log", "parsed, not verified")
    content = found["content"]
    assert content["would_replay_to"]["sha256"] == {str(k): v.hex() for k, v in sorted(BOOT.values().items())}
    assert len(content["events"]) == len(BOOT.events) + 1
    event = content["events"][1]
    assert event["digests"]["sha256"] == BOOT.events[0].digest(0x0B).hex()
    assert (event["type"], event["digest_covers"], event["text"]) == ("EV_S_CRTM_VERSION", "data", "1.0")


def test_text_of_an_attacker_is_escaped_in_every_line(tmp_path: Path) -> None:
    evil = "/tmp/\x1b[2J\nok\u202e"
    text = shown(ima_entry(ng(evil, bytes(32))), tmp_path)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[2J\\nok\\u202e" in text
    log = TcgWriter().add(8, t.EV_IPL, b"grub_cmd: \x1b[31mred\n\0", b"\x1b[31mred\n").agile()
    assert "\x1b" not in shown(log, tmp_path)
    assert "\x1b" not in shown(log, tmp_path, "--json")


def test_an_ima_log_shows_paths_digests_signatures_and_violations(tmp_path: Path) -> None:
    data = (
        ima_entry(ng("/signed", bytes(32), b"sig"), name=b"ima-sig")
        + ima_entry(file_data(1), violation=True)
        + ima_entry(b"bytes", name=b"ima-new")
    )
    lines = [" ".join(line.split()) for line in shown(data, tmp_path).splitlines()]
    assert f"0 10 /signed (signed) sha256:{bytes(32).hex()}" in lines
    assert "1 10 /usr/bin/program-1 violation" in lines
    assert "2 10 ima-new 6279746573" in lines
    content = json.loads(shown(data, tmp_path, "--json"))["content"]
    assert (content["violations"], content["records"][0]["signature"]) == (1, b"sig".hex())


def test_logs_are_told_apart_by_their_first_bytes() -> None:
    confidential = TcgWriter((0x0C,)).add(1, t.EV_SEPARATOR, bytes(4)).agile()
    assert describe(b"\1" + confidential[1:])[1]["registers"] == "cc"
    assert describe(good_boot().old())[1]["format"] == "sha-1"
    workload = b"".join(encode_record(number, 13, content) for number, content in enumerate(Forge().events()))
    assert describe(workload)[0] == "workload log"
    per_hash = b"".join(ima_entry(file_data(number), size=32) for number in range(2))
    assert describe(per_hash)[1]["template_hash_bytes"] == 32


def test_an_attestation_shows_the_size_or_digest_of_each_boot_log() -> None:
    attestation = Forge().attestation()
    logs = {"tcg": BOOT.agile(), "ima": bytes(32)}
    carrying = Attestation(
        **{name: getattr(attestation, name) for name in attestation.__slots__} | {"boot_logs": logs}
    )
    assert describe(carrying.encode())[1]["boot_logs"] == {
        "tcg": {"bytes": len(BOOT.agile())},
        "ima": {"sha256": "00" * 32},
    }


KINDS = {
    "uefi-log": "event log",
    "ccel": "event log",
    "ccel-acpi-table": "CCEL table",
    "cel-tlv": "launcher log",
}
LOGS = [
    one
    for folder in ("tpm/eventlog/", "tpm/ccel/", "tpm/ima/", "tpm/cel/")
    for one in entries(folder)
    if one["kind"] in KINDS or one["kind"].startswith("ima-log")
    if one["expect"] != "reject" and one["size"]
]


@needs_corpus
@pytest.mark.parametrize("item", LOGS, ids=lambda item: item["file"].rpartition("/")[2])
def test_every_log_of_the_corpus_is_known_and_shown(item: dict[str, str]) -> None:
    data = corpus_bytes(item["file"])
    if item["kind"] == "cel-tlv":
        data = base64.b64decode(data)
    kind, content = describe(data)
    assert kind == KINDS.get(item["kind"], "IMA log")
    whole, lines = log_lines(kind, content)
    shown_lines = list(lines)
    assert len(shown_lines) == sum(len(value) for key, value in content.items() if key not in whole)
    assert all(line.isprintable() for line in shown_lines)
    json.dumps(content)
