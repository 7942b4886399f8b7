# SPDX-License-Identifier: Apache-2.0
"""Resets, sleep, hibernation, power cuts and lost transports under a running agent."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest
from tpms import CC_PCR_EXTEND, CC_QUOTE, Between, Tpm

from quotary_attest.roots import PlatformReset, PlatformUnknown, RootGone
from quotary_attest.tpm.errors import TpmGone
from quotary_attest.tpm.root import TpmOptions, TpmRoot, open_root, suspended_seconds
from quotary_verifier.wire.bindings import chain_extend

D = [hashlib.sha256(bytes([step])).digest() for step in range(20)]


class SleepClock:
    """The seconds that the host says it has slept."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def slept() -> SleepClock:
    return SleepClock()


@pytest.fixture
async def root(tpm: Tpm, slept: SleepClock) -> AsyncIterator[TpmRoot]:
    opened = await open_root(tpm.identity(), tpm.tcti, TpmOptions(suspended=slept))
    yield opened
    await opened.close()


async def test_a_reset_moves_the_reset_count_and_zeroes_the_pcrs(tpm: Tpm, root: TpmRoot) -> None:
    await root.commit(D[0])
    before = await root.platform()
    tpm.reset()
    after = await root.platform()
    assert after.clock.reset_count == before.clock.reset_count + 1
    assert after.pcrs[15] == bytes(32)
    assert before.pcrs[15] != bytes(32)


async def test_hibernation_moves_the_restart_count_only_and_zeroes_the_pcrs(tpm: Tpm, root: TpmRoot) -> None:
    await root.commit(D[0])
    before = await root.platform()
    tpm.hibernate()
    after = await root.platform()
    assert after.clock.boot == (before.clock.reset_count, before.clock.restart_count + 1)
    assert after.pcrs[15] == bytes(32)


async def test_sleep_moves_the_restart_count_keeps_the_pcrs_and_the_agent_goes_on(
    tpm: Tpm, root: TpmRoot
) -> None:
    """A TPM without resource manager forgets loaded keys when it sleeps; the AK is loaded again."""
    first = await root.commit(D[0])
    tpm.suspend()
    second = await root.commit(D[1])
    assert second.clock.boot == (first.clock.reset_count, first.clock.restart_count + 1)
    assert second.pcrs[15] == chain_extend(first.pcrs[15], D[1])


async def test_a_reset_under_the_running_agent_ends_the_boot_and_is_no_foreign_extend(
    tpm: Tpm, root: TpmRoot
) -> None:
    first = await root.commit(D[0])
    tpm.reset()
    with pytest.raises(PlatformReset) as caught:
        await root.commit(D[1])
    assert caught.value.clock.reset_count == first.clock.reset_count + 1
    with pytest.raises(PlatformUnknown):
        await root.commit(D[1])


async def test_a_reset_is_seen_even_where_the_chain_was_zero_before_and_after(
    tpm: Tpm, root: TpmRoot
) -> None:
    tpm.reset()
    with pytest.raises(PlatformReset):
        await root.commit(D[0])


async def test_hibernation_under_the_running_agent_ends_the_boot(tpm: Tpm, root: TpmRoot) -> None:
    await root.commit(D[0])
    tpm.hibernate()
    with pytest.raises(PlatformReset):
        await root.commit(D[1])


async def test_a_moved_restart_count_over_a_chain_of_zero_cannot_be_told_from_hibernation(
    tpm: Tpm, root: TpmRoot
) -> None:
    tpm.suspend()
    with pytest.raises(PlatformReset):
        await root.quote(D[0])


async def test_after_the_host_slept_the_clock_is_looked_at_before_the_new_boots_chain_is_extended(
    tpm: Tpm, root: TpmRoot, slept: SleepClock
) -> None:
    await root.commit(D[0])
    tpm.hibernate()
    slept.seconds += 3600
    with tpm.counted() as codes, pytest.raises(PlatformReset):
        await root.commit(D[1])
    assert CC_PCR_EXTEND not in codes
    assert (await root.platform()).pcrs[15] == bytes(32)


async def test_after_plain_sleep_one_look_is_enough(tpm: Tpm, root: TpmRoot, slept: SleepClock) -> None:
    first = await root.commit(D[0])
    tpm.suspend()
    slept.seconds += 3600
    assert (await root.commit(D[1])).clock.restart_count == first.clock.restart_count + 1
    with tpm.counted() as codes:
        await root.commit(D[2])
    assert codes == [CC_QUOTE, CC_PCR_EXTEND]


def test_the_hosts_own_sleep_clock_does_not_run_while_it_is_awake() -> None:
    assert abs(suspended_seconds() - suspended_seconds()) < 0.01


async def test_a_lost_transport_is_gone_at_once_until_a_reconnect(tpm: Tpm, root: TpmRoot) -> None:
    before = await root.commit(D[0])
    tpm.gone()
    with pytest.raises(TpmGone):
        await root.commit(D[1])
    assert root.gone
    with pytest.raises(RootGone, match="closed"):
        await root.quote(D[1])
    with pytest.raises(TpmGone):
        await root.reconnect()
    assert root.gone
    tpm.back()
    state = await root.reconnect()
    assert not root.gone
    assert state.pcrs[15] == before.pcrs[15]
    assert (await root.commit(D[1])).pcrs[15] == chain_extend(state.pcrs[15], D[1])


async def test_all_who_wait_learn_that_the_tpm_is_gone(tpm: Tpm, root: TpmRoot) -> None:
    def cut() -> None:
        tpm.gone()

    outcomes = await asyncio.gather(
        root.commit(D[0], Between(cut)), *(root.commit(digest) for digest in D[1:6]), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [TpmGone] * 6


async def test_a_power_cut_between_extend_and_quote_shows_at_the_reconnect(tpm: Tpm, root: TpmRoot) -> None:
    before = await root.commit(D[0])
    with pytest.raises(TpmGone):
        await root.commit(D[1], Between(tpm.power_cut))
    tpm.start()
    state = await root.reconnect()
    assert state.clock.reset_count == before.clock.reset_count + 1
    assert not state.clock.safe
    assert state.pcrs[15] == bytes(32)
    quote = await root.commit(D[2])
    assert quote.clock.boot == state.clock.boot


async def test_the_start_counter_never_falls_over_power_cuts(tpm: Tpm, root: TpmRoot) -> None:
    seen = [await root.increment_counter()]
    for _ in range(5):
        tpm.power_cut()
        tpm.start()
        await root.reconnect()
        seen.append(await root.increment_counter())
    assert seen == list(range(seen[0], seen[0] + 6))


async def test_many_power_cuts_do_not_lock_the_keys(tpm: Tpm, root: TpmRoot) -> None:
    for step in range(8):
        with pytest.raises(TpmGone):
            await root.commit(D[step], Between(tpm.power_cut))
        tpm.start()
        await root.reconnect()
    await root.commit(D[9])


async def test_a_tpm_that_was_never_started_is_started_by_the_reconnect_on_an_emulator_only(
    tpm: Tpm, root: TpmRoot
) -> None:
    tpm.machine.init()
    with pytest.raises(TpmGone, match="the tpm is not started"):
        await root.platform()
    await root.reconnect()
    await root.commit(D[0])


async def test_a_tpm_that_hangs_is_given_up_after_the_deadline(tpm: Tpm) -> None:
    root = await open_root(tpm.identity(), tpm.tcti, TpmOptions(deadline=0.5))
    tpm.board.delays[CC_QUOTE] = 3.0
    with pytest.raises(TpmGone, match=r"did not answer within 0\.5 seconds"):
        await root.commit(D[0])
    assert root.gone
    tpm.board.delays.clear()
    tpm.board.drop()
    assert (await root.reconnect()).pcrs[15] == chain_extend(bytes(32), D[0])
    await root.close()


async def test_closing_twice_is_fine_and_a_closed_root_is_gone(root: TpmRoot) -> None:
    await root.close()
    await root.close()
    assert root.gone
    with pytest.raises(TpmGone):
        await root.platform()
