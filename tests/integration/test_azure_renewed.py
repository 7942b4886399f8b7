# SPDX-License-Identifier: Apache-2.0
"""What a timer fetches for Azure's endorsement of the AK is taken up by the running agent, without a signal."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from agents import Naps, running
from amd_pki import NOW, AmdForge
from soft_snp import in_its_time
from tpms import Tpm
from vtpm import boot_azure, collateral, foreign_state

from quotary_attest.engine.endorsing import Endorsing
from quotary_attest.tpm.hcl import HclEndorser
from quotary_cli import agent_serve
from quotary_verifier.evidence.tee.lines import TeeRoots

AMD = AmdForge()
ROOTS = TeeRoots(amd=AMD.roots())


async def test_the_agent_looks_for_newer_collateral_by_itself_and_keeps_what_it_has_where_there_is_none(
    tpm: Tpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agent_serve, "_HOUR", 0.01)
    forge, kept = boot_azure(tpm, amd=AMD), tmp_path / "kept"
    foreign_state(tpm, tmp_path / "state")
    kept.mkdir()
    wanted = Endorsing(HclEndorser(kept, ROOTS, lambda: NOW))
    options = {"world": in_its_time(sleep=Naps()), "endorsing": wanted, "tee_roots": ROOTS}
    with caplog.at_level(logging.ERROR, "quotary.agent"):
        async with running(tpm, tmp_path / "state", **options) as agent, asyncio.timeout(20):
            renewing = asyncio.create_task(agent_serve._renew(agent))
            while "cannot be found anew: nothing stored vouches" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            collateral(kept, forge)
            while not agent.status()["ak_endorsement"]["bytes"]:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            renewing.cancel()
