# SPDX-License-Identifier: Apache-2.0
"""Makers of devices of the tests' own: roots, paths with every fault, and evidence signed by what they end in."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DIGEST, GENESIS = bytes(range(32)), bytes(range(32, 64))


@functools.cache
def p384(number: int) -> ec.EllipticCurvePrivateKey:
    """A P-384 key by its number, the same in each run."""
    return ec.derive_private_key(0x5151 + number, ec.SECP384R1())


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """An ES384 signature: r and s, big-endian."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def key_usage(*flags: str) -> x509.KeyUsage:
    """A key usage of these flags."""
    known = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{flag: flag in flags for flag in known})


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)


def issue(
    name: str,
    number: int,
    issuer: Issued | None = None,
    *,
    ca: bool = True,
    key: ec.EllipticCurvePrivateKey | None = None,
    begins: datetime = NOW - timedelta(days=1),
    lasts: timedelta = timedelta(days=2),
    usage: Sequence[str] | None = None,
    extra: Sequence[x509.ExtensionType] = (),
) -> Issued:
    """A certificate for the numbered key, signed by `issuer` or by itself."""
    own = key or p384(number)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    flags = usage or (["key_cert_sign"] if ca else ["digital_signature"])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(own.public_key())
        .serial_number(number + 1)
        .not_valid_before(begins)
        .not_valid_after(begins + lasts)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(key_usage(*flags), critical=True)
    )
    for extension in extra:
        builder = builder.add_extension(extension, critical=False)
    return Issued(builder.sign(own if issuer is None else issuer.key, hashes.SHA384()), own)


@functools.cache
def device_root(name: str = "root") -> Issued:
    """A root of that name."""
    return issue(name, sum(name.encode()), lasts=timedelta(days=3650))


def path_of(root: Issued, *, leaf: Mapping[str, Any] | None = None) -> tuple[Issued, ...]:
    """A path below a root, leaf first and root left out: a device and two CAs."""
    first = issue("ca 1", 1, root)
    second = issue("ca 2", 2, first)
    return issue("device", 3, second, **({"ca": False} | dict(leaf or {}))), second, first


@dataclass(frozen=True)
class NitroForge:
    """A Nitro document under construction; `payload` changes fields of it."""

    root: Issued = field(default_factory=device_root)
    path: tuple[Issued, ...] = field(default_factory=lambda: path_of(device_root()))
    time: datetime = NOW
    protected: bytes = cbor2.dumps({1: -35})
    unprotected: Mapping[Any, Any] = field(default_factory=dict)
    payload: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    tag: bytes = b""

    def having(self, **payload: Any) -> NitroForge:
        """A copy whose payload has other fields."""
        return replace(self, payload=dict(self.payload) | payload)

    def document(self) -> bytes:
        """The document, signed by the path's leaf."""
        pcrs = {number: bytes([number + 1]) * 48 if number < 5 else bytes(48) for number in range(16)}
        fields: dict[str, Any] = {
            "module_id": "i-1-enc2",
            "digest": "SHA384",
            "timestamp": int(self.time.timestamp() * 1000),
            "pcrs": pcrs,
            "certificate": self.path[0].der,
            "cabundle": [self.root.der, *(one.der for one in reversed(self.path[1:]))],
            "public_key": None,
            "user_data": DIGEST,
            "nonce": GENESIS,
        }
        fields |= self.payload
        payload = cbor2.dumps({name: value for name, value in fields.items() if name not in self.without})
        signed = cbor2.dumps(["Signature1", self.protected, b"", payload])
        signature = sign(self.path[0].key, signed) if self.path[0].key.key_size == 384 else bytes(96)
        return self.tag + cbor2.dumps([self.protected, dict(self.unprotected), payload, signature])
