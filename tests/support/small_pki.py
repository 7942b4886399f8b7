# SPDX-License-Identifier: Apache-2.0
"""Certificate authorities for tests, with every fault that a path can have."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

NOW = datetime(2026, 3, 1, tzinfo=UTC)
YEAR = timedelta(days=365)

EKU_EK = x509.ObjectIdentifier("2.23.133.8.1")
EKU_AK = x509.ObjectIdentifier("2.23.133.8.3")

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Extension = tuple[x509.ExtensionType, bool]


def name(common_name: str) -> x509.Name:
    """A name of one common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@functools.cache
def rsa_private(bits: int) -> rsa.RSAPrivateKey:
    """One RSA key per size and test run."""
    return rsa.generate_private_key(65537, bits)


def p256() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def usage(*flags: str) -> x509.KeyUsage:
    """A key usage with exactly these flags."""
    known = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{flag: flag in flags for flag in known})


def tpm_directory_name(*, model: str = "modelX") -> x509.DirectoryName:
    """The TPM's description as the TCG's profiles put it into a subjectAltName."""
    values = {"2.23.133.2.1": "id:53544D20", "2.23.133.2.2": model, "2.23.133.2.3": "id:00010101"}
    return x509.DirectoryName(
        x509.Name([x509.NameAttribute(x509.ObjectIdentifier(oid), value) for oid, value in values.items()])
    )


@dataclass(frozen=True)
class Ca:
    """A CA that issues whatever it is asked for."""

    certificate: x509.Certificate
    key: Key

    @property
    def der(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(Encoding.DER)

    def issue(
        self,
        subject: x509.Name,
        key: Key,
        extensions: Sequence[Extension],
        *,
        days: tuple[int, int] = (-30, 335),
        serial: int | None = None,
    ) -> x509.Certificate:
        """A certificate valid for `days`, from and to, relative to NOW."""
        return _sign(self.certificate.subject, self.key, subject, key, extensions, days, serial)

    def sub_ca(
        self,
        common_name: str,
        *,
        key: Key | None = None,
        path_length: int | None = None,
        flags: Sequence[str] = ("key_cert_sign", "crl_sign"),
        ca: bool = True,
        extra: Sequence[Extension] = (),
        days: tuple[int, int] = (-60, 700),
    ) -> Ca:
        """An intermediate CA."""
        key = key or p256()
        constraints = x509.BasicConstraints(ca, path_length if ca else None)
        extensions = [(constraints, True), (usage(*flags), True), *extra]
        return Ca(self.issue(name(common_name), key, extensions, days=days), key)

    def crl(
        self,
        revoked: dict[int, datetime],
        *,
        updates: tuple[datetime, datetime] = (NOW - timedelta(days=1), NOW + timedelta(days=6)),
        extra: Sequence[Extension] = (),
        issuer: x509.Name | None = None,
    ) -> bytes:
        """A CRL: serial numbers and dates."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(issuer or self.certificate.subject)
        builder = builder.last_update(updates[0]).next_update(updates[1])
        for serial, date in revoked.items():
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date)
            builder = builder.add_revoked_certificate(entry.build())
        for extension, critical in extra:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)

    def ak(
        self,
        key: Key | None = None,
        *,
        flags: Sequence[str] = ("digital_signature",),
        usages: Sequence[x509.ObjectIdentifier] = (EKU_AK,),
        names: Sequence[x509.GeneralName] = (x509.DNSName("host.example"),),
        extra: Sequence[Extension] = (),
        ca: bool | None = False,
        days: tuple[int, int] = (-30, 335),
        serial: int | None = None,
    ) -> bytes:
        """An AK certificate, DER; empty `usages`, `names` and `flags` and `ca=None` leave the extension out."""
        extensions: list[Extension] = list(extra)
        if ca is not None:
            extensions.append((x509.BasicConstraints(ca, None), True))
        if flags:
            extensions.append((usage(*flags), True))
        if usages:
            extensions.append((x509.ExtendedKeyUsage(usages), False))
        if names:
            extensions.append((x509.SubjectAlternativeName(names), True))
        certificate = self.issue(x509.Name([]), key or p256(), extensions, days=days, serial=serial)
        return certificate.public_bytes(Encoding.DER)

    def ek(
        self, key: Key | None = None, *, flags: Sequence[str] = ("key_agreement",), **more: object
    ) -> bytes:
        """An EK certificate, DER."""
        chosen = {"usages": (EKU_EK,), "names": (tpm_directory_name(),)} | more
        return self.ak(key, flags=flags, **chosen)  # type: ignore[arg-type]


def root(
    common_name: str = "Root",
    *,
    key: Key | None = None,
    days: tuple[int, int] = (-1000, 5000),
    path_length: int | None = None,
    flags: Sequence[str] = ("key_cert_sign", "crl_sign"),
) -> Ca:
    """A new root."""
    key = key or p256()
    extensions: list[Extension] = [
        (x509.BasicConstraints(True, path_length), True),
        (usage(*flags), True),
    ]
    subject = name(common_name)
    return Ca(_sign(subject, key, subject, key, extensions, days, None), key)


def _sign(
    issuer: x509.Name,
    issuer_key: Key,
    subject: x509.Name,
    key: Key,
    extensions: Sequence[Extension],
    days: tuple[int, int],
    serial: int | None,
) -> x509.Certificate:
    builder = x509.CertificateBuilder().issuer_name(issuer).subject_name(subject).public_key(key.public_key())
    builder = builder.serial_number(serial or x509.random_serial_number())
    builder = builder.not_valid_before(NOW + timedelta(days=days[0])).not_valid_after(
        NOW + timedelta(days=days[1])
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = builder.add_extension(authority, False)
    return builder.sign(issuer_key, hashes.SHA256())
