# SPDX-License-Identifier: Apache-2.0
"""An agent on the vTPM of an Azure confidential VM: a real swtpm with the paravisor's key and a minted report in NV.

Processor and paravisor are minted, as no such machine is at hand; reading, finding, carrying and judging are real.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from agents import AT, Naps, audit, policy_of, running, settled
from amd_pki import NOW, AmdForge
from azure_forge import VM
from soft_snp import in_its_time
from tpms import Tpm
from vtpm import boot_azure, collateral, foreign_state, put_key, report_of, write_report

from quotary_attest.engine.endorsing import Endorsing
from quotary_attest.roots import RequiredRootFailed
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.hcl import HclEndorser
from quotary_verifier.errors import Rejected
from quotary_verifier.evidence.tee.amd_certs import Generation
from quotary_verifier.evidence.tee.azure import AzureRules
from quotary_verifier.evidence.tee.azure_hcl import parse_hcl_report
from quotary_verifier.evidence.tee.lines import TeeRoots
from quotary_verifier.evidence.tee.snp_rules import SnpRules
from quotary_verifier.policy.model import Policy
from quotary_verifier.policy.tee import TeeRules
from quotary_verifier.recipe.fresh import verify_fresh
from quotary_verifier.recipe.steps import Step
from quotary_verifier.recipe.tee import ONE_MACHINE
from quotary_verifier.recipe.verdict import Verdict
from quotary_verifier.recipe.verify import Question, verify
from quotary_verifier.wire.attestation import Attestation, TpmSupport

BODY = b"an answer"
NONCE = b"a caller's nonce"
PARAVISOR = frozenset({b"\x4d" * 48})
AMD = AmdForge()
ROOTS = TeeRoots(amd=AMD.roots())


def endorsing(folder: Path | None, *, required: bool = True) -> Endorsing:
    return Endorsing(HclEndorser(folder, ROOTS, lambda: NOW), required)


def policy(origin: str, **rules: Any) -> Policy:
    """A policy that requires the endorsement, by this paravisor unless it says otherwise."""
    snp = SnpRules(frozenset({Generation.GENOA}), measurements=rules.pop("measurements", PARAVISOR))
    tee = TeeRules(frozenset({"azure"}), azure=AzureRules(snp=snp, **rules), roots=ROOTS)
    return dataclasses.replace(policy_of(origin), unauthenticated_ak=True, tee=tee)


def judged(attestation: bytes, policy: Policy, at: int = AT) -> Verdict:
    return verify(attestation, Question(BODY, at), policy)


def agent_on(tpm: Tpm, folder: Path, wanted: Endorsing) -> Any:
    return running(tpm, folder, world=in_its_time(sleep=Naps()), endorsing=wanted, tee_roots=ROOTS)


async def test_every_attestation_carries_what_endorses_the_key_and_the_history_stores_it_once(
    tpm: Tpm, tmp_path: Path
) -> None:
    forge, folder = boot_azure(tpm, amd=AMD), tmp_path / "state"
    foreign_state(tpm, folder)
    async with agent_on(tpm, folder, endorsing(collateral(tmp_path / "kept", forge))) as agent:
        delivered = [await agent.attest(BODY) for _ in range(2)]
        await settled(agent.store)
        stored = await agent.fetch(delivered[0].output_id)
        rules, fresh = policy(agent.origin), await agent.fresh_quote(NONCE)
        shown = agent.status()["ak_endorsement"]
    for encoded in (*(one.encoded for one in delivered), stored):
        verdict = judged(encoded, rules)
        said = {claim.name: claim.value for claim in verdict.report.claims}
        assert said["tee.azure.vm"] == VM
        assert ONE_MACHINE in verdict.report.notices
    assert ONE_MACHINE in verify_fresh(fresh, NONCE, AT, rules).report.notices
    (support,) = Attestation.decode(stored).supports
    assert support == dataclasses.replace(
        Attestation.decode(delivered[0].encoded).supports[0], certificates=support.certificates
    )
    size = sum(len(part) for parts in support.endorsements.values() for part in parts)
    assert 3500 < size < 6000, size
    assert shown == {"what": shown["what"], "required": True, "bytes": size, "error": "", "hint": ""}
    found = audit(folder)
    assert len(found.ranges) == 3


async def test_after_a_reboot_the_report_is_read_anew(tpm: Tpm, tmp_path: Path) -> None:
    forge, folder = boot_azure(tpm, amd=AMD), tmp_path / "state"
    foreign_state(tpm, folder)
    kept = collateral(tmp_path / "kept", forge)
    async with agent_on(tpm, folder, endorsing(kept)) as agent:
        before = await agent.attest(BODY)
        tpm.reset()
        later = dataclasses.replace(forge, user_data="11" * 64)
        with Connection(tpm.tcti) as connection:
            write_report(connection, later.report())
        with pytest.raises(Exception, match="reset"):
            await agent.attest(BODY)
        after = await _until(lambda: agent.attest(BODY))
    reports = [parse_hcl_report(_support(one.encoded).endorsements["hcl"][0]) for one in (before, after)]
    assert [report.user_data for report in reports] == [bytes(64), b"\x11" * 64]


async def _until(call: Callable[[], Awaitable[Any]]) -> Any:
    """Call until the agent is back."""
    from quotary_attest.agent import Unavailable

    while True:
        try:
            return await call()
        except Unavailable:
            await Naps()(0)


def _support(encoded: bytes) -> TpmSupport:
    (support,) = Attestation.decode(encoded).supports
    return support


def with_endorsements(encoded: bytes, **parts: tuple[bytes, ...] | None) -> bytes:
    """The attestation with other endorsements; None leaves one out."""
    attestation, support = Attestation.decode(encoded), _support(encoded)
    changed = {name: part for name, part in {**support.endorsements, **parts}.items() if part is not None}
    return dataclasses.replace(
        attestation, supports=(dataclasses.replace(support, endorsements=changed),)
    ).encode()


async def test_a_policy_rejects_every_other_key_report_paravisor_vm_and_time(
    tpm: Tpm, tmp_path: Path
) -> None:
    forge, folder = boot_azure(tpm, amd=AMD), tmp_path / "state"
    foreign_state(tpm, folder)
    async with agent_on(tpm, folder, endorsing(collateral(tmp_path / "kept", forge))) as agent:
        encoded, origin = (await agent.attest(BODY)).encoded, agent.origin
    good = policy(origin)
    judged(encoded, good)
    report = forge.report()
    another = report_of(put_key(tpm, handle=0x81000004, unique=b"another"), amd=AMD).report()
    altered = report[:200] + bytes((report[200] ^ 1,)) + report[201:]
    missing = with_endorsements(encoded, hcl=None, leaf=None, issuer=None, crls=None)
    cases = {
        "not the one that the confidential vm": (with_endorsements(encoded, hcl=(another,)), good, AT),
        "azure: ": (with_endorsements(encoded, hcl=(altered,)), good, AT),
        "has no such endorsement": (missing, good, AT),
        "measurement": (encoded, policy(origin, measurements=frozenset({b"\1" * 48})), AT),
        "no rule names the paravisor": (encoded, policy(origin, measurements=None), AT),
        "is not accepted": (encoded, policy(origin, vms=frozenset({VM.lower()[:-1] + "0"})), AT),
        "console is off": (encoded, policy(origin, console=False), AT),
        "is not valid at": (encoded, good, AT + 40 * 365 * 86_400),
    }
    for why, (data, rules, at) in cases.items():
        with pytest.raises(Rejected, match=why) as rejected:
            judged(data, rules, at)
        assert rejected.value.report.failing is Step.TEE


async def test_a_required_endorsement_that_cannot_be_had_keeps_the_agent_from_starting(
    tpm: Tpm, tmp_path: Path
) -> None:
    forge, folder = boot_azure(tpm, amd=AMD), tmp_path / "state"
    foreign_state(tpm, folder)
    (tmp_path / "empty").mkdir()
    other = collateral(
        tmp_path / "other",
        report_of(put_key(tpm, handle=0x81000004, unique=b"another"), amd=AmdForge(chip=bytes(range(64)))),
    )
    for wanted, why in (
        (endorsing(None), "nothing stored vouches for the hcl report"),
        (endorsing(tmp_path / "empty"), "nothing stored vouches for the hcl report"),
        (endorsing(tmp_path / "absent"), "there is no folder"),
        (Endorsing(HclEndorser(other, ROOTS, lambda: NOW), True), "does not verify"),
    ):
        with pytest.raises(RequiredRootFailed, match=why) as failed:
            async with agent_on(tpm, folder, wanted):
                pass
        assert failed.value.hint
    async with agent_on(tpm, folder, endorsing(None, required=False)) as agent:
        assert not _support((await agent.attest(BODY)).encoded).endorsements
        assert "nothing stored" in agent.status()["ak_endorsement"]["error"]
        collateral(tmp_path / "empty", forge)


async def test_a_report_of_another_key_is_never_carried(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    forge = boot_azure(tpm, amd=AMD)
    foreign_state(tpm, folder)
    other = report_of(put_key(tpm, handle=0x81000004, unique=b"another"), amd=AMD)
    with Connection(tpm.tcti) as connection:
        write_report(connection, other.report())
    kept = collateral(tmp_path / "kept", forge)
    with pytest.raises(RequiredRootFailed, match="not the one that the confidential vm") as failed:
        async with agent_on(tpm, folder, endorsing(kept)):
            pass
    assert "--ak 0x81000003" in failed.value.hint


async def test_what_was_fetched_later_is_taken_up_without_a_restart(tpm: Tpm, tmp_path: Path) -> None:
    forge, folder, kept = boot_azure(tpm, amd=AMD), tmp_path / "state", tmp_path / "kept"
    foreign_state(tpm, folder)
    kept.mkdir()
    async with agent_on(tpm, folder, endorsing(kept, required=False)) as agent:
        assert not _support((await agent.attest(BODY)).encoded).endorsements
        collateral(kept, forge)
        await agent.reload_certificates()
        judged((await agent.attest(BODY)).encoded, policy(agent.origin))
