# SPDX-License-Identifier: Apache-2.0
"""Starts: the counter, states that are older than they should be, and what is on disk without a quote."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from agents import HOST, audit, judge, make_state, pcr_of, release, running, settled, start
from tpms import Tpm

from quotary_attest.agent import StartRefused, UnknownOutput, World
from quotary_attest.log.journal import StagedBatch
from quotary_attest.log.store import Store
from quotary_attest.origin import init_state
from quotary_attest.state import HostIdentity, StateError, create_state, read_identity
from quotary_attest.tpm.errors import TpmGone
from quotary_attest.tpm.root import open_root
from quotary_verifier.errors import Rejected
from quotary_verifier.logs.cel import parse_log
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.wire.attestation import Attestation, TpmSupport
from quotary_verifier.wire.bindings import ZERO, commit_digest
from quotary_verifier.wire.records import Output, Source, State


class DiedError(Exception):
    """What a crash point raises where the process itself is to live on."""


def dying(point: str, times: int = 0) -> World:
    """A world whose agent is interrupted at a crash point."""
    left = times

    def crash(name: str) -> None:
        nonlocal left
        if name == point:
            if left == 0:
                raise DiedError
            left -= 1

    return World(crash=crash)


def starts(folder: Path) -> int:
    return int((folder / "starts").read_text())


async def test_init_touches_no_pcr_and_writes_files_for_its_owner_only(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    assert pcr_of(tpm, 15) == pcr_of(tpm, 13) == ZERO
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "note_seed" not in repr(read_identity(folder))


async def test_init_refuses_a_folder_that_is_not_empty(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    identity = make_state(tpm, folder)
    with pytest.raises(StateError, match="is not empty"):
        init_state(folder, HOST, identity, counter=1)
    with pytest.raises(StateError, match="holds an origin already"):
        create_state(folder, read_identity(folder), 1)


async def test_the_first_commit_claims_from_the_boot_record_and_leaf_zero_is_history(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with running(tpm, folder) as agent:
        assert agent.store.record_at(0).record == agent.genesis_record
    assert audit(folder).ranges == [(0, 1, 2)]


async def test_every_start_adds_one_to_the_counter_and_commits_a_boot_record(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    for _ in range(3):
        async with running(tpm, folder) as agent:
            await agent.attest(b"x")
    first = audit(folder).counters[0]
    assert audit(folder).counters == [first, first + 1, first + 2]
    assert starts(folder) == first + 2
    tpm.reset()
    async with running(tpm, folder):
        pass
    report = audit(folder)
    assert report.counters[-1] == first + 3
    assert not report.gaps


@pytest.mark.parametrize(("point", "skipped"), [("counter-on-disk", 0), ("counter-incremented", 1)])
async def test_a_start_that_dies_about_its_counter_is_followed_by_another(
    tpm: Tpm, tmp_path: Path, point: str, skipped: int
) -> None:
    folder = tmp_path / "state"
    async with running(tpm, folder):
        pass
    with pytest.raises(DiedError):
        await start(tpm, folder, world=dying(point))
    async with running(tpm, folder):
        pass
    before, after = audit(folder).counters
    assert after - before == 1 + skipped


async def test_a_state_older_than_its_last_start_is_refused(tpm: Tpm, tmp_path: Path) -> None:
    """Within the same boot, where the chain PCR would tell too, and after a reboot, where only the counter can."""
    folder, copy = tmp_path / "state", tmp_path / "copy"
    async with running(tpm, folder) as agent:
        await agent.attest(b"before the copy")
    shutil.copytree(folder, copy)
    async with running(tpm, folder) as agent:
        await agent.attest(b"lost with the copy")
    for reboot in (False, True):
        if reboot:
            tpm.reset()
        for resume in (False, True):
            with pytest.raises(StartRefused, match="the state is older than the last start") as caught:
                await start(tpm, copy, resume=resume)
            assert "must not be restored" in caught.value.hint
    async with running(tpm, folder) as agent:
        judge((await agent.attest(b"x")).encoded, b"x", agent.origin)


async def test_a_state_restored_within_a_run_in_the_same_boot_is_refused_by_the_chain(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder, copy = tmp_path / "state", tmp_path / "copy"
    async with running(tpm, folder) as agent:
        await agent.attest(b"kept")
        await agent.attest(b"kept too")
        await settled(agent.store)
        shutil.copytree(folder, copy)
        await agent.attest(b"lost with the copy")
    with pytest.raises(StartRefused, match="pcr 15 was extended by somebody else") as caught:
        await start(tpm, copy)
    assert "--resume" in caught.value.hint


async def test_a_state_restored_within_a_run_across_a_reboot_is_what_only_a_witness_could_catch(
    tpm: Tpm, tmp_path: Path
) -> None:
    """The threat model says so: no register of the TPM outlives the reboot but the counter, and it fits."""
    folder, copy = tmp_path / "state", tmp_path / "copy"
    async with running(tpm, folder) as agent:
        await agent.attest(b"kept")
        await settled(agent.store)
        shutil.copytree(folder, copy)
        lost = await agent.attest(b"lost with the copy")
        origin = agent.origin
    tpm.reset()
    async with running(tpm, copy) as agent:
        again = await agent.attest(b"in its place")
        judge(again.encoded, b"in its place", origin)
    judge(lost.encoded, b"lost with the copy", origin)
    assert not audit(copy).gaps
    # two attestations of one origin with different leaves at one index: whoever holds both has the proof
    assert leaf_at(lost.encoded) == 3
    assert (await leaf_record(copy, 3)) != Attestation.decode(lost.encoded).record


def leaf_at(attestation: bytes) -> int:
    return Attestation.decode(attestation).index


async def leaf_record(folder: Path, index: int) -> bytes:
    store = Store.open(folder / "log")
    try:
        return store.record_at(index).record
    finally:
        store.close()


def planted(folder: Path, origin: str, before: bytes) -> Output:
    """Put a record on disk as if it had been staged: by hand, by somebody who can write to the state folder."""
    output = Output(
        bytes(16),
        1,
        b"p" * 24,
        State.COMPLETE,
        {"body": hashlib.sha256(b"planted").digest()},
        None,
        None,
        None,
        {},
        Source.RELAYED,
    )
    store = Store.open(folder / "log")
    record = output.encode()
    batch = StagedBatch(store.size, store.size, b"", before, bytes(32), [record], [b"p" * 24], [1], [None])
    from quotary_attest.log.tree import entry_hashes

    grown = store.edge.extended(entry_hashes(batch.entries()))
    text = Checkpoint(origin, grown.size, grown.root).text
    store.stage(replace(batch, note=text, digest=commit_digest(origin, batch.first, text)))
    store.close()
    return output


def assembled(store: Store, output_id: bytes) -> bytes:
    """An attestation as somebody would make it who has all that the log holds."""
    parts = store.parts(output_id)
    (stored,) = parts.commit.commit.supports
    assert stored.workload_log is not None
    name, size = stored.workload_log
    log = tuple(record.content for record in parse_log(store.blob(name)[:size], pcr=13))
    support = TpmSupport(stored.identifier, stored.pcrs, stored.chain_before, (), log)
    return Attestation(
        parts.record,
        store.record_at(0).record,
        parts.index,
        parts.path,
        parts.commit.commit.note,
        (support,),
    ).encode()


async def test_a_record_put_on_disk_by_hand_before_a_reboot_never_verifies_as_of_the_new_boot(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with running(tpm, folder) as agent:
        await agent.attest(b"x")
        origin = agent.origin
    planted(folder, origin, pcr_of(tpm, 15))
    tpm.reset()
    async with running(tpm, folder) as agent:
        with pytest.raises(UnknownOutput, match="no quote speaks for it"):
            await agent.fetch(b"p" * 24)
        with pytest.raises(Rejected, match="not-in-commit"):
            judge(assembled(agent.store, b"p" * 24), b"planted", origin)
    assert audit(folder).ranges[-1][1] > audit(folder).ranges[-1][0]


async def test_a_staged_batch_that_states_another_tree_than_its_leaves_make_is_history(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with running(tpm, folder) as agent:
        origin = agent.origin
    planted(folder, origin, pcr_of(tpm, 15))
    store = Store.open(folder / "log")
    staged = store.staged()
    assert staged is not None
    text = Checkpoint(origin, staged.size, bytes(32)).text
    store.stage(replace(staged, note=text, digest=commit_digest(origin, staged.first, text)))
    store.close()
    async with running(tpm, folder) as agent:
        with pytest.raises(UnknownOutput, match="no quote speaks for it"):
            await agent.fetch(b"p" * 24)
    assert not audit(folder).gaps


@pytest.mark.parametrize("before", [ZERO, b"\1" * 32])
async def test_what_is_planted_for_a_new_boot_is_history_whatever_chain_value_it_states(
    tpm: Tpm, tmp_path: Path, before: bytes
) -> None:
    folder = tmp_path / "state"
    async with running(tpm, folder) as agent:
        origin = agent.origin
    tpm.reset()
    planted(folder, origin, before)
    async with running(tpm, folder) as agent:
        with pytest.raises(Rejected, match="not-in-commit"):
            judge(assembled(agent.store, b"p" * 24), b"planted", origin)


async def test_an_extend_by_somebody_else_while_stopped_needs_the_operators_word(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with running(tpm, folder) as agent:
        await agent.attest(b"x")
    tpm.extend(15, b"f" * 32)
    with pytest.raises(StartRefused, match="pcr 15 was extended by somebody else"):
        await start(tpm, folder)
    async with running(tpm, folder, resume=True) as agent:
        judge((await agent.attest(b"x")).encoded, b"x", agent.origin)
    assert audit(folder).gaps == [2]
    async with running(tpm, folder):
        pass  # the resumed chain is the agent's own again


async def test_an_extend_by_somebody_else_before_the_first_start_of_a_boot_needs_the_operators_word(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    tpm.extend(15, b"f" * 32)
    with pytest.raises(StartRefused, match="which no commit of this log explains"):
        await start(tpm, folder)
    async with running(tpm, folder, resume=True):
        pass
    assert audit(folder).gaps == [0]


@pytest.mark.parametrize("resume", [False, True])
async def test_a_workload_pcr_that_does_not_replay_stops_the_agent_until_a_reboot(
    tpm: Tpm, tmp_path: Path, resume: bool
) -> None:
    folder = tmp_path / "state"
    async with running(tpm, folder):
        pass
    tpm.extend(13, b"f" * 32)
    with pytest.raises(StartRefused, match="does not replay to pcr 13") as caught:
        await start(tpm, folder, resume=resume)
    assert "reboot" in caught.value.hint
    tpm.reset()
    async with running(tpm, folder) as agent:
        judge((await agent.attest(b"x")).encoded, b"x", agent.origin)


async def test_a_lost_workload_log_stops_the_agent_until_a_reboot(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    async with running(tpm, folder):
        pass
    shutil.rmtree(folder / "workload")
    (folder / "workload").mkdir()
    with pytest.raises(StartRefused, match="there is no workload log"):
        await start(tpm, folder)


async def test_another_counter_than_the_states_is_refused(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    (folder / "starts").write_text("1000000\n")
    with pytest.raises(StartRefused, match="the counter is another one"):
        await start(tpm, folder)
    (folder / "starts").write_text("not a number")
    with pytest.raises(StateError, match="missing or damaged"):
        await start(tpm, folder)


async def test_a_history_whose_last_quote_does_not_verify_proves_nothing_about_this_boot(
    tpm: Tpm, tmp_path: Path
) -> None:
    """Its workload log is gone, so the quote cannot be checked; the chain PCR is then nobody's."""
    folder = tmp_path / "state"
    async with running(tpm, folder) as agent:
        await agent.attest(b"x")
    for blob in (folder / "log" / "blob").rglob("*"):
        if blob.is_file() and b"quotary-attest" in blob.read_bytes():
            blob.unlink()
    with pytest.raises(StartRefused, match="which no commit of this log explains"):
        await start(tpm, folder)


async def test_an_absent_folder_a_damaged_identity_and_a_foreign_root_are_told_apart(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    with pytest.raises(StateError, match="there is no identity"):
        read_identity(tmp_path / "nothing")
    (folder / "identity").write_bytes(b"\xa0")
    with pytest.raises(StateError, match="the identity file is damaged"):
        read_identity(folder)


async def test_a_tpm_that_is_gone_at_the_start_says_so(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    tpm.gone()
    with pytest.raises(TpmGone):
        await start(tpm, folder)
    tpm.back()
    async with running(tpm, folder):
        pass
    release(tpm)


async def test_a_root_opened_for_another_origin_is_refused(tpm: Tpm, tmp_path: Path) -> None:
    from quotary_attest.agent import Agent

    make_state(tpm, tmp_path / "one", chain_pcr=15, workload_pcr=13)
    make_state(tpm, tmp_path / "two", chain_pcr=9, workload_pcr=8)
    root = await open_root(read_identity(tmp_path / "two").tpm, tpm.tcti)
    with pytest.raises(StateError, match="opened for another origin"):
        await Agent.start(tmp_path / "one", root=root)
    async with running(tpm, tmp_path / "one"):
        pass


def test_an_identity_file_reads_back_what_was_written(tmp_path: Path) -> None:
    from quotary_attest.tpm.model import TpmIdentity, TpmProperties
    from quotary_verifier.wire.records import Genesis
    from quotary_verifier.wire.records import TpmIdentity as GenesisTpm

    tpm = TpmIdentity(
        b"pub", b"priv", b"a" * 32, b"p" * 34, b"nv", b"n" * 32, 15, 13, TpmProperties("IBM", "SW", 1, True)
    )
    named = GenesisTpm(b"pub", b"\0\x0b" + bytes(32), 15, 13, bytes(14))
    genesis = Genesis(bytes(16), 1, HOST, bytes(32), named).encode()
    identity = HostIdentity(genesis, bytes(32), tpm)
    assert HostIdentity.decode(identity.encode()) == identity
    without = Genesis(bytes(16), 1, HOST, bytes(32), None).encode()
    with pytest.raises(StateError, match="not of one origin"):
        HostIdentity.decode(HostIdentity(without, bytes(32), tpm).encode())
