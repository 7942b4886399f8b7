# SPDX-License-Identifier: Apache-2.0
"""The steps that judge one leaf against a commit: inclusion, range, model, freshness."""

from __future__ import annotations

from typing import Protocol

from quotary_verifier.errors import EvidenceError
from quotary_verifier.logs.workload import TYPE_MODEL, LoggedEvent, WorkloadLog
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.verdict import ClaimSource
from quotary_verifier.recipe.witness import Witnessed
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.merkle import verify_inclusion
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.records import Link, ModelClaim, Output

_CLOCK_SKEW = 300
"""Seconds by which a host's clock may run ahead of the verifier's time."""


@frozen
class ModelFinding:
    """A model claim that holds, and how far it can be relied on."""

    claim: ModelClaim
    source: ClaimSource
    opaque: bool


class ModelSource(Protocol):
    """What a commit shows of the models that its host serves."""

    def find(self, policy: Policy, claim: ModelClaim, /) -> ModelFinding:
        """Return how far a record's claim can be relied on. EvidenceError where what is shown says otherwise."""


@frozen
class LoggedModels:
    """The models of a workload log that replays to a quoted PCR."""

    log: WorkloadLog

    def find(self, policy: Policy, claim: ModelClaim) -> ModelFinding:
        """Hold the claim against the event that it cites, which must be of the epoch in force.

        Raises:
            EvidenceError: it is not, or says something else.
        """
        if claim.event is None:
            raise EvidenceError("the record cites no event of the workload log, and the origin has a TPM")
        logged = self.log.find(claim.event)
        if logged is None:
            raise EvidenceError(f"event {claim.event} of the workload log is not of the epoch in force")
        if logged.digest != claim.event_digest:
            raise EvidenceError(
                f"event {claim.event} of the workload log has another digest than the record cites"
            )
        if logged.event is None:
            return ModelFinding(claim, ClaimSource.HOST, opaque=True)
        _fits(claim, logged)
        # A log that replays shows what its writer wrote; only pinned platform state says who the writer was.
        measured = policy.pins_the_writer and claim.link is not Link.CONFIGURED
        return ModelFinding(claim, ClaimSource.MEASURED if measured else ClaimSource.HOST, opaque=False)


@frozen
class ImageModels:
    """The weights that the measured images of an origin without a TPM serve, by the policy; none if it names none."""

    weights: frozenset[bytes]

    def find(self, _: Policy, claim: ModelClaim) -> ModelFinding:
        """Hold the claim against what the images serve.

        Raises:
            EvidenceError: they serve other weights, or the claim cites a log that the origin cannot have.
        """
        if claim.event is not None:
            raise EvidenceError(
                "the record cites an event of a workload log, and the origin has no TPM to hold one"
            )
        if self.weights and claim.weights not in self.weights:
            raise EvidenceError(
                f"the image that was launched does not serve the weights {claim.weights.hex()}"
            )
        # A configured engine may stand outside of the guest, whatever the image serves itself.
        measured = bool(self.weights) and claim.link is not Link.CONFIGURED
        return ModelFinding(claim, ClaimSource.MEASURED if measured else ClaimSource.HOST, opaque=False)


def check_inclusion(leaf: bytes, index: int, path: bytes, checkpoint: Checkpoint) -> None:
    """Check that the leaf is in the commit's tree; raises EvidenceError or MalformedError."""
    verify_inclusion(leaf, index, checkpoint.size, path, checkpoint.root)


def check_range(index: int, first: int, size: int) -> None:
    """Check that the quoted commit added the leaf: the quote speaks for no other (design section 2).

    Raises:
        EvidenceError: the leaf is history of the log, not evidence of this commit.
    """
    if not first:
        raise EvidenceError(
            "not-in-commit: leaf 0 is the genesis record, for which no commit claims a platform"
        )
    if not first <= index < size:
        raise EvidenceError(
            f"not-in-commit: leaf {index} is not among {first} to {size - 1}, for which this quote speaks"
        )


def check_model(policy: Policy, record: Output, models: ModelSource) -> ModelFinding | None:
    """Check the model that the record claims against what the commit shows and the policy.

    Raises:
        EvidenceError: something else is shown, or the policy does not allow this model.
    """
    claim = record.model
    finding = None if claim is None else models.find(policy, claim)
    if not policy.models:
        return finding
    if claim is None or finding is None:
        raise EvidenceError("the policy names models, and the record claims none")
    for allowed in policy.models:
        if (
            allowed.name in (None, claim.name)
            and allowed.weights in (None, claim.weights)
            and claim.link >= allowed.link
        ):
            break
    else:
        raise EvidenceError(
            f"the policy allows no model {claim.name!r} with weights {claim.weights.hex()}"
            f" and link {claim.link.name.lower()}"
        )
    if finding.opaque and any(allowed.weights for allowed in policy.models):
        raise EvidenceError("the event that measured the model is opaque, so its weights are not shown")
    return finding


def _fits(claim: ModelClaim, logged: LoggedEvent) -> None:
    event = logged.event
    assert event is not None
    if event.type != TYPE_MODEL:
        raise EvidenceError(f"event {logged.number} of the workload log measured no model")
    if event.name != claim.name or event.digest != claim.weights:
        raise EvidenceError(
            f"event {logged.number} of the workload log measured another model or other weights"
        )


def check_state(policy: Policy, record: Output) -> None:
    """Check that the output ended in a way that the policy accepts.

    Raises:
        EvidenceError: it did not.
    """
    if record.state not in policy.states:
        state = record.state.name.lower().replace("_", "-")
        raise EvidenceError(f"the output ended as {state}, which the policy does not accept")


def check_freshness(policy: Policy, record: Output, seen: Witnessed, at: int, nonce_given: bool) -> str:
    """Check what the policy demands of freshness; return in words what showed it.

    Raises:
        EvidenceError: it is not shown, or the output is too old.
    """
    rule = policy.freshness
    if rule.nonce and not nonce_given:
        raise EvidenceError("the policy demands a nonce of the caller's, and none was given")
    shown = "the caller's nonce" if nonce_given else ""
    if rule.max_age is None:
        return shown or "nothing shows when the output was made"
    time = seen.note_time
    if time is None and rule.trust_host_clock:
        time = record.time // 1000
    if time is None:
        raise EvidenceError(
            "the policy limits the age, and no witness quorum on the commit's own note shows a time"
        )
    if time > at + _CLOCK_SKEW:
        raise EvidenceError(f"its time lies {time - at} s after the time of verification")
    if at - time > rule.max_age:
        raise EvidenceError(f"it is {at - time} s old, the policy allows {rule.max_age} s")
    return shown or ("a witness quorum" if seen.note_time is not None else "the host's clock")
