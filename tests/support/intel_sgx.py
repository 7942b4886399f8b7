# SPDX-License-Identifier: Apache-2.0
"""A maker of TDX quotes, of the keys that vouch for them and of collateral, with every fault that a test asks for."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from quotary_verifier.evidence.tee.intel_pki import IntelRoot
from quotary_verifier.evidence.tee.tdx_collateral import TdxCollateral
from quotary_verifier.evidence.tee.tdx_quote import INTEL_QE
from quotary_verifier.pki.der import encode

NOW = datetime(2026, 6, 1, tzinfo=UTC)
BOUND = bytes(range(64))
FMSPC = bytes.fromhex("b0c06f000000")
QE_SIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
ATTRIBUTES = (1 << 28).to_bytes(8, "little")

_SGX = bytes.fromhex("2a864886f84d010d01")
_SGX_OID = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_HEAD = 48


@functools.cache
def key(role: str) -> ec.EllipticCurvePrivateKey:
    """One P-256 key for each role and test run."""
    return ec.generate_private_key(ec.SECP256R1())


def raw_signature(signer: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """Two big-endian halves of 32 bytes."""
    halves = decode_dss_signature(signer.sign(data, ec.ECDSA(hashes.SHA256())))
    return b"".join(half.to_bytes(32, "big") for half in halves)


def raw_point(private: ec.EllipticCurvePrivateKey) -> bytes:
    """A public key as two coordinates."""
    numbers = private.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def intel_name(common: str) -> x509.Name:
    """A name as Intel's."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Intel Corporation"),
        ]
    )


ROOT, PCK_CA = "Intel SGX Root CA", "Intel SGX PCK Platform CA"
PCK, SIGNING = "Intel SGX PCK Certificate", "Intel SGX TCB Signing"


def certificate(
    subject: str,
    issuer: str,
    *,
    ca: bool | None = False,
    days: tuple[int, int] = (-300, 300),
    serial: int = 0,
    public: str = "",
    signer: str = "",
    path_length: int | None = None,
    usage: bool | x509.KeyUsage = True,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    own_key: Any = None,
) -> x509.Certificate:
    """A certificate; `public` and `signer` are roles of keys, by default the names. `usage`: fitting, or as given."""
    builder = x509.CertificateBuilder().subject_name(intel_name(subject)).issuer_name(intel_name(issuer))
    builder = builder.public_key((own_key or key(public or subject)).public_key())
    builder = builder.serial_number(serial or 1000 + len(subject))
    builder = builder.not_valid_before(NOW + timedelta(days[0])).not_valid_after(NOW + timedelta(days[1]))
    signs = ca if usage else not ca
    flags = (not signs, not signs, False, False, False, bool(signs), bool(signs), False, False)
    uses = usage if isinstance(usage, x509.KeyUsage) else x509.KeyUsage(*flags)
    builder = builder.add_extension(uses, critical=True)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    issued_by = key(signer or issuer)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issued_by.public_key())
    builder = builder.add_extension(identifier, critical=False)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return builder.sign(issued_by, hashes.SHA256())


def pem(*certificates: x509.Certificate) -> bytes:
    """A chain, leaf first."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


@functools.cache
def root_certificate() -> x509.Certificate:
    """The root, which is not Intel's."""
    return certificate(ROOT, ROOT, ca=True, path_length=1, days=(-3000, 3000))


@functools.cache
def forged_root() -> IntelRoot:
    """The root, as a verifier trusts it."""
    return IntelRoot(root_certificate().public_bytes(Encoding.DER))


@functools.cache
def pck_ca() -> x509.Certificate:
    """The CA of PCKs."""
    return certificate(PCK_CA, ROOT, ca=True, path_length=0, days=(-2000, 2000))


@functools.cache
def tcb_signing() -> x509.Certificate:
    """What signs TCB infos and QE identities."""
    return certificate(SIGNING, ROOT, days=(-900, 900))


def pair(name: bytes, value: bytes) -> bytes:
    """An identifier under Intel's own, and its value."""
    return encode(0x30, encode(0x06, _SGX + name) + value)


def number(value: int) -> bytes:
    """A DER INTEGER."""
    return encode(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


@dataclass
class Platform:
    """What a PCK certificate says of its platform."""

    components: tuple[int, ...] = (5,) * 16
    pce_svn: int = 300
    fmspc: bytes = FMSPC
    ppid: bytes = b"\xaa" * 16
    pce_id: bytes = b"\0\0"

    def fields(self) -> dict[bytes, bytes]:
        """The values of the extension, by identifier."""
        tcb = b"".join(pair(bytes((2, at)), number(svn)) for at, svn in enumerate(self.components, 1))
        tcb += pair(b"\x02\x11", number(self.pce_svn))
        tcb += pair(b"\x02\x12", encode(0x04, bytes(min(svn, 255) for svn in self.components)))
        return {
            b"\x01": encode(0x04, self.ppid),
            b"\x02": encode(0x30, tcb),
            b"\x03": encode(0x04, self.pce_id),
            b"\x04": encode(0x04, self.fmspc),
            b"\x05": encode(0x0A, b"\1"),
        }

    def extension(self, changes: Mapping[bytes, bytes] | None = None) -> bytes:
        """The extension's value."""
        fields = {**self.fields(), **(changes or {})}
        return encode(0x30, b"".join(pair(name, value) for name, value in fields.items() if value))


@functools.cache
def crl(
    issuer: str, revoked: tuple[int, ...] = (), *, days: tuple[int, int] = (-1, 29), signer: str = ""
) -> bytes:
    """A CRL of Intel's."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(intel_name(issuer))
    builder = builder.last_update(NOW + timedelta(days[0])).next_update(NOW + timedelta(days[1]))
    issued_by = key(signer or issuer)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issued_by.public_key())
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(x509.CRLNumber(1), critical=False)
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - timedelta(1))
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issued_by, hashes.SHA256()).public_bytes(Encoding.DER)


def stamp(days: int) -> str:
    """A time as Intel writes it."""
    return f"{NOW + timedelta(days):%Y-%m-%dT%H:%M:%SZ}"


def level(
    svn: int, status: str, *, tdx: int = 0, advisories: tuple[str, ...] = (), pce: int = 0
) -> dict[str, Any]:
    """A level of a TCB info."""
    tcb = {
        "sgxtcbcomponents": [{"svn": svn}] * 16,
        "pcesvn": pce,
        "tdxtcbcomponents": [{"svn": tdx}] * 16,
    }
    made = {"tcb": tcb, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": status}
    return {**made, "advisoryIDs": list(advisories)} if advisories else made


def module_level(svn: int, status: str) -> dict[str, Any]:
    """A level of a module or quoting enclave."""
    return {"tcb": {"isvsvn": svn}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": status}


ZERO_MODULE = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}


def tcb_info(**changes: Any) -> dict[str, Any]:
    """A TCB info for the forged platform."""
    made = {
        "id": "TDX",
        "version": 3,
        "issueDate": stamp(-1),
        "nextUpdate": stamp(29),
        "fmspc": FMSPC.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": 17,
        "tdxModule": ZERO_MODULE,
        "tdxModuleIdentities": [
            {
                "id": "TDX_01",
                **ZERO_MODULE,
                "tcbLevels": [module_level(5, "UpToDate"), module_level(2, "OutOfDate")],
            }
        ],
        "tcbLevels": [level(5, "UpToDate"), level(3, "OutOfDate", advisories=("INTEL-SA-00001",))],
    }
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


def qe_identity(**changes: Any) -> dict[str, Any]:
    """The identity of a TD's quoting enclave."""
    made = {
        "id": "TD_QE",
        "version": 2,
        "issueDate": stamp(-2),
        "nextUpdate": stamp(28),
        "tcbEvaluationDataNumber": 17,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": QE_SIGNER.hex().upper(),
        "isvprodid": 2,
        "tcbLevels": [module_level(6, "UpToDate"), module_level(4, "OutOfDate")],
    }
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


def collateral(
    info: dict[str, Any] | bytes | None = None,
    identity: dict[str, Any] | bytes | None = None,
    *,
    signing: bytes | None = None,
    signer: str = SIGNING,
    pck_crl: bytes | None = None,
    root_crl: bytes | None = None,
) -> TdxCollateral:
    """Collateral that fits the forged platform, but for what is given."""
    texts = [
        one if isinstance(one, bytes) else json.dumps(one, separators=(",", ":")).encode()
        for one in (tcb_info() if info is None else info, qe_identity() if identity is None else identity)
    ]
    chain = signing or pem(tcb_signing(), root_certificate())
    return TdxCollateral(
        pck_crl_issuer_chain=pem(pck_ca(), root_certificate()),
        root_ca_crl=root_crl or crl(ROOT),
        pck_crl=pck_crl or crl(PCK_CA),
        tcb_info_issuer_chain=chain,
        tcb_info=texts[0],
        tcb_info_signature=raw_signature(key(signer), texts[0]),
        qe_identity_issuer_chain=chain,
        qe_identity=texts[1],
        qe_identity_signature=raw_signature(key(signer), texts[1]),
    )


@dataclass
class TdxForge:
    """A platform that makes quotes. Fields are what a test changes; `body` and `qe`: bytes at places."""

    version: int = 4
    body_type: int = 2
    platform: Platform = field(default_factory=Platform)
    pck: dict[str, Any] = field(default_factory=dict)
    extension: bytes | None = None
    body: dict[int, bytes] = field(default_factory=dict)
    header: dict[int, bytes] = field(default_factory=dict)
    qe: dict[int, bytes] = field(default_factory=dict)
    auth: bytes = bytes(range(32))
    chain: bytes | None = None
    certification: tuple[int, int] = (6, 5)
    signer: str = "attestation"
    pck_signer: str = PCK

    def pck_certificate(self) -> x509.Certificate:
        """The PCK certificate."""
        value = self.extension if self.extension is not None else self.platform.extension()
        extensions = ((x509.UnrecognizedExtension(_SGX_OID, value), False),) if value else ()
        return certificate(**{"subject": PCK, "issuer": PCK_CA, "extensions": extensions, **self.pck})

    def signed(self) -> bytes:
        """Header and body."""
        head = bytearray(_HEAD)
        head[0:8] = self.version.to_bytes(2, "little") + b"\x02\x00" + b"\x81\0\0\0"
        head[12:28] = INTEL_QE
        body = bytearray(648 if self.version == 5 and self.body_type == 3 else 584)
        body[0:2] = bytes((7, 1))
        body[0x78:0x80] = ATTRIBUTES
        body[0x88:0xB8] = b"\x11" * 48
        for at in range(4):
            body[0x148 + 48 * at : 0x178 + 48 * at] = bytes((0x20 + at,)) * 48
        body[0x208:0x248] = BOUND
        for area, changes in ((head, self.header), (body, self.body)):
            for at, value in changes.items():
                area[at : at + len(value)] = value
        kind = (
            self.body_type.to_bytes(2, "little") + len(body).to_bytes(4, "little")
            if self.version == 5
            else b""
        )
        return bytes(head) + kind + bytes(body)

    def qe_report(self) -> bytes:
        """The quoting enclave's report."""
        report = bytearray(384)
        report[0x30:0x40] = bytes.fromhex("1500000000000000e700000000000000")
        report[0x80:0xA0] = QE_SIGNER
        report[0x100:0x104] = b"\x02\0\x06\0"
        report[0x140:0x160] = hashlib.sha256(raw_point(key("attestation")) + self.auth).digest()
        for at, value in self.qe.items():
            report[at : at + len(value)] = value
        return bytes(report)

    def certification_data(self) -> bytes:
        """Report, its signature, authentication data and chain."""
        report = self.qe_report()
        chain = (
            pem(self.pck_certificate(), pck_ca(), root_certificate()) if self.chain is None else self.chain
        )
        return (
            report
            + raw_signature(key(self.pck_signer), report)
            + len(self.auth).to_bytes(2, "little")
            + self.auth
            + self.certification[1].to_bytes(2, "little")
            + len(chain).to_bytes(4, "little")
            + chain
        )

    def quote(self, *, extra: bytes = b"", inner: bytes = b"") -> bytes:
        """A quote; `extra` and `inner` stand where nothing may, behind signature data and certification data."""
        signed, certified = self.signed(), self.certification_data() + inner
        data = (
            raw_signature(key(self.signer), signed)
            + raw_point(key("attestation"))
            + self.certification[0].to_bytes(2, "little")
            + len(certified).to_bytes(4, "little")
            + certified
            + extra
        )
        return signed + len(data).to_bytes(4, "little") + data
