# SPDX-License-Identifier: Apache-2.0
"""Audits of what real agents leave behind: over starts, reboots, sleep, crashes and foreign extends."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path

import pytest
from agents import AT, make_state, policy_of, release, running, settled, start
from measured_host import MeasuredHost
from tpms import Tpm

from quotary_attest.agent import Agent, World
from quotary_attest.log.export import export
from quotary_attest.log.store import Store
from quotary_attest.state import read_identity
from quotary_cli.auditing import Wanted, audit_source
from quotary_verifier.audit.findings import Code, Severity
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.wire.declaration import Declaration, Service


class DiedError(Exception):
    """What a crash point raises where the process itself is to live on."""


def dying(point: str) -> World:
    """A world whose agent is interrupted at a crash point."""

    def crash(name: str) -> None:
        if name == point:
            raise DiedError

    return World(crash=crash)


async def answer(agent: Agent, count: int = 5) -> None:
    """Some outputs, at once and one after the other."""
    await asyncio.gather(*(agent.attest(b"answer %d" % number) for number in range(count)))
    await agent.attest(b"a last one")
    await settled(agent.store)


def published(folder: Path) -> Path:
    """What the agent of a state folder publishes, as static files."""
    store = Store.open(folder / "log")
    try:
        export(store, folder / "static")
    finally:
        store.close()
    return folder / "static"


def audited(folder: Path, extra: str = "", **more: object) -> AuditReport:
    """An audit of the log of a state folder under a policy that pins it."""
    policy = policy_of(read_identity(folder).origin, extra)
    return audit_source(Wanted(str(published(folder)), policy, AT, **more))  # type: ignore[arg-type]


def told(report: AuditReport) -> set[Code]:
    return {finding.code for finding in report.findings}


async def test_a_host_that_started_rebooted_and_slept_is_verified_whole(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    async with running(tpm, folder) as agent:
        await agent.declare(Declaration.of([Service(("/v1/chat/completions",))]))
        await answer(agent)
    async with running(tpm, folder) as agent:  # again in the same boot
        await answer(agent)
        tpm.suspend()
        await answer(agent)
    tpm.hibernate()
    async with running(tpm, folder) as agent:
        await answer(agent)
    tpm.reset()
    async with running(tpm, folder) as agent:
        await answer(agent)
        size = agent.store.size
    report = audited(folder)
    assert report.outcome == "verified", report.findings
    assert report.complete
    assert report.log is not None
    assert (report.log.size, report.log.published) == (size, size)
    assert [boot.chain for boot in report.boots] == ["zero", "continued", "zero", "zero"]
    assert [start.skipped for start in report.starts] == [0, 0, 0, 0]
    assert [statement.leaf for statement in report.statements] == [2]
    assert {model.name for period in report.periods for model in period.models} == {"llama", "qwen"}
    assert told(report) == {Code.SLEEP}


async def test_a_commit_lost_between_extend_and_history_is_explained_by_what_its_start_left(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    for _ in range(2):
        with pytest.raises(DiedError):
            await start(tpm, folder, world=dying("extended"))
        release(tpm)
    async with running(tpm, folder) as agent:
        await answer(agent)
    report = audited(folder)
    assert report.outcome == "verified", report.findings
    assert [boot.chain for boot in report.boots] == ["explained"]
    assert [(start.skipped, start.history, len(start.lost)) for start in report.starts] == [(0, (1, 3), 2)]
    assert told(report) == {Code.LOST_COMMIT, Code.HISTORY_LEAVES}


async def test_a_foreign_extend_after_which_the_operator_resumed_is_a_gap(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    async with running(tpm, folder) as agent:
        await answer(agent)
    tpm.extend(15, hashlib.sha256(b"somebody else").digest())
    async with running(tpm, folder, resume=True) as agent:
        await answer(agent)
    report = audited(folder)
    assert report.outcome == "verified", report.findings
    assert [(f.code, f.severity) for f in report.findings] == [(Code.CHAIN_GAP, Severity.GAP)]
    assert [boot.chain for boot in report.boots] == ["gap"]


async def test_an_audit_goes_on_where_it_ended_when_the_log_has_grown(tpm: Tpm, tmp_path: Path) -> None:
    folder, state = tmp_path / "state", tmp_path / "audit.state"
    async with running(tpm, folder) as agent:
        await answer(agent)
    first = audited(folder, state=state)
    async with running(tpm, folder) as agent:
        await answer(agent, 300)
    tpm.reset()
    async with running(tpm, folder) as agent:
        await answer(agent)
    whole, second = audited(folder), audited(folder, state=state)
    assert (first.outcome, second.outcome) == ("verified", "verified")
    assert first.log is not None
    assert second.log is not None
    assert second.log.resumed == first.log.size
    assert (second.boots, second.starts, second.periods) == (whole.boots, whole.starts, whole.periods)
    assert audited(folder, state=state).periods == whole.periods  # nothing new


async def test_boot_logs_are_replayed_once_a_boot_over_sleep_and_every_prefix_is_held(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    host = MeasuredHost(tpm, tmp_path / "logs").start()
    async with running(tpm, folder, boot_logs=host.settings) as agent:
        for _ in range(3):
            await answer(agent)
            host.run_files(20)
        tpm.suspend()
        await answer(agent)
        host.run_files(5)
        await answer(agent)
    host.reboot()
    async with running(tpm, folder, boot_logs=host.settings) as agent:
        await answer(agent)
    report = audited(folder)
    assert report.outcome == "verified", report.findings
    assert [[(log.name, log.state) for log in boot.logs] for boot in report.boots] == [
        [("ima", "replayed"), ("tcg", "replayed")]
    ] * 3
    assert audited(folder, '[platform.ima]\nignore = ["/usr/bin/*"]\n').outcome == "verified"
    strict = audited(folder, "[platform.ima]\n[platform.secure_boot]\n")
    assert {period.status for period in strict.periods} == {"rejected"}
    assert {f.code for f in strict.findings if f.severity is Severity.POLICY} == {Code.PLATFORM}
    assert any("/usr/bin/program-0" in finding.message for finding in strict.findings)
    longest = report.boots[0].logs[0]
    path = published(folder) / "blob" / longest.digest
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"!")
    report = audited(folder)
    (found,) = (finding for finding in report.findings if finding.code is not Code.SLEEP)
    assert (found.code, found.severity, found.where.path) == (
        Code.BOOT_LOG,
        Severity.FALSE,
        f"blob/{longest.digest}",
    )
    path.unlink()
    export_again = Wanted(str(folder / "static"), policy_of(report.log.origin if report.log else ""), AT)
    (found,) = (f for f in audit_source(export_again).findings if f.code is not Code.SLEEP)
    assert (found.code, found.severity) == (Code.BOOT_LOG, Severity.COULD_NOT)


async def test_given_records_are_matched_and_what_is_omitted_or_of_another_history_is_named(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder, held = tmp_path / "state", tmp_path / "held"
    held.mkdir()
    async with running(tpm, folder) as agent:
        for number in range(4):
            delivered = await agent.attest(b"answer %d" % number)
            if number != 2:
                (held / f"{number}.attestation").write_bytes(delivered.encoded)
        record = agent.store.record_at(1).record
        (held / "boot.record").write_bytes(record)
        (held / "answer.txt").write_bytes(b"answer 0")
        await settled(agent.store)
        shutil.copytree(folder, tmp_path / "copy")
        lost = await agent.attest(b"an answer that the host would rather not have given")
    report = audited(folder, records=(held,))
    assert report.outcome == "verified", report.findings
    assert report.records is not None
    assert dict(report.records.places) == {
        "0.attestation": 2,
        "1.attestation": 3,
        "3.attestation": 5,
        "boot.record": 1,
    }
    assert (report.records.omitted, report.records.omitted_ranges) == (2, ((4, 5), (6, 7)))
    assert [finding.code for finding in report.findings] == [Code.RECORD_OMITTED]

    # A copy of the state, taken up after a reboot: nothing in that history tells of the answer, but who has it does.
    tpm.reset()
    copy = tmp_path / "copy"
    async with running(tpm, copy) as agent:
        await answer(agent)
    assert audited(copy).findings == ()
    (held / "lost.attestation").write_bytes(lost.encoded)
    report = audited(copy, records=(held,))
    assert report.outcome == "rejected"
    assert {finding.code for finding in report.findings if finding.severity is Severity.FALSE} == {
        Code.RECORD_OTHER_HISTORY,
        Code.RECORD_UNMATCHED,
    }
    assert report.records is not None
    assert report.records.unmatched == ("lost.attestation",)
