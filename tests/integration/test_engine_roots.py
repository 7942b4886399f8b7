# SPDX-License-Identifier: Apache-2.0
"""Roots beside the TPM, on a real software TPM and a synthetic SEV-SNP processor: lines, every Nth commit, failures."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from agents import Naps, audit, commits_of, make_state, pcr_of, policy_of, running, settled, start
from amd_pki import NOW
from soft_snp import SoftSnp, gone, in_its_time
from tee_audits import AT, rules
from tpms import CC_QUOTE, Tpm

from quotary_attest.agent import Agent, Unavailable, World
from quotary_attest.engine.further import FurtherRoot
from quotary_attest.log.export import export
from quotary_attest.log.store import Store
from quotary_attest.roots import RequiredRootFailed, RootError
from quotary_attest.state import read_identity
from quotary_cli.auditing import Wanted, audit_source
from quotary_verifier.evidence.tee.lines import Bound, verify_tee_line
from quotary_verifier.tlog.hardware import IDENTIFIER_SEV_SNP, hardware_lines
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.bindings import commit_digest
from quotary_verifier.wire.history import Commit
from quotary_verifier.wire.tee_support import TeeSupport


@pytest.fixture
def folder(tpm: Tpm, tmp_path: Path) -> Path:
    make_state(tpm, tmp_path / "state")
    return tmp_path / "state"


def with_root(snp: SoftSnp, **options: object) -> dict[str, object]:
    """Options of an agent that has this root."""
    world = in_its_time(sleep=Naps())
    return {"world": world, "roots": [FurtherRoot(snp, **options)], "tee_roots": snp.roots}  # type: ignore[arg-type]


def history(folder: Path) -> list[Commit]:
    """The commits in a state folder that no agent holds."""
    store = Store.open(folder / "log")
    try:
        return commits_of(store)
    finally:
        store.close()


def bound_by(folder: Path, commit: Commit, snp: SoftSnp) -> bool:
    """Whether a commit has a line of the root, which then holds, as does what is archived for it."""
    identity = read_identity(folder)
    note = parse_note(commit.note)
    lines = hardware_lines(note, identity.origin, {IDENTIFIER_SEV_SNP: b""})
    assert len(lines) == len(commit.tees)
    for line, support in zip(lines, commit.tees, strict=True):
        store = Store.open(folder / "log")
        try:
            parts = {name: tuple(map(store.blob, named)) for name, named in support.endorsements.items()}
        finally:
            store.close()
        digest = commit_digest(identity.origin, commit.first, note.text)
        bound = Bound(digest, sha256(identity.genesis_record).digest())
        assert line.first == commit.first
        verify_tee_line(line.evidence, TeeSupport(support.identifier, parts), bound, NOW, snp.roots)
    return bool(lines)


async def until(agent: Agent, state: str) -> None:
    """Wait until the agent is in a state."""
    async with asyncio.timeout(20):
        while agent.status()["state"] != state:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_a_commit_carries_the_lines_of_both_roots_over_one_digest(tpm: Tpm, folder: Path) -> None:
    snp = SoftSnp()
    async with running(tpm, folder, **with_root(snp)) as agent:
        await asyncio.gather(*(agent.attest(b"%d" % number) for number in range(3)))
        (shown,) = agent.status()["roots"]
    assert (shown["identifier"], shown["bound"], shown["failed"]) == (IDENTIFIER_SEV_SNP, len(snp.asked), 0)
    commits = history(folder)
    assert len(snp.asked) == len(commits) >= 2
    assert all(bound_by(folder, commit, snp) for commit in commits)
    assert not audit(folder).gaps
    assert snp.closed == 1


async def test_an_old_output_has_both_supports_as_on_its_delivery(tpm: Tpm, folder: Path) -> None:
    snp = SoftSnp()
    async with running(tpm, folder, **with_root(snp)) as agent:
        delivered = await agent.attest(b"x")
        await settled(agent.store)
        assert await agent.fetch(delivered.output_id) == delivered.encoded
    assert delivered.encoded.count(snp.support.endorsements["leaf"][0]) == 1


async def test_a_root_is_asked_once_the_batch_is_on_disk_and_while_the_tpm_quotes(
    tpm: Tpm, folder: Path
) -> None:
    snp = SoftSnp()
    quoted, looked, staged = asyncio.Event(), asyncio.Event(), []
    loop = asyncio.get_running_loop()

    def crash(name: str) -> None:
        if name == "quoted":
            loop.call_soon_threadsafe(quoted.set)

    def look(report_data: bytes) -> bytes:
        batch = agent.store.staged()
        looked.set()
        staged.append((batch is not None and batch.digest == report_data[:32], quoted.is_set()))
        return report_data

    options = with_root(snp) | {"world": in_its_time(sleep=Naps(), crash=crash)}
    async with running(tpm, folder, **options) as agent:
        snp.twist = look
        with tpm.stall(CC_QUOTE):
            quoted.clear()  # of the start
            looked.clear()
            attesting = asyncio.ensure_future(agent.attest(b"x"))
            async with asyncio.timeout(20):
                await looked.wait()
        await attesting
    assert staged == [(True, False)]


async def test_a_commit_that_no_root_is_to_bind_goes_into_the_history_on_the_tpms_own_thread(
    tpm: Tpm, folder: Path
) -> None:
    threads = []

    def crash(name: str) -> None:
        if name == "in-history":
            threads.append(threading.current_thread().name)

    world = in_its_time(sleep=Naps(), crash=crash)
    options = with_root(SoftSnp(), every=2) | {"world": world}
    async with running(tpm, folder, **options) as agent:
        await agent.attest(b"x")
    assert [name.partition("_")[0] for name in threads] == ["quotary-files", "quotary-tpm"]


async def test_a_slow_root_binds_every_third_commit_over_restarts(tpm: Tpm, folder: Path) -> None:
    snp = SoftSnp()
    for _ in range(2):
        async with running(tpm, folder, **with_root(snp, every=3)) as agent:
            for number in range(3):
                await agent.attest(b"%d" % number)
    found = [bound_by(folder, commit, snp) for commit in history(folder)]
    assert found == [number % 3 == 0 for number in range(8)]
    assert len(snp.asked) == 3


async def test_a_root_that_fails_leaves_out_its_line_and_is_logged_once(
    tpm: Tpm, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snp = SoftSnp()
    caplog.set_level(logging.INFO, "quotary.agent")
    async with running(tpm, folder, **with_root(snp)) as agent:
        snp.error = gone()
        for number in range(3):
            await agent.attest(b"%d" % number)
        (shown,) = agent.status()["roots"]
        assert (shown["bound"], shown["failed"]) == (1, 3)
        assert (shown["error"], shown["hint"]) == (str(snp.error), "look at the hypervisor")
        snp.error = None
        await agent.attest(b"again")
        assert agent.status()["roots"][0]["error"] == ""
    assert [bound_by(folder, commit, snp) for commit in history(folder)] == [True, False, False, False, True]
    told = [each.message for each in caplog.records if IDENTIFIER_SEV_SNP in each.message]
    assert len(told) == 2
    assert "go on without" in told[0]
    assert "again" in told[1]


@pytest.mark.parametrize(
    "fault", ["another digest", "another genesis record", "a driver's bug", "an unknown certificate"]
)
async def test_evidence_that_would_not_verify_never_gets_on_a_note(
    tpm: Tpm, folder: Path, fault: str
) -> None:
    snp = SoftSnp()
    options = with_root(snp)
    if fault == "another digest":
        snp.twist = lambda data: bytes(32) + data[32:]
    elif fault == "another genesis record":
        snp.twist = lambda data: data[:32] + bytes(32)
    elif fault == "a driver's bug":
        snp.error = ZeroDivisionError("of a driver")
    else:
        options["tee_roots"] = None  # AMD's own
    async with running(tpm, folder, **options) as agent:
        await agent.attest(b"x")
        assert agent.status()["roots"][0]["failed"] == 2
    assert not any(bound_by(folder, commit, snp) for commit in history(folder))


async def test_a_root_that_does_not_answer_is_waited_for_once_and_not_asked_again_meanwhile(
    tpm: Tpm, folder: Path
) -> None:
    snp = SoftSnp()
    async with running(tpm, folder, **with_root(snp, deadline=0.2)) as agent:
        snp.gate = asyncio.Event()
        for number in range(3):
            await agent.attest(b"%d" % number)
        assert len(snp.asked) == 2
        assert "earlier call" in agent.status()["roots"][0]["error"]
        snp.gate.set()
        await asyncio.sleep(0)
        await agent.attest(b"again")
        snp.gate.clear()
        await agent.attest(b"and one that hangs when the agent stops")
    assert [bound_by(folder, each, snp) for each in history(folder)] == [True, *[False] * 3, True, False]


async def test_where_a_required_root_fails_nothing_is_attested_until_it_binds_the_staged_batch(
    tpm: Tpm, folder: Path
) -> None:
    snp, naps = SoftSnp(), Naps()
    options = with_root(snp, required=True) | {"world": in_its_time(sleep=naps)}
    async with running(tpm, folder, **options) as agent:
        await agent.attest(b"before")
        snp.error = gone()
        with pytest.raises(Unavailable, match="which every commit needs: /dev/sev-guest"):
            await agent.attest(b"lost to its caller")
        await until(agent, "unavailable")
        assert agent.outage is not None
        assert agent.outage.hint == "look at the hypervisor"
        with pytest.raises(Unavailable):
            await agent.attest(b"refused")
        await naps.next()  # it tries again, and fails again
        commits, asked = agent.store.commits, set(snp.asked[2:])
        assert (commits, len(asked)) == (2, 1)  # one batch, bound anew each time
        snp.error = None
        await until(agent, "running")
        await agent.attest(b"after")
        assert agent.store.commits == 4
    assert all(bound_by(folder, commit, snp) for commit in history(folder))
    assert not audit(folder).gaps


async def test_an_agent_does_not_start_without_a_root_that_every_commit_needs(tpm: Tpm, folder: Path) -> None:
    snp = SoftSnp(error=gone())
    with pytest.raises(RequiredRootFailed, match=IDENTIFIER_SEV_SNP):
        await start(tpm, folder, **with_root(snp, required=True))  # type: ignore[arg-type]
    assert snp.closed == 1
    assert history(folder) == []


async def test_a_batch_left_behind_between_extend_and_history_is_bound_again_at_the_next_start(
    tpm: Tpm, folder: Path
) -> None:
    snp = SoftSnp()
    async with running(tpm, folder, **with_root(snp, required=True)) as agent:
        await agent.attest(b"before")
        snp.error = gone()
        with pytest.raises(Unavailable):
            await agent.attest(b"staged and extended")
    lost = snp.asked[-1]
    again = SoftSnp()
    async with running(tpm, folder, **with_root(again, required=True)) as agent:
        chain = agent.status()["chain"]
    assert again.asked[0] == lost
    assert chain == pcr_of(tpm, 15).hex()
    assert all(bound_by(folder, commit, snp) for commit in history(folder))
    assert not audit(folder).gaps


async def test_where_the_tpm_fails_what_another_root_bound_is_thrown_away(tpm: Tpm, folder: Path) -> None:
    snp = SoftSnp()
    async with running(tpm, folder, **with_root(snp)) as agent:
        tpm.gone()
        with pytest.raises(Unavailable):
            await agent.attest(b"x")
        assert agent.store.commits == 1
        tpm.back()
        await until(agent, "running")
        await agent.attest(b"y")
    assert all(bound_by(folder, commit, snp) for commit in history(folder))


async def test_an_audit_passes_commits_with_lines_of_both_roots(tpm: Tpm, folder: Path) -> None:
    snp = SoftSnp()
    async with running(tpm, folder, **with_root(snp, every=2)) as agent:
        for number in range(4):
            await agent.attest(b"%d" % number)
        await settled(agent.store)
        export(agent.store, folder / "static")
        origin = agent.origin
    policy = replace(policy_of(origin), tee=rules(snp.forge, required=False))
    report = audit_source(Wanted(str(folder / "static"), policy, AT))
    (tee,) = report.tees
    assert (tee.status, tee.lines, tee.first_commit, tee.last_commit) == ("accepted", 3, 0, 4)
    assert report.outcome == "verified"


@pytest.mark.parametrize("options", [{"every": 0}, {"required": True, "every": 2}])
def test_a_root_that_contradicts_itself_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="every commit"):
        FurtherRoot(SoftSnp(), **options)  # type: ignore[arg-type]


async def test_two_roots_of_one_identifier_are_refused_and_given_back(tpm: Tpm, folder: Path) -> None:
    snp = SoftSnp()
    with pytest.raises(ValueError, match="one line for each identifier"):
        await start(tpm, folder, world=World(), roots=[FurtherRoot(snp), FurtherRoot(snp)])
    assert snp.closed == 2


async def test_evidence_that_makes_the_note_too_long_is_left_out(
    tpm: Tpm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quotary_attest.engine.further.MAX_EVIDENCE", 1191)  # of a report with `first`: 1192
    async with running(tpm, folder, **with_root(SoftSnp())) as agent:
        assert "too long" in agent.status()["roots"][0]["error"]


def test_errors_of_roots_beside_the_tpm_are_errors_of_a_root() -> None:
    assert issubclass(RequiredRootFailed, RootError)
