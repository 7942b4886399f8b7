# SPDX-License-Identifier: Apache-2.0
"""Altering any byte of an attestation gives a rejection, or leaves it valid for a reason that is documented here.

The one reason: a signature line whose name or key id changed is a line of an unknown key. C2SP signed-note demands
that verifiers ignore those; the verdict lists them. For the Ed25519 line that changes nothing a consumer relies on,
because the hardware line binds the note's text; the hardware line itself cannot be missed.
"""

from __future__ import annotations

import pytest
from forge import NOW, Forge

from quotary_verifier import NotChecked, Outcome, Question, Rejected, Report, load_policy, verify
from quotary_verifier.policy.model import Policy

FORGE = Forge(leaves=300, index=257, first=256)
ATTESTATION = FORGE.attestation()
DATA = ATTESTATION.encode()
POLICY: Policy = load_policy(FORGE.policy().encode())
QUESTION = Question(FORGE.body, at=NOW, request=FORGE.request, nonce=FORGE.nonce)


def judge(data: bytes) -> Report:
    try:
        return verify(data, QUESTION, POLICY).report
    except (Rejected, NotChecked) as error:
        return error.report


def ed25519_line() -> range:
    """The bytes of the attestation that hold the name and key id of the Ed25519 line."""
    start = (
        DATA.index(ATTESTATION.note)
        + ATTESTATION.note.index("\n\n\u2014 ".encode())
        + len("\n\n\u2014 ".encode())
    )
    # name, a space, and the base64 of four bytes of key id: the sixth character still holds two bits of it
    return range(start, start + len(FORGE.origin) + 1 + 6)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_every_altered_byte_is_rejected_or_makes_an_unknown_line(flip: int) -> None:
    unknown = ed25519_line()
    survived = []
    for position in range(len(DATA)):
        altered = DATA[:position] + bytes((DATA[position] ^ flip,)) + DATA[position + 1 :]
        report = judge(altered)
        if report.outcome is Outcome.VERIFIED:
            survived.append(position)
            assert position in unknown, (
                f"{DATA[position - 9 : position + 9]!r} byte {position} may be altered without a reason"
            )
            assert any(text.startswith("note: a line of") for text in report.not_understood)
    assert len(survived) <= len(unknown)


def test_every_truncation_is_rejected() -> None:
    for length in range(len(DATA)):
        assert judge(DATA[:length]).outcome is Outcome.REJECTED


def test_every_byte_put_in_is_rejected() -> None:
    unknown = ed25519_line()
    for position in range(0, len(DATA) + 1, 3):
        report = judge(DATA[:position] + b"\x00" + DATA[position:])
        assert report.outcome is not Outcome.VERIFIED or position in unknown


def test_an_ecdsa_signature_is_malleable_and_so_identifies_nothing() -> None:
    """(r, n-s) verifies as well as (r, s): caches and identities use D and leaf hashes, never file hashes."""
    from dataclasses import replace

    from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE
    from quotary_verifier.tlog.note import parse_note
    from quotary_verifier.wire.tpm import unpack_evidence

    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    note = parse_note(ATTESTATION.note)
    line = note.lines[1]
    _, signature = unpack_evidence(line.payload[8:])
    s = int.from_bytes(signature[-32:])
    other = replace(line, payload=line.payload[:-32] + (order - s).to_bytes(32))
    twin = replace(ATTESTATION, note=replace(note, lines=(note.lines[0], other)).encode())
    assert ATTESTATION.supports[0].identifier == IDENTIFIER_TPM2_QUOTE
    first, second = judge(DATA), judge(twin.encode())
    assert first.outcome is second.outcome is Outcome.VERIFIED
    assert first.claims == second.claims
