# SPDX-License-Identifier: Apache-2.0
"""A policy on boot logs against an agent on a measured host: the host is accepted, and what changes on it is named."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from agents import AT, make_state, running
from ima_logs import ng
from measured_host import BOOT, MeasuredHost
from platform_defects import RULES
from tcg_logs import good_boot
from tpms import Tpm

from quotary_attest.agent import Agent
from quotary_verifier import NotChecked, Policy, Rejected, Verdict, load_policy, verify_fresh
from quotary_verifier.logs import tcg_types as t
from quotary_verifier.policy.appraise import appraise_platform
from quotary_verifier.recipe.evidence import evidence_of
from quotary_verifier.recipe.verify import Question, verify
from quotary_verifier.wire.attestation import Attestation


@pytest.fixture
def host(tpm: Tpm, tmp_path: Path) -> MeasuredHost:
    make_state(tpm, tmp_path / "state")
    return MeasuredHost(tpm, tmp_path / "logs").start()


def rules(agent: Agent, text: str = RULES) -> Policy:
    """A policy that pins the host and has these rules."""
    head = f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{agent.origin}"\n[tpm]\nsoftware = true\n'
    return load_policy((head + text).encode())


def logs_of(agent: Agent, attestation: bytes) -> dict[bytes, bytes]:
    names = Attestation.decode(attestation).boot_logs.values()
    return {name: agent.store.serve(f"blob/{name.hex()}") for name in names}


async def judged(agent: Agent, text: str = RULES) -> Verdict:
    attestation = (await agent.attest(b"an output")).encoded
    return verify(
        attestation, Question(b"an output", AT, logs=logs_of(agent, attestation)), rules(agent, text)
    )


async def test_a_host_that_keeps_the_rules_is_accepted_until_it_runs_what_nobody_knows(
    host: MeasuredHost, tmp_path: Path
) -> None:
    async with running(host.tpm, tmp_path / "state", boot_logs=host.settings) as agent:
        assert (await judged(agent)).report.tolerances == ()
        await asyncio.to_thread(host.measure, ng("/usr/bin/evil", hashlib.sha256(b"evil").digest()))
        with pytest.raises(
            Rejected, match="/usr/bin/evil: the policy allows neither its path nor its digest"
        ):
            await judged(agent)
        attestation = (await agent.attest(b"an output")).encoded
        with pytest.raises(NotChecked, match="by its digest only"):
            verify(attestation, Question(b"an output", AT), rules(agent))
        found = evidence_of(attestation, AT, rules(agent), logs_of(agent, attestation))
        assert [item.path for item in appraise_platform(rules(agent), found, AT).findings] == [
            "/usr/bin/evil"
        ]


IMAGE = next(n for n, event in enumerate(BOOT.events) if event.type == t.EV_EFI_BOOT_SERVICES_APPLICATION)
LINE = next(n for n, event in enumerate(BOOT.events) if event.data.startswith(b"kernel_cmdline"))
BOOTS = {
    "another boot loader": (
        BOOT.altered(IMAGE, measured=b"evil"),
        f"event {IMAGE + 1}: an image with digest",
    ),
    "another command line": (
        BOOT.altered(
            LINE, data=b"kernel_cmdline: /vmlinuz init=/bin/sh\0", measured=b"/vmlinuz init=/bin/sh"
        ),
        "the text '/vmlinuz init=/bin/sh' fits no command line",
    ),
    "Secure Boot switched off": (
        good_boot(enabled=False, banks=(0x0B,)),
        "PCR 7 says that Secure Boot is off",
    ),
}


@pytest.mark.parametrize("name", BOOTS)
async def test_a_reboot_into_something_else_is_named(name: str, host: MeasuredHost, tmp_path: Path) -> None:
    boot, why = BOOTS[name]
    await asyncio.to_thread(host.reboot, boot)
    async with running(host.tpm, tmp_path / "state", boot_logs=host.settings) as agent:
        with pytest.raises(Rejected, match=r"^platform: ") as caught:
            await judged(agent)
        assert why in str(caught.value)


async def test_a_fresh_quote_of_a_running_agent_is_judged_by_the_logs_of_its_boot(
    host: MeasuredHost, tmp_path: Path
) -> None:
    async with running(host.tpm, tmp_path / "state", boot_logs=host.settings) as agent:
        nonce = b"caller's" * 4
        quote = await agent.fresh_quote(nonce)
        with pytest.raises(NotChecked, match="did not come along"):
            verify_fresh(quote, nonce, AT, rules(agent))
        verify_fresh(quote, nonce, AT, rules(agent), {"tcg": host.tcg, "ima": host.ima})
        await asyncio.to_thread(host.run_files, 4)
        with pytest.raises(Rejected, match="/usr/bin/program-4"):
            verify_fresh(
                await agent.fresh_quote(nonce), nonce, AT, rules(agent), {"tcg": host.tcg, "ima": host.ima}
            )


async def test_the_counts_of_a_real_tpm_are_judged(host: MeasuredHost, tmp_path: Path) -> None:
    async with running(host.tpm, tmp_path / "state", boot_logs=host.settings) as agent:
        attestation = (await agent.attest(b"an output")).encoded
        resets = evidence_of(attestation, AT, rules(agent)).clock.reset_count
        window = (
            f'[platform.clock]\nrestarts = 0\n[[platform.clock.boots]]\norigin = "{agent.origin}"\nfirst = '
        )
        assert (await judged(agent, window + f"{resets}\nlast = {resets}\n")).report.failing is None
        with pytest.raises(Rejected, match="this boot is number"):
            await judged(agent, window + f"{resets + 1}\n")
