# SPDX-License-Identifier: Apache-2.0
"""Hardware lines: how they are named, found and taken apart (design section 3)."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.tlog import hardware
from quotary_verifier.tlog.hardware import IDENTIFIER_SEV_SNP, IDENTIFIER_TPM2_QUOTE, HardwareLine
from quotary_verifier.tlog.note import Note, SignatureLine, parse_note, sign_ed25519

ORIGIN = "host.example/abcdefgh"
AK = b"subject public key info"
TEXT = b"host.example/abcdefgh\n5\nroot\n"
KEYS = {IDENTIFIER_TPM2_QUOTE: AK, IDENTIFIER_SEV_SNP: b""}
QUOTE = HardwareLine(IDENTIFIER_TPM2_QUOTE, 3, b"quote and signature")
REPORT = HardwareLine(IDENTIFIER_SEV_SNP, 3, b"report")


def written(line: HardwareLine, key: bytes | None = None, origin: str = ORIGIN) -> SignatureLine:
    return hardware.encode_hardware_line(origin, KEYS[line.identifier] if key is None else key, line)


def test_the_key_id_hashes_origin_type_identifier_and_key() -> None:
    head = ORIGIN.encode() + b"\n\xff"
    assert (
        hardware.hardware_key_id(ORIGIN, IDENTIFIER_TPM2_QUOTE, AK)
        == sha256(head + b"quotary/tpm2-quote/v1" + AK).digest()[:4]
    )
    assert (
        hardware.hardware_key_id(ORIGIN, IDENTIFIER_SEV_SNP, b"")
        == sha256(head + b"quotary/sev-snp/v1").digest()[:4]
    )


@given(st.integers(0, 2**63 - 1), st.binary(min_size=1, max_size=300))
def test_a_hardware_line_is_read_back_as_it_was_written(first: int, evidence: bytes) -> None:
    line = HardwareLine(IDENTIFIER_TPM2_QUOTE, first, evidence)
    note = parse_note(Note(TEXT, (written(line),)).encode())
    assert note.lines[0].payload == first.to_bytes(8, "big") + evidence
    assert hardware.hardware_lines(note, ORIGIN, KEYS) == (line,)


def test_known_lines_are_found_in_their_order_among_others() -> None:
    ed25519 = sign_ed25519(TEXT, ORIGIN, SigningKey(bytes(32)))
    unknown = written(QUOTE, key=b"another ak")
    elsewhere = written(QUOTE, origin="other.example/abcdefgh")
    same_id = SignatureLine("other.example", written(QUOTE).key_id, b"anything at all")
    note = Note(TEXT, (ed25519, written(REPORT), unknown, written(QUOTE), elsewhere, same_id))
    assert hardware.hardware_lines(note, ORIGIN, KEYS) == (REPORT, QUOTE)
    assert hardware.hardware_lines(note, ORIGIN, {}) == ()


def test_an_identifier_has_one_line() -> None:
    other = HardwareLine(IDENTIFIER_TPM2_QUOTE, 3, b"another quote")
    with pytest.raises(EvidenceError, match="two hardware lines of one identifier"):
        hardware.hardware_lines(Note(TEXT, (written(QUOTE), written(other))), ORIGIN, KEYS)


def test_all_lines_of_a_note_claim_the_same_first_leaf() -> None:
    report = HardwareLine(IDENTIFIER_SEV_SNP, 2, b"report")
    with pytest.raises(EvidenceError, match="different first leaves"):
        hardware.hardware_lines(Note(TEXT, (written(QUOTE), written(report))), ORIGIN, KEYS)


@pytest.mark.parametrize("payload", [b"\0", bytes(7), bytes(8), b"\x80" + bytes(7) + b"evidence"])
def test_a_payload_that_is_no_index_and_evidence_is_malformed(payload: bytes) -> None:
    line = SignatureLine(ORIGIN, hardware.hardware_key_id(ORIGIN, IDENTIFIER_TPM2_QUOTE, AK), payload)
    with pytest.raises(MalformedError, match="the payload of a hardware line"):
        hardware.hardware_lines(Note(TEXT, (line,)), ORIGIN, KEYS)


@pytest.mark.parametrize(
    "line",
    [
        HardwareLine(IDENTIFIER_TPM2_QUOTE, -1, b"quote"),
        HardwareLine(IDENTIFIER_TPM2_QUOTE, 2**63, b"quote"),
        HardwareLine(IDENTIFIER_TPM2_QUOTE, 3, b""),
    ],
)
def test_nothing_is_written_that_would_not_be_read(line: HardwareLine) -> None:
    with pytest.raises(MalformedError, match="a hardware line has"):
        written(line)


@pytest.mark.parametrize("origin", ["", "host example", "host+example"])
def test_an_origin_is_a_key_name(origin: str) -> None:
    with pytest.raises(MalformedError, match="a key name"):
        written(QUOTE, origin=origin)
