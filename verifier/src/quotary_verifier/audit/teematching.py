# SPDX-License-Identifier: Apache-2.0
"""Whether the TEE lines of a commit and the supports beside its note fit each other; nothing of them is verified."""

from __future__ import annotations

from collections.abc import Mapping

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.tlog.hardware import TEE_IDENTIFIERS, HardwareLine, hardware_lines_by_id, tee_name
from quotary_verifier.tlog.note import Note
from quotary_verifier.wire.history import Commit, CommitTeeSupport


def tee_lines(
    commit: Commit, note: Note, origin: str, known: Mapping[bytes, str]
) -> tuple[tuple[HardwareLine, CommitTeeSupport], ...]:
    """Return the TEE lines of a commit with their supports; `known` are the key ids of all that the origin can have.

    Raises:
        MalformedError, EvidenceError: a line stands there twice, claims from another leaf than the commit, or has no
            support, or a support no line.
    """
    lines = hardware_lines_by_id(note, origin, known)
    supports = {support.identifier: support for support in commit.tees}
    if {line.identifier for line in lines} != {name for name in supports if name in TEE_IDENTIFIERS}:
        raise MalformedError(
            "there must be one support for each known hardware line of a commit, and no other"
        )
    for line in lines:
        if line.first != commit.first:
            raise EvidenceError(
                f"the commit says that it claims from leaf {commit.first}, its line of {tee_name(line.identifier)}"
                f" from {line.first}"
            )
    return tuple((line, supports[line.identifier]) for line in lines)
