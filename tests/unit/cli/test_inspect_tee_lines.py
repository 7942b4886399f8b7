# SPDX-License-Identifier: Apache-2.0
"""`attest inspect` shows what TEE lines of an attestation say, and `attest verify` what each root contributes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tee_defects import LAUNCH, POLICY, bound, snp, tdx, without_line

from quotary_cli.main import run
from quotary_verifier.wire.attestation import Attestation

WHEN = "2026-11-23T12:00:00Z"


def inspected(
    attestation: Attestation, folder: Path, capsys: pytest.CaptureFixture[str]
) -> list[dict[str, object]]:
    file = folder / "a.attestation"
    file.write_bytes(attestation.encode())
    assert run(["inspect", str(file), "--json"]) == 0
    tees = json.loads(capsys.readouterr().out)["content"]["tees"]
    assert isinstance(tees, list)
    return tees


def test_lines_of_two_kinds_are_shown_with_what_vouches_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attestation = bound(tdx, snp()).attestation()
    intel, amd = inspected(attestation, tmp_path, capsys)
    assert (intel["identifier"], intel["endorsements"]) == ("quotary/tdx/v1", {})
    (report,) = amd["evidence"]  # type: ignore[misc]
    assert (report["kind"], amd["first"]) == ("SEV-SNP report", 2)
    assert LAUNCH in json.dumps(report)
    assert set(amd["endorsements"]) == {"leaf", "issuer"}  # type: ignore[call-overload]


def test_a_support_without_its_line_is_shown_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge = bound()
    whole = forge.attestation()
    (shown,) = inspected(replace(whole, note=without_line(forge, whole)), tmp_path, capsys)
    assert shown["error"] == "the note has no such line"


def test_a_verdict_on_the_command_line_names_each_root_and_what_a_missing_one_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge = bound()
    whole = forge.attestation()
    (tmp_path / "out").write_bytes(forge.body)
    (tmp_path / "policy.toml").write_text(forge.policy(POLICY))
    half = replace(whole, note=without_line(forge, whole), tees=())
    for attestation, code, wanted in (
        (whole, 0, "sev-snp: this commit"),
        (half, 1, "requires evidence of sev-snp"),
    ):
        (tmp_path / "a").write_bytes(attestation.encode())
        arguments = ["verify", str(tmp_path / "out"), "--attestation", str(tmp_path / "a"), "--at", WHEN]
        assert run([*arguments, "--policy", str(tmp_path / "policy.toml"), "--explain"]) == code
        said = capsys.readouterr()
        assert wanted in " ".join((said.out + said.err).split())


def test_a_policy_is_shown_with_its_rules_on_tees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(bound().policy(POLICY + "[tee.nitro]\nmax_age = 60\n"))
    assert run(["inspect", str(file), "--json"]) == 0
    tee = json.loads(capsys.readouterr().out)["content"]["tee"]
    assert (tee["required"], tee["own_roots"]) == (["sev-snp"], ["amd", "intel"])
    assert tee["snp"]["generations"] == ["genoa"]
    assert tee["snp"]["measurements"] == [LAUNCH]
    assert (tee["tdx"], tee["nitro"]["max_age"]) == (None, 60)
