# SPDX-License-Identifier: Apache-2.0
"""Revocation of a verified certificate path by CRLs that the caller brings (RFC 5280, sections 5 and 6.3).

There are three states. "Unknown", where no usable CRL covers a certificate, is never taken for "good": it is
shown, and a policy decides what follows from it.
"""

from __future__ import annotations

import enum
import warnings
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from quotary_verifier.errors import MalformedError
from quotary_verifier.pki.anchors import UNREADABLE
from quotary_verifier.wire.frozen import frozen

_MAX_CRL: Final = 1 << 24
_UNDERSTOOD: Final = frozenset({x509.CRLNumber.oid, x509.AuthorityKeyIdentifier.oid})


class Revocation(enum.Enum):
    """Whether a certificate was revoked at a time."""

    GOOD = "good"
    REVOKED = "revoked"
    UNKNOWN = "unknown"


@frozen
class RevocationReport:
    """The state of a path, and the state of each of its certificates, leaf first, without the root."""

    state: Revocation
    certificates: tuple[Revocation, ...]


def read_crl(der: bytes) -> x509.CertificateRevocationList:
    """Read a CRL; nothing in it is verified yet. MalformedError if it cannot be read."""
    if len(der) > _MAX_CRL:
        raise MalformedError(f"a crl of {len(der)} bytes is too large")
    try:
        crl = x509.load_der_x509_crl(der)
        unused_bits = der[-len(crl.signature) - 1]
    except UNREADABLE as error:
        raise MalformedError(f"a crl cannot be read: {error}") from None
    if unused_bits:  # the library would overlook them, and one crl have several encodings
        raise MalformedError("the signature of a crl is not a whole number of bytes")
    return crl


def read_crl_pem(text: str) -> x509.CertificateRevocationList:
    """Read a CRL in PEM, as `read_crl` reads one in DER."""
    if len(text) > 2 * _MAX_CRL:
        raise MalformedError(f"a crl of {len(text)} characters is too large")
    try:
        return x509.load_pem_x509_crl(text.encode())
    except UNREADABLE as error:
        raise MalformedError(f"a crl cannot be read: {error}") from None


def check_revocation(
    chain: Sequence[x509.Certificate], crls: Sequence[x509.CertificateRevocationList], at: datetime
) -> RevocationReport:
    """The state of a verified path at a time. `chain`: as an endorsement holds it, leaf first, root last.

    A certificate is revoked if a CRL signed by its issuer lists it with a date not after `at`, even where
    that CRL is out of date. It is good if such a CRL is of that time and does not list it, or is a later one
    made while the certificate was still valid, because entries stay until the certificate expires.
    """
    states = tuple(_state(certificate, issuer, crls, at) for certificate, issuer in pairwise(chain))
    if Revocation.REVOKED in states:
        return RevocationReport(Revocation.REVOKED, states)
    unknown = not states or Revocation.UNKNOWN in states
    return RevocationReport(Revocation.UNKNOWN if unknown else Revocation.GOOD, states)


def _state(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    crls: Sequence[x509.CertificateRevocationList],
    at: datetime,
) -> Revocation:
    state = Revocation.UNKNOWN
    for crl in crls:
        if not made_by(crl, issuer):
            continue
        entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if entry is not None and entry.revocation_date_utc <= at:
            return Revocation.REVOKED
        if _covers(crl, certificate, at):
            state = Revocation.GOOD
    return state


def made_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """Whether `issuer` made this CRL for all of its certificates; partial and delta CRLs are not used."""
    key = issuer.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)  # else there would be no path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # real CAs have names longer than X.520 allows
            usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
            same = crl.issuer == issuer.subject and usage.crl_sign
        unknown = any(one.critical and one.oid not in _UNDERSTOOD for one in crl.extensions)
        return same and not unknown and crl.is_signature_valid(key)
    except (*UNREADABLE, UnsupportedAlgorithm):
        return False


def _covers(crl: x509.CertificateRevocationList, certificate: x509.Certificate, at: datetime) -> bool:
    if crl.last_update_utc > at:
        return crl.last_update_utc <= certificate.not_valid_after_utc
    return crl.next_update_utc is not None and at <= crl.next_update_utc
