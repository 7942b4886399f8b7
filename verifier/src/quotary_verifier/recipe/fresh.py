# SPDX-License-Identifier: Apache-2.0
"""Verifies a fresh quote: the platform as it is now, over a nonce of the caller's (docs/spec/fresh-quote.md).

It speaks for no output. What its quote binds is a digest of its own kind, so neither stands for the other.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from quotary_verifier.errors import EvidenceError
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.appraisal import judge_platform_rules
from quotary_verifier.recipe.claims import boot_claims, platform_claims, root_claims
from quotary_verifier.recipe.commit import boot_logs
from quotary_verifier.recipe.given_logs import GivenLogs
from quotary_verifier.recipe.outcome import failed, host_notices
from quotary_verifier.recipe.platform import Host, PlatformFacts, judge_platform, read_host, read_quote
from quotary_verifier.recipe.run import Run, Stopped
from quotary_verifier.recipe.steps import Step
from quotary_verifier.recipe.verdict import Outcome, Report, Verdict, in_order, make_verdict
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE
from quotary_verifier.wire.bindings import fresh_digest
from quotary_verifier.wire.fresh import FreshQuote

if TYPE_CHECKING:
    from quotary_verifier.policy.findings import Appraisal
    from quotary_verifier.recipe.boot_logs import BootLogs
    from quotary_verifier.recipe.tee import JudgedTee

    Judged = tuple[PlatformFacts, BootLogs | None, Appraisal | None, tuple[JudgedTee, ...]]

_NO_OUTPUT = "a fresh quote speaks of no output and no commit"
_ABSENT = (
    Step.OUTPUT,
    Step.REQUEST,
    Step.ORIGIN,
    Step.INCLUSION,
    Step.NOTE,
    Step.QUOTE_RANGE,
    Step.MODEL,
    Step.WITNESS,
)


def verify_fresh(
    data: bytes, nonce: bytes, at: int, policy: Policy, logs: Mapping[str, bytes] = MappingProxyType({})
) -> Verdict:
    """Verify a fresh quote over the caller's `nonce` (8 to 64 bytes) at a time in seconds since the epoch.

    A fresh quote carries no boot logs. `logs` are some in full (`tcg`, `ima`), wherever the caller has them from: one
    that replays to the quoted values is of this boot.

    Raises:
        Rejected: something is malformed, false, or lacks what the policy requires; `report` says what.
        NotChecked: nothing is false, but a required check could not be done.
        PolicyError: the policy has ended by then.
    """
    policy.require_current(at)
    run = Run()
    judged = None
    try:
        fresh = run.do(Step.DECODE, FreshQuote.decode, data)
        host = None if fresh is None else run.do(Step.GENESIS, read_host, fresh.genesis)
        if fresh is not None and host is not None:
            run.do(Step.NONCE, _same_nonce, policy, fresh, nonce)
            judged = _judge(run, policy, host, fresh, at, logs)
    except Stopped:
        raise failed(run, at, policy) from None
    if fresh is None or host is None or judged is None or run.unchecked is not None:
        raise failed(run, at, policy)
    run.not_understood.extend(f"fresh quote: key {key}" for key in fresh.not_understood)
    for step in _ABSENT:
        run.skip(step, _NO_OUTPUT)
    run.passed(Step.FRESHNESS)
    return make_verdict(lambda: _report(run, policy, host, judged, at))


def _same_nonce(policy: Policy, fresh: FreshQuote, nonce: bytes) -> None:
    for expected in (nonce, policy.freshness.expected_nonce):
        if expected is not None and not hmac.compare_digest(fresh.nonce, expected):
            raise EvidenceError("the quote is over another nonce")


def _judge(
    run: Run, policy: Policy, host: Host, fresh: FreshQuote, at: int, logs: Mapping[str, bytes]
) -> Judged | None:
    if fresh.support.identifier != IDENTIFIER_TPM2_QUOTE:
        run.fail(Step.QUOTE_STRUCTURE, "the support is not one of a TPM quote")
    quote = run.do(Step.QUOTE_STRUCTURE, read_quote, host.public, fresh.support, fresh.evidence)
    if quote is None:
        return None
    digest = fresh_digest(host.origin, fresh.nonce)
    log, facts = judge_platform(run, policy, host, quote, digest, fresh.support.chain_before, at, None)
    boot = boot_logs(run, logs, GivenLogs({}), host, "a fresh quote carries none, and none was handed in")
    appraisal = judge_platform_rules(run, policy, host, quote.attest, facts, log, logs, boot, at)
    tees = _tees(run, policy, host, fresh, digest, at)
    return None if facts is None else (facts, boot, appraisal, tees)


def _tees(
    run: Run, policy: Policy, host: Host, fresh: FreshQuote, digest: bytes, at: int
) -> tuple[JudgedTee, ...]:
    """Do step `tee`: there are no lines here, but the AK may be endorsed by its hardware all the same."""
    endorsements = fresh.support.endorsements
    required = frozenset() if policy.tee is None else policy.tee.required
    if not endorsements and not required:
        run.skip(Step.TEE, "a fresh quote carries none")
        return ()
    from quotary_verifier.evidence.tee.lines import Bound
    from quotary_verifier.policy.tee import AZURE
    from quotary_verifier.recipe.tee import EndorsedAk, judge_tees

    if lines := required - {AZURE}:
        named = ", ".join(sorted(lines))
        run.fail(Step.TEE, f"the policy requires evidence of {named}, and a fresh quote carries none")
    bound = Bound(digest, hashlib.sha256(fresh.genesis).digest())
    endorsed = (EndorsedAk(host.public, endorsements),) if endorsements else ()
    return judge_tees(run, policy, endorsed, bound, at)


def _report(run: Run, policy: Policy, host: Host, judged: Judged, at: int) -> Report:
    facts, boot, appraisal, tees = judged
    return Report(
        outcome=Outcome.VERIFIED,
        checks=in_order(run.checks),
        at=at,
        policy=policy.digest.hex(),
        claims=(
            *platform_claims(host, facts, tees),
            *boot_claims(facts, boot, appraisal),
            *root_claims(tees),
        ),
        tolerances=tuple(run.tolerances),
        not_understood=tuple(run.not_understood),
        notices=(*run.notices, *host_notices(facts)),
    )
