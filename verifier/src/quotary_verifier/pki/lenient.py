# SPDX-License-Identifier: Apache-2.0
"""Reading root certificates that break DER in two known, harmless ways.

Some TPM vendors' roots carry a NULL after an ECDSA signature algorithm (RFC 5758, section 3.2, forbids it) or
name components that are not in DER's order for sets (X.690, section 11.6). A strict reader refuses them, and
they cannot be replaced. `mend` gives a copy without these faults for reading names, key and extensions; a
signature is only ever verified over the original bytes, and a certificate is only ever identified by their
digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from quotary_verifier.errors import MalformedError
from quotary_verifier.pki.der import encode, header
from quotary_verifier.wire.frozen import frozen

_SEQUENCE: Final = 0x30
_SET: Final = 0x31
_VERSION: Final = 0xA0
_NULL: Final = b"\x05\x00"
_ECDSA_WITH: Final = bytes.fromhex("06082a8648ce3d0403")  # 1.2.840.10045.4.3, then one more byte for the hash
_MAX_CERTIFICATE: Final = 16384

NULL_PARAMETERS: Final = "null parameters after an ecdsa signature algorithm"
SET_ORDER: Final = "name components out of order"


@frozen
class Mended:
    """A strictly encoded copy of a certificate, the bytes that were really signed, and what was mended."""

    der: bytes
    signed: bytes
    faults: tuple[str, ...]


@frozen
class _Element:
    tag: int
    content: bytes
    raw: bytes


def mend(der: bytes) -> Mended:
    """Mend the two known faults of a DER certificate. MalformedError if its outline cannot be read."""
    if len(der) > _MAX_CERTIFICATE:
        raise MalformedError(f"a certificate of {len(der)} bytes is too large")
    outer = _elements(der)
    if len(outer) != 1 or outer[0].tag != _SEQUENCE:
        raise MalformedError("not a certificate: the outermost element is not one sequence")
    parts = _elements(outer[0].content)
    if [part.tag for part in parts] != [_SEQUENCE, _SEQUENCE, 0x03]:
        raise MalformedError("not a certificate: body, algorithm and signature are expected")
    body, algorithm, signature = parts
    faults: set[str] = set()
    mended = _mend_body(body, faults) + _mend_algorithm(algorithm, faults) + signature.raw
    return Mended(encode(_SEQUENCE, mended), body.raw, tuple(sorted(faults)))


def _mend_body(body: _Element, faults: set[str]) -> bytes:
    fields = _elements(body.content)
    first = 1 if fields and fields[0].tag == _VERSION else 0  # the version is left out in version 1
    if len(fields) < first + 6:
        raise MalformedError("not a certificate: its body is too short")
    pieces = [field.raw for field in fields]
    pieces[first + 1] = _mend_algorithm(fields[first + 1], faults)
    for name in (first + 2, first + 4):
        pieces[name] = _mend_name(fields[name], faults)
    return encode(_SEQUENCE, b"".join(pieces))


def _mend_algorithm(algorithm: _Element, faults: set[str]) -> bytes:
    parts = _elements(algorithm.content)
    if len(parts) == 2 and parts[0].raw[:-1] == _ECDSA_WITH and parts[1].raw == _NULL:
        faults.add(NULL_PARAMETERS)
        return encode(_SEQUENCE, parts[0].raw)
    return algorithm.raw


def _mend_name(name: _Element, faults: set[str]) -> bytes:
    return encode(_SEQUENCE, b"".join(_mend_set(element, faults) for element in _elements(name.content)))


def _mend_set(element: _Element, faults: set[str]) -> bytes:
    if element.tag != _SET:
        raise MalformedError("not a certificate: a name is not made of sets")
    members = [member.raw for member in _elements(element.content)]
    ordered = sorted(members)
    if ordered != members:
        faults.add(SET_ORDER)
    return encode(_SET, b"".join(ordered))


def _elements(data: bytes) -> Sequence[_Element]:
    found = []
    at = 0
    while at < len(data):
        start = at
        tag, size, at = header(data, at)
        end = at + size
        if end > len(data):
            raise MalformedError("a certificate is truncated")
        found.append(_Element(tag, data[at:end], data[start:end]))
        at = end
    return found
