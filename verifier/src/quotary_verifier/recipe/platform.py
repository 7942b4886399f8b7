# SPDX-License-Identifier: Apache-2.0
"""The steps that judge a quote, its AK and the platform it speaks for, whatever the quote binds.

A commit's quote and a fresh quote differ in what their extraData is and where the chain PCR's value comes from;
everything else is judged here, once.
"""

from __future__ import annotations

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tpm_keys import AttestationKey, attestation_key
from quotary_verifier.evidence.tpm_quote import (
    OWN_SELECTION,
    check_extra_data,
    check_pcr_digest,
    check_qualified_signer,
    check_selection,
    verify_signature,
)
from quotary_verifier.logs.workload import WorkloadLog, opaque, read_log
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.endorsement import Endorsement, endorse
from quotary_verifier.recipe.run import Run
from quotary_verifier.recipe.software import software_signs
from quotary_verifier.recipe.steps import Step
from quotary_verifier.recipe.witness import Witnessed
from quotary_verifier.wire.attestation import TpmSupport
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.records import Genesis, TpmIdentity
from quotary_verifier.wire.tpm import Attest, Signature, parse_attest, parse_signature, unpack_evidence
from quotary_verifier.wire.tpm_public import Public, parse_public

QUOTED_PCRS = range(16)
BOOT_PCRS = (0, 4, 7)
"""PCRs into which every measured boot of firmware extends: its code, the boot loader, the Secure Boot policy."""


@frozen
class Host:
    """What a genesis record says of itself: origin, and its TPM with the AK parsed (`spki` is its SPKI in DER)."""

    genesis: Genesis
    origin: str
    identity: TpmIdentity
    public: Public
    spki: bytes


@frozen
class TeeHost:
    """What a genesis record without a TPM says of itself."""

    genesis: Genesis
    origin: str


@frozen
class ReadQuote:
    """A quote that was parsed and nothing more, with the support that goes with it."""

    support: TpmSupport
    attest: Attest
    attest_bytes: bytes
    signature: Signature


@frozen
class PlatformFacts:
    """What the steps established; meaningful only together with the checks that led here.

    `pcrs` are all sixteen quoted values, `log` the replayed workload log, `software` in words what shows that the TPM
    is a software one, empty where nothing does, `pinned` tells whether the policy says who wrote the workload log.
    """

    attest: Attest
    pcrs: dict[int, bytes]
    key: AttestationKey
    endorsement: Endorsement
    software: str
    log: WorkloadLog
    pinned: bool


def read_origin(record: bytes) -> Host | TeeHost:
    """Read a genesis record, and the AK in it if it names one.

    Raises:
        MalformedError: it is none, or its AK is no TPMT_PUBLIC.
        UnsupportedError: its version or its AK's algorithm is unknown.
    """
    genesis = Genesis.decode(record)
    if genesis.tpm is None:
        return TeeHost(genesis, genesis.origin(record))
    public = parse_public(genesis.tpm.ak)
    return Host(genesis, genesis.origin(record), genesis.tpm, public, public.to_spki_der())


def read_host(record: bytes) -> Host:
    """Read a genesis record and the AK in it, for what is asked of a TPM only.

    Raises:
        MalformedError: it is none, or its AK is no TPMT_PUBLIC.
        UnsupportedError: its version or its AK's algorithm is unknown, or it names no TPM.
    """
    host = read_origin(record)
    if isinstance(host, TeeHost):
        raise UnsupportedError("the genesis record names no TPM, and this is asked of a TPM only")
    return host


def read_quote(public: Public, support: TpmSupport, evidence: bytes) -> ReadQuote:
    """Take TPM evidence of a key apart; it must be a quote.

    Raises:
        MalformedError: it has another form.
        EvidenceError: it is another attestation structure, or signed with another scheme than the key's.
        UnsupportedError: its algorithm is unknown.
    """
    attest_bytes, signature = unpack_evidence(evidence)
    attest = parse_attest(attest_bytes)
    attest.require_quote()
    if public.scheme is not None and signature[:2] != public.scheme.to_bytes(2):
        raise EvidenceError("the signature is not of the scheme that the key fixes")
    return ReadQuote(support, attest, attest_bytes, parse_signature(signature))


def judge_platform(
    run: Run,
    policy: Policy,
    host: Host,
    quote: ReadQuote,
    digest: bytes,
    chain_value: bytes,
    at: int,
    seen: Witnessed | None,
) -> tuple[WorkloadLog | None, PlatformFacts | None]:
    """Do the steps from `quote.chain` to `workload`; no facts where one of them could not be done.

    The log is returned apart, so that what depends on it alone can still turn out to be false. `digest` is what
    extraData must be, `chain_value` what the chain PCR must be quoted as.

    Raises:
        Stopped: a step failed; `run` says which and why.
    """
    pcrs = run.do(Step.QUOTE_CHAIN, _chain, host.identity, quote, digest, chain_value)
    run.do(Step.QUOTE_SIGNATURE, verify_signature, host.public, quote.attest_bytes, quote.signature)
    log = run.do(Step.WORKLOAD, _workload, policy, quote.support)
    if pcrs is not None and log is not None:
        pcrs[host.identity.workload_pcr] = log.value
        run.quoted = run.do(Step.QUOTE_PCRS, _pcrs, quote, pcrs)
        if log.unknown:
            run.could_not(Step.WORKLOAD, log.unknown)
    run.do(Step.QUOTE_CLOCK, _clock, policy, quote.attest)
    key = run.do(Step.AK_ATTRIBUTES, _ak, policy, host)
    if key is not None:
        run.do(Step.AK_NAME, check_qualified_signer, quote.attest, key.qualified_name)
    certificates = quote.support.certificates
    endorsement = run.do(
        Step.AK_ENDORSEMENT,
        endorse,
        policy,
        host.origin,
        host.genesis.host,
        host.spki,
        certificates,
        at,
        seen,
    )
    software = run.do(Step.TPM_KIND, _tpm_kind, policy, quote.attest, endorsement, log)
    if pcrs is None or log is None or key is None or endorsement is None or software is None:
        return log, None
    return log, PlatformFacts(quote.attest, pcrs, key, endorsement, software, log, policy.pins_the_writer)


def _chain(identity: TpmIdentity, quote: ReadQuote, digest: bytes, chain_value: bytes) -> dict[int, bytes]:
    """Check that the quote binds the digest, and put the PCR values together; step `quote.pcrs` compares them."""
    check_extra_data(quote.attest, digest)
    given = quote.support.pcrs
    if identity.chain_pcr in given or identity.workload_pcr in given:
        raise MalformedError(
            "the support gives the chain PCR or the workload PCR, which follow from elsewhere"
        )
    if ZERO in given.values():
        raise MalformedError("the support gives a PCR that is zero, which it must leave out")
    pcrs = {pcr: given.get(pcr, ZERO) for pcr in QUOTED_PCRS}
    pcrs[identity.chain_pcr] = chain_value
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


def _pcrs(quote: ReadQuote, pcrs: dict[int, bytes]) -> dict[int, bytes]:
    quoted = quote.attest.require_quote()
    check_selection(quoted, OWN_SELECTION)
    check_pcr_digest(quoted, pcrs, quote.signature.hash_alg)
    return pcrs


def _ak(policy: Policy, host: Host) -> AttestationKey:
    key = attestation_key(host.public, host.identity.ak_parent)
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
