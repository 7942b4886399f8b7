# SPDX-License-Identifier: Apache-2.0
"""Verifies a host's statement, and holds answers without an attestation against it (docs/spec/verification.md).

Whoever relays an answer can take its attestation off. The statement is what the host itself said of which answers
carry one, in its log and under its quote; so an answer without one, on a path that the statement promises, is not
an answer that the host gave as it promised.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from quotary_verifier.errors import EvidenceError
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.claims import commit_claims
from quotary_verifier.recipe.commit import CommitFacts, judge_commit, open_commit
from quotary_verifier.recipe.given_logs import GivenLogs
from quotary_verifier.recipe.leaf import check_inclusion, check_range
from quotary_verifier.recipe.outcome import commit_notices, failed
from quotary_verifier.recipe.run import Run, Stopped
from quotary_verifier.recipe.steps import Step
from quotary_verifier.recipe.verdict import (
    Claim,
    ClaimSource,
    Outcome,
    Report,
    Verdict,
    in_order,
    make_verdict,
)
from quotary_verifier.tlog.merkle import leaf_hash
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.declaration import CODED, UNAVAILABLE, Declaration, Service
from quotary_verifier.wire.records import Statement, entry_of

_NO_OUTPUT: Final = "a statement speaks of no single output"
_ABSENT: Final = (Step.OUTPUT, Step.REQUEST, Step.NONCE, Step.MODEL, Step.FRESHNESS)
_TOKEN: Final = object()

NEWEST: Final = "a later statement may say something else; that this is the newest is not shown"


class VerifiedStatement:
    """A statement that its host made, authenticated. Only `verify_statement` can make one.

    `time` is the host's clock, in milliseconds, and `index` the statement's place in the log: of two statements of
    one origin the one with the higher index holds.
    """

    __slots__ = ("declaration", "index", "origin", "time", "verdict")

    def __init__(
        self, token: object, origin: str, index: int, record: Statement, told: Declaration, verdict: Verdict
    ) -> None:
        if token is not _TOKEN:
            raise TypeError("a verified statement is made by verification alone")
        self.origin = origin
        self.index = index
        self.time = record.time
        self.declaration = told
        self.verdict = verdict

    def promised(self, path: str) -> tuple[Service, ...]:
        """Return the services that attest every answer to a POST on `path`; none unless all of the host's do.

        `path` stands as in the request, without query. A host whose doors differ does not say which one answers where.
        """
        services = self.declaration.services
        return services if all(service.covers(path) for service in services) else ()

    def judge_unattested(self, path: str, *, coded: bool = False, unavailable: bool = False) -> None:
        """Hold an answer to a POST on `path`, which came after the statement and without an attestation, against it.

        `coded` says that it has a content coding, `unavailable` that it says of itself that it is not attested.
        Anybody on the way can write either, so they count only where the host made that exception.

        Raises:
            EvidenceError: the statement promises an attestation of this answer; it was taken off, or the host broke
                its word, or it has made a newer statement since.
        """
        services = self.promised(path)
        excuses = {CODED} if coded else set()
        if unavailable:
            excuses.add(UNAVAILABLE)
        if services and not any(excuses.intersection(service.unless) for service in services):
            raise EvidenceError(
                f"the host {self.origin} states that every answer of {path} is attested, and this one is not"
            )


def verify_statement(
    attestation: bytes, at: int, policy: Policy, logs: Mapping[bytes, bytes] = MappingProxyType({})
) -> VerifiedStatement:
    """Verify the attestation of a statement at a time in seconds since the epoch, and return what it says.

    `logs` are those of `Question`.

    Raises:
        Rejected: something is malformed, false, or lacks what the policy requires; `report` says what.
        NotChecked: nothing is false, but a required check could not be done.
        PolicyError: the policy has ended by then.
    """
    policy.require_current(at)
    run = Run()
    try:
        decoded = run.do(Step.DECODE, _decode, attestation)
        if decoded is None:
            raise failed(run, at, policy)
        parsed, record, declaration = decoded
        opened = open_commit(run, policy, parsed)
        if opened is None:
            raise failed(run, at, policy)
        checkpoint = opened.checkpoint
        leaf = leaf_hash(entry_of(parsed.record))
        run.do(Step.INCLUSION, check_inclusion, leaf, parsed.index, parsed.path, checkpoint)
        run.do(Step.QUOTE_RANGE, check_range, parsed.index, opened.first, checkpoint.size)
        facts = judge_commit(run, policy, parsed, opened, at, GivenLogs.of(logs)).facts
    except Stopped:
        raise failed(run, at, policy) from None
    if run.unchecked is not None or facts is None:
        raise failed(run, at, policy)
    for name, keys in (("attestation", parsed.not_understood), ("record", record.not_understood)):
        run.not_understood.extend(f"{name}: key {key}" for key in keys)
    for step in _ABSENT:
        run.skip(step, _NO_OUTPUT)
    verdict = make_verdict(lambda: _report(run, policy, facts, record, declaration, at))
    return VerifiedStatement(_TOKEN, facts.bound.host.origin, parsed.index, record, declaration, verdict)


def _decode(attestation: bytes) -> tuple[Attestation, Statement, Declaration]:
    parsed = Attestation.decode(attestation)
    record = Statement.decode(parsed.record)
    return parsed, record, Declaration.parse(record.text)


def _report(
    run: Run, policy: Policy, facts: CommitFacts, record: Statement, declaration: Declaration, at: int
) -> Report:
    return Report(
        outcome=Outcome.VERIFIED,
        checks=in_order(run.checks),
        at=at,
        policy=policy.digest.hex(),
        claims=(
            *commit_claims(facts),
            Claim("statement", declaration.text, ClaimSource.HOST),
            Claim("time_ms", record.time, ClaimSource.HOST),
        ),
        tolerances=tuple(run.tolerances),
        not_understood=tuple(run.not_understood),
        notices=(*run.notices, *commit_notices(facts), NEWEST),
    )
