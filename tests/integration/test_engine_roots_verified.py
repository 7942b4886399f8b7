# SPDX-License-Identifier: Apache-2.0
"""One commit that a software TPM and a synthetic SNP processor bind, under a policy that requires both: each half alone
is rejected, and so is each half of another commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest
from agents import AT, Naps, judge, make_state, policy_of, running, settled
from amd_pki import AmdForge, ca_extensions, certificate, rsa_key
from device_forge import NOW as MADE
from nvidia_forge import NvidiaForge
from soft_snp import SoftSnp, in_its_time
from tee_devices import FakeNvml, FakeTsm, cert_table, snp_mint
from tpms import Tpm

from quotary_attest.agent import Agent, World
from quotary_attest.engine.further import FurtherRoot
from quotary_attest.log.export import export
from quotary_attest.tee.certtable import ASK, VCEK
from quotary_attest.tee.nvml import NvidiaDevices
from quotary_attest.tee.root import DeviceRoot, TeeOptions
from quotary_attest.tee.tsm import SnpDevice
from quotary_cli.main import run
from quotary_cli.sources.archive import ArchiveSource
from quotary_verifier.errors import Rejected
from quotary_verifier.evidence.tee.amd_certs import AmdRoots, Generation
from quotary_verifier.evidence.tee.device_pki import PinnedRoot
from quotary_verifier.evidence.tee.lines import TeeRoots
from quotary_verifier.evidence.tee.nvidia import Architecture, NvidiaRules
from quotary_verifier.evidence.tee.snp_rules import SnpRules
from quotary_verifier.policy.model import Policy
from quotary_verifier.policy.tee import TeeRules
from quotary_verifier.recipe.steps import Step
from quotary_verifier.recipe.verdict import CheckState, Verdict
from quotary_verifier.recipe.verify import Question, verify
from quotary_verifier.tlog.hardware import (
    IDENTIFIER_NVIDIA,
    IDENTIFIER_SEV_SNP,
    HardwareLine,
    encode_hardware_line,
)
from quotary_verifier.tlog.note import Note, SignatureLine, parse_note
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.bindings import commit_digest

BODY = b"an answer"
ED25519, TPM_LINE, SNP_LINE = range(3)


@dataclass
class Pair:
    """Two attestations of one origin, each of a commit that both roots bound."""

    agent: Agent
    snp: SoftSnp
    one: Attestation
    other: Attestation

    def policy(self, **rules: object) -> Policy:
        """A policy that requires both roots."""
        accepted = SnpRules(generations=frozenset({Generation.GENOA}), **rules)  # type: ignore[arg-type]
        tee = TeeRules(required=frozenset({"sev-snp"}), snp=accepted, roots=self.snp.roots)
        return replace(policy_of(self.agent.origin), tee=tee)

    def judge(self, attestation: Attestation) -> Verdict:
        """Verify under that policy."""
        return verify(attestation.encode(), Question(BODY, AT), self.policy())

    def report(self, digest: bytes, genesis: bytes, first: int) -> SignatureLine:
        """A line of this very processor over something else."""
        evidence = self.snp.forge.report({0x50: digest + genesis})
        return encode_hardware_line(self.agent.origin, b"", HardwareLine(IDENTIFIER_SEV_SNP, first, evidence))

    @property
    def digest(self) -> bytes:
        """D of the first one's commit."""
        return commit_digest(self.agent.origin, self.first, lines_of(self.one)[0])

    @property
    def first(self) -> int:
        """The first leaf of its commit."""
        return int.from_bytes(lines_of(self.one)[1][SNP_LINE].payload[:8], "big")


@pytest.fixture
async def pair(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Pair]:
    snp, folder = SoftSnp(), tmp_path / "state"
    make_state(tpm, folder)
    roots = [FurtherRoot(snp, required=True)]
    world = in_its_time(sleep=Naps())
    async with running(tpm, folder, world=world, roots=roots, tee_roots=snp.roots) as agent:
        one, other = [Attestation.decode((await agent.attest(BODY)).encoded) for _ in range(2)]
        yield Pair(agent, snp, one, other)


def lines_of(attestation: Attestation) -> tuple[str, tuple[SignatureLine, ...]]:
    note = parse_note(attestation.note)
    return note.text, note.lines


def with_lines(attestation: Attestation, *lines: SignatureLine) -> Attestation:
    """The attestation whose note has these lines."""
    return replace(attestation, note=Note(lines_of(attestation)[0], lines).encode())


def without(attestation: Attestation, *numbers: int) -> Attestation:
    """The attestation without some lines of its note."""
    lines = lines_of(attestation)[1]
    return with_lines(attestation, *(line for number, line in enumerate(lines) if number not in numbers))


def exchanged(attestation: Attestation, number: int, line: SignatureLine) -> Attestation:
    """The attestation with another line in the place of one."""
    lines = list(lines_of(attestation)[1])
    lines[number] = line
    return with_lines(attestation, *lines)


def test_a_commit_of_both_roots_is_accepted_where_both_are_required(pair: Pair) -> None:
    assert len(lines_of(pair.one)[1]) == 3
    verdict = pair.judge(pair.one)
    (check,) = (each for each in verdict.report.checks if each.step is Step.TEE)
    assert (check.state, check.detail) == (CheckState.PASSED, "sev-snp accepted")
    lines = lines_of(pair.one)[1]
    pair.judge(with_lines(pair.one, *reversed(lines)))  # lines have no order


CASES: dict[str, tuple[str, Callable[[Pair], Attestation]]] = {
    "its line and support taken off": (
        "requires evidence of sev-snp",
        lambda pair: replace(without(pair.one, SNP_LINE), tees=()),
    ),
    "its line taken off": ("one support for each", lambda pair: without(pair.one, SNP_LINE)),
    "its support taken off": ("one support for each", lambda pair: replace(pair.one, tees=())),
    "the tpm's line and support taken off": (
        "names an AK, and the note has no line of it",
        lambda pair: replace(without(pair.one, TPM_LINE), supports=()),
    ),
    "the tpm's line taken off": (
        "names an AK, and the note has no line of it",
        lambda pair: without(pair.one, TPM_LINE),
    ),
    "the tpm's support taken off": ("one support for each", lambda pair: replace(pair.one, supports=())),
    "its line is another commit's": (
        "different first leaves",
        lambda pair: exchanged(pair.one, SNP_LINE, lines_of(pair.other)[1][SNP_LINE]),
    ),
    "the tpm's line is another commit's": (
        "different first leaves",
        lambda pair: exchanged(pair.one, TPM_LINE, lines_of(pair.other)[1][TPM_LINE]),
    ),
    "it binds another digest": (
        "report data",
        lambda pair: exchanged(
            pair.one,
            SNP_LINE,
            pair.report(bytes(32), sha256(pair.one.genesis).digest(), pair.first),
        ),
    ),
    "it binds another genesis record": (
        "report data",
        lambda pair: exchanged(pair.one, SNP_LINE, pair.report(pair.digest, bytes(32), pair.first)),
    ),
    "it claims from an earlier leaf": (
        "different first leaves",
        lambda pair: exchanged(
            pair.one,
            SNP_LINE,
            pair.report(pair.digest, sha256(pair.one.genesis).digest(), pair.first - 1),
        ),
    ),
    "its endorsements are another processor's": (
        "sev-snp",
        lambda pair: replace(pair.one, tees=(SoftSnp(AmdForge(chip=b"\7" * 64)).support,)),
    ),
}


async def test_half_of_it_is_rejected_where_both_are_required(pair: Pair) -> None:
    found = {}
    for name, (_, change) in CASES.items():
        with pytest.raises(Rejected) as caught:
            pair.judge(change(pair))
        found[name] = str(caught.value)
    assert {name: said for name, said in found.items() if CASES[name][0] not in said} == {}


def test_the_very_line_made_anew_is_accepted(pair: Pair) -> None:
    """What is rejected above is rejected for what it binds."""
    line = pair.report(pair.digest, sha256(pair.one.genesis).digest(), pair.first)
    pair.judge(exchanged(pair.one, SNP_LINE, line))


def test_a_line_that_a_policys_rules_refuse_is_rejected(pair: Pair) -> None:
    with pytest.raises(Rejected, match="measurement"):
        verify(pair.one.encode(), Question(BODY, AT), pair.policy(measurements=frozenset({bytes(48)})))


async def test_outputs_of_commits_that_a_slow_root_left_out_are_rejected_where_it_is_required(
    tpm: Tpm, tmp_path: Path
) -> None:
    snp, folder = SoftSnp(), tmp_path / "state"
    make_state(tpm, folder)
    options = {"world": in_its_time(sleep=Naps()), "tee_roots": snp.roots}
    async with running(tpm, folder, roots=[FurtherRoot(snp, every=2)], **options) as agent:
        found = [Attestation.decode((await agent.attest(BODY)).encoded) for _ in range(4)]
        judges = Pair(agent, snp, found[0], found[1])
        assert [len(each.tees) for each in found] == [0, 1, 0, 1]
        for each in found:
            if each.tees:
                judges.judge(each)
            else:
                judge(each.encode(), BODY, agent.origin)
                with pytest.raises(Rejected, match="requires evidence of sev-snp"):
                    judges.judge(each)


async def test_what_vouches_for_a_line_is_in_archives_and_static_files(pair: Pair, tmp_path: Path) -> None:
    await settled(pair.agent.store)
    export(pair.agent.store, tmp_path / "static")
    archive = tmp_path / "log.qar"
    await asyncio.to_thread(run, ["log", "export", str(tmp_path / "static"), str(archive)])
    with ArchiveSource.open(archive) as source:
        for part in (part for parts in pair.snp.support.endorsements.values() for part in parts):
            assert source.read(f"blob/{sha256(part).hexdigest()}", 1 << 20) == part


async def test_devices_as_the_kernel_has_them_bind_one_commit_beside_the_tpm(
    tpm: Tpm, tmp_path: Path
) -> None:
    """The whole way: configfs-tsm and NVML, their roots, one commit with three lines, and a policy for all."""
    forge, gpus, days = AmdForge(), [NvidiaForge(), NvidiaForge(number=41)], (-200, 330)
    name, key = forge.ark_name, rsa_key("ark", forge.bits)
    ark = certificate(name, name, key, key, ca_extensions(), serial=1, days=days)
    amd = AmdRoots.from_der({forge.generation: ark})
    trusted = TeeRoots(amd=amd, nvidia=PinnedRoot(gpus[0].root.der))
    table = cert_table((VCEK, forge.leaf(days=days)), (ASK, forge.issuer(days=days)))
    kernel = FakeTsm(snp_mint(forge), auxblob=table)
    options = TeeOptions(roots=trusted, now=lambda: MADE)
    devices = (SnpDevice(kernel), NvidiaDevices(FakeNvml(gpus)))
    roots = [FurtherRoot(DeviceRoot(device, options), required=True) for device in devices]
    rules = TeeRules(
        required=frozenset({"sev-snp", "nvidia"}),
        snp=SnpRules(generations=frozenset({Generation.GENOA})),
        nvidia=NvidiaRules(architectures=frozenset({Architecture.HOPPER})),
        roots=trusted,
    )
    make_state(tpm, tmp_path / "state")
    world = World(now=lambda: int(MADE.timestamp()) * 1000, sleep=Naps())
    async with running(tpm, tmp_path / "state", world=world, roots=roots, tee_roots=trusted) as agent:
        delivered = await agent.attest(BODY)
        policy = replace(policy_of(agent.origin), tee=rules)
        verify(delivered.encoded, Question(BODY, int(MADE.timestamp())), policy)
    identifiers = [tee.identifier for tee in Attestation.decode(delivered.encoded).tees]
    assert identifiers == [IDENTIFIER_SEV_SNP, IDENTIFIER_NVIDIA]
    assert kernel.entries == {}
