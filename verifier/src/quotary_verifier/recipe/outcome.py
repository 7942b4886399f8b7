# SPDX-License-Identifier: Apache-2.0
"""How a verification that did not succeed is reported, and what a good verdict has to say besides its claims."""

from __future__ import annotations

from quotary_verifier.errors import NotChecked, Rejected
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.commit import AkFacts, CommitFacts
from quotary_verifier.recipe.platform import PlatformFacts
from quotary_verifier.recipe.run import Run
from quotary_verifier.recipe.verdict import Outcome, Report, in_order


def failed(run: Run, at: int, policy: Policy) -> Rejected | NotChecked:
    """Return the error for a run that found something false, or could not do a required step."""
    rejected = run.failing is not None
    failing = run.failing or run.unchecked
    report = Report(
        outcome=Outcome.REJECTED if rejected else Outcome.COULD_NOT_CHECK,
        checks=in_order(run.checks),
        at=at,
        policy=policy.digest.hex(),
        failing=failing,
        reason=run.reason,
        not_understood=tuple(run.not_understood),
    )
    kind = Rejected if rejected else NotChecked
    return kind(f"{failing}: {run.reason}", report)


def commit_notices(commit: CommitFacts) -> tuple[str, ...]:
    """Return what a reader has to know about how the host of a commit is vouched for, besides the run's notices."""
    return host_notices(commit.bound.platform) if isinstance(commit.bound, AkFacts) else ()


def host_notices(platform: PlatformFacts) -> tuple[str, ...]:
    """Return what a reader has to know about how the host is vouched for."""
    notices = []
    endorsement = platform.endorsement
    if endorsement.certificate is not None and not endorsement.binds_origin:
        notices.append("the certificate endorses the host and its key, but does not name this log")
    if endorsement.problem:
        notices.append(f"the origin is pinned, and its certificate does not hold: {endorsement.problem}")
    if not platform.key.profile.own:
        notices.append("AK without auth: any process with the TPM can quote")
    return tuple(notices)
