# SPDX-License-Identifier: Apache-2.0
"""The recipe: verifies one output against its attestation and a policy (docs/spec/verification.md).

No input or output, no clock: the time is an argument. The result is a `Verdict` that only this module can make, or
an exception; there is no bool to misread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import field
from functools import partial

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.claims import output_claims
from quotary_verifier.recipe.commit import CommitFacts, judge_commit, open_commit
from quotary_verifier.recipe.given_logs import GivenLogs
from quotary_verifier.recipe.leaf import (
    ModelFinding,
    ModelSource,
    check_freshness,
    check_inclusion,
    check_model,
    check_range,
    check_state,
)
from quotary_verifier.recipe.outcome import commit_notices, failed
from quotary_verifier.recipe.outputs import HashedBody, Match, check_nonce, check_request, match_output
from quotary_verifier.recipe.run import NOT_ASKED, Run, Stopped
from quotary_verifier.recipe.steps import Step
from quotary_verifier.recipe.verdict import Outcome, Report, Verdict, in_order, make_verdict
from quotary_verifier.recipe.witness import Witnessed
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.records import Output
from quotary_verifier.wire.shared import SharedParts

NO_WITNESS = (
    "no witness cosigned: a host that keeps two histories across a reboot, or shows each reader another one, "
    "would not be caught here"
)


@frozen
class Question:
    """What a caller asks: is this output the one attested, and optionally for this request and nonce?

    `at` is the time of verification in whole seconds since the epoch. `exact` allows no tolerance in how the
    output's bytes are matched. A body that was hashed while it passed is given as a `HashedBody`.

    `logs` are boot logs by their SHA-256, for an attestation that names them so; one with another digest than it is
    given under is not the one that was asked for. Who verifies outputs of many commits of one boot gives the same
    `GivenLogs` with each question, so that no log is replayed twice.
    """

    output: bytes | HashedBody
    at: int
    request: bytes | None = None
    nonce: bytes | None = None
    exact: bool = False
    logs: Mapping[bytes, bytes] = field(default_factory=dict)


def verify(attestation: bytes, question: Question, policy: Policy) -> Verdict:
    """Verify one output in full.

    Raises:
        Rejected: something is malformed, false, or lacks what the policy requires; `report` says what.
        NotChecked: nothing is false, but a required check could not be done.
        PolicyError: the policy has ended by then.
    """
    return _verify(attestation, question, policy, GivenLogs.of(question.logs))[0]


def verify_in(attestation: bytes, question: Question, policy: Policy) -> tuple[Verdict, VerifiedCommit]:
    """Like `verify`; also return the verified commit, which verifies further outputs of it at a fraction of the cost.

    Raises:
        Rejected: as `verify`.
        NotChecked: as `verify`.
        PolicyError: as `verify`.
    """
    logs = GivenLogs.of(question.logs)
    verdict, parsed, commit, run = _verify(attestation, question, policy, logs)
    return verdict, VerifiedCommit(policy, question.at, logs, parsed, commit, run)


def _verify(
    attestation: bytes, question: Question, policy: Policy, logs: GivenLogs
) -> tuple[Verdict, Attestation, CommitFacts, Run]:
    policy.require_current(question.at)
    run = Run()
    try:
        decoded = run.do(Step.DECODE, _decode, attestation)
        if decoded is None:
            raise failed(run, question.at, policy)
        parsed, record = decoded
        _not_understood(run, parsed, record)
        match = _output_steps(run, question, policy, parsed, record)
        opened = open_commit(run, policy, parsed)
        if opened is None:
            raise failed(run, question.at, policy)
        _place_steps(run, parsed, opened.checkpoint, opened.first)
        judged = judge_commit(run, policy, parsed, opened, question.at, logs)
        model = _leaf_steps(run, question, policy, record, judged.models, judged.witnessed)
    except Stopped:
        raise failed(run, question.at, policy) from None
    commit = judged.facts
    if run.unchecked is not None or match is None or commit is None:
        raise failed(run, question.at, policy)
    verdict = make_verdict(lambda: _report(run, question, policy, record, match, model, commit))
    return verdict, parsed, commit, run


def _decode(attestation: bytes) -> tuple[Attestation, Output]:
    parsed = Attestation.decode(attestation)
    return parsed, Output.decode(parsed.record)


def _not_understood(run: Run, parsed: Attestation, record: Output) -> None:
    for key in parsed.not_understood:
        run.not_understood.append(f"attestation: key {key}")
    for key in record.not_understood:
        run.not_understood.append(f"record: key {key}")


def _output_steps(
    run: Run, question: Question, policy: Policy, parsed: Attestation, record: Output
) -> Match | None:
    match = run.do(Step.OUTPUT, _match, question, policy, record)
    if match is not None and match.tolerance:
        run.tolerances.append(match.tolerance)
    if question.request is None:
        run.skip(Step.REQUEST, NOT_ASKED)
    else:
        run.do(Step.REQUEST, check_request, record, parsed.request_key, question.request)
    if _nonces(question, policy):
        run.do(Step.NONCE, _check_nonces, question, policy, record)
    else:
        run.skip(Step.NONCE, NOT_ASKED)
    return match


def _nonces(question: Question, policy: Policy) -> tuple[bytes, ...]:
    """Return the nonces that the record must carry: the caller's, and the one that the policy names."""
    return tuple([nonce for nonce in (question.nonce, policy.freshness.expected_nonce) if nonce is not None])


def _check_nonces(question: Question, policy: Policy, record: Output) -> None:
    for nonce in _nonces(question, policy):
        check_nonce(record, nonce)


def _match(question: Question, policy: Policy, record: Output) -> Match:
    match = match_output(record.digests, question.output, question.exact)
    check_state(policy, record)
    return match


def _place_steps(run: Run, parsed: Attestation, checkpoint: Checkpoint, first: int) -> None:
    run.do(Step.INCLUSION, check_inclusion, _leaf(parsed.record), parsed.index, parsed.path, checkpoint)
    run.do(Step.QUOTE_RANGE, check_range, parsed.index, first, checkpoint.size)


def _leaf_steps(
    run: Run,
    question: Question,
    policy: Policy,
    record: Output,
    models: ModelSource | None,
    seen: Witnessed | None,
) -> ModelFinding | None:
    """Do the steps on what the record says; where what they need is missing, another step could not be done."""
    model = None if models is None else run.do(Step.MODEL, check_model, policy, record, models)
    given = bool(_nonces(question, policy))
    if not (given or policy.freshness.nonce or policy.freshness.max_age):
        run.skip(Step.FRESHNESS, "the policy demands nothing, and no nonce was given")
    elif seen is not None:
        run.do(Step.FRESHNESS, check_freshness, policy, record, seen, question.at, given)
    return model


def _leaf(record: bytes) -> bytes:
    return hashlib.sha256(b"\0" + hashlib.sha256(record).digest()).digest()


def _report(
    run: Run,
    question: Question,
    policy: Policy,
    record: Output,
    match: Match,
    model: ModelFinding | None,
    commit: CommitFacts,
) -> Report:
    notices = list(run.notices)
    if not commit.witnessed.names:
        notices.append(NO_WITNESS)
    notices += commit_notices(commit)
    return Report(
        outcome=Outcome.VERIFIED,
        checks=in_order(run.checks),
        at=question.at,
        policy=policy.digest.hex(),
        claims=output_claims(record, match, model, commit),
        tolerances=tuple(run.tolerances),
        not_understood=tuple(run.not_understood),
        notices=tuple(notices),
    )


_LEAF_STEPS = frozenset(
    {
        Step.DECODE,
        Step.OUTPUT,
        Step.REQUEST,
        Step.NONCE,
        Step.INCLUSION,
        Step.QUOTE_RANGE,
        Step.MODEL,
        Step.FRESHNESS,
    }
)


class VerifiedCommit:
    """A commit that one attestation's verification established, under one policy and at one time.

    It verifies further outputs whose attestations carry the very same genesis record, note, supports and boot logs,
    byte for byte, with the same logs beside them, without doing the commit's signatures and replays again. Anything
    that differs is verified in full, and so is everything where the first attestation carried later checkpoints.
    """

    __slots__ = (
        "_alone",
        "_at",
        "_commit",
        "_logs",
        "_models",
        "_notices",
        "_outcomes",
        "_policy",
        "_shared",
        "_unknown",
    )

    def __init__(
        self, policy: Policy, at: int, logs: GivenLogs, parsed: Attestation, commit: CommitFacts, run: Run
    ) -> None:
        self._policy = policy
        self._at = at
        self._logs = logs
        # What a later checkpoint shows holds for the one leaf whose path came with it.
        self._alone = bool(parsed.later)
        self._commit = commit
        self._models = commit.bound.models
        self._shared = SharedParts(parsed)
        self._outcomes = [outcome for outcome in run.outcomes if outcome[0] not in _LEAF_STEPS]
        self._notices = list(run.notices)
        self._unknown = [
            text for text in run.not_understood if text.startswith(("genesis", "note", "boot log"))
        ]

    def verify(self, attestation: bytes, question: Question) -> Verdict:
        """Verify an output of this commit as `quotary_verifier.verify` would.

        Raises:
            Rejected: as `verify`.
            NotChecked: as `verify`.
        """
        policy, commit = self._policy, self._commit
        parsed = self._shared.read(attestation)
        same = question.at == self._at and self._logs.are(question.logs)
        if parsed is None or self._alone or not same:
            return self._in_full(attestation, question)
        try:
            record = Output.decode(parsed.record)
            match = _match(question, policy, record)
            if question.request is not None:
                check_request(record, parsed.request_key, question.request)
            nonces = _nonces(question, policy)
            for nonce in nonces:
                check_nonce(record, nonce)
            check_inclusion(_leaf(parsed.record), parsed.index, parsed.path, commit.checkpoint)
            check_range(parsed.index, commit.first, commit.checkpoint.size)
            model = check_model(policy, record, self._models)
            check_freshness(policy, record, commit.witnessed, question.at, bool(nonces))
        except (MalformedError, EvidenceError, UnsupportedError):
            return self._in_full(attestation, question)
        return make_verdict(partial(self._report, question, parsed, record, match, model))

    def _in_full(self, attestation: bytes, question: Question) -> Verdict:
        """Verify without what is known of the commit but what its logs replayed to, if they come along again."""
        logs = self._logs if self._logs.are(question.logs) else GivenLogs.of(question.logs)
        return _verify(attestation, question, self._policy, logs)[0]

    def _report(
        self,
        question: Question,
        parsed: Attestation,
        record: Output,
        match: Match,
        model: ModelFinding | None,
    ) -> Report:
        run = Run()
        run.outcomes = list(self._outcomes)
        run.notices = list(self._notices)
        run.not_understood = list(self._unknown)
        _not_understood(run, parsed, record)
        run.passed(Step.DECODE)
        _output_steps(run, question, self._policy, parsed, record)
        commit = self._commit
        run.tolerances += commit.tolerances
        _place_steps(run, parsed, commit.checkpoint, commit.first)
        _leaf_steps(run, question, self._policy, record, self._models, commit.witnessed)
        return _report(run, question, self._policy, record, match, model, self._commit)
