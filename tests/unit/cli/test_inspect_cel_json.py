# SPDX-License-Identifier: Apache-2.0
"""`attest inspect --cel-json`: any event log in the JSON encoding of the TCG's Canonical Event Log."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from corpus import corpus_bytes, entry, needs_corpus
from ima_logs import file_data, ima_entry, replayed
from tcg_logs import good_boot

from quotary_cli.inspect import inspect
from quotary_verifier.logs.cel import content_digest, content_tlv, encode_record
from quotary_verifier.logs.tcg_types import EV_NO_ACTION
from quotary_verifier.logs.workload import WorkloadEvent, separator

FIELDS = {"recnum", "pcr", "digests", "content_type", "content"}


def run(data: bytes, tmp_path: Path, *options: str) -> Result:
    file = tmp_path / "log"
    file.write_bytes(data)
    return CliRunner().invoke(inspect, [str(file), *options])


def exported(data: bytes, tmp_path: Path) -> list[dict[str, Any]]:
    done = run(data, tmp_path, "--cel-json")
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert [record["recnum"] for record in found] == list(range(len(found)))
    return found


def values(records: list[dict[str, Any]], name: str) -> dict[int, bytes]:
    """What the registers hold that were extended with the records' digests of one bank."""
    size = hashlib.new(name).digest_size
    found: dict[int, bytes] = {}
    for record in records:
        (digest,) = [one["digest"] for one in record["digests"] if one["hashAlg"] == name]
        before = found.get(record["pcr"], bytes(size))
        found[record["pcr"]] = hashlib.new(name, before + bytes.fromhex(digest)).digest()
    return found


def test_a_workload_log_keeps_its_content_type_and_content_so_that_its_digests_can_be_recomputed(
    tmp_path: Path,
) -> None:
    events = [WorkloadEvent("model", name, bytes(32), {}).encode() for name in ("a", "b")]
    events.append(separator(0, [content_digest(event) for event in events]))
    records = exported(b"".join(encode_record(n, 13, event) for n, event in enumerate(events)), tmp_path)
    for event, record in zip(events, records, strict=True):
        assert set(record) == FIELDS
        assert (record["pcr"], record["content_type"]) == (13, 200)
        content = bytes.fromhex(record["content"])
        digest = hashlib.sha256(content_tlv(content)).hexdigest()
        assert content == event
        assert record["digests"] == [{"hashAlg": "sha256", "digest": digest}]


def test_a_firmware_log_replays_from_its_json(tmp_path: Path) -> None:
    boot = good_boot()
    records = exported(boot.agile(), tmp_path)
    assert all(set(record) == FIELDS and record["content_type"] == "pcclient_std" for record in records)
    assert records[0]["content"]["event_type"] == EV_NO_ACTION
    assert values(records[1:], "sha256") == boot.values()
    assert records[1]["content"]["event_data"] == boot.events[0].data.hex()


def test_an_ima_log_replays_from_the_template_data_in_its_json(tmp_path: Path) -> None:
    datas = [file_data(number) for number in range(3)]
    records = exported(b"".join(map(ima_entry, datas)), tmp_path)
    assert {record["content_type"] for record in records} == {"ima_template"}
    assert {record["content"]["template_name"] for record in records} == {"ima-ng"}
    found = [bytes.fromhex(record["content"]["template_data"]) for record in records]
    assert replayed(found) == replayed(datas)
    assert values(records, "sha1") == {10: replayed(datas, "sha1")}


@needs_corpus
def test_a_launchers_log_of_a_confidential_vm_replays_from_its_json(tmp_path: Path) -> None:
    name = "tpm/cel/cel-tlv-confidential-space-gpu.b64"
    records = exported(base64.b64decode(corpus_bytes(name)), tmp_path)
    value = bytes(48)
    for record in records:
        content = bytes.fromhex(record["content"])
        tlv = bytes((record["content_type"],)) + len(content).to_bytes(4, "big") + content
        (digest,) = record["digests"]
        assert hashlib.sha384(tlv).hexdigest() == digest["digest"]
        value = hashlib.sha384(value + bytes.fromhex(digest["digest"])).digest()
    assert value.hex() == entry(name)["expected"]["register_value"]
    assert {record["ccmr"] for record in records} == {4}


def test_what_is_no_event_log_is_not_exported(tmp_path: Path) -> None:
    done = run(b"a text\n\n\xe2\x80\x94 name AAAAAAAA\n", tmp_path, "--cel-json")
    assert done.exit_code != 0
    assert run(good_boot().agile(), tmp_path, "--cel-json", "--json").exit_code == 2
