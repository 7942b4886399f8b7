# SPDX-License-Identifier: Apache-2.0
"""Who may sign models: public keys, and authorities whose certificates for signing are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from quotary_attest.measuring.errors import SignatureError

_MAX_CERTIFICATES: Final = 8
_MAX_CERTIFICATE: Final = 16_384
_MAX_SUBJECT: Final = 1_000


@dataclass(frozen=True, slots=True)
class Signers:
    """Trusted keys (P-256, P-384 or P-521) and trusted authorities; false where there is neither."""

    keys: tuple[ec.EllipticCurvePublicKey, ...] = ()
    authorities: tuple[x509.Certificate, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether anyone is trusted."""
        return bool(self.keys or self.authorities)


def certificate_path(ders: Sequence[bytes], authorities: Sequence[x509.Certificate]) -> x509.Certificate:
    """Verify the path of a signing certificate (DER, leaf first) to one of `authorities`, and return the leaf.

    A signature has no trusted time, so the path is checked as of the begin of the leaf's validity, as model-signing
    does: an expired certificate still speaks for what it signed, and revocation is not looked at.

    Raises:
        SignatureError: the path does not hold, or the leaf is not for signing.
    """
    if not authorities:
        raise SignatureError("the signature was made with a certificate, and no authority is trusted")
    if any(len(der) > _MAX_CERTIFICATE for der in ders):
        raise SignatureError("a certificate of the signature is too large")
    if not 1 <= len(ders) <= _MAX_CERTIFICATES:
        raise SignatureError(f"the signature has not 1 to {_MAX_CERTIFICATES} certificates")
    try:
        leaf, *others = [x509.load_der_x509_certificate(der) for der in ders]
        _check_usage(leaf)
        authority = ExtensionPolicy.permit_all().require_present(
            x509.BasicConstraints, Criticality.AGNOSTIC, None
        )
        verifier = (
            PolicyBuilder()
            .store(Store(list(authorities)))
            .time(leaf.not_valid_before_utc)
            .extension_policies(ca_policy=authority, ee_policy=ExtensionPolicy.permit_all())
            .build_client_verifier()
        )
        chain = verifier.verify(leaf, others).chain
    except (VerificationError, ValueError, x509.DuplicateExtension) as error:
        raise SignatureError(f"the signer's certificate path does not hold: {str(error).lower()}") from None
    if len(leaf.subject.rfc4514_string()) > _MAX_SUBJECT:
        raise SignatureError("the signer's name is too long for the workload log")
    if len(chain) < 2:
        raise SignatureError("the signer's certificate is an authority's itself")
    return leaf


def _check_usage(leaf: x509.Certificate) -> None:
    """Refuse a certificate that is not for signatures. Raises SignatureError."""
    extensions = leaf.extensions
    try:
        if extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return
    except x509.ExtensionNotFound:
        pass
    try:
        if (
            ExtendedKeyUsageOID.CODE_SIGNING
            in extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        ):
            return
    except x509.ExtensionNotFound:
        pass
    raise SignatureError("the signer's certificate is not for signatures")
