# SPDX-License-Identifier: Apache-2.0
"""Hardware lines: signature lines of a note that carry hardware evidence for a commit (design section 3).

::

    key name = the log's origin
    key id   = SHA-256(origin ‖ 0x0A ‖ 0xff ‖ identifier ‖ key)[:4]
    payload  = u64 first ‖ evidence

`first` is the index of the first leaf that the commit speaks for. The key is the SPKI DER of the AK for a
TPM and empty for a TEE. What the evidence must bind, and whether it does, is judged by the evidence
verifiers; here lines are found and taken apart. A line of another identifier or key is unknown, and ignored
as every note implementation ignores it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.tlog.merkle import MAX_TREE_SIZE
from quotary_verifier.tlog.note import TYPE_CUSTOM, Note, SignatureLine, key_id
from quotary_verifier.wire.frozen import frozen

IDENTIFIER_TPM2_QUOTE: Final = "quotary/tpm2-quote/v1"
"""A TPM 2.0 quote: u16 ‖ TPMS_ATTEST ‖ u16 ‖ TPMT_SIGNATURE."""

IDENTIFIER_SEV_SNP: Final = "quotary/sev-snp/v1"
"""An AMD SEV-SNP attestation report."""

IDENTIFIER_TDX: Final = "quotary/tdx/v1"
"""An Intel TDX quote."""

IDENTIFIER_NITRO: Final = "quotary/nitro/v1"
"""An attestation document of an AWS Nitro Enclave or NitroTPM."""

IDENTIFIER_NVIDIA: Final = "quotary/nvidia/v1"
"""SPDM reports of NVIDIA devices: for each, u16 length and report."""

IDENTIFIER_CCA: Final = "quotary/cca/v1"
"""An Arm CCA token."""

TEE_IDENTIFIERS: Final = (
    IDENTIFIER_SEV_SNP,
    IDENTIFIER_TDX,
    IDENTIFIER_NITRO,
    IDENTIFIER_NVIDIA,
    IDENTIFIER_CCA,
)
"""The identifiers whose key is empty."""

_FIRST_SIZE: Final = 8


@frozen
class HardwareLine:
    """A hardware line taken apart: identifier, first leaf of its commit, evidence. Nothing is verified."""

    identifier: str
    first: int
    evidence: bytes


def hardware_key_id(origin: str, identifier: str, key: bytes) -> bytes:
    """Return the 4-byte key id of a hardware line; `key` is the AK's SPKI DER, empty for a TEE."""
    return key_id(origin, TYPE_CUSTOM, key, identifier=identifier)


def tee_name(identifier: str) -> str:
    """Return the name that policies and verdicts have for a kind of TEE line: the middle of its identifier."""
    return identifier.split("/")[1]


def tee_key_ids(origin: str) -> dict[bytes, str]:
    """Return the key ids of all TEE lines that an origin can have, and their identifiers."""
    return {hardware_key_id(origin, identifier, b""): identifier for identifier in TEE_IDENTIFIERS}


def encode_hardware_line(origin: str, key: bytes, line: HardwareLine) -> SignatureLine:
    """Return the signature line that carries `line` under `origin`.

    Raises MalformedError for a bad origin, a first leaf that is no index, or absent evidence.
    """
    if not 0 <= line.first <= MAX_TREE_SIZE or not line.evidence:
        raise MalformedError("a hardware line has a first leaf below 2^63 and evidence")
    payload = line.first.to_bytes(_FIRST_SIZE, "big") + line.evidence
    return SignatureLine(origin, hardware_key_id(origin, line.identifier, key), payload)


def decode_hardware_line(line: SignatureLine, identifier: str) -> HardwareLine:
    """Take apart a line that the caller found by the key id of `identifier`.

    Raises MalformedError where the payload is no index followed by evidence.
    """
    first = int.from_bytes(line.payload[:_FIRST_SIZE], "big")
    if len(line.payload) <= _FIRST_SIZE or first > MAX_TREE_SIZE:
        raise MalformedError("the payload of a hardware line is a first leaf below 2^63 and evidence")
    return HardwareLine(identifier, first, line.payload[_FIRST_SIZE:])


def hardware_lines(note: Note, origin: str, keys: Mapping[str, bytes]) -> tuple[HardwareLine, ...]:
    """Return the note's lines for the known `keys` (identifier → key), in the order of the lines.

    Raises EvidenceError where one identifier has two lines or the lines do not claim the same first leaf,
    MalformedError where a known line cannot be taken apart.
    """
    ids = {hardware_key_id(origin, identifier, key): identifier for identifier, key in keys.items()}
    return hardware_lines_by_id(note, origin, ids)


def hardware_lines_by_id(note: Note, origin: str, known: Mapping[bytes, str]) -> tuple[HardwareLine, ...]:
    """Return what `hardware_lines` does, for key ids that the caller has computed (key id → identifier)."""
    found = [
        decode_hardware_line(line, known[line.key_id])
        for line in note.lines
        if line.key_id in known and line.name == origin
    ]
    if len({line.identifier for line in found}) != len(found):
        raise EvidenceError("the note has two hardware lines of one identifier")
    if len({line.first for line in found}) > 1:
        raise EvidenceError("the hardware lines of the note claim different first leaves")
    return tuple(found)
