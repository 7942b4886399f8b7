# SPDX-License-Identifier: Apache-2.0
"""Ed25519 cosignatures (C2SP tlog-cosignature, "cosignature/v1", signature type 0x04) and their quorums.

A cosignature is a witness's statement that, at its time, the checkpoint was the largest consistent head it
had seen of the log. The payload of its line is `u64 time ‖ 64-byte signature`, time in seconds since the
epoch. One cosignature says what one witness saw; only a quorum that a policy chose speaks against two
histories, and it gives the time at which certificates are judged (design section 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from nacl.signing import SigningKey

from quotary_verifier.errors import EvidenceError, MalformedError, PolicyError
from quotary_verifier.tlog.note import (
    TYPE_COSIGNATURE,
    Note,
    SignatureLine,
    VerifierKey,
    key_id,
    verify_ed25519,
)
from quotary_verifier.wire.frozen import frozen

MAX_TIME: Final = 2**63 - 1
"""The largest timestamp, in seconds (tlog-cosignature, "Format")."""

_TIME_SIZE: Final = 8
_PAYLOAD_SIZE: Final = _TIME_SIZE + 64


@frozen
class Cosignature:
    """A cosignature that verified: whose it is, and its time in seconds since the epoch."""

    witness: VerifierKey
    time: int


def cosigned_message(text: bytes, time: int) -> bytes:
    """Return the bytes that a witness signs: header line, time line, the whole note text."""
    return b"cosignature/v1\ntime %d\n%b" % (time, text)


def cosign(text: bytes, name: str, key: SigningKey, time: int) -> SignatureLine:
    """Return the cosignature line of witness `name` for a note text, at `time` seconds since the epoch.

    Raises MalformedError for a bad name or a time that no cosignature can have.
    """
    _check_time(time)
    signature = key.sign(cosigned_message(text, time)).signature
    payload = time.to_bytes(_TIME_SIZE, "big") + signature
    return SignatureLine(name, key_id(name, TYPE_COSIGNATURE, bytes(key.verify_key)), payload)


def verify_cosignature(text: bytes, line: SignatureLine, witness: VerifierKey) -> Cosignature:
    """Verify the line of a note with this text that name and key id ascribe to `witness`.

    Raises MalformedError where the payload has another form, EvidenceError where the line is not the
    witness's or does not verify, PolicyError where the witness's key is none for cosignatures.
    """
    _check_witness(witness)
    if line.name != witness.name or line.key_id != witness.key_id:
        raise EvidenceError(f"the line is not one of the witness {witness.name}")
    if len(line.payload) != _PAYLOAD_SIZE:
        raise MalformedError(f"a cosignature has 72 bytes, that of {witness.name} has {len(line.payload)}")
    time = int.from_bytes(line.payload[:_TIME_SIZE], "big")
    _check_time(time)
    try:
        verify_ed25519(cosigned_message(text, time), line.payload[_TIME_SIZE:], witness.key)
    except EvidenceError as error:
        raise EvidenceError(f"the cosignature of {witness.name} does not verify") from error
    return Cosignature(witness, time)


def verify_cosignatures(note: Note, witnesses: Sequence[VerifierKey]) -> tuple[Cosignature, ...]:
    """Verify every line of the note that one of the `witnesses` made; none at all is no error.

    Lines of unknown witnesses are ignored. Raises EvidenceError where a witness has two lines or a false
    one, else as `verify_cosignature`.
    """
    found = []
    for witness in dict.fromkeys(witnesses):
        _check_witness(witness)
        line = note.line(witness.name, witness.key_id)
        if line is not None:
            found.append(verify_cosignature(note.text, line, witness))
    return tuple(found)


def quorum_time(cosignatures: Iterable[Cosignature], threshold: int) -> int:
    """Return the least time t at which the cosignatures of time <= t come from `threshold` witnesses.

    The cosignatures are those of one note by the witnesses that the policy names. A witness is its key:
    one key under two names counts once, at its earlier time. Raises EvidenceError where there are too few
    witnesses, PolicyError for a threshold below one.
    """
    if threshold < 1:
        raise PolicyError("a quorum needs at least one witness")
    earliest: dict[bytes, int] = {}
    for cosignature in cosignatures:
        key = cosignature.witness.key
        earliest[key] = min(cosignature.time, earliest.get(key, cosignature.time))
    if len(earliest) < threshold:
        raise EvidenceError(f"{len(earliest)} witnesses cosigned the note, the policy requires {threshold}")
    return sorted(earliest.values())[threshold - 1]


def _check_witness(witness: VerifierKey) -> None:
    """Raise PolicyError where a log's key stands in for a witness's: the two sign different statements."""
    if witness.signature_type != TYPE_COSIGNATURE:
        raise PolicyError(f"the key of {witness.name} is of a log, not of a witness (type 0x04)")


def _check_time(time: int) -> None:
    """Raise MalformedError unless a cosignature can have this time; 0 would state none (tlog-witness)."""
    if not 0 < time <= MAX_TIME:
        raise MalformedError("the time of a cosignature is positive and at most 2^63-1 seconds")
