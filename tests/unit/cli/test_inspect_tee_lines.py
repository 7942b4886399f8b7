# SPDX-License-Identifier: Apache-2.0
"""`attest inspect` shows what TEE lines of an attestation say, and `attest verify` what each root contributes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from alone_forge import AloneForge
from cca_tokens import pem_key, platform_key
from tee_defects import LAUNCH, POLICY, ROOTS, bound, snp, tdx, without_line

from quotary_cli.main import run
from quotary_cli.render import NO_TPM
from quotary_verifier.recipe import alone
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


def test_people_see_at_once_what_each_root_contributes_how_it_was_judged_and_that_a_guest_is_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge = bound(tdx, snp({0x08: (0x30000 | 1 << 19).to_bytes(8, "little")}))
    (tmp_path / "out").write_bytes(forge.body)
    (tmp_path / "out.attestation").write_bytes(forge.attestation().encode())
    (tmp_path / "policy.toml").write_text(forge.policy(ROOTS))
    arguments = ["verify", str(tmp_path / "out"), "--at", WHEN, "--policy", str(tmp_path / "policy.toml")]
    assert run(arguments) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "root tpm2-quote: this commit, the PCRs, the workload log and the boot [hardware]" in lines
    assert (
        "root sev-snp: this commit, and the launch of the confidential guest that asked for it [hardware]"
        in lines
    )
    assert "tee.sev-snp verified, not appraised [hardware]" in lines
    assert "tee.tdx verified, not appraised [host]" in lines
    assert "tee.sev-snp.debug True [hardware]" in lines
    assert not any(line.startswith(("tee.tdx.debug", "tee.sev-snp.launch")) for line in lines)
    assert run([*arguments, "--explain"]) == 0
    assert "tee.sev-snp.launch" in capsys.readouterr().out


def test_of_an_origin_without_a_tpm_people_see_the_one_root_and_not_each_step_that_a_quote_would_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge = AloneForge()
    (tmp_path / "out").write_bytes(forge.body)
    (tmp_path / "out.attestation").write_bytes(forge.attestation().encode())
    (tmp_path / "policy.toml").write_text(forge.pinned(POLICY))
    assert (
        run(["verify", str(tmp_path / "out"), "--at", WHEN, "--policy", str(tmp_path / "policy.toml")]) == 0
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line.startswith("root ")] == [
        "root sev-snp: this commit, and the launch of the confidential guest that asked for it [hardware]"
    ]
    (summary,) = [line for line in lines if line.startswith("checks ")]
    assert "freshness, what only a tpm shows (" in summary
    assert "quote." not in summary
    assert NO_TPM == alone.NO_TPM


def test_a_rejection_for_a_root_says_where_to_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge = bound(snp({0x90: b"\x4e" * 48}))
    (tmp_path / "out").write_bytes(forge.body)
    (tmp_path / "out.attestation").write_bytes(forge.attestation().encode())
    (tmp_path / "policy.toml").write_text(forge.policy(POLICY))
    assert (
        run(["verify", str(tmp_path / "out"), "--at", WHEN, "--policy", str(tmp_path / "policy.toml")]) == 1
    )
    shown = capsys.readouterr().out
    assert f"sev-snp: the measurement {'4e' * 48} is not accepted" in shown
    assert "[tee] of the policy says which it takes" in shown


def test_a_policy_is_shown_with_its_rules_on_tees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(bound().policy(POLICY + "[tee.nitro]\nmax_age = 60\n"))
    assert run(["inspect", str(file), "--json"]) == 0
    tee = json.loads(capsys.readouterr().out)["content"]["tee"]
    assert (tee["required"], tee["own_roots"]) == (["sev-snp"], ["amd", "intel"])
    assert tee["snp"]["generations"] == ["genoa"]
    assert tee["snp"]["measurements"] == [LAUNCH]
    assert (tee["tdx"], tee["nitro"]["max_age"]) == (None, 60)
    assert (tee["cca"], tee["cca_platform_keys"]) == (None, [])
    file.write_text(bound().policy(f'[tee.cca]\nkeys = ["""{pem_key()}"""]\nrim = ["{"01" * 32}"]\n'))
    assert run(["inspect", str(file), "--json"]) == 0
    tee = json.loads(capsys.readouterr().out)["content"]["tee"]
    assert tee["cca_platform_keys"] == [platform_key().sha256.hex()]
    assert (tee["cca"]["rims"], tee["own_roots"]) == (["01" * 32], [])
