# SPDX-License-Identifier: Apache-2.0
"""Trust anchors: root certificates, read once and kept ready for path building.

A root is a self-signed CA certificate. Other CA certificates may stand beside the roots and then help to find
a path, but none of them ever becomes an anchor.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store

from quotary_verifier.errors import MalformedError
from quotary_verifier.pki.lenient import mend
from quotary_verifier.pki.profiles import LeafProfile
from quotary_verifier.wire.frozen import frozen

_PEM_BLOCK: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----\s([A-Za-z0-9+/=\s]++)-----END CERTIFICATE-----", re.ASCII
)
_MAX_BUNDLE: Final = 1 << 22

UNREADABLE: Final = (
    ValueError,
    TypeError,
    Warning,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for a certificate that it cannot read; some are no ValueError.

TypeError is for a name that holds a bit string where X.520 has none.
"""


@frozen
class CaCertificate:
    """A CA certificate that was read.

    `certificate` is for reading only: where `faults` names tolerated encoding faults it is a mended copy.
    `sha256` is the digest of the original bytes, `subject` its name as text (RFC 4514), `root` tells whether
    it signs itself, over the original bytes.
    """

    certificate: x509.Certificate
    sha256: bytes
    subject: str
    root: bool
    faults: tuple[str, ...]


@frozen
class Unreadable:
    """A certificate of a bundle that cannot be used: its place, from 0, its digest if known, and why."""

    position: int
    sha256: bytes | None
    reason: str


class TrustAnchors:
    """A set of roots, and CA certificates that help to reach them. Built once, used for any number of paths.

    `builders` are the path builders that were made for this set, by profile; nothing of any path is in them.
    Raises MalformedError if there is no root, or a certificate that is said to be one is not.
    """

    __slots__ = ("_by_certificate", "builders", "helpers", "roots", "store")

    def __init__(self, roots: Iterable[CaCertificate], helpers: Iterable[CaCertificate] = ()) -> None:
        self.roots = tuple(roots)
        self.helpers = tuple(helper.certificate for helper in helpers if not helper.faults)
        if not self.roots:
            raise MalformedError("there is no root certificate among the trust anchors")
        for root in self.roots:
            if not root.root:
                raise MalformedError(f"{root.subject} is not a root: it does not sign itself")
        self.store = Store([root.certificate for root in self.roots])
        self.builders: dict[LeafProfile, PolicyBuilder] = {}
        self._by_certificate = {root.certificate: root for root in self.roots}

    @classmethod
    def from_der(cls, certificates: Iterable[bytes]) -> TrustAnchors:
        """Roots, and CA certificates that help to reach them, from DER. MalformedError if one is unusable."""
        return cls.of([read_ca_certificate(der) for der in certificates])

    @classmethod
    def from_pem(cls, text: str | bytes) -> TrustAnchors:
        """As `from_der`, from PEM. MalformedError if one is unusable; `load_bundle` reports instead."""
        blocks = _pem_blocks(text)
        return cls.from_der(_base64(block) for block in blocks)

    @classmethod
    def of(cls, certificates: Iterable[CaCertificate]) -> TrustAnchors:
        """The roots among `certificates` as anchors, the others as helpers."""
        known = tuple(certificates)
        return cls([ca for ca in known if ca.root], [ca for ca in known if not ca.root])

    def root_of(self, chain: Sequence[x509.Certificate]) -> CaCertificate | None:
        """The anchor at the end of a path, or None."""
        return self._by_certificate.get(chain[-1])


@frozen
class Bundle:
    """What a PEM bundle held: usable CA certificates, and those that could not be used, with reasons."""

    certificates: tuple[CaCertificate, ...]
    unreadable: tuple[Unreadable, ...]


def load_bundle(text: str | bytes) -> Bundle:
    """Read a bundle of vendors' CA certificates; unusable ones are reported and do not spoil the rest."""
    usable: list[CaCertificate] = []
    unreadable: list[Unreadable] = []
    for position, block in enumerate(_pem_blocks(text)):
        digest = None
        try:
            der = _base64(block)
            digest = hashlib.sha256(der).digest()
            usable.append(read_ca_certificate(der))
        except MalformedError as error:
            unreadable.append(Unreadable(position, digest, str(error)))
    return Bundle(tuple(usable), tuple(unreadable))


def read_ca_certificate(der: bytes) -> CaCertificate:
    """Read one CA certificate, mending the known faults. MalformedError if it cannot be used.

    The basic constraints and the key usage are checked here too, so that an end-entity certificate is refused
    when it is configured and not when it is used.
    """
    mended = mend(der)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # real CAs have names longer than X.520 allows
            certificate = x509.load_der_x509_certificate(mended.der if mended.faults else der)
            _check_ca(certificate)
            root = _signs_itself(certificate, mended.signed)
            subject = certificate.subject.rfc4514_string()
    except (*UNREADABLE, UnsupportedAlgorithm) as error:
        raise MalformedError(f"a ca certificate cannot be read: {error}") from None
    return CaCertificate(certificate, hashlib.sha256(der).digest(), subject, root, mended.faults)


def _check_ca(certificate: x509.Certificate) -> None:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as error:
        raise MalformedError(f"not a ca certificate: {error}") from None
    if not constraints.ca or not usage.key_cert_sign:
        raise MalformedError("not a ca certificate: it may not sign certificates")


def _signs_itself(certificate: x509.Certificate, signed: bytes) -> bool:
    if certificate.issuer != certificate.subject:
        return False
    key = certificate.public_key()
    parameters = certificate.signature_algorithm_parameters
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
            key.verify(certificate.signature, signed, parameters)
        elif isinstance(key, rsa.RSAPublicKey) and not isinstance(parameters, ec.ECDSA | None):
            hash_algorithm = certificate.signature_hash_algorithm
            assert hash_algorithm is not None  # as the parameters are those of rsa
            key.verify(certificate.signature, signed, parameters, hash_algorithm)
        else:
            raise MalformedError("a ca certificate has a key that is neither rsa nor elliptic")
    except InvalidSignature:
        return False
    return True


def pem_certificates(text: str | bytes) -> list[bytes]:
    """Return the DER of each certificate of a PEM bundle, unread. MalformedError if one is cut off or there is none."""
    return [_base64(block) for block in _pem_blocks(text)]


def _pem_blocks(text: str | bytes) -> list[bytes]:
    data = text.encode("utf-8") if isinstance(text, str) else text
    if len(data) > _MAX_BUNDLE:
        raise MalformedError(f"a bundle of {len(data)} bytes is too large")
    blocks = _PEM_BLOCK.findall(data)
    if len(blocks) != data.count(b"-----BEGIN CERTIFICATE-----") or not blocks:
        raise MalformedError("there is no certificate in pem form, or one is cut off")
    return blocks


def _base64(block: bytes) -> bytes:
    try:
        return binascii.a2b_base64(b"".join(block.split()), strict_mode=True)
    except binascii.Error:
        raise MalformedError("a pem block is not base64") from None
