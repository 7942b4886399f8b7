# SPDX-License-Identifier: Apache-2.0
"""Step `witness`: which witnesses cosigned the commit's note or a later checkpoint that holds the leaf."""

from __future__ import annotations

from quotary_verifier.errors import EvidenceError
from quotary_verifier.policy.model import Policy
from quotary_verifier.tlog.checkpoint import Checkpoint, parse_checkpoint
from quotary_verifier.tlog.cosignature import quorum_time, verify_cosignatures
from quotary_verifier.tlog.merkle import leaf_hash, verify_inclusion
from quotary_verifier.tlog.note import TYPE_ED25519, Note, key_id, parse_note, verify_ed25519
from quotary_verifier.wire.attestation import Attestation, LaterCheckpoint
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.records import Genesis, entry_of


@frozen
class Witnessed:
    """The earliest quorum's time in seconds, or None; and the names of the witnesses found on any note.

    `note_time` is that of a quorum on the commit's own note. Only it limits an age: whoever holds an old attestation
    can add a new checkpoint that holds its leaf, and leave out the older ones.
    """

    time: int | None
    note_time: int | None
    names: tuple[str, ...]


def verify_own_line(note: Note, origin: str, genesis: Genesis) -> bytes:
    """Verify the log's own Ed25519 line where the note has one, and return the key id that it has or would have.

    Raises:
        EvidenceError: it is false, stands there twice, or is missing where the origin has no AK.
        MalformedError: it has no signature's length.
    """
    own = key_id(origin, TYPE_ED25519, genesis.note_key)
    line = note.line(origin, own)
    if line is not None:
        verify_ed25519(note.text, line.payload, genesis.note_key)
    elif genesis.tpm is None:
        raise EvidenceError(
            "the genesis record names no AK, and a note lacks the Ed25519 line of its note key"
        )
    return own


def witnessed(
    policy: Policy,
    origin: str,
    genesis: Genesis,
    note: Note,
    checkpoint: Checkpoint,
    attestation: Attestation,
) -> Witnessed:
    """Verify the cosignatures on the commit's note and on each later checkpoint.

    Raises:
        EvidenceError: a cosignature of a known witness is false, a later checkpoint does not hold the leaf, or no
            note has the quorum that the policy requires.
        MalformedError: a note does not parse.
    """
    rule = policy.witnesses
    if not rule.keys and not rule.threshold and not attestation.later:
        return Witnessed(None, None, ())
    notes = [note]
    for later in attestation.later:
        notes.append(_later_note(origin, genesis, checkpoint, attestation, later))
    times: list[int] = []
    note_time = None
    names: set[str] = set()
    for candidate in notes:
        cosignatures = verify_cosignatures(candidate, rule.keys)
        names.update(cosignature.witness.name for cosignature in cosignatures)
        if rule.threshold and len({item.witness.key for item in cosignatures}) >= rule.threshold:
            times.append(quorum_time(cosignatures, rule.threshold))
            if candidate is note:
                note_time = times[0]
    if rule.threshold and not times:
        raise EvidenceError(
            f"no note has {rule.threshold} cosignatures of the policy's witnesses, found {len(names)} in all"
        )
    return Witnessed(min(times, default=None), note_time, tuple(sorted(names)))


def _later_note(
    origin: str, genesis: Genesis, checkpoint: Checkpoint, attestation: Attestation, later: LaterCheckpoint
) -> Note:
    note = parse_note(later.note)
    verify_own_line(note, origin, genesis)
    head = parse_checkpoint(note.text, origin=origin)
    if head.size < checkpoint.size:
        raise EvidenceError("a later checkpoint is of a smaller tree than the commit's")
    if head.size == checkpoint.size and head.root != checkpoint.root:
        raise EvidenceError(
            "a later checkpoint gives another root to a tree of the commit's size: the log is split"
        )
    leaf = leaf_hash(entry_of(attestation.record))
    verify_inclusion(leaf, attestation.index, head.size, later.path, head.root)
    return note
