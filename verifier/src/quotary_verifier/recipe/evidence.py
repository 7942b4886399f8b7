# SPDX-License-Identifier: Apache-2.0
"""Verifies the commit of an attestation and returns what can be appraised, for who makes policies or compares hosts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from quotary_verifier.policy.findings import PlatformEvidence
from quotary_verifier.policy.model import PlatformRules, Policy
from quotary_verifier.recipe.appraisal import platform_evidence
from quotary_verifier.recipe.commit import AkFacts, ByTees, judge_commit, open_commit
from quotary_verifier.recipe.given_logs import GivenLogs
from quotary_verifier.recipe.leaf import check_inclusion, check_range
from quotary_verifier.recipe.outcome import failed
from quotary_verifier.recipe.run import Run, Stopped
from quotary_verifier.recipe.steps import Step
from quotary_verifier.tlog.merkle import leaf_hash
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.records import entry_of


def evidence_of(
    attestation: bytes, at: int, policy: Policy, logs: Mapping[bytes, bytes] = MappingProxyType({})
) -> PlatformEvidence:
    """Do every step of the commit that an attestation carries but `platform`, and return what it shows of the host.

    The attestation may be of any record: nothing is said of an output. `policy` tells whom to trust, its rules on
    platform and workload events are not applied; `logs` are boot logs by their SHA-256, for an attestation that names
    them so.

    Raises:
        Rejected: something is malformed or false, or the policy does not trust the host.
        NotChecked: nothing is false, but a required check could not be done.
        PolicyError: the policy has ended by then.
    """
    policy.require_current(at)
    policy = replace(policy, platform=PlatformRules(), references=(), workload=None)
    run = Run()
    try:
        facts = _judge(run, policy, attestation, at, GivenLogs(logs))
    except Stopped:
        raise failed(run, at, policy) from None
    if facts is None or run.unchecked is not None:
        raise failed(run, at, policy)
    return facts


def _judge(run: Run, policy: Policy, attestation: bytes, at: int, logs: GivenLogs) -> PlatformEvidence | None:
    parsed = run.do(Step.DECODE, Attestation.decode, attestation)
    opened = None if parsed is None else open_commit(run, policy, parsed)
    if parsed is None or opened is None:
        return None
    leaf = leaf_hash(entry_of(parsed.record))
    run.do(Step.INCLUSION, check_inclusion, leaf, parsed.index, parsed.path, opened.checkpoint)
    run.do(Step.QUOTE_RANGE, check_range, parsed.index, opened.first, opened.checkpoint.size)
    judged = judge_commit(run, policy, parsed, opened, at, logs)
    bound, facts = opened.bound, judged.facts
    if isinstance(bound, ByTees):
        run.could_not(
            Step.QUOTE_PCRS, "the genesis record names no TPM: there are no PCRs or logs to appraise"
        )
    if facts is None or run.quoted is None or isinstance(bound, ByTees):
        return None
    assert isinstance(facts.bound, AkFacts)  # as the commit was opened
    platform, boot = facts.bound.platform, facts.bound.boot
    return platform_evidence(
        bound.host, bound.quote.attest, run.quoted, platform, platform.log, parsed.boot_logs, boot
    )
