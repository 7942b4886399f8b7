# SPDX-License-Identifier: Apache-2.0
"""Cosignatures and the time of a quorum (verifier rule 63, design section 5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from quotary_verifier.errors import EvidenceError, MalformedError, PolicyError
from quotary_verifier.tlog import cosignature as cosignatures
from quotary_verifier.tlog.cosignature import Cosignature
from quotary_verifier.tlog.note import (
    TYPE_COSIGNATURE,
    TYPE_ED25519,
    Note,
    SignatureLine,
    VerifierKey,
    parse_note,
    sign_ed25519,
)

TEXT = b"log.example\n5\ncm9vdA==\n"
KEYS = [SigningKey(bytes([number]) * 32) for number in range(5)]
WITNESSES = [
    VerifierKey(f"witness{number}.example", TYPE_COSIGNATURE, bytes(key.verify_key))
    for number, key in enumerate(KEYS)
]
TIME = 1_700_000_000


def line(number: int, time: int = TIME, text: bytes = TEXT) -> SignatureLine:
    """The cosignature of one of the five witnesses."""
    return cosignatures.cosign(text, WITNESSES[number].name, KEYS[number], time)


def cosigned(number: int, time: int) -> Cosignature:
    """A cosignature that counts as verified."""
    return Cosignature(WITNESSES[number], time)


def test_the_signed_message_is_header_time_and_note_text() -> None:
    assert cosignatures.cosigned_message(TEXT, TIME) == b"cosignature/v1\ntime 1700000000\n" + TEXT
    made = line(0)
    KEYS[0].verify_key.verify(b"cosignature/v1\ntime 1700000000\n" + TEXT, made.payload[8:])
    assert made.payload[:8] == TIME.to_bytes(8, "big")
    assert made.key_id == WITNESSES[0].key_id


@given(st.integers(1, 2**63 - 1))
def test_a_cosignature_verifies_with_its_time(time: int) -> None:
    note = parse_note(Note(TEXT, (line(0, time),)).encode())
    assert cosignatures.verify_cosignatures(note, WITNESSES) == (cosigned(0, time),)


def test_no_bit_of_time_or_signature_can_change() -> None:
    good = line(0)
    for bit in range(72 * 8):
        payload = (int.from_bytes(good.payload, "big") ^ 1 << bit).to_bytes(72, "big")
        with pytest.raises((EvidenceError, MalformedError)):
            cosignatures.verify_cosignature(
                TEXT, SignatureLine(good.name, good.key_id, payload), WITNESSES[0]
            )


def test_a_cosignature_of_another_text_is_false() -> None:
    with pytest.raises(EvidenceError, match=r"witness0\.example does not verify"):
        cosignatures.verify_cosignatures(Note(TEXT, (line(0, text=b"other\n"),)), WITNESSES)


@pytest.mark.parametrize("time", [0, -1, 2**63])
def test_a_time_is_positive_and_fits_63_bits(time: int) -> None:
    with pytest.raises(MalformedError, match="the time of a cosignature"):
        line(0, time)
    signature = KEYS[0].sign(cosignatures.cosigned_message(TEXT, time)).signature
    payload = (time % 2**64).to_bytes(8, "big") + signature
    with pytest.raises(MalformedError, match="the time of a cosignature"):
        cosignatures.verify_cosignature(
            TEXT, SignatureLine(WITNESSES[0].name, WITNESSES[0].key_id, payload), WITNESSES[0]
        )


@pytest.mark.parametrize("length", [1, 64, 71, 73])
def test_a_cosignature_has_72_bytes(length: int) -> None:
    short = SignatureLine(WITNESSES[0].name, WITNESSES[0].key_id, bytes(length))
    with pytest.raises(MalformedError, match="a cosignature has 72 bytes"):
        cosignatures.verify_cosignatures(Note(TEXT, (short,)), WITNESSES)


def test_unknown_witnesses_and_the_logs_own_line_are_ignored() -> None:
    log = sign_ed25519(TEXT, "log.example", KEYS[4])
    note = Note(TEXT, (log, line(0), line(1), line(2)))
    found = cosignatures.verify_cosignatures(note, [WITNESSES[2], WITNESSES[0], WITNESSES[3]])
    assert [cosignature.witness for cosignature in found] == [WITNESSES[2], WITNESSES[0]]
    assert cosignatures.verify_cosignatures(note, []) == ()


def test_a_false_line_of_a_known_witness_rejects_the_note_beside_a_good_one() -> None:
    false = SignatureLine(WITNESSES[1].name, WITNESSES[1].key_id, line(0).payload)
    with pytest.raises(EvidenceError, match="does not verify"):
        cosignatures.verify_cosignatures(Note(TEXT, (line(0), false)), WITNESSES)


def test_a_witness_has_one_line() -> None:
    with pytest.raises(EvidenceError, match="2 lines of one key"):
        cosignatures.verify_cosignatures(Note(TEXT, (line(0), line(0, TIME + 1))), WITNESSES)


def test_a_line_is_not_verified_as_another_witnesss() -> None:
    with pytest.raises(EvidenceError, match="is not one of the witness"):
        cosignatures.verify_cosignature(TEXT, line(0), WITNESSES[1])


def test_a_logs_key_is_no_witness() -> None:
    log = VerifierKey("witness0.example", TYPE_ED25519, WITNESSES[0].key)
    with pytest.raises(PolicyError, match="of a log, not of a witness"):
        cosignatures.verify_cosignatures(Note(TEXT, (line(0),)), [log])
    with pytest.raises(PolicyError, match="of a log, not of a witness"):
        cosignatures.verify_cosignature(TEXT, sign_ed25519(TEXT, log.name, KEYS[0]), log)


def test_a_logs_signature_is_no_cosignature() -> None:
    bare = SignatureLine(
        WITNESSES[0].name, WITNESSES[0].key_id, TIME.to_bytes(8, "big") + KEYS[0].sign(TEXT).signature
    )
    with pytest.raises(EvidenceError, match="does not verify"):
        cosignatures.verify_cosignatures(Note(TEXT, (bare,)), WITNESSES)


def test_the_time_of_a_quorum_is_the_least_at_which_it_is_satisfied() -> None:
    made = [cosigned(0, 30), cosigned(1, 10), cosigned(2, 20)]
    assert [cosignatures.quorum_time(made, threshold) for threshold in (1, 2, 3)] == [10, 20, 30]


@given(st.dictionaries(st.integers(0, 4), st.integers(1, 50), min_size=1), st.data())
def test_before_its_time_a_quorum_is_not_satisfied(times: dict[int, int], data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, len(times)))
    made = [cosigned(number, time) for number, time in times.items()]
    found = cosignatures.quorum_time(made, threshold)
    assert sum(time <= found for time in times.values()) >= threshold
    assert sum(time <= found - 1 for time in times.values()) < threshold


def test_too_few_witnesses_are_no_quorum() -> None:
    with pytest.raises(EvidenceError, match="2 witnesses cosigned the note, the policy requires 3"):
        cosignatures.quorum_time([cosigned(0, 1), cosigned(1, 1)], 3)
    with pytest.raises(EvidenceError, match="0 witnesses"):
        cosignatures.quorum_time([], 1)


def test_one_key_under_two_names_counts_once_at_its_earlier_time() -> None:
    alias = VerifierKey("alias.example", TYPE_COSIGNATURE, WITNESSES[0].key)
    second = cosignatures.cosign(TEXT, alias.name, KEYS[0], TIME - 5)
    found = cosignatures.verify_cosignatures(Note(TEXT, (line(0), second)), [*WITNESSES, alias])
    assert len(found) == 2
    assert cosignatures.quorum_time(found, 1) == TIME - 5
    with pytest.raises(EvidenceError, match="1 witnesses"):
        cosignatures.quorum_time(found, 2)


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_quorum_of_nobody_is_no_policy(threshold: int) -> None:
    with pytest.raises(PolicyError, match="at least one witness"):
        cosignatures.quorum_time([cosigned(0, 1)], threshold)
