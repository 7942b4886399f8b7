# SPDX-License-Identifier: Apache-2.0
"""TEE lines in a history: they are matched with their supports and counted. What they say is not verified, and the
report says so: a certificate has to be judged at the time of its commit, which only witnesses show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.policy.model import Policy
from quotary_verifier.tlog.hardware import TEE_IDENTIFIERS, hardware_lines_by_id, tee_name
from quotary_verifier.tlog.note import Note
from quotary_verifier.wire.history import Commit


def tee_lines(commit: Commit, note: Note, origin: str, known: Mapping[bytes, str]) -> tuple[str, ...]:
    """Return the names of the kinds that have a line; `known` are the key ids of all TEE lines of the origin.

    Raises:
        MalformedError, EvidenceError: a line stands there twice, claims from another leaf than the commit, or has no
            support, or a support no line.
    """
    lines = hardware_lines_by_id(note, origin, known)
    supported = {support.identifier for support in commit.tees if support.identifier in TEE_IDENTIFIERS}
    if {line.identifier for line in lines} != supported:
        raise MalformedError(
            "there must be one support for each known hardware line of a commit, and no other"
        )
    for line in lines:
        if line.first != commit.first:
            raise EvidenceError(
                f"the commit says that it claims from leaf {commit.first}, its line of {tee_name(line.identifier)}"
                f" from {line.first}"
            )
    return tuple(sorted(tee_name(line.identifier) for line in lines))


def tee_findings(counts: Mapping[str, int], policy: Policy, commits: int) -> Iterator[Finding]:
    """Say which evidence of TEEs the history has and this audit did not verify, and which the policy requires."""
    required = frozenset() if policy.tee is None else policy.tee.required
    for name in sorted(required):
        message = (
            f"the policy requires evidence of {name}, which {counts.get(name, 0)} of {commits} commits have, and no "
            "audit verifies it: verify attestations of these commits"
        )
        yield Finding(Code.TEE, Severity.COULD_NOT, Place(), message)
    for name in sorted(counts.keys() - required):
        message = f"{counts[name]} of {commits} commits have evidence of {name}, which no audit verifies"
        yield Finding(Code.TEE, Severity.NOTICE, Place(), message)
