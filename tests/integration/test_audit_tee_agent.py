# SPDX-License-Identifier: Apache-2.0
"""Audits of what an agent without a TPM publishes: its live files, an archive, and that archive many years later."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agents import settled
from nacl.signing import SigningKey
from soft_snp import SoftSnp
from tee_audits import AT, FAR, LAUNCH, ROOTS
from tee_origins import make_tee_state, running_tee

from quotary_attest.log.export import export
from quotary_cli.main import run
from quotary_verifier.tlog.cosignature import TYPE_COSIGNATURE, cosign
from quotary_verifier.tlog.note import VerifierKey, parse_note

WITNESS = "witness.example.org"
KEY = SigningKey.generate()
RULES = f'[tee]\nrequired = ["sev-snp"]\n[tee.sev-snp]\ngenerations = ["genoa"]\nmeasurements = ["{LAUNCH}"]\n{ROOTS}'


@dataclass
class Published:
    """Where an agent's log stands, and the policy for it."""

    folder: Path
    static: Path
    policy: Path

    def audit(self, source: Path, capsys: pytest.CaptureFixture[str], *, at: int = AT) -> Mapping[str, Any]:
        """The report of the command."""
        capsys.readouterr()
        code = run(["audit", str(source), "--policy", str(self.policy), "--at", str(at), "--json"])
        report: Mapping[str, Any] = json.loads(capsys.readouterr().out)
        assert report["exit"] == code
        return report


@pytest.fixture
async def published(tmp_path: Path) -> Published:
    """Three starts of an agent with some outputs each; a witness cosigned what it published then."""
    folder, snp = tmp_path / "state", SoftSnp()
    origin = make_tee_state(folder).origin
    for number in range(3):
        async with running_tee(folder, snp) as agent:
            for output in range(number):
                await agent.attest(b"%d" % output)
            await settled(agent.store)
            note = parse_note(agent.store.serve("checkpoint"))
            size = int(note.text.split(b"\n")[1])
            if number == 2:
                seen = note.with_lines([cosign(note.text, WITNESS, KEY, AT + 60)])
                agent.store.put_cosigned(size, seen.encode())
                export(agent.store, tmp_path / "static")
    key = VerifierKey(WITNESS, TYPE_COSIGNATURE, bytes(KEY.verify_key)).encode()
    policy = tmp_path / "policy.toml"
    text = f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{origin}"\n{RULES}'
    policy.write_text(f'{text}\n[witnesses]\nkeys = ["{key}"]\nthreshold = 1\n')
    return Published(folder, tmp_path / "static", policy)


async def test_what_an_agent_without_a_tpm_publishes_passes_an_audit(
    published: Published, capsys: pytest.CaptureFixture[str]
) -> None:
    report = await asyncio.to_thread(published.audit, published.static, capsys)
    assert (report["outcome"], report["complete"]) == ("verified", True)
    assert [start["commit"] for start in report["starts"]] == [0, 1, 3]
    (tee,) = report["tees"]
    assert (tee["kind"], tee["status"], tee["lines"]) == ("sev-snp", "accepted", 6)
    assert report["log"]["ak"] is None


async def test_its_archive_verifies_many_years_later_by_the_witnesses_of_then(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "log.qar"
    assert await asyncio.to_thread(run, ["log", "export", str(published.static), str(archive)]) == 0
    report = await asyncio.to_thread(published.audit, archive, capsys, at=FAR)
    assert report["outcome"] == "verified"
    assert report["tees"][0]["status"] == "accepted"
    without = published.policy.read_text().partition("[witnesses]")[0]
    published.policy.write_text(without)
    report = await asyncio.to_thread(published.audit, archive, capsys, at=FAR)
    assert (report["outcome"], report["tees"][0]["status"]) == ("could-not-check", "undated")
