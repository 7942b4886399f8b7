# SPDX-License-Identifier: Apache-2.0
"""Certificate paths of AKs and EKs: the one place that uses `cryptography.x509.verification`.

The library builds and checks the path (dates, signatures, basic constraints, path lengths, name constraints,
critical extensions). Added here is what it lets pass: a leaf that is an anchor itself, weak leaf keys, and
the role of the leaf. The time is an argument. Revocation is not part of a path; see
`quotary_verifier.pki.revocation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.verification import PolicyBuilder, VerificationError, VerifiedClient

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.pki.anchors import (
    UNREADABLE,
    Bundle,
    CaCertificate,
    TrustAnchors,
    Unreadable,
    load_bundle,
)
from quotary_verifier.pki.der import subject_public_key_info
from quotary_verifier.pki.lenient import mend
from quotary_verifier.pki.profiles import LeafProfile, ca_policy, leaf_policy
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tpm_public import SPKI_EC_PREFIX

__all__ = [
    "AkEndorsement",
    "Bundle",
    "CaCertificate",
    "EkEndorsement",
    "LeafProfile",
    "TrustAnchors",
    "Unreadable",
    "load_bundle",
    "verify_ak_chain",
    "verify_ek_chain",
]

_MAX_CERTIFICATES: Final = 8
_MAX_CERTIFICATE: Final = 16384
_MAX_DEPTH: Final = 4
_MIN_RSA_BITS: Final = 2048
_EC_PREFIXES: Final = tuple(SPKI_EC_PREFIX.values())

_MANUFACTURER: Final = x509.ObjectIdentifier("2.23.133.2.1")
_MODEL: Final = x509.ObjectIdentifier("2.23.133.2.2")
_VERSION: Final = x509.ObjectIdentifier("2.23.133.2.3")
_TPM_ATTRIBUTES: Final = frozenset({_MANUFACTURER, _MODEL, _VERSION})


@frozen
class Endorsement:
    """What a certificate path authenticates of its leaf; every field comes from verified certificates.

    `profile`: the rules that were applied. `spki_der`: the leaf's key. `dns_names`, `uris`: from its
    subjectAltName. `tpm_*`: the TPM's description where the leaf has one. `authority`, `authority_sha256`:
    the root. `chain`: leaf first, root last.
    """

    profile: LeafProfile
    spki_der: bytes
    dns_names: tuple[str, ...]
    uris: tuple[str, ...]
    tpm_manufacturer: str | None
    tpm_model: str | None
    tpm_version: str | None
    authority: str
    authority_sha256: bytes
    chain: tuple[x509.Certificate, ...]

    @property
    def not_before(self) -> datetime:
        """When the leaf's validity begins."""
        return self.chain[0].not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """When the leaf's validity ends."""
        return self.chain[0].not_valid_after_utc


class AkEndorsement(Endorsement):
    """An endorsed attestation key."""

    __slots__ = ()


class EkEndorsement(Endorsement):
    """An endorsed endorsement key, by itself no evidence of anything but the TPM that holds it."""

    __slots__ = ()


_Kind = TypeVar("_Kind", bound=Endorsement)


class _Names(NamedTuple):
    dns: list[str]
    uris: list[str]
    tpm: dict[x509.ObjectIdentifier, str]


def verify_ak_chain(
    certificates: Sequence[bytes],
    anchors: TrustAnchors,
    at: datetime,
    *,
    profile: LeafProfile = LeafProfile.AK,
) -> AkEndorsement:
    """Verify the path of an AK certificate at a time.

    `certificates`: DER, leaf first, root left out. `at`: with a time zone. MalformedError, EvidenceError, or
    UnsupportedError where the leaf's key or encoding is one that cannot be checked.
    """
    if profile not in (LeafProfile.AK, LeafProfile.AK_CLOUD):
        raise ValueError("this profile is not one of attestation keys")
    return _verify(AkEndorsement, certificates, anchors, at, profile)


def verify_ek_chain(
    leaf: bytes,
    intermediates: Sequence[bytes],
    anchors: TrustAnchors,
    at: datetime,
    *,
    profile: LeafProfile = LeafProfile.EK,
) -> EkEndorsement:
    """Verify the path of an EK certificate at a time. Arguments and errors as for `verify_ak_chain`."""
    if profile not in {LeafProfile.EK, LeafProfile.EK_CLOUD}:
        raise ValueError("this profile is not one of endorsement keys")
    return _verify(EkEndorsement, (leaf, *intermediates), anchors, at, profile)


def _verify(
    kind: type[_Kind],
    certificates: Sequence[bytes],
    anchors: TrustAnchors,
    at: datetime,
    profile: LeafProfile,
) -> _Kind:
    if at.tzinfo is None:
        raise ValueError("a time without a time zone is ambiguous")
    if not certificates:
        raise EvidenceError("there is no certificate")
    if len(certificates) > _MAX_CERTIFICATES:
        raise MalformedError(f"{len(certificates)} certificates, at most {_MAX_CERTIFICATES} are allowed")
    leaf, *others = [_load(der) for der in certificates]
    spki_der = _leaf_key(leaf, certificates[0])
    verified = _build(leaf, [*others, *anchors.helpers], anchors, at, profile)
    chain = tuple(verified.chain)
    root = anchors.root_of(chain)
    if len(chain) < 2 or root is None:
        raise EvidenceError("the certificate path does not end in a trusted root")
    names = _names(verified.subjects or ())
    described = names.tpm
    return kind(
        profile,
        spki_der,
        tuple(names.dns),
        tuple(names.uris),
        described.get(_MANUFACTURER),
        described.get(_MODEL),
        described.get(_VERSION),
        root.subject,
        root.sha256,
        chain,
    )


def _build(
    leaf: x509.Certificate,
    others: list[x509.Certificate],
    anchors: TrustAnchors,
    at: datetime,
    profile: LeafProfile,
) -> VerifiedClient:
    builder = anchors.builders.get(profile)
    if builder is None:
        builder = PolicyBuilder().store(anchors.store).max_chain_depth(_MAX_DEPTH)
        builder = builder.extension_policies(ca_policy=ca_policy(), ee_policy=leaf_policy(profile))
        anchors.builders[profile] = builder
    try:
        return builder.time(at).build_client_verifier().verify(leaf, others)
    except VerificationError as error:
        raise EvidenceError(f"the certificate path does not hold: {error}") from None
    except UNREADABLE as error:
        raise MalformedError(f"a certificate cannot be read: {error}") from None


def _load(der: bytes) -> x509.Certificate:
    if len(der) > _MAX_CERTIFICATE:
        raise MalformedError(f"a certificate of {len(der)} bytes is too large")
    try:
        certificate = x509.load_der_x509_certificate(der)
        unused_bits = der[-len(certificate.signature) - 1]
    except UNREADABLE as error:
        faults = mend(der).faults
        if faults:  # tolerated in a root, whose own signature proves nothing, and nowhere else
            raise UnsupportedError(f"a certificate cannot be verified: {', '.join(faults)}") from None
        raise MalformedError(f"a certificate cannot be read: {error}") from None
    if unused_bits:  # the library would overlook them, and one certificate have several encodings
        raise MalformedError("the signature of a certificate is not a whole number of bytes")
    return certificate


def _leaf_key(leaf: x509.Certificate, der: bytes) -> bytes:
    """The leaf's key as SubjectPublicKeyInfo; whether a point lies on its curve is left to who uses the key."""
    spki = subject_public_key_info(der)
    if spki.startswith(_EC_PREFIXES):
        return spki
    try:
        key = leaf.public_key()
    except (*UNREADABLE, UnsupportedAlgorithm) as error:
        raise UnsupportedError(f"the key of a certificate cannot be read: {error}") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise UnsupportedError("the certificate's key is neither rsa nor a plain point on p-256 or p-384")
    if key.key_size < _MIN_RSA_BITS:
        raise EvidenceError(f"the certificate's rsa key of {key.key_size} bits is too weak")
    # Loading this takes as long as twenty modules of ours, and only rsa keys need it.
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _names(general: Iterable[x509.GeneralName]) -> _Names:
    names = _Names([], [], {})
    for name in general:
        if isinstance(name, x509.DNSName):
            names.dns.append(name.value)
        elif isinstance(name, x509.UniformResourceIdentifier):
            names.uris.append(name.value)
        elif isinstance(name, x509.DirectoryName):
            for attribute in name.value:
                _describe(names.tpm, attribute)
    return names


def _describe(tpm: dict[x509.ObjectIdentifier, str], attribute: x509.NameAttribute[str | bytes]) -> None:
    oid, value = attribute.oid, attribute.value
    if oid not in _TPM_ATTRIBUTES:
        return
    if oid in tpm or not isinstance(value, str):
        raise EvidenceError(f"the certificate describes its tpm ambiguously ({oid.dotted_string})")
    tpm[oid] = value
