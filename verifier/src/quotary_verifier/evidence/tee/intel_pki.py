# SPDX-License-Identifier: Apache-2.0
"""Intel's certificates for SGX and TDX: root → PCK CA → PCK, and root → TCB signing (Intel, "PCK Certificate Profile").

The PCK certificate's extension says which platform it is and at which TCB its key was derived.
"""

from __future__ import annotations

import binascii
import functools
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    VerificationError,
)

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.device_pki import read_certificate
from quotary_verifier.evidence.tee.intel_root import SGX_ROOT
from quotary_verifier.evidence.tee.maker_root import MakerRoot
from quotary_verifier.evidence.tee.shape import require_valid
from quotary_verifier.pki.anchors import UNREADABLE
from quotary_verifier.pki.der import elements, header
from quotary_verifier.pki.profiles import ca_policy
from quotary_verifier.pki.revocation import Revocation, check_revocation
from quotary_verifier.wire.frozen import frozen

MAX_CHAIN: Final = 32 * 1024
"""Bytes of a chain in PEM."""

PCK_NAME: Final = "Intel SGX PCK Certificate"
TCB_SIGNING_NAME: Final = "Intel SGX TCB Signing"

_SGX: Final = bytes.fromhex("2a864886f84d010d01")  # 1.2.840.113741.1.13.1
_SGX_OID: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_SEQUENCE: Final = 0x30
_OID: Final = b"\x06"
_NUMBERS: Final = (0x02, 0x0A)  # INTEGER, ENUMERATED
_OCTETS: Final = 0x04
_COMPONENTS: Final = tuple(bytes((2, number)) for number in range(1, 17))
_ABSENT: Final = (None, b"")
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_PEM: Final = re.compile(
    rb"(?:-----BEGIN CERTIFICATE-----\r?\n(?:[A-Za-z0-9+/=]++\r?\n)++-----END CERTIFICATE-----[\r\n]*+)++\0*+",
    re.ASCII,
)


class IntelRoot(MakerRoot):
    """The root that is trusted. Injectable; `intel_root` is Intel's own. MalformedError if it is no root."""

    __slots__ = ()

    def __init__(self, der: bytes) -> None:
        super().__init__(der, ca=ca_policy(), leaf=_leaf_policy(), depth=1)


@functools.cache
def intel_root() -> IntelRoot:
    """Intel's SGX root CA."""
    return IntelRoot(SGX_ROOT)


@frozen
class Pck:
    """What a PCK certificate's extension says of its platform: at which TCB the key was derived, and which model.

    `components`: the 16 SVNs; `sgx_type`: 0 standard, 1 scalable, 2 scalable with integrity.
    """

    ppid: bytes
    components: tuple[int, ...]
    pce_svn: int
    cpu_svn: bytes
    pce_id: bytes
    fmspc: bytes
    sgx_type: int


@frozen
class IntelPath:
    """A verified path, leaf first and root last."""

    chain: tuple[x509.Certificate, ...]

    @property
    def not_before(self) -> datetime:
        """When the path begins to be valid."""
        return max(one.not_valid_before_utc for one in self.chain)

    @property
    def not_after(self) -> datetime:
        """When the path ceases to be valid."""
        return min(one.not_valid_after_utc for one in self.chain)

    def require_valid(self, what: str, at: datetime) -> None:
        """OutOfTimeError unless the whole path, which is that of `what`, is valid at a time."""
        require_valid(f"the certificate path of {what}", self.not_before, self.not_after, at)

    def verify(self, signature: bytes, signed: bytes, what: str) -> None:
        """EvidenceError unless the leaf's key made the signature (64 bytes) over exactly `signed`."""
        key = self.chain[0].public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)  # as verify_intel_path has found
        verify_p256(key, signature, signed, what)


def verify_p256(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes, what: str) -> None:
    """EvidenceError unless `signature`, two big-endian halves of 32 bytes, is by `key` over `signed`."""
    halves = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(*halves), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise EvidenceError(f"{what} does not verify") from None


def verify_intel_path(pem: bytes, root: IntelRoot, *, leaf: str, length: int) -> IntelPath:
    """Verify a path of `length` certificates, leaf first. `leaf`: the name that its role demands.

    The root may be left out of the chain; where it is there, it is the one that is trusted. Whether the path is valid
    at the time that is asked for, `IntelPath.require_valid` tells once its signatures were verified.

    Raises:
        MalformedError: it is not that many certificates.
        EvidenceError: it does not lead to the root, or at no time, or the leaf has another role.
        UnsupportedError: the leaf's key is not on P-256.
    """
    certificates = read_chain(pem)
    if len(certificates) not in (length - 1, length):
        raise MalformedError(f"a chain of {len(certificates)} certificates, where {length} are expected")
    if len(certificates) == length and certificates.pop() != root.certificate:
        raise EvidenceError("a certificate chain ends in a root that is not trusted")
    first = certificates[0]
    try:
        common = [one.value for one in first.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
        if common != [leaf]:
            raise EvidenceError(f"a certificate of {leaf!r} is expected, not of {common!r}")
        key = first.public_key()
        chain = root.verify(first, certificates[1:])
    except VerificationError as error:
        raise EvidenceError(f"the certificate path of {leaf!r} does not hold: {error}") from None
    except (*UNREADABLE, UnsupportedAlgorithm) as error:
        raise MalformedError(f"a certificate cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UnsupportedError(f"the key of {leaf!r} is not on p-256")
    if len(chain) != length or chain[-1] != root.certificate:
        raise EvidenceError(f"the certificate path of {leaf!r} does not have {length} certificates")
    return IntelPath(tuple(chain))


def read_chain(pem: bytes) -> list[x509.Certificate]:
    """Read certificates in PEM, with nothing between them and at most zero bytes behind. MalformedError."""
    if len(pem) > MAX_CHAIN:
        raise MalformedError(f"a certificate chain of {len(pem)} bytes is too large")
    if not _PEM.fullmatch(pem):
        raise MalformedError("a certificate chain is not a sequence of certificates in pem")
    return [read_certificate(_unarmoured(block)) for block in pem.split(_BEGIN)[1:]]


def _unarmoured(block: bytes) -> bytes:
    """The DER of a certificate in PEM, as what stands behind its first line. MalformedError."""
    text = block.partition(_END)[0].translate(None, b"\r\n")
    try:
        der = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        der = b""
    if binascii.b2a_base64(der, newline=False) != text:  # bits behind the last byte, that would not be read
        raise MalformedError("a certificate of a chain is not base64 in its one spelling")
    return der


def path_revocation(
    path: IntelPath, crls: Sequence[x509.CertificateRevocationList], at: datetime
) -> Revocation:
    """Return the state of a path at a time. EvidenceError if a certificate of it was revoked."""
    state = check_revocation(path.chain, crls, at).state
    if state is Revocation.REVOKED:
        raise EvidenceError("a certificate of intel's was revoked")
    return state


def read_pck(path: IntelPath) -> Pck:
    """Read the extension of a PCK certificate. MalformedError if it is not of its form."""
    try:
        extension = path.chain[0].extensions.get_extension_for_oid(_SGX_OID).value
    except x509.ExtensionNotFound:
        raise MalformedError("the pck certificate does not say which platform it is of") from None
    except UNREADABLE as error:
        raise MalformedError(f"the pck certificate cannot be read: {error}") from None
    assert isinstance(extension, x509.UnrecognizedExtension)  # as the library does not know it
    fields = _fields(_only(extension.value, _SEQUENCE))
    tcb = _fields(_typed(fields, b"\x02", _SEQUENCE))
    levels = tuple([_small(tcb, name) for name in _COMPONENTS])
    return Pck(
        ppid=_octets(fields, b"\x01", 16),
        components=levels,
        pce_svn=_small(tcb, b"\x02\x11"),
        cpu_svn=_octets(tcb, b"\x02\x12", 16),
        pce_id=_octets(fields, b"\x03", 2),
        fmspc=_octets(fields, b"\x04", 6),
        sgx_type=_small(fields, b"\x05"),
    )


_Fields = dict[bytes, tuple[int, bytes]]


def _fields(content: bytes) -> _Fields:
    """A sequence of pairs of identifier and value, by what stands behind Intel's own identifier."""
    found: _Fields = {}
    for tag, pair in elements(content):
        if tag != _SEQUENCE or pair[:1] != _OID or not pair.startswith(_SGX, 2):
            raise MalformedError("the pck certificate's extension is not made of named values")
        end = 2 + pair[1]
        kind, size, at = header(pair, end)
        if at + size != len(pair):
            raise MalformedError("a value of the pck certificate's extension is not of its length")
        name = pair[2 + len(_SGX) : end]
        if name in found:
            raise MalformedError("the pck certificate's extension has a value twice")
        found[name] = kind, pair[at:]
    return found


def _only(data: bytes, tag: int) -> bytes:
    parts = list(elements(data))
    if len(parts) != 1 or parts[0][0] != tag:
        raise MalformedError("the pck certificate's extension is not one sequence")
    return parts[0][1]


def _typed(fields: _Fields, name: bytes, *tags: int) -> bytes:
    tag, content = fields.get(name, _ABSENT)
    if tag not in tags:
        raise _lacking(name)
    return content


def _lacking(name: bytes) -> MalformedError:
    return MalformedError(
        f"the pck certificate's extension lacks value {'.'.join(str(part) for part in name)}"
    )


def _octets(fields: _Fields, name: bytes, size: int) -> bytes:
    content = _typed(fields, name, _OCTETS)
    if len(content) != size:
        raise MalformedError(
            f"value {'.'.join(str(part) for part in name)} of a pck has {len(content)} bytes"
        )
    return content


def _small(fields: _Fields, name: bytes) -> int:
    tag, content = fields.get(name, _ABSENT)
    if tag not in _NUMBERS:
        raise _lacking(name)
    if not 1 <= len(content) <= 3 or content[0] & 0x80:
        raise MalformedError(f"value {'.'.join(str(part) for part in name)} of a pck is no small number")
    return int.from_bytes(content, "big")


def _leaf_policy() -> ExtensionPolicy:
    policy = ExtensionPolicy.permit_all().require_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs)
    return policy.require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_leaf)


def _signs(_policy: Policy, _leaf: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise ValueError("its key usage is not that of a signing key")


def _is_leaf(_policy: Policy, _leaf: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if constraints.ca:
        raise ValueError("the leaf is a ca")
