# SPDX-License-Identifier: Apache-2.0
"""The agent under load, in short: nothing that was acknowledged is lost, whatever happens meanwhile.

scripts/load runs the same at full rate. The load and the model server are compiled programs; every answer is kept and
verified with the public verifier.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import audit_store
from go_toolchain import NotInstalled
from tpms import CC_QUOTE, Tpm

from load_check import Checked, check
from load_host import Host, host
from load_main import Load, run_once
from quotary_attest.log.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LOAD = {"rate": 100, "streams": 20, "chunks": 10, "pace_ms": 200}


@contextmanager
def under_load(folder: Path, seconds: float, *, tcti: str | None = None) -> Iterator[tuple[Host, Any]]:
    """A host, and a client that has got its first answers."""
    try:
        with host(folder, tcti=tcti) as running:
            client = running.client(folder / "answers", seconds=seconds, **LOAD)
            try:
                _await_answers(folder / "answers")
                yield running, client
            finally:
                client.kill()
                client.wait()
    except NotInstalled as error:
        pytest.skip(str(error))


def _await_answers(file: Path) -> None:
    """Wait until the client has got a megabyte of answers, some 200."""
    deadline = time.monotonic() + 60
    while not file.exists() or file.stat().st_size < 1_000_000:
        assert time.monotonic() < deadline, "no answers come"
        time.sleep(0.02)


def ended(client: subprocess.Popen[str]) -> dict[str, Any]:
    """What the client says at its end."""
    said, _ = client.communicate(timeout=300)
    summary: dict[str, Any] = json.loads(said)
    return summary


def checked(running: Host) -> Checked:
    """Verify what the client kept."""
    return check(running.folder / "answers", running.policy, int(time.time()))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_answer_of_a_short_load_verifies_and_none_is_lost(tmp_path: Path, workers: int) -> None:
    try:
        result = run_once(Load(rate=200, streams=50, seconds=6, workers=workers), tmp_path)
    except NotInstalled as error:
        pytest.skip(str(error))
    assert result["asked"] >= 1200
    assert (result["lost"], result["not_answered"], result["failures"]) == (0, {}, [])
    named = {f"proxy worker {number + 1}" for number in range(workers)}
    assert {"agent", "client", "upstream", "swtpm", "TPM transport", *named} == set(result["cpu_cores"])


def test_what_was_acknowledged_before_the_agent_was_killed_verifies(tmp_path: Path) -> None:
    with under_load(tmp_path, 6) as (running, client):
        assert running.stop_agent(signal.SIGKILL) == -signal.SIGKILL
        summary = ended(client)
        found = checked(running)
    assert found.verified > 100
    assert found.distinct
    assert not found.failures
    # all the others saw an error, none an answer that only looks whole
    assert set(found.others) <= {"short answer: broke off", "stream: broke off"}
    assert found.verified + sum(found.others.values()) == summary["asked"]
    assert found.others["stream: broke off"] > 0
    store = Store.open(tmp_path / "state" / "log")  # as the next start finds it
    try:
        assert {store.record_at(index).record for index in found.indices} == found.outputs
        assert not audit_store(store).gaps
    finally:
        store.close()


def test_a_tpm_that_stalls_for_half_a_minute_under_load_costs_time_and_no_answer(
    tpm: Tpm, tmp_path: Path
) -> None:
    with under_load(tmp_path, 10, tcti=tpm.tcti) as (running, client):
        with tpm.stall(CC_QUOTE):
            assert tpm.stalled.wait(20)
            time.sleep(30)
        summary = ended(client)
        found = checked(running)
        assert running.stop_agent() == 0
    assert (found.failures, dict(found.others)) == ([], {})
    assert found.verified == summary["asked"] > 900
    assert found.distinct
    assert summary["short_ms"]["max"] > 20_000
