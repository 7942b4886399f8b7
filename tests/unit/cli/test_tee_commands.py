# SPDX-License-Identifier: Apache-2.0
"""`attest tee status` and `attest tee report` on a machine whose hardware is the tests' own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from amd_pki import AmdForge
from cca_tokens import cca_mint
from tee_devices import FakeNvml, FakeTsm, snp_mint

from quotary_attest.tee import opening, probe
from quotary_attest.tee.opening import Places
from quotary_cli.main import run
from quotary_cli.tee_report import BOUND, KINDS
from quotary_verifier.evidence.tee.snp_report import parse_snp_report


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTsm:
    """The only hardware of this machine is an SEV-SNP guest's."""
    files = FakeTsm(snp_mint(AmdForge()))
    places = Places(
        files, tmp_path / "nsm", None, (str(tmp_path / "none"),), FakeNvml(failing={"nvmlInit": "Driver Not Loaded"}),
        tmp_path,
    )  # fmt: skip
    monkeypatch.setattr(opening, "Places", lambda: places)
    monkeypatch.setattr(probe, "Places", lambda: places)
    return files


def test_people_are_told_what_there_is_with_hints(
    machine: FakeTsm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tee", "status"]) == 0
    out = capsys.readouterr().out
    assert "usable    sev-snp    sev_guest makes reports" in out
    assert "hint: install and load the nvidia driver" in out
    machine.denied = True
    assert run(["tee", "status"]) == 3
    assert "unusable  sev-snp    this user may not" in capsys.readouterr().out


def test_programs_are_told_in_one_object(machine: FakeTsm, capsys: pytest.CaptureFixture[str]) -> None:
    machine.provider = None
    assert run(["tee", "status", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "quotary-tee-status/v1"
    assert told["exit"] == 3
    assert [each["root"] for each in told["roots"]] == [
        "sev-snp", "tdx", "cca", "nitro", "nitro-tpm", "nvidia", "azure",
    ]  # fmt: skip
    assert {each["presence"] for each in told["roots"]} == {"absent"}


def test_a_report_binds_what_is_nobodys_choice(
    machine: FakeTsm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report"
    assert run(["tee", "report", "sev-snp", str(file), "--privlevel", "1", "--json"]) == 0
    data = file.read_bytes()
    assert json.loads(capsys.readouterr().out)["sha256"] == hashlib.sha256(data).hexdigest()
    assert parse_snp_report(data).report_data == BOUND
    assert machine.asked == [(BOUND, 1)]
    assert run(["tee", "report", "sev-snp", str(file)]) == 0
    assert "1184 bytes, sha-256" in capsys.readouterr().out


def test_a_realm_is_seen_and_its_token_shown_and_for_which_no_maker_is_asked(
    machine: FakeTsm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.provider, machine.mint = "arm_cca_guest", cca_mint
    assert run(["tee", "status"]) == 0
    assert "usable    cca        arm_cca_guest makes reports" in capsys.readouterr().out
    file = tmp_path / "token"
    assert run(["tee", "report", "cca", str(file)]) == 0
    capsys.readouterr()
    assert run(["inspect", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["content"]["challenge"]) == ("Arm CCA token", BOUND.hex())
    assert run(["tee", "fetch-collateral", str(file), "--out", str(tmp_path / "kept")]) == 3
    assert "the key of an arm cca platform comes from who sold it" in capsys.readouterr().err
    assert run(["tee", "report", "arm", str(file)]) == 2
    assert "invalid value for 'KIND'" in capsys.readouterr().err


def test_a_report_that_cannot_be_made_ends_with_a_message_and_a_hint(
    machine: FakeTsm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tee", "report", "tdx", str(tmp_path / "quote")]) == 4
    told = capsys.readouterr().err
    assert "made by 'sev_guest', not by 'tdx_guest'" in told
    assert "attest tee status" in told
    assert not (tmp_path / "quote").exists()
    assert machine.entries == {}


def test_every_root_that_a_commit_can_have_can_be_asked_for_a_report() -> None:
    assert set(KINDS) == {*opening.ROOTS, "azure"}


def test_an_option_of_a_tpm_beside_tee_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["agent", "init", "--state", str(tmp_path / "s"), "--host", "h.example", "--tee", "sev-snp"]
    assert run([*words, "--emulator", "--ak", "0x81000003"]) == 2
    assert "--emulator, --ak is of a tpm" in capsys.readouterr().err
