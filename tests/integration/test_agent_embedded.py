# SPDX-License-Identifier: Apache-2.0
"""The agent inside somebody's own program: `async with Agent(...) as agent`, and nothing else to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from agents import WORKLOAD, judge, make_state
from tpms import Tpm

from quotary_attest.agent import Agent, Unavailable
from quotary_attest.state import StateError
from quotary_attest.tpm.errors import TpmGone


async def test_a_program_attests_in_two_lines(tpm: Tpm, tmp_path: Path) -> None:
    make_state(tpm, tmp_path / "state")
    async with Agent(tmp_path / "state", tpm=tpm.tcti, workload=WORKLOAD) as agent:
        delivered = await agent.attest(b"an output", nonce=b"n" * 16, request=b"a request")
        origin = agent.origin
    judge(delivered.encoded, b"an output", origin, nonce=b"n" * 16, request=b"a request")


async def test_an_agent_that_is_not_open_says_so(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    with pytest.raises(Unavailable, match="not open"):
        await agent.attest(b"x")


async def test_an_agent_is_closed_once_and_not_opened_again(tpm: Tpm, tmp_path: Path) -> None:
    make_state(tpm, tmp_path / "state")
    agent = Agent(tmp_path / "state", tpm=tpm.tcti)
    await agent.open()
    assert agent.status()["tpm"] == "software TPM"
    await agent.close()
    await agent.close()
    with pytest.raises(Unavailable, match="was closed"):
        await agent.open()
    await Agent(tmp_path / "state").close()  # never opened: there is nothing to let go of


async def test_a_folder_that_is_none_and_a_tpm_that_is_not_there_are_told_apart(
    tpm: Tpm, tmp_path: Path
) -> None:
    with pytest.raises(StateError, match="cannot open the state folder"):
        async with Agent(tmp_path / "nowhere", tpm=tpm.tcti):
            pytest.fail("it started")
    make_state(tpm, tmp_path / "state")
    with pytest.raises(TpmGone):
        async with Agent(tmp_path / "state", tpm=f"swtpm:path={tmp_path}/none"):
            pytest.fail("it started")
    async with Agent(tmp_path / "state", tpm=tpm.tcti) as agent:  # the failed start let go of the folder
        assert agent.status()["state"] == "running"
