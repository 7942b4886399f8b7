# SPDX-License-Identifier: Apache-2.0
"""The steps that judge a commit: from its note over the quote and the AK to the platform.

They need nothing of a single output, so their result can serve every output of the same commit.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tpm_keys import AttestationKey, attestation_key
from quotary_verifier.evidence.tpm_quote import (
    OWN_SELECTION,
    check_extra_data,
    check_qualified_signer,
    check_selection,
    verify_pcr_values,
    verify_signature,
)
from quotary_verifier.logs.workload import WorkloadLog, opaque, read_log
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.endorsement import Endorsement, endorse
from quotary_verifier.recipe.run import Run
from quotary_verifier.recipe.software import software_signs
from quotary_verifier.recipe.steps import Step
from quotary_verifier.recipe.witness import Witnessed, witnessed
from quotary_verifier.tlog.checkpoint import Checkpoint, parse_checkpoint
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, hardware_key_id, hardware_lines
from quotary_verifier.tlog.note import TYPE_ED25519, Note, key_id, parse_note, verify_ed25519
from quotary_verifier.wire.attestation import Attestation, TpmSupport
from quotary_verifier.wire.bindings import ZERO, chain_extend, commit_digest
from quotary_verifier.wire.records import Genesis, TpmIdentity
from quotary_verifier.wire.tpm import Attest, Signature, parse_attest, parse_signature, unpack_evidence
from quotary_verifier.wire.tpm_public import Public, parse_public

QUOTED_PCRS = range(16)


@dataclass(frozen=True, slots=True)
class CommitFacts:
    """What the commit's steps established; meaningful only together with the checks that led here.

    `digest` is D, `pcrs` all sixteen quoted values, `log` the replayed workload log.
    """

    genesis: Genesis
    origin: str
    checkpoint: Checkpoint
    first: int
    digest: bytes
    attest: Attest
    pcrs: dict[int, bytes]
    key: AttestationKey
    endorsement: Endorsement
    software: str
    log: WorkloadLog
    witnessed: Witnessed


@dataclass(frozen=True, slots=True)
class _Quote:
    identity: TpmIdentity
    support: TpmSupport
    public: Public
    first: int
    attest: Attest
    attest_bytes: bytes
    signature: Signature


def check_commit(run: Run, policy: Policy, attestation: Attestation, at: int) -> CommitFacts | None:
    """Do the commit's steps on what an attestation carries; None where one of them could not be done.

    Raises:
        Stopped: a step failed; `run` says which and why.
    """
    genesis = run.do(Step.GENESIS, Genesis.decode, attestation.genesis)
    if genesis is None:
        return None
    origin = genesis.origin(attestation.genesis)
    run.not_understood.extend(f"genesis record: key {key}" for key in genesis.not_understood)
    note = run.do(Step.NOTE, _open_note, run, genesis, origin, attestation.note)
    if note is None:
        return None
    checkpoint = run.do(Step.ORIGIN, _checkpoint, origin, note)
    if checkpoint is None:
        return None
    quote = run.do(Step.QUOTE_STRUCTURE, _read_quote, genesis, origin, note, attestation.supports)
    if quote is None:
        return None
    digest = commit_digest(origin, quote.first, note.text)
    pcrs = run.do(Step.QUOTE_CHAIN, _chain, quote, digest)
    run.do(Step.QUOTE_SIGNATURE, verify_signature, quote.public, quote.attest_bytes, quote.signature)
    log = run.do(Step.WORKLOAD, _workload, policy, quote.support)
    if pcrs is not None and log is not None:
        pcrs[quote.identity.workload_pcr] = log.value
        run.do(Step.QUOTE_PCRS, _pcrs, quote, pcrs)
    run.do(Step.QUOTE_CLOCK, _clock, policy, quote.attest)
    key = run.do(Step.AK_ATTRIBUTES, _ak, policy, quote)
    if key is not None:
        run.do(Step.AK_NAME, check_qualified_signer, quote.attest, key.qualified_name)
    seen = run.do(Step.WITNESS, witnessed, policy, origin, note, checkpoint, attestation)
    endorsement = run.do(
        Step.AK_ENDORSEMENT,
        endorse,
        policy,
        origin,
        genesis.host,
        quote.public,
        quote.support.certificates,
        at,
        seen,
    )
    software = run.do(Step.TPM_KIND, _tpm_kind, policy, quote.attest, endorsement, log)
    if pcrs is not None:
        run.do(Step.PLATFORM, _platform, run, policy, quote.identity, pcrs)
    _unread(run, attestation)
    if None in (pcrs, log, key, seen, endorsement, software):
        return None
    assert pcrs is not None and log is not None and key is not None  # noqa: PT018
    assert seen is not None and endorsement is not None and software is not None  # noqa: PT018
    return CommitFacts(
        genesis,
        origin,
        checkpoint,
        quote.first,
        digest,
        quote.attest,
        pcrs,
        key,
        endorsement,
        software,
        log,
        seen,
    )


def _open_note(run: Run, genesis: Genesis, origin: str, data: bytes) -> Note:
    """Parse the note, verify the log's Ed25519 line if it stands there, and list the lines nobody knows."""
    note = parse_note(data)
    own = key_id(origin, TYPE_ED25519, genesis.note_key)
    line = note.line(origin, own)
    if line is not None:
        verify_ed25519(note.text, line.payload, genesis.note_key)
    elif genesis.tpm is None:
        raise EvidenceError("the origin has no TPM, and the note no Ed25519 line under the genesis key")
    known = {own}
    if genesis.tpm is not None:
        spki = parse_public(genesis.tpm.ak).to_spki_der()
        known.add(hardware_key_id(origin, IDENTIFIER_TPM2_QUOTE, spki))
    run.not_understood.extend(
        f"note: a line of {other.name}, key id {other.key_id.hex()}"
        for other in note.lines
        if other.name != origin or other.key_id not in known
    )
    return note


def _checkpoint(origin: str, note: Note) -> Checkpoint:
    return parse_checkpoint(note.text, origin=origin)


def _read_quote(genesis: Genesis, origin: str, note: Note, supports: tuple[TpmSupport, ...]) -> _Quote:
    identity = genesis.tpm
    if identity is None:
        raise UnsupportedError("the origin has no TPM; TEE evidence is not known to this verifier")
    public = parse_public(identity.ak)
    lines = hardware_lines(note, origin, {IDENTIFIER_TPM2_QUOTE: public.to_spki_der()})
    if not lines:
        raise EvidenceError("the genesis record names an AK, and the note has no line of it")
    fitting = [support for support in supports if support.identifier == IDENTIFIER_TPM2_QUOTE]
    if len(fitting) != 1 or len(supports) != 1:
        raise MalformedError("there must be one support for each known hardware line, and no other")
    attest_bytes, signature = unpack_evidence(lines[0].evidence)
    attest = parse_attest(attest_bytes)
    attest.require_quote()
    return _Quote(
        identity, fitting[0], public, lines[0].first, attest, attest_bytes, parse_signature(signature)
    )


def _chain(quote: _Quote, digest: bytes) -> dict[int, bytes]:
    """Check that the quote binds D, and put the quoted PCR values together; step `quote.pcrs` compares them."""
    check_extra_data(quote.attest, digest)
    given = quote.support.pcrs
    identity = quote.identity
    if identity.chain_pcr in given or identity.workload_pcr in given:
        raise MalformedError(
            "the support gives the chain PCR or the workload PCR, which follow from elsewhere"
        )
    if ZERO in given.values():
        raise MalformedError("the support gives a PCR that is zero, which it must leave out")
    pcrs = {pcr: given.get(pcr, ZERO) for pcr in QUOTED_PCRS}
    pcrs[identity.chain_pcr] = chain_extend(quote.support.chain_before, digest)
    return pcrs


def _workload(policy: Policy, support: TpmSupport) -> WorkloadLog:
    hidden = opaque(support.workload_log)
    if hidden and not policy.opaque_events:
        raise EvidenceError(f"{len(hidden)} workload events are opaque, and the policy allows none to be")
    return read_log(support.workload_log)


def _clock(policy: Policy, attest: Attest) -> None:
    if policy.safe_clock and not attest.clock.safe:
        raise EvidenceError(
            "the TPM says that its clock may have gone back, and the policy demands a safe one"
        )


def _pcrs(quote: _Quote, pcrs: dict[int, bytes]) -> None:
    quoted = quote.attest.require_quote()
    check_selection(quoted, OWN_SELECTION)
    verify_pcr_values(quoted, pcrs, quote.signature.hash_alg)


def _ak(policy: Policy, quote: _Quote) -> AttestationKey:
    key = attestation_key(quote.public, quote.identity.ak_parent)
    if not key.profile.own and not policy.unauthenticated_ak:
        raise EvidenceError(
            "any process with access to the TPM can use this AK, and the policy does not allow one without auth"
        )
    return key


def _tpm_kind(
    policy: Policy, attest: Attest, endorsement: Endorsement | None, log: WorkloadLog | None
) -> str:
    """Return what shows that the TPM is software, or an empty text."""
    signs = software_signs(attest, endorsement, log)
    if signs and not policy.software_tpm:
        raise EvidenceError(f"this is a software TPM ({signs[0]}), which the policy does not allow")
    return "; ".join(signs)


def _platform(run: Run, policy: Policy, identity: TpmIdentity, pcrs: dict[int, bytes]) -> None:
    moving = {identity.chain_pcr, identity.workload_pcr} & set(policy.pcrs)
    if moving:
        raise EvidenceError(
            f"the policy fixes PCR {min(moving)}, which this origin extends with every commit"
        )
    for pcr, allowed in sorted(policy.pcrs.items()):
        if pcrs[pcr] not in allowed:
            raise EvidenceError(f"PCR {pcr} is {pcrs[pcr].hex()}, which the policy does not allow")
    if not policy.pcrs:
        run.notices.append("the policy fixes no PCR: nothing is said of what booted and runs on the host")
    elif any(hmac.compare_digest(pcrs[pcr], ZERO) for pcr in (0, 4, 7) if pcr in policy.pcrs):
        run.notices.append("a boot PCR that the policy fixes is zero: that boot was never measured")


def _unread(run: Run, attestation: Attestation) -> None:
    """List what this version carries but does not read."""
    names = ", ".join(sorted(attestation.boot_logs))
    run.skip(
        Step.BOOT_LOGS, f"not read by this version: {names}" if names else "the attestation carries none"
    )
    run.skip(Step.TEE, "the attestation carries none that this version knows")
