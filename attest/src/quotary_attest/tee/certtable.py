# SPDX-License-Identifier: Apache-2.0
"""The certificate table that a host puts beside an SEV-SNP report (AMD 56421, GHCB, "SNP Extended Guest Request").

Entries of 24 bytes, GUID (in the order of its text), offset and length (little-endian), end with a zero GUID;
certificates follow, DER or PEM. The host may put anything there, or nothing, and under GUIDs that are not used here
whatever it likes: what is taken from it is verified afterwards like any endorsement.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quotary_attest.tee.errors import TeeWrong

VCEK: Final = bytes.fromhex("63da758de6644564adc5f4b93be8accd")
VLEK: Final = bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1")
ASK: Final = bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782")
"""Issuer of the leaf: the ASK of a VCEK, and the ASVK of a VLEK."""

_CERTIFICATES: Final = frozenset({VCEK, VLEK, ASK})
_ENTRY: Final = 24
_END: Final = bytes(16)
_PEM: Final = b"-----BEGIN "


def certificates(table: bytes) -> dict[bytes, bytes]:
    """Return GUID → content of a table, certificates as DER; an empty table has none. TeeWrong if it is none."""
    found: dict[bytes, bytes] = {}
    for at in range(0, len(table), _ENTRY):
        entry = table[at : at + _ENTRY]
        guid = entry[:16]
        if guid == _END:
            return found
        start, size = (int.from_bytes(entry[place : place + 4], "little") for place in (16, 20))
        if len(entry) < _ENTRY or start + size > len(table) or guid in found:
            raise _wrong()
        content = table[start : start + size]
        found[guid] = _der(content) if guid in _CERTIFICATES else content
    if table:
        raise _wrong()
    return found


def _der(data: bytes) -> bytes:
    if not data.startswith(_PEM):
        return data
    try:
        return x509.load_pem_x509_certificate(data).public_bytes(Encoding.DER)
    except ValueError:
        raise _wrong() from None


def _wrong() -> TeeWrong:
    return TeeWrong(
        "the certificate table that the host put beside the report is not of its form",
        hint="the host's operator sets it; where it is empty, `attest tee fetch-collateral` gets certificates",
    )
