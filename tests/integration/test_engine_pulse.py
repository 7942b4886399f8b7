# SPDX-License-Identifier: Apache-2.0
"""An engine that works is told from one that is stuck, and what it does is counted once a commit."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path

import pytest
from agents import make_state, running, start
from tpms import CC_QUOTE, Tpm

from quotary_attest.agent import Agent, Unavailable
from quotary_attest.metrics import Committed, NoMetrics
from quotary_attest.roots import RootGone
from quotary_attest.state import read_identity
from quotary_attest.tpm.root import open_root
from quotary_verifier.wire.records import Source, State


async def test_an_idle_engine_is_alive_however_long_it_idles(tpm: Tpm, tmp_path: Path) -> None:
    async with running(tpm, tmp_path / "state") as agent:
        await agent.attest(b"x")
        while not agent.alive(0.0):  # noqa: ASYNC110 - it puts its log in order first
            await asyncio.sleep(0.002)
    assert not agent.alive(1000.0), "it is closed"


async def test_an_engine_is_stuck_when_one_commit_takes_longer_than_the_limit(
    tpm: Tpm, tmp_path: Path
) -> None:
    held, reached = threading.Event(), threading.Event()

    def hold(code: int, _command: bytes) -> None:
        if code == CC_QUOTE:
            reached.set()
            held.wait()

    async with running(tpm, tmp_path / "state") as agent:
        tpm.board.answer = hold
        try:
            output = asyncio.create_task(agent.attest(b"x"))
            await asyncio.to_thread(reached.wait)
            assert agent.alive(1000.0)
            while agent.alive(0.05):  # noqa: ASYNC110 - it is as long as the limit says
                await asyncio.sleep(0.01)
        finally:
            held.set()
        await output
        assert agent.alive(1000.0)


async def test_an_engine_that_waits_for_an_operator_is_not_stuck(tpm: Tpm, tmp_path: Path) -> None:
    async with running(tpm, tmp_path / "state") as agent:
        tpm.extend(15, bytes(32))
        with pytest.raises(Unavailable):
            await agent.attest(b"x")
        while agent.status()["state"] != "stopped":  # noqa: ASYNC110 - right after its callers know
            await asyncio.sleep(0.002)
        assert agent.alive(0.0), "starting it anew would end in the same state"


async def test_an_engine_whose_task_has_ended_is_not_alive(
    tpm: Tpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tpm, tmp_path / "state") as agent:

        def fail(*_: object) -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(agent._engine.committer, "plan", fail)
        with pytest.raises(Unavailable):
            await agent.attest(b"x")
        while agent.alive(1000.0):  # noqa: ASYNC110 - the task ends right after its callers know
            await asyncio.sleep(0.002)


async def test_a_commit_is_counted_once_and_a_failure_by_what_it_was(tpm: Tpm, tmp_path: Path) -> None:
    class Seen(NoMetrics):
        def __init__(self) -> None:
            self.commits: list[Committed] = []
            self.failures: list[type[Exception]] = []

        def committed(self, commit: Committed) -> None:
            self.commits.append(commit)

        def failed(self, error: Exception) -> None:
            self.failures.append(type(error))

    folder = tmp_path / "state"
    make_state(tpm, folder)
    seen = Seen()
    root = await open_root(read_identity(folder).tpm, tpm.tcti)
    async with Agent(folder, root=root, metrics=seen) as agent:
        assert not seen.commits, "the start's commit holds no output"
        await asyncio.gather(*[agent.attest(b"%d" % number) for number in range(50)])
        tpm.gone()
        with pytest.raises(Unavailable):
            await agent.attest(b"x")
        tpm.back()
    kinds = sum((commit.outputs for commit in seen.commits), Counter())
    assert kinds == {(State.COMPLETE, Source.SUBMITTED): 50}
    assert len(seen.commits) < 50
    assert all(0 < commit.root <= commit.whole for commit in seen.commits)
    assert all(issubclass(kind, RootGone) for kind in seen.failures)
    assert seen.failures


async def test_an_agent_that_is_not_open_is_not_alive(tpm: Tpm, tmp_path: Path) -> None:
    make_state(tpm, tmp_path / "state")
    agent = await start(tpm, tmp_path / "state")
    await agent.close()
    assert not agent.alive(1000.0)
