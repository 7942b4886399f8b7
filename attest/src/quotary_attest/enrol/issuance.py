# SPDX-License-Identifier: Apache-2.0
"""The CA's two kinds of certificate: its root, and the AK certificate (docs/spec/enrolment.md).

An AK certificate travels in every attestation, so it holds what a verifier looks at and nothing else: who
issued it, for which key, host, origin and TPM, and for how long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier

ORIGIN_SCHEME: Final = "quotary://"
"""What stands before the origin in the URI of an AK certificate."""

AK_CERTIFICATE_USAGE: Final = ObjectIdentifier("2.23.133.8.3")
"""tcg-kp-AIKCertificate (TCG EK Credential Profile, section 3.2.16; TCG AK certificates)."""

_TPM_MANUFACTURER: Final = ObjectIdentifier("2.23.133.2.1")
_TPM_MODEL: Final = ObjectIdentifier("2.23.133.2.2")
_TPM_VERSION: Final = ObjectIdentifier("2.23.133.2.3")

_SKEW: Final = timedelta(minutes=5)
_KEY_ID_BYTES: Final = 20


@dataclass(frozen=True, slots=True)
class TpmModel:
    """What an EK certificate says of its TPM (TCG EK Credential Profile, section 3.1.2), as it stands there:
    for example manufacturer `id:00001014`, model `swtpm`, version `id:20191023`."""

    manufacturer: str
    model: str
    version: str


@dataclass(frozen=True, slots=True)
class Issuer:
    """A CA's root certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_root(name: str, key: ec.EllipticCurvePrivateKey, *, now: datetime, days: int) -> x509.Certificate:
    """A self-signed root for `days` days that may issue end-entity certificates only (path length 0)."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = _whole_second(now - _SKEW)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(issues=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(_key_id(key.public_key())), critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def make_ak_certificate(
    issuer: Issuer,
    ak: ec.EllipticCurvePublicKey,
    *,
    origin: str,
    tpm: TpmModel | None,
    now: datetime,
    days: int,
) -> x509.Certificate:
    """An AK certificate for `days` days, though never beyond its issuer's end.

    The subject is empty, and the alternative name is therefore critical (RFC 5280, section 4.2.1.6). `tpm` is
    what the EK certificate says of the TPM; a software TPM is known by it.
    """
    root = issuer.certificate
    begin = max(_whole_second(now - _SKEW), root.not_valid_before_utc)
    end = min(begin + timedelta(days=days), root.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(root.subject)
        .public_key(ak)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(issues=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([AK_CERTIFICATE_USAGE]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(origin, tpm)), critical=True)
        .add_extension(_authority(root), critical=False)
    )
    return builder.sign(issuer.key, hashes.SHA256())


def _alternative_names(origin: str, tpm: TpmModel | None) -> Sequence[x509.GeneralName]:
    names: list[x509.GeneralName] = [
        x509.DNSName(origin.partition("/")[0]),
        x509.UniformResourceIdentifier(ORIGIN_SCHEME + origin),
    ]
    if tpm is not None:
        pairs = ((_TPM_MANUFACTURER, tpm.manufacturer), (_TPM_MODEL, tpm.model), (_TPM_VERSION, tpm.version))
        names.append(x509.DirectoryName(x509.Name([x509.NameAttribute(oid, text) for oid, text in pairs])))
    return names


def _key_usage(*, issues: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not issues,
        key_cert_sign=issues,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_id(key: ec.EllipticCurvePublicKey) -> bytes:
    """The leading 160 bits of the SHA-256 of the point (RFC 7093, section 2, method 1)."""
    point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return hashlib.sha256(point).digest()[:_KEY_ID_BYTES]


def _authority(root: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    subject = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject)


def _whole_second(time: datetime) -> datetime:
    return time.replace(microsecond=0)
