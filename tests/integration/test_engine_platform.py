# SPDX-License-Identifier: Apache-2.0
"""A running agent when the platform moves under it: sleep, hibernation, reset, power cut, a TPM that is gone and
comes back, and somebody else's extends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from agents import QWEN, WORKLOAD, Naps, audit, judge, make_state, pcr_of, release, running, start
from tpms import CC_PCR_EXTEND, CC_QUOTE, Tpm, extend_command

from quotary_attest.agent import Agent, NewOutput, StartRefused, Unavailable, World
from quotary_attest.roots import CommitSteps, Quote, RootGone
from quotary_attest.state import read_identity
from quotary_attest.tpm.root import TpmOptions, TpmRoot
from quotary_attest.workload import Workload
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.bindings import ZERO, chain_extend

_NV_UNAVAILABLE = 0x923
FOREIGN = extend_command(15, b"f" * 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def until(agent: Agent, state: str) -> None:
    """Wait until the agent is in a state."""
    async with asyncio.timeout(20):
        while agent.status()["state"] != state:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def attested(agent: Agent, body: bytes) -> bytes:
    """Attest and verify."""
    delivered = await agent.attest(body)
    judge(delivered.encoded, body, agent.origin)
    return delivered.encoded


async def test_after_sleep_the_agent_goes_on_in_one_chain(tpm: Tpm, folder: Path) -> None:
    async with running(tpm, folder) as agent:
        await attested(agent, b"before")
        tpm.suspend()
        await attested(agent, b"after")
        assert agent.status()["state"] == "running"
    report = audit(folder)
    assert report.gaps == []
    assert len(report.counters) == 1
    assert report.boots[-1] == (report.boots[0][0], report.boots[0][1] + 1)


async def test_sleep_that_the_host_noticed_is_looked_at_before_anything_is_extended(
    tpm: Tpm, folder: Path
) -> None:
    slept = 0.0
    async with running(tpm, folder, slept=lambda: slept) as agent:
        await attested(agent, b"before")
        tpm.hibernate()
        slept = 60.0
        with pytest.raises(Unavailable, match="hibernated"):
            await agent.attest(b"in between")
        await until(agent, "running")
        await attested(agent, b"after")
    report = audit(folder)
    assert report.gaps == []
    assert len(report.counters) == 2


@pytest.mark.parametrize("how", ["reset", "hibernate"])
async def test_a_new_boot_under_the_agent_is_a_new_start(tpm: Tpm, folder: Path, how: str) -> None:
    """What was in flight is history: its caller gets an error, and no quote ever speaks for it."""
    async with running(tpm, folder) as agent:
        kept = await agent.attest(b"kept")
        getattr(tpm, how)()
        with pytest.raises(Unavailable, match="reset or hibernated"):
            await agent.attest(b"in flight")
        await until(agent, "running")
        await attested(agent, b"after")
        assert await agent.fetch(kept.output_id) == kept.encoded
        assert agent.models == ("llama", "qwen")
    report = audit(folder)
    assert len(report.counters) == 2
    (restart,) = [entry for entry in report.ranges[1:] if entry[1] > entry[0]]
    assert restart[1] - restart[0] == 1
    assert len(list((folder / "workload").glob("*.cel"))) == 2


async def test_outputs_in_flight_and_queued_all_get_the_error_when_the_tpm_goes(
    tpm: Tpm, folder: Path
) -> None:
    naps = Naps()
    async with running(tpm, folder, world=World(sleep=naps)) as agent:
        await attested(agent, b"before")
        tpm.gone()
        waiting = [asyncio.ensure_future(agent.attest(b"x")) for _ in range(20)]
        asked = agent.new_output_id()
        agent.reserve(asked)
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, Unavailable)
        with pytest.raises(Unavailable):
            await agent.attest(b"y")
        with pytest.raises(Unavailable):
            await agent.fresh_quote(b"n" * 16)
        assert agent.status()["state"] == "unavailable"
        assert agent.status()["reason"]
        await naps.next()
        await naps.next()
        tpm.back()
        await until(agent, "running")
        await attested(agent, b"after")
    report = audit(folder)
    assert report.gaps == []
    assert len(report.counters) == 1


@pytest.mark.parametrize("code", [CC_PCR_EXTEND, CC_QUOTE])
async def test_a_connection_lost_between_two_commands_is_taken_up_where_the_tpm_stands(
    tpm: Tpm, folder: Path, code: int
) -> None:
    """The staged output is committed once: extended only if it was not, and quoted again."""
    async with running(tpm, folder) as agent:
        await attested(agent, b"before")
        for _ in range(3):
            tpm.inject(code, _NV_UNAVAILABLE)
        with pytest.raises(Unavailable, match="nv storage"):
            await agent.attest(b"interrupted")
        await until(agent, "running")
        await attested(agent, b"after")
    report = audit(folder)
    assert report.gaps == []
    assert report.size == 5
    assert len(report.counters) == 1
    assert report.chain == pcr_of(tpm, 15)


async def test_an_output_whose_caller_got_an_error_can_be_fetched_once_it_is_committed(
    tpm: Tpm, folder: Path
) -> None:
    async with running(tpm, folder) as agent:
        for _ in range(3):
            tpm.inject(CC_QUOTE, _NV_UNAVAILABLE)
        output = NewOutput(agent.new_output_id(), {"body": bytes(32)})
        with pytest.raises(Unavailable):
            await agent.submit(output)
        await until(agent, "running")
        assert Attestation.decode(await agent.fetch(output.output_id)).encode()
    assert audit(folder).gaps == []


async def test_a_power_cut_and_the_power_coming_back_is_a_new_start(tpm: Tpm, folder: Path) -> None:
    """The host's power stays here; a host that goes down with its TPM is the kill tests' matter."""
    naps = Naps()
    async with running(tpm, folder, world=World(sleep=naps)) as agent:
        await attested(agent, b"before")
        tpm.power_cut()
        with pytest.raises(Unavailable):
            await agent.attest(b"in flight")
        await naps.next()
        tpm.start()
        await until(agent, "running")
        await attested(agent, b"after")
    report = audit(folder)
    assert report.gaps == []
    assert len(report.counters) == 2


@pytest.mark.parametrize("code", [CC_PCR_EXTEND, CC_QUOTE])
async def test_a_foreign_extend_stops_the_agent_until_the_operator_says_so(
    tpm: Tpm, folder: Path, code: int
) -> None:
    make_state(tpm, folder)
    agent = await start(tpm, folder)
    kept = await agent.attest(b"kept")
    tpm.before(code, FOREIGN)
    with pytest.raises(Unavailable, match="pcr 15 was extended by somebody else"):
        await agent.attest(b"in flight")
    await until(agent, "stopped")
    with pytest.raises(Unavailable, match="extended by somebody else"):
        await agent.attest(b"later")
    assert await agent.fetch(kept.output_id) == kept.encoded
    await agent.close()
    with pytest.raises(StartRefused, match="extended by somebody else") as caught:
        await start(tpm, folder)
    assert "--resume" in caught.value.hint
    async with running(tpm, folder, resume=True) as resumed:
        await attested(resumed, b"after")
    report = audit(folder)
    assert len(report.gaps) == 1
    assert len(report.counters) == 2


async def test_a_foreign_extend_of_the_workload_pcr_stops_the_agent_until_a_reboot(
    tpm: Tpm, folder: Path
) -> None:
    make_state(tpm, folder)
    agent = await start(tpm, folder)
    tpm.extend(13, b"f" * 32)
    with pytest.raises(Unavailable, match="pcr 13 was extended by somebody else"):
        await agent.attest(b"x")
    await until(agent, "stopped")
    assert "only a reboot" in agent.status()["hint"]
    await agent.close()
    with pytest.raises(StartRefused, match="does not replay to pcr 13") as caught:
        await start(tpm, folder, resume=True)
    assert "only a reboot" in caught.value.hint


async def test_a_pcr_of_the_platform_that_moves_is_quoted_as_it_is_now(tpm: Tpm, folder: Path) -> None:
    async with running(tpm, folder) as agent:
        first = Attestation.decode(await attested(agent, b"before"))
        tpm.extend(4, b"f" * 32)
        second = Attestation.decode(await attested(agent, b"after"))
        assert 4 not in first.supports[0].pcrs
        assert second.supports[0].pcrs[4] == pcr_value(b"f" * 32)


def pcr_value(*digests: bytes) -> bytes:
    value = ZERO
    for digest in digests:
        value = chain_extend(value, digest)
    return value


@pytest.mark.parametrize("extended", [1, 2])
async def test_an_epoch_that_the_tpm_interrupts_fails_and_the_old_one_stays(
    tpm: Tpm, folder: Path, extended: int
) -> None:
    left = -1

    def crash(point: str) -> None:
        nonlocal left
        if point == "event-extended":
            left -= 1
            if left == 0:
                tpm.inject(CC_PCR_EXTEND, _NV_UNAVAILABLE)

    async with running(tpm, folder, world=World(sleep=Naps(), crash=crash)) as agent:
        left = extended
        with pytest.raises(Unavailable, match="nv storage"):
            await agent.begin_epoch(Workload((QWEN,)))
        await until(agent, "running")
        assert agent.models == ("llama", "qwen")
        await attested(agent, b"after")
        await agent.begin_epoch(Workload((QWEN,)))
        assert agent.models == ("qwen",)
        await attested(agent, b"and then")
    assert audit(folder).gaps == []


async def test_an_agent_can_be_closed_while_its_tpm_is_gone(tpm: Tpm, folder: Path) -> None:
    make_state(tpm, folder)
    agent = await start(tpm, folder)
    tpm.gone()
    with pytest.raises(Unavailable):
        await agent.attest(b"x")
    await agent.close()
    with pytest.raises(Unavailable, match="stopping"):
        await agent.attest(b"x")
    tpm.back()
    release(tpm)  # what an agent that lost its TPM could not flush; a resource manager would have
    async with running(tpm, folder) as agent:
        await attested(agent, b"x")
    assert audit(folder).gaps == []


class LateRoot(TpmRoot):
    """Gives one commit up as a root does whose deadline passed, and keeps what the hardware answered after all."""

    late: tuple[CommitSteps, Quote] | None = None
    armed = False

    async def commit(self, digest: bytes, steps: CommitSteps | None = None) -> Quote:
        if not self.armed or steps is None:
            return await super().commit(digest, steps)
        self.armed = False
        answers: list[Quote] = []

        class Late(CommitSteps):
            before, between = steps.before, steps.between

            def after(self, quote: Quote) -> None:
                answers.append(quote)

        await super().commit(digest, Late())
        self.late = steps, answers[0]
        raise RootGone("the tpm did not answer in time", hint="")


async def test_a_root_that_answers_after_its_commit_was_given_up_writes_nothing(
    tpm: Tpm, folder: Path
) -> None:
    make_state(tpm, folder)
    root = LateRoot(read_identity(folder).tpm, tpm.tcti, TpmOptions())
    await root.reconnect()
    async with Agent(folder, root=root, workload=WORKLOAD) as agent:
        root.armed = True
        with pytest.raises(Unavailable, match="did not answer in time"):
            await agent.attest(b"given up")
        await until(agent, "running")
        await attested(agent, b"after")
        assert root.late is not None
        steps, quote = root.late
        commits = agent.store.commits
        with pytest.raises(RootGone, match="after its commit was given up"):
            steps.after(quote)
        with pytest.raises(RootGone, match="after its commit was given up"):
            steps.before()
        assert agent.store.commits == commits
        await attested(agent, b"at last")
    assert audit(folder).gaps == []
