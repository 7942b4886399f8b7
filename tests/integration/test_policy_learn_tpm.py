# SPDX-License-Identifier: Apache-2.0
"""Learning from boots of a host whose agent really commits to a software TPM, and names its logs by digest."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agents import AT, make_state, running
from ima_logs import ng
from measured_boots import BootOf, sha256
from measured_host import MeasuredHost
from tpms import Tpm

from quotary_cli.main import run
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.records import Genesis

GOOD = BootOf(files={"/usr/bin/python3": b"python", "/var/lib/seed": b"1"})
OUTPUT = b"an output"


async def evidence_of(host: MeasuredHost, state: Path, boot: BootOf, folder: Path) -> str:
    """Boot the host so, let its agent attest, and keep attestation and logs as a consumer would."""
    host.reboot(boot.log(), files=0)
    host.measure(*[ng(path, sha256(content)) for path, content in boot.files.items()])
    async with running(host.tpm, state, boot_logs=host.settings) as agent:
        delivered = await agent.attest(OUTPUT)
    return keep(host, delivered.encoded, folder)


def keep(host: MeasuredHost, attestation: bytes, folder: Path) -> str:
    """Write output, attestation and logs into a new folder."""
    folder.mkdir()
    (folder / "output").write_bytes(OUTPUT)
    (folder / "output.attestation").write_bytes(attestation)
    for name in ("tcg", "ima"):
        shutil.copy(host.folder / name, folder / name)
    return str(folder / "output.attestation")


def origin_of(evidence: str) -> str:
    """The origin that an attestation is of."""
    genesis = Attestation.decode(Path(evidence).read_bytes()).genesis
    return Genesis.decode(genesis).origin(genesis)


def check(evidence: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    logs = ["--with-logs", str(Path(evidence).parent)]
    code = run(["policy", "check", evidence, "--policy", "fleet.toml", *logs, "--at", str(AT), "--json"])
    return code, json.loads(capsys.readouterr().out)


async def test_two_boots_on_a_tpm_teach_what_the_third_is_held_against(
    tpm: Tpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "state"
    make_state(tpm, state)
    host = MeasuredHost(tpm, tmp_path / "logs", GOOD.log())
    boots = {
        "first": GOOD,
        "second": replace(GOOD, order=b"\2\0", disk=b"other", files={**GOOD.files, "/var/lib/seed": b"2"}),
        "third": replace(GOOD, order=b"\3\0", refused=4, files={**GOOD.files, "/var/lib/seed": b"3"}),
        "attack": replace(GOOD, command_line="init=/bin/sh", files={**GOOD.files, "/usr/bin/nc": b"nc"}),
    }
    given = {name: await evidence_of(host, state, boot, tmp_path / name) for name, boot in boots.items()}
    trust = ["--pin", origin_of(given["first"]), "--software-tpm"]
    learn = [
        "policy",
        "learn",
        given["first"],
        given["second"],
        *trust,
        "--out",
        "fleet.toml",
        "--at",
        str(AT),
    ]
    assert run(learn) == 3
    assert "--with-logs" in capsys.readouterr().err
    assert run([*learn, "--with-logs", "first", "--with-logs", "second"]) == 0
    code, found = check(given["third"], capsys)
    assert (code, found["results"][0]["findings"]) == (0, [])
    code, found = check(given["attack"], capsys)
    findings = {item["rule"]: item["message"] for item in found["results"][0]["findings"]}
    assert code == 1
    assert "init=/bin/sh" in findings["platform.boot.loader"]
    assert "/usr/bin/nc" in findings["platform.ima.files"]
    words = ["policy", "diff", given["first"], given["attack"], "--policy", "fleet.toml", "--at", str(AT)]
    capsys.readouterr()
    assert run([*words, "--with-logs", "first", "--with-logs", "attack"]) == 0
    shown = capsys.readouterr().out
    assert "PCR 12: the command line changed: +init=/bin/sh" in shown
    assert "IMA: /usr/bin/nc was added" in shown
