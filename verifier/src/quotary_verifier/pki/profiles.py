# SPDX-License-Identifier: Apache-2.0
"""What a leaf certificate must say about itself to endorse an AK or an EK (TCG EK Credential Profile, 2.5).

Extended key usage alone does not tell the two apart: some clouds put the EK usage on both, and on their CAs.
The role follows from extended key usage *and* key usage, and a CA certificate is neither.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from cryptography import x509
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy

EKU_EK: Final = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate"""

EKU_AK: Final = x509.ObjectIdentifier("2.23.133.8.3")
"""tcg-kp-AIKCertificate"""


class LeafProfile(enum.Enum):
    """By which rules a leaf certificate is read; a policy chooses it for a set of trust anchors.

    The cloud profiles accept what clouds issue for their vTPMs: an AK with the usage of an EK, or either
    without any. They say less, because such a CA may also certify keys that no TPM holds.
    """

    AK = "ak"
    AK_CLOUD = "ak-cloud"
    EK = "ek"
    EK_CLOUD = "ek-cloud"


def ca_policy() -> ExtensionPolicy:
    """Extension rules for every CA certificate of a path, the root included; the library checks the CA flag."""
    return (
        _base()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
        .require_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates)
        .may_be_present(x509.NameConstraints, Criticality.AGNOSTIC, None)
        .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, None)
    )


def leaf_policy(profile: LeafProfile) -> ExtensionPolicy:
    """Extension rules for the leaf of a path."""
    role = _signing_key if profile in {LeafProfile.AK, LeafProfile.AK_CLOUD} else _decryption_key
    policy = (
        _base()
        .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_not_ca)
        .require_present(x509.KeyUsage, Criticality.AGNOSTIC, role)
        .may_be_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    )
    if profile is LeafProfile.AK:
        return policy.require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _usage(EKU_AK))
    if profile is LeafProfile.EK:
        return policy.require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _usage(EKU_EK))
    allowed = {EKU_AK, EKU_EK} if profile is LeafProfile.AK_CLOUD else {EKU_EK}
    return policy.may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _usage(*allowed))


def _base() -> ExtensionPolicy:
    """Non-critical extensions are ignored, critical ones fail unless they are named here or by the caller."""
    return ExtensionPolicy.permit_all().may_be_present(x509.CertificatePolicies, Criticality.AGNOSTIC, None)


def _usage(*allowed: x509.ObjectIdentifier) -> Callable[..., None]:
    def check(_policy: Policy, _leaf: x509.Certificate, usages: x509.ExtendedKeyUsage | None) -> None:
        if usages is not None and not any(oid in usages for oid in allowed):
            raise ValueError("its extended key usage is not that of its role")

    return check


def _signs_certificates(_policy: Policy, _ca: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.key_cert_sign:
        raise ValueError("an issuer may not sign certificates")


def _is_not_ca(_policy: Policy, _leaf: x509.Certificate, constraints: x509.BasicConstraints | None) -> None:
    if constraints is not None and constraints.ca:
        raise ValueError("the leaf is a ca")


def _signing_key(_policy: Policy, _leaf: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.digital_signature or usage.key_encipherment or usage.key_agreement or usage.key_cert_sign:
        raise ValueError("its key usage is not that of an attestation key")


def _decryption_key(_policy: Policy, _leaf: x509.Certificate, usage: x509.KeyUsage) -> None:
    decrypts = usage.key_encipherment or usage.key_agreement
    if not decrypts or usage.digital_signature or usage.key_cert_sign:
        raise ValueError("its key usage is not that of an endorsement key")
