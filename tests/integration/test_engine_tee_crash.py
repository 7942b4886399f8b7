# SPDX-License-Identifier: Apache-2.0
"""kill -9 at every step of starting and committing that an origin without a TPM has, then a restart: nothing that was
acknowledged is lost, and what was staged is history."""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from soft_snp import SoftSnp
from tee_machine import PROGRAM, make_machine
from tee_origins import TeeAudit, audit_tee, make_tee_state, running_tee

from quotary_attest.agent import CRASH_POINTS, UnknownOutput
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.records import Output

OF_A_TPM = {"counter-on-disk", "counter-incremented", "event-on-disk", "event-extended", "extended"}
RUNNING = [point for point in CRASH_POINTS if point not in OF_A_TPM | {"boot-log-on-disk"}]
AT_START = RUNNING[:-1]
STAGED = RUNNING[:2]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_machine(tmp_path_factory.mktemp("processor") / "machine")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tee_state(tmp_path / "state")
    return tmp_path / "state"


@dataclass(frozen=True)
class Death:
    """How a child ended, and what it had acknowledged: output id and attestation of each output."""

    killed: bool
    acknowledged: dict[bytes, bytes]


async def child(machine: Path, folder: Path, point: str, *, skip: int, bodies: int = 3) -> Death:
    """Run an agent until it kills itself at a crash point."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), str(machine), "crash", str(folder), point, str(skip), str(bodies)),
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(PROGRAM.parent)},
    )
    out, _ = await process.communicate()
    attestations = [bytes.fromhex(line.decode()) for line in out.split()]
    return Death(
        process.returncode == -signal.SIGKILL,
        {Output.decode(Attestation.decode(item).record).output_id: item for item in attestations},
    )


async def check_restart(folder: Path, death: Death) -> TeeAudit:
    """Start again on the same processor, and hold against each other what callers got and the log."""
    snp = SoftSnp()
    async with running_tee(folder, snp) as agent:
        for number, (output_id, attestation) in enumerate(death.acknowledged.items()):
            assert await agent.fetch(output_id) == attestation
            assert await agent.resolve(sha256(b"output %d" % number).digest()) == output_id
        await agent.attest(b"after the crash")
    return audit_tee(folder, snp)


@pytest.mark.parametrize("point", RUNNING)
async def test_an_agent_without_a_tpm_killed_at_any_step_loses_nothing_it_acknowledged(
    machine: Path, folder: Path, point: str
) -> None:
    death = await child(machine, folder, point, skip=0 if point == "synced" else 1)
    assert death.killed
    assert len(death.acknowledged) >= (0 if point == "synced" else 1)
    report = await check_restart(folder, death)
    if point in STAGED:  # the second output was staged, and no line speaks for it
        assert report.ranges == [(0, 1, 2), (2, 2, 3), (3, 4, 5), (5, 5, 6)]
    else:
        assert all(start == first for start, first, _ in report.ranges[1:])


@pytest.mark.parametrize("point", AT_START)
async def test_a_first_start_without_a_tpm_killed_at_any_step_is_started_again(
    machine: Path, folder: Path, point: str
) -> None:
    assert await child(machine, folder, point, skip=-1) == Death(True, {})
    report = await check_restart(folder, Death(True, {}))
    # leaf 0 is history, and so is a boot record whose commit never came about
    assert report.ranges[0] == ((0, 2, 3) if point in STAGED else (0, 1, 2))


@pytest.mark.parametrize("point", ["quoted", "in-history"])
async def test_a_later_start_without_a_tpm_killed_at_any_step_loses_nothing(
    machine: Path, folder: Path, point: str
) -> None:
    whole = await child(machine, folder, "none", skip=0)
    assert (whole.killed, len(whole.acknowledged)) == (False, 3)
    assert (await child(machine, folder, point, skip=-1)).killed
    report = await check_restart(folder, whole)
    assert len(report.boots) == (2 if point in STAGED else 3)


async def test_what_was_staged_and_bound_by_nothing_cannot_be_fetched(machine: Path, folder: Path) -> None:
    """Its evidence was in memory only. Nothing on disk says in which boot it was staged, so nothing is claimed."""
    await child(machine, folder, "quoted", skip=1)
    async with running_tee(folder, SoftSnp()) as agent:
        output_id = Output.decode(agent.store.record_at(3).record).output_id
        with pytest.raises(UnknownOutput, match="before it could commit"):
            await agent.fetch(output_id)


async def test_a_torn_journal_of_an_origin_without_a_tpm_counts_as_never_staged(
    machine: Path, folder: Path
) -> None:
    death = await child(machine, folder, "staged", skip=1)
    journal = max((folder / "log" / "journal").iterdir())
    journal.write_bytes(journal.read_bytes()[:-1])
    report = await check_restart(folder, death)
    assert report.ranges == [(0, 1, 2), (2, 2, 3), (3, 3, 4), (4, 4, 5)]


async def test_crashes_in_a_row_leave_all_history_in_its_place(machine: Path, folder: Path) -> None:
    for point in ("quoted", "staged", "quoted"):
        assert (await child(machine, folder, point, skip=-1)).killed
    report = await check_restart(folder, Death(True, {}))
    assert report.ranges == [(0, 4, 5), (5, 5, 6)]
    assert report.boots == [4]
