# SPDX-License-Identifier: Apache-2.0
"""kill -9 at every step of starting and committing, then a restart: nothing acknowledged is lost, and there is one
history that the TPM's own registers confirm."""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from agents import audit, judge, make_state, pcr_of, release, running, start
from tpms import Tpm

import dtpm
from quotary_attest.agent import CRASH_POINTS
from quotary_attest.log.store import Store
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.records import Output

CHILD = Path(__file__).parent.parent / "support" / "engine_child.py"
AT_START = [point for point in CRASH_POINTS if point not in ("synced", "boot-log-on-disk")]
RUNNING = ["staged", "extended", "quoted", "in-history", "applied", "synced"]


@dataclass(frozen=True)
class Death:
    """How a child ended, and what it had acknowledged: output id and attestation of each output."""

    killed: bool
    acknowledged: dict[bytes, bytes]


async def child(tpm: Tpm, folder: Path, point: str, *, skip: int, bodies: int = 4) -> Death:
    """Run an agent until it kills itself at a crash point."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(CHILD), tpm.tcti, str(folder), point, str(skip), str(bodies)),
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": f"{CHILD.parent}:{Path(dtpm.__file__).parent}", "TSS2_LOG": "all+none"},
    )
    out, _ = await process.communicate()
    release(tpm)
    attestations = [bytes.fromhex(line.decode()) for line in out.split()]
    return Death(
        process.returncode == -signal.SIGKILL,
        {Output.decode(Attestation.decode(item).record).output_id: item for item in attestations},
    )


async def check_restart(tpm: Tpm, folder: Path, death: Death, *, gaps: bool = False) -> None:
    """Start again, and hold against each other what callers got, the log, and the TPM's registers."""
    async with running(tpm, folder) as agent:
        for number, (output_id, attestation) in enumerate(death.acknowledged.items()):
            judge(attestation, b"output %d" % number, agent.origin)
            assert await agent.fetch(output_id) == attestation
            assert await agent.resolve(sha256(b"output %d" % number).digest()) == output_id
        delivered = await agent.attest(b"after the crash")
        judge(delivered.encoded, b"after the crash", agent.origin)
        chain = agent.status()["chain"]
    assert chain == pcr_of(tpm, 15).hex()
    report = audit(folder)
    assert report.chain.hex() == chain
    assert bool(report.gaps) is gaps


@pytest.mark.parametrize("point", RUNNING)
async def test_a_running_agent_killed_at_any_step_loses_nothing_it_acknowledged(
    tpm: Tpm, tmp_path: Path, point: str
) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    death = await child(tpm, folder, point, skip=0 if point == "synced" else 1)
    assert death.killed
    await check_restart(tpm, folder, death)
    if point in RUNNING[:4]:  # what was staged is finished, and found by its alias as by its id
        await check_found(tpm, folder, len(death.acknowledged))


async def check_found(tpm: Tpm, folder: Path, number: int) -> None:
    """Find by its alias an output that nobody was told of."""
    body = b"output %d" % number
    async with running(tpm, folder) as agent:
        output_id = await agent.resolve(sha256(body).digest())
        assert output_id is not None
        judge(await agent.fetch(output_id), body, agent.origin)


@pytest.mark.parametrize("point", AT_START)
async def test_a_first_start_killed_at_any_step_is_started_again(
    tpm: Tpm, tmp_path: Path, point: str
) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    death = await child(tpm, folder, point, skip=-1)
    assert death == Death(True, {})
    lost_before_its_first_quote = point in ("extended", "quoted")
    await check_restart(tpm, folder, death, gaps=lost_before_its_first_quote)


@pytest.mark.parametrize("point", AT_START)
async def test_a_later_start_in_the_same_boot_killed_at_any_step_leaves_no_gap(
    tpm: Tpm, tmp_path: Path, point: str
) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    whole = await child(tpm, folder, "none", skip=0)
    assert not whole.killed
    assert len(whole.acknowledged) == 4
    assert (await child(tpm, folder, point, skip=-1)).killed
    await check_restart(tpm, folder, whole)


@pytest.mark.parametrize("event", range(2, 7))
async def test_a_start_killed_within_an_epoch_closes_it_and_begins_another(
    tpm: Tpm, tmp_path: Path, event: int
) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    for point in ("event-on-disk", "event-extended"):
        assert (await child(tpm, folder, point, skip=-event)).killed
    await check_restart(tpm, folder, Death(True, {}))


@pytest.mark.parametrize("point", ["staged", "extended", "quoted"])
async def test_after_a_crash_and_a_reboot_what_was_staged_keeps_its_place_and_claims_nothing(
    tpm: Tpm, tmp_path: Path, point: str
) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    death = await child(tpm, folder, point, skip=1)
    tpm.reset()
    await check_restart(tpm, folder, death)
    ranges = audit(folder).ranges
    boot = next(entry for entry in ranges[1:] if entry[1] > entry[0])
    assert boot[1] == boot[0] + 1
    assert boot[2] == boot[1] + 1


async def test_a_staged_batch_of_this_boot_is_committed_with_its_own_claim(tpm: Tpm, tmp_path: Path) -> None:
    """Its callers had no answer, but its record stands under a quote of this boot: a fetch by id finds it."""
    folder = tmp_path / "state"
    make_state(tpm, folder)
    await child(tpm, folder, "extended", skip=1)
    store = Store.open(folder / "log")
    staged = store.staged()
    store.close()
    assert staged is not None
    (output_id,) = staged.output_ids
    assert output_id is not None
    async with running(tpm, folder) as agent:
        judge(await agent.fetch(output_id), b"output 1", agent.origin)
    assert not audit(folder).gaps


async def test_two_crashes_in_a_row_at_a_boots_first_commit_need_no_operator(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    for _ in range(2):
        assert (await child(tpm, folder, "quoted", skip=-1)).killed
    await check_restart(tpm, folder, Death(True, {}), gaps=True)
    report = audit(folder)
    assert report.ranges[0] == (0, 3, 4)
    assert report.counters == [report.counters[0]]


async def test_a_torn_journal_counts_as_never_staged(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    death = await child(tpm, folder, "staged", skip=1)
    journal = max((folder / "log" / "journal").iterdir())
    journal.write_bytes(journal.read_bytes()[:-1])
    await check_restart(tpm, folder, death)


async def test_an_agent_killed_after_any_number_of_outputs_goes_on_where_it_was(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    acknowledged: dict[bytes, bytes] = {}
    for skip in (0, 2, 5):
        death = await child(tpm, folder, "in-history", skip=skip, bodies=9)
        assert len(death.acknowledged) == skip
        acknowledged |= death.acknowledged
    agent = await start(tpm, folder)
    for output_id, attestation in acknowledged.items():
        assert await agent.fetch(output_id) == attestation
    await agent.close()
    report = audit(folder)
    assert not report.gaps
    assert len(report.counters) == 4
