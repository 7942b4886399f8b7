# SPDX-License-Identifier: Apache-2.0
"""The names by which a policy speaks of signature database entries and authorities: their kind and a digest.

| name | of |
|---|---|
| `x509:<SHA-256 of the certificate>` | a certificate, in a database or as the authority that verified an image |
| `sha256:<digest>` | the Authenticode digest of an image, in a database or as what an image was accepted by |
| `<GUID of the type>:<SHA-256 of the data>` | an entry of another type |
| `event:<digest of the event>` | an authority that the log does not give in a form that is known |

Owners are no part of a name: anyone can write any owner.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from quotary_verifier.errors import MalformedError
from quotary_verifier.logs.tcg_secureboot import Authority
from quotary_verifier.logs.uefi import CERT_SHA256, CERT_X509, SHIM, Signature

_NAME: Final = re.compile(
    r"(?:x509|sha256|event|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}):[0-9a-f]{64}"
)
_OWNER: Final = 16
_NO_AUTHORITIES: Final = frozenset({"SbatLevel", "MokListTrusted", "MokListState"})


def entry_name(entry: Signature) -> str:
    """Return the name of a signature database entry."""
    if entry.type == CERT_X509:
        return _x509(entry.data)
    if entry.type == CERT_SHA256 and len(entry.data) == 32:
        return f"sha256:{entry.data.hex()}"
    return f"{entry.type}:{hashlib.sha256(entry.data).hexdigest()}"


def authority_name(authority: Authority) -> str:
    """Return the name of an authority: of the certificate or image digest that its event covers, else of the event.

    Firmware measures an entry with its owner before it; shim also measures a bare certificate.
    """
    content = b"" if authority.variable is None else authority.variable.data
    for data in (content[_OWNER:], content):
        if _is_certificate(data):
            return _x509(data)
    if len(content) == _OWNER + 32:
        return f"sha256:{content[_OWNER:].hex()}"
    return f"event:{authority.digest.hex()}"


def is_authority(authority: Authority) -> bool:
    """Tell whether an event of PCR 7 can speak of what verified an image: shim also measures its own settings there."""
    variable = authority.variable
    return variable is None or variable.vendor != SHIM or variable.name not in _NO_AUTHORITIES


def check_name(text: str) -> str:
    """Return a name as it stands in a policy; MalformedError if it is none."""
    if not _NAME.fullmatch(text):
        raise MalformedError(f"{text[:80]!r} is no name of an entry, as x509:<SHA-256 of a certificate>")
    return text


def _x509(data: bytes) -> str:
    return f"x509:{hashlib.sha256(data).hexdigest()}"


def _is_certificate(data: bytes) -> bool:
    """Tell whether some bytes are one DER sequence of at least 256 bytes and no more, as every certificate is."""
    return data[:2] == b"\x30\x82" and len(data) == 4 + int.from_bytes(data[2:4])
