# SPDX-License-Identifier: Apache-2.0
"""A full disk at each step of a commit: nothing is acknowledged that is not on disk, and all goes on afterwards.

Fullness is the kernel's own: a limit on how long this process may make a file (RLIMIT_FSIZE).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from agents import Naps, audit, judge, make_state, running, settled, start
from full_disk import full
from tpms import Tpm

from quotary_attest.agent import Agent, Unavailable, World
from quotary_attest.log.durable import replace_file
from quotary_attest.log.errors import StorageFailed, StorageFull, StoreError


class Filling:
    """A world in which the disk fills up at a crash point, the first time it is met after `armed` is set."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.armed = False
        self.naps = Naps()
        self.world = World(crash=self._crash, sleep=self.naps)
        self._full = full()

    def _crash(self, name: str) -> None:
        if self.armed and name == self.point:
            self.armed = False
            self._full.__enter__()

    def free(self) -> None:
        """Give space again."""
        self._full.__exit__(None, None, None)


async def until(agent: Agent, state: str) -> None:
    async with asyncio.timeout(20):
        while agent.status()["state"] != state:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_a_full_disk_is_said_before_anything_reaches_the_tpm(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    naps = Naps()
    async with running(tpm, folder, world=World(sleep=naps)) as agent:
        kept = await agent.attest(b"kept")
        await settled(agent.store)  # what an idle agent writes later is another matter
        before = agent.status()["chain"]
        with full():
            with pytest.raises(Unavailable, match="cannot write") as caught:
                await agent.attest(b"no room")
            assert "free space" in caught.value.hint
            await naps.next()
            with pytest.raises(Unavailable, match="cannot"):
                await agent.attest(b"no room yet")
            assert agent.status()["chain"] == before
            assert await agent.fetch(kept.output_id) == kept.encoded
        await until(agent, "running")
        judge((await agent.attest(b"room")).encoded, b"room", agent.origin)
    report = audit(folder)
    assert not report.gaps
    assert report.size == 4


@pytest.mark.parametrize("point", ["staged", "quoted", "in-history"])
async def test_a_disk_that_fills_up_within_a_commit_loses_nothing(
    tpm: Tpm, tmp_path: Path, point: str
) -> None:
    folder = tmp_path / "state"
    filling = Filling(point)
    async with running(tpm, folder, world=filling.world) as agent:
        kept = await agent.attest(b"kept")
        filling.armed = True
        try:
            answer = (await asyncio.gather(agent.attest(b"in between"), return_exceptions=True))[0]
            await until(agent, "unavailable")
            with pytest.raises(Unavailable, match="cannot"):
                await agent.attest(b"no room")
        finally:
            filling.free()
        if point == "in-history":
            assert not isinstance(answer, BaseException)
            judge(answer.encoded, b"in between", agent.origin)
        else:
            assert isinstance(answer, Unavailable)
        await until(agent, "running")
        judge((await agent.attest(b"after")).encoded, b"after", agent.origin)
        assert await agent.fetch(kept.output_id) == kept.encoded
        if point == "in-history":
            assert await agent.fetch(answer.output_id) == answer.encoded
        await settled(agent.store)
        assert agent.status()["waiting"] == 0
    report = audit(folder)
    assert not report.gaps
    assert report.size == 5
    assert len(report.counters) == 1


async def test_a_start_on_a_full_disk_fails_with_words_and_starts_later(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    with full(), pytest.raises(StoreError, match="cannot"):
        await start(tpm, folder)
    async with running(tpm, folder) as agent:
        judge((await agent.attest(b"x")).encoded, b"x", agent.origin)
    assert not audit(folder).gaps


async def test_a_failing_disk_stops_the_agent(
    tpm: Tpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an fsync that failed nobody knows what is on disk; the next start reads what is."""
    folder = tmp_path / "state"
    async with running(tpm, folder) as agent:
        kept = await agent.attest(b"kept")

        def broken(*_: object) -> None:
            raise StorageFailed("cannot fsync: input/output error")

        monkeypatch.setattr(agent.store, "stage", broken, raising=False)
        with pytest.raises(Unavailable, match="input/output error"):
            await agent.attest(b"x")
        await until(agent, "stopped")
    async with running(tpm, folder) as agent:
        assert await agent.fetch(kept.output_id) == kept.encoded


def test_the_limit_of_these_tests_is_what_the_log_calls_full(tmp_path: Path) -> None:
    with full(), pytest.raises(StorageFull):
        replace_file(tmp_path / "file", b"x")
