# SPDX-License-Identifier: Apache-2.0
"""What an audit cannot show, said in every report."""

from __future__ import annotations

from collections.abc import Iterator

from quotary_verifier.audit.state import AuditState
from quotary_verifier.policy.model import Policy


def unknowable(state: AuditState, policy: Policy, *, searched: bool, begun: int) -> tuple[str, ...]:
    """Return in words what this audit leaves open, and why."""
    return tuple(_unknowable(state, policy, searched, begun))


def _unknowable(state: AuditState, policy: Policy, searched: bool, begun: int) -> Iterator[str]:
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
    if not searched:
        yield "statements elsewhere than right after a start: this source cannot list what it has"
    if begun:
        yield f"whether leaves below {begun} are still served: an earlier audit read them"
