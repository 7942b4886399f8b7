# SPDX-License-Identifier: Apache-2.0
"""What an audit cannot show, said in every report."""

from __future__ import annotations

from collections.abc import Iterator

from quotary_verifier.audit.state import AuditState
from quotary_verifier.policy.model import Policy


def unknowable(
    state: AuditState, policy: Policy, at: int, *, searched: bool, begun: int, alone: bool
) -> tuple[str, ...]:
    """Return in words what this audit leaves open, and why.

    `begun` is the size at which it went on; `alone` tells whether the origin has no TPM.
    """
    of_this = _of_this_audit(state, at, searched=searched, begun=begun)
    return (*_histories(state, alone=alone), *_unknowable(policy, alone=alone), *of_this)


def _histories(state: AuditState, *, alone: bool) -> Iterator[str]:
    """Yield what nobody but witnesses could tell of other histories."""
    last = state.witnesses.last_quorum
    reached = -1 if last is None else last.commit
    if reached + 1 >= state.history.position.commits:
        return
    since = "" if last is None else f" after commit {reached}"
    if not alone:
        yield (
            f"whether the host kept a second history of this origin{since}: within a boot the chain PCR excludes"
            " it, and across boots only witnesses show it, or an attestation of the lost part"
        )
        return
    yield (
        f"whether the host kept a second history of this origin{since}: without a TPM no chain excludes it, not even"
        " within a boot; only witnesses show it, or an attestation of the other history"
    )
    yield (
        f"whether the host's disk was set back to an earlier state{since}, and what was committed since was lost: no"
        " counter numbers the starts, and only witnesses speak against it"
    )


def _unknowable(policy: Policy, *, alone: bool) -> Iterator[str]:
    if alone:
        yield "how starts and boots follow each other in time: no count orders them, only their places in this log"
        yield "what the guest did between two lines: they show how it was launched, and no register of what ran since"
    else:
        yield "what the host did between two quotes: they show registers at that moment, which only a reboot sets back"
    yield "whether every answer was recorded: the log has what went through the agent, and nothing else"
    yield "what the records say, but for those that were given: the log has their hashes alone"
    yield "the time of anything but by witnesses: records state the host's clock, and a TPM counts its own milliseconds"
    if not alone and not policy.pins_the_writer:
        yield "which programs wrote the workload log: the policy does not say what booted and ran"


def _of_this_audit(state: AuditState, at: int, *, searched: bool, begun: int) -> Iterator[str]:
    if not searched:
        yield "statements elsewhere than right after a start: this source cannot list what it has"
    if begun:
        yield f"whether leaves below {begun} are still served, or have given records: an earlier audit read them"
    if begun and state.at != at:
        yield (
            "what this time says of boots that had ended in an earlier audit, and of TEE lines that it judged for good:"
            f" it judged them as of {state.at}"
        )
