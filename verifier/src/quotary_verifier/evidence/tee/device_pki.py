# SPDX-License-Identifier: Apache-2.0
"""Paths from a maker's one pinned root to a device's P-384 key, and signatures by such a key."""

from __future__ import annotations

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
from quotary_verifier.evidence.tee.maker_root import MakerRoot
from quotary_verifier.evidence.tee.shape import Signer, require_valid
from quotary_verifier.pki.anchors import UNREADABLE
from quotary_verifier.pki.revocation import Revocation
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_CERTIFICATE

MAX_PATH: Final = 8
"""Certificates of a path, root included."""

SIGNATURE_BYTES: Final = 96
"""Of an ES384 signature: two big-endian halves."""


class PinnedRoot(MakerRoot):
    """The one root that is trusted for a kind of device. MalformedError if the DER is that of no root."""

    __slots__ = ()

    def __init__(self, der: bytes) -> None:
        super().__init__(der, ca=_ca_policy(), leaf=_leaf_policy(), depth=MAX_PATH - 2)


@frozen
class DevicePath:
    """A verified path, leaf first and root last, whose leaf has a key on P-384."""

    chain: tuple[x509.Certificate, ...]
    root: PinnedRoot

    @property
    def not_before(self) -> datetime:
        """When the path begins to be valid."""
        return max(one.not_valid_before_utc for one in self.chain)

    @property
    def not_after(self) -> datetime:
        """When the path ceases to be valid."""
        return min(one.not_valid_after_utc for one in self.chain)

    def signer_at(self, at: datetime) -> Signer:
        """Return who vouches for the leaf. No CRL is looked at: AWS forbids it, and NVIDIA answers by OCSP only.

        Raises:
            OutOfTimeError: the path is not valid at that time.
        """
        require_common_time([self], at)
        root = self.root
        return Signer(root.subject, root.sha256, self.not_before, self.not_after, Revocation.UNKNOWN)

    def verify(self, signature: bytes, signed: bytes, what: str) -> None:
        """EvidenceError unless the leaf's key made the signature (96 bytes, ES384) over exactly `signed`."""
        key = self.chain[0].public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)  # as verify_device_path has found
        half = SIGNATURE_BYTES // 2
        r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
        try:
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            raise EvidenceError(f"{what} was not signed by the key of its certificate") from None


def read_certificate(der: bytes, most: int = MAX_CERTIFICATE) -> x509.Certificate:
    """Read one certificate of at most `most` bytes. MalformedError if it cannot be read."""
    if not 0 < len(der) <= most:
        raise MalformedError(f"a certificate has {len(der)} bytes, 1 to {most} are allowed")
    try:
        certificate = x509.load_der_x509_certificate(der)
        unused_bits = der[-len(certificate.signature) - 1]
    except UNREADABLE as error:
        raise MalformedError(f"a certificate cannot be read: {error}") from None
    if unused_bits:  # the library would overlook them, and one certificate have several encodings
        raise MalformedError("the signature of a certificate is not a whole number of bytes")
    return certificate


def verify_device_path(
    leaf: x509.Certificate, others: Sequence[x509.Certificate], root: PinnedRoot
) -> DevicePath:
    """Verify the path of a device's certificate. `others`: the CAs between, in any order, all of them needed.

    Whether it is valid at the time that is asked for, `DevicePath.signer_at` tells once its signature was verified.

    Raises:
        MalformedError: there are too many, or one cannot be read.
        EvidenceError: they lead to another root, or hold at no time, or one of them is not of the path.
        UnsupportedError: the leaf's key is not on P-384.
    """
    if len(others) > MAX_PATH - 2:
        raise MalformedError(f"a device's path has {len(others)} certificates between leaf and root")
    try:
        key = leaf.public_key()
        chain = root.verify(leaf, others)
    except VerificationError as error:
        raise EvidenceError(f"the certificate path of the device does not hold: {error}") from None
    except (*UNREADABLE, UnsupportedAlgorithm) as error:
        raise MalformedError(f"a certificate of the device cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UnsupportedError("the device's key is not on p-384")
    if chain[-1] != root.certificate or set(chain) != {leaf, *others, root.certificate}:
        raise EvidenceError("the device's certificates are not exactly one path to the pinned root")
    return DevicePath(tuple(chain), root)


def require_common_time(paths: Sequence[DevicePath], at: datetime) -> None:
    """Check that paths, at least one, are all valid at a time.

    Raises:
        OutOfTimeError: they are not, but at another time.
        EvidenceError: at no time are all of them.
    """
    begin, end = max(path.not_before for path in paths), min(path.not_after for path in paths)
    if begin > end:
        raise EvidenceError("at no time are the certificate paths of all devices valid")
    require_valid("the certificate path of the device", begin, end, at)


def _ca_policy() -> ExtensionPolicy:
    policy = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    return policy.may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates)


def _leaf_policy() -> ExtensionPolicy:
    policy = ExtensionPolicy.permit_all().may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_data)
    return policy.may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_leaf)


def _signs_certificates(_policy: Policy, _ca: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("an issuer may not sign certificates")


def _signs_data(_policy: Policy, _leaf: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and (not usage.digital_signature or usage.key_cert_sign):
        raise ValueError("its key usage is not that of a signing key")


def _is_leaf(_policy: Policy, _leaf: x509.Certificate, constraints: x509.BasicConstraints | None) -> None:
    if constraints is not None and constraints.ca:
        raise ValueError("the leaf is a ca")
