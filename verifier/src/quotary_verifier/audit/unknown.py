# SPDX-License-Identifier: Apache-2.0
"""What an audit cannot show, said in every report."""

from __future__ import annotations

from collections.abc import Iterator

from quotary_verifier.audit.state import AuditState
from quotary_verifier.policy.model import Policy


def unknowable(state: AuditState, policy: Policy, at: int, *, searched: bool, begun: int) -> tuple[str, ...]:
    """Return in words what this audit leaves open, and why; `begun` is the size at which it went on."""
    return (*_unknowable(state, policy), *_of_this_audit(state, at, searched=searched, begun=begun))


def _unknowable(state: AuditState, policy: Policy) -> Iterator[str]:
    last = state.witnesses.last_quorum
    reached = -1 if last is None else last.commit
    if reached + 1 < state.history.position.commits:
        since = "" if last is None else f" after commit {reached}"
        yield (
            f"whether the host kept a second history of this origin{since}: within a boot the chain PCR excludes"
            " it, and across boots only witnesses show it, or an attestation of the lost part"
        )
    yield "what the host did between two quotes: they show registers at that moment, which only a reboot sets back"
    yield "whether every answer was recorded: the log has what went through the agent, and nothing else"
    yield "what the records say, but for those that were given: the log has their hashes alone"
    yield "the time of anything but by witnesses: records state the host's clock, and a TPM counts its own milliseconds"
    if not policy.pins_the_writer:
        yield "which programs wrote the workload log: the policy does not say what booted and ran"


def _of_this_audit(state: AuditState, at: int, *, searched: bool, begun: int) -> Iterator[str]:
    if not searched:
        yield "statements elsewhere than right after a start: this source cannot list what it has"
    if begun:
        yield f"whether leaves below {begun} are still served, or have given records: an earlier audit read them"
    if begun and state.at != at:
        yield f"what this time says of boots that had ended in an earlier audit: it judged them as of {state.at}"
