# SPDX-License-Identifier: Apache-2.0
"""`attest verify` on an attestation with boot logs: what was replayed is shown, and a false log names its step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from boot_defects import BOOT, RECORDS, carrying, host, ima
from click.testing import CliRunner, Result
from forge import NOW, Forge
from ima_logs import file_data

from quotary_cli.sources.archive import END, header, padding
from quotary_cli.verify import verify
from quotary_verifier.logs.ima_prefix import prefix_digests
from quotary_verifier.wire.attestation import Attestation


def run(tmp_path: Path, forge: Forge, attestation: Attestation, *options: str) -> Result:
    for name, data in (("out", forge.body), ("a", attestation.encode()), ("p", forge.policy().encode())):
        (tmp_path / name).write_bytes(data)
    arguments = [str(tmp_path / "out"), "--attestation", str(tmp_path / "a"), "--policy", str(tmp_path / "p")]
    return CliRunner().invoke(verify, [*arguments, "--at", str(NOW), *options], standalone_mode=False)


def test_what_was_replayed_stands_in_the_verdict_for_people_and_programs(tmp_path: Path) -> None:
    forge = host()
    attestation = carrying(forge, tcg=BOOT.agile(), ima=ima(RECORDS))
    lines = run(tmp_path, forge, attestation).output.splitlines()
    assert any(line.split()[:1] == ["boot_log.tcg"] and "PCR 0-9, 14" in line for line in lines)
    assert any(line.split()[:1] == ["boot_log.ima"] and "4 records" in line for line in lines)
    found = json.loads(run(tmp_path, forge, attestation, "--json").output)
    claims = {claim["name"] for claim in found["results"][0]["verdict"]["claims"]}
    assert {"boot_log.tcg", "boot_log.ima"} <= claims


def test_a_log_that_does_not_replay_is_rejected_with_its_step_and_a_hint(tmp_path: Path) -> None:
    forge = host()
    done = run(tmp_path, forge, carrying(forge, tcg=BOOT.without(0).agile()), "--json")
    (result,) = json.loads(done.output)["results"]
    assert result["verdict"]["failing"] == "boot-logs"
    assert "register 0" in result["verdict"]["reason"]
    assert json.loads(done.output)["exit"] == 1


def named(**logs: bytes) -> dict[str, bytes]:
    """Logs as an attestation names them."""
    return {name: hashlib.sha256(log).digest() for name, log in logs.items()}


def blobs(folder: Path, *logs: bytes) -> Path:
    """A folder of blobs, as a host publishes them."""
    (folder / "blob").mkdir(parents=True)
    for log in (*logs, b"a record", b"another blob"):
        (folder / "blob" / hashlib.sha256(log).hexdigest()).write_bytes(log)
    return folder


LATER = ima([*RECORDS, file_data(70), file_data(71)])
"""What the kernel's log has grown to after the commit."""


def folder_of_blobs(place: Path) -> list[Path]:
    return [blobs(place, BOOT.agile(), ima(RECORDS))]


def static_export(place: Path) -> list[Path]:
    """The longest part of the boot's IMA log only."""
    return [blobs(place, BOOT.agile(), LATER)]


def archive(place: Path) -> list[Path]:
    files = sorted((f"blob/{hashlib.sha256(log).hexdigest()}", log) for log in (BOOT.agile(), LATER))
    content = b"".join(header(name, len(log)) + log + bytes(padding(len(log))) for name, log in files)
    place.write_bytes(content + END)
    return [place]


def captured_files(place: Path) -> list[Path]:
    """As somebody copied them off the host, names and all."""
    place.mkdir()
    (place / "binary_bios_measurements").write_bytes(BOOT.agile())
    (place / "binary_runtime_measurements").write_bytes(LATER + LATER[:5])
    return [place / "binary_bios_measurements", place / "binary_runtime_measurements"]


def folder_of_captured_files(place: Path) -> list[Path]:
    captured_files(place)
    return [place]


@pytest.mark.parametrize(
    "keep", [folder_of_blobs, static_export, archive, captured_files, folder_of_captured_files]
)
def test_logs_that_lie_beside_are_found_by_their_digests(
    tmp_path: Path, keep: Callable[[Path], list[Path]]
) -> None:
    forge = host()
    attestation = carrying(forge, **named(tcg=BOOT.agile(), ima=ima(RECORDS)))
    options = [item for place in keep(tmp_path / "logs") for item in ("--with-logs", str(place))]
    found = json.loads(run(tmp_path, forge, attestation, "--json", *options).output)
    checks = {check["code"]: check for check in found["results"][0]["verdict"]["checks"]}
    assert checks["boot-logs"]["state"] == "passed"
    assert "4 records" in checks["boot-logs"]["detail"]
    without = json.loads(run(tmp_path, forge, attestation, "--json").output)
    checks = {check["code"]: check for check in without["results"][0]["verdict"]["checks"]}
    assert checks["boot-logs"]["state"] == "not-checked"


def test_a_blob_that_is_not_what_its_name_says_is_not_the_log(tmp_path: Path) -> None:
    forge, place = host(), blobs(tmp_path / "logs", ima(RECORDS))
    (place / "blob" / hashlib.sha256(ima(RECORDS)).hexdigest()).write_bytes(ima(RECORDS[:-1]))
    attestation = carrying(forge, **named(ima=ima(RECORDS)))
    done = run(tmp_path, forge, attestation, "--json", "--with-logs", str(place))
    checks = {check["code"]: check for check in json.loads(done.output)["results"][0]["verdict"]["checks"]}
    assert checks["boot-logs"]["detail"] == "ima is given by its digest only"


def test_logs_of_another_boot_are_not_found_and_false_ones_are_rejected(tmp_path: Path) -> None:
    forge, false = host(), BOOT.without(0).agile()
    place = str(blobs(tmp_path / "logs", false, ima(RECORDS[:2])))
    attestation = carrying(forge, **named(tcg=BOOT.agile()))
    done = json.loads(run(tmp_path, forge, attestation, "--json", "--with-logs", place).output)
    assert done["exit"] == 0
    done = json.loads(
        run(tmp_path, forge, carrying(forge, **named(tcg=false)), "--json", "--with-logs", place).output
    )
    assert (done["exit"], done["results"][0]["verdict"]["failing"]) == (1, "boot-logs")


def test_every_prefix_that_ends_with_a_record_has_its_name_and_nothing_else_has() -> None:
    whole = ima(RECORDS)
    expected = [len(ima(RECORDS[: count + 1])) for count in range(len(RECORDS))]
    assert list(prefix_digests(whole)) == [(hashlib.sha256(whole[:size]).digest(), size) for size in expected]
    assert [size for _, size in prefix_digests(whole[:-1])] == expected[:-1]
    for other in (b"", b"no log", BOOT.agile(), bytes(4096)):
        assert list(prefix_digests(other)) == []
