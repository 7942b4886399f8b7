# SPDX-License-Identifier: Apache-2.0
"""`attest verify` on an attestation with boot logs: what was replayed is shown, and a false log names its step."""

from __future__ import annotations

import json
from pathlib import Path

from boot_defects import BOOT, RECORDS, carrying, host, ima
from click.testing import CliRunner, Result
from forge import NOW, Forge

from quotary_cli.verify import verify
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
