# SPDX-License-Identifier: Apache-2.0
"""A maker of SEV-SNP reports and of what vouches for them, with AMD's oddities and every fault a test asks for."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from quotary_verifier.evidence.tee.amd_certs import AmdRoots, Generation, SigningKey
from quotary_verifier.evidence.tee.snp import SnpEndorsements
from quotary_verifier.pki.der import encode, header

NOW = datetime(2026, 6, 1, tzinfo=UTC)
BOUND = bytes(range(64))
OID = "1.3.6.1.4.1.3704.1."
NUMBERS = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
CPUID = {Generation.MILAN: (0x19, 1, 1), Generation.GENOA: (0x19, 0x11, 1), Generation.TURIN: (0x1A, 2, 1)}
CHIP_BYTES = {Generation.MILAN: 64, Generation.GENOA: 64, Generation.TURIN: 8}

_PSS = bytes.fromhex("06092a864886f70d01010a")
_SHA384 = bytes.fromhex("300d06096086480165030402020500")
_PARAMETERS = bytes.fromhex("a00f") + _SHA384 + bytes.fromhex("a11c301a06092a864886f70d010108") + _SHA384
_SALT = bytes.fromhex("a203020130")
SHORT = encode(0x30, _PSS + encode(0x30, _PARAMETERS + _SALT))
LONG = encode(0x30, _PSS + encode(0x30, _PARAMETERS + _SALT + bytes.fromhex("a303020101")))
"""The two encodings of the algorithm: AMD's certificates have either."""

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@functools.cache
def rsa_key(_role: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """One RSA key for each role, size and test run; AMD's have 4096 bits."""
    return rsa.generate_private_key(65537, bits)


@functools.cache
def leaf_key() -> ec.EllipticCurvePrivateKey:
    """The key that signs reports."""
    return ec.generate_private_key(ec.SECP384R1())


def amd_name(*common: str) -> x509.Name:
    """A subject as AMD's, with as many common names as given."""
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Advanced Micro Devices")]
    return x509.Name([*attributes, *(x509.NameAttribute(NameOID.COMMON_NAME, one) for one in common)])


def integer(value: int) -> bytes:
    """A DER INTEGER."""
    return encode(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def pss(key: rsa.RSAPrivateKey, data: bytes) -> bytes:
    """A signature as AMD's."""
    return key.sign(data, padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384())


def unknown(extensions: Mapping[str, bytes], critical: str = "") -> list[tuple[x509.ExtensionType, bool]]:
    """Extensions that no library knows."""
    return [
        (x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), oid == critical)
        for oid, value in extensions.items()
    ]


def ca_extensions(*, ca: bool = True, signs: bool = True) -> list[tuple[x509.ExtensionType, bool]]:
    """What makes a certificate that of a CA."""
    usage = x509.KeyUsage(False, False, False, False, False, signs, True, False, False)
    return [(x509.BasicConstraints(ca, None), True), (usage, True)]


def certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: Key,
    signer: rsa.RSAPrivateKey,
    extensions: list[tuple[x509.ExtensionType, bool]],
    *,
    serial: int = 0,
    days: tuple[int, int] = (-30, 330),
    algorithms: tuple[bytes, bytes] = (LONG, LONG),
) -> bytes:
    """A certificate (DER) with a serial number below 128; `algorithms`: inside and outside of what is signed."""
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(0x7F)
    builder = builder.not_valid_before(NOW + timedelta(days[0])).not_valid_after(NOW + timedelta(days[1]))
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    made = builder.sign(
        signer, hashes.SHA384(), rsa_padding=padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    ).tbs_certificate_bytes
    content = made[header(made, 0)[2] :]
    version, rest = content[:5], content[8:]
    assert content[5:8] == b"\x02\x01\x7f"
    assert rest.startswith(SHORT)
    body = encode(0x30, version + bytes((2, 1, serial)) + algorithms[0] + rest[len(SHORT) :])
    return encode(0x30, body + algorithms[1] + encode(0x03, b"\0" + pss(signer, body)))


@dataclass
class AmdForge:
    """A processor of a generation, its keys, and the reports that it makes. Fields are what a test changes."""

    generation: Generation = Generation.GENOA
    signing_key: SigningKey = SigningKey.VCEK
    tcb: dict[str, int] = field(
        default_factory=lambda: {"bootloader": 10, "tee": 1, "snp": 27, "microcode": 200}
    )
    certified: dict[str, int] = field(default_factory=dict)
    chip: bytes = b""
    version: int = 5
    bits: int = 2048

    def __post_init__(self) -> None:
        self.chip = self.chip or bytes(range(1, 1 + CHIP_BYTES[self.generation]))
        if self.generation is Generation.TURIN:
            self.tcb = {"fmc": 3, **self.tcb}

    @property
    def ark_name(self) -> x509.Name:
        """The root's name."""
        return amd_name(f"ARK-{self.generation.value}")

    @property
    def issuer_name(self) -> str:
        """The name of the ASK or ASVK."""
        kind = "SEV-VLEK" if self.signing_key is SigningKey.VLEK else "SEV"
        return f"{kind}-{self.generation.value}"

    def ark(self, key: str = "ark", signer: str = "ark") -> bytes:
        """The root."""
        name = self.ark_name
        return certificate(
            name, name, rsa_key(key, self.bits), rsa_key(signer, self.bits), ca_extensions(), serial=1
        )

    def roots(self) -> AmdRoots:
        """The roots that trust this forge's ARK."""
        return AmdRoots.from_der({self.generation: self.ark()})

    def issuer(self, **changes: object) -> bytes:
        """The ASK or ASVK; `name`, `key`, `ark` (the role of its signer), `extensions` and what `certificate` takes."""
        name = str(changes.pop("name", self.issuer_name))
        signer = rsa_key(str(changes.pop("ark", "ark")), self.bits)
        extensions = changes.pop("extensions", ca_extensions())
        key = changes.pop("key", rsa_key("ask", self.bits))
        options = {"serial": 5, **changes}
        return certificate(amd_name(name), self.ark_name, key, signer, extensions, **options)  # type: ignore[arg-type]

    def extensions(self) -> dict[str, bytes]:
        """The leaf's extensions, by identifier."""
        made = {OID + "2": encode(0x16, self.generation.value.encode())}
        made |= {OID + NUMBERS[name]: integer(value) for name, value in (self.tcb | self.certified).items()}
        if self.signing_key is SigningKey.VLEK:
            return {**made, OID + "5": encode(0x16, b"cloud.example")}
        return {**made, OID + "4": encode(0x04, self.chip)}

    def leaf(self, **changes: object) -> bytes:
        """The VCEK or VLEK; `names`, `key`, `extensions`, `critical` and what `certificate` takes."""
        names = changes.pop("names", (f"SEV-{self.signing_key.value}",))
        key = changes.pop("key", leaf_key())
        extensions = changes.pop("extensions", self.extensions())
        made = unknown(extensions, str(changes.pop("critical", "")))  # type: ignore[arg-type]
        signer = rsa_key("ask", self.bits)
        return certificate(amd_name(*names), amd_name(self.issuer_name), key, signer, made, **changes)  # type: ignore[arg-type,misc]

    def crl(
        self,
        revoked: Mapping[int, datetime] | None = None,
        *,
        signer: str = "ark",
        start: int = -1,
        end: int = 30,
    ) -> bytes:
        """A CRL of the ARK: serial numbers and dates, and the days on which it begins and ends."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.ark_name)
        builder = builder.last_update(NOW + timedelta(start)).next_update(NOW + timedelta(end))
        for serial, date in (revoked or {}).items():
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date).build()
            builder = builder.add_revoked_certificate(entry)
        scheme = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
        signed = builder.sign(rsa_key(signer, self.bits), hashes.SHA384(), rsa_padding=scheme)
        return signed.public_bytes(Encoding.DER)

    def endorsements(self, *crls: bytes) -> SnpEndorsements:
        """What vouches for this forge's reports."""
        return SnpEndorsements(self.leaf(), self.issuer(), crls)

    def raw_tcb(self, **changes: int) -> bytes:
        """A TCB_VERSION in the layout of the generation."""
        tcb = self.tcb | changes
        if self.generation is Generation.TURIN:
            return bytes((tcb["fmc"], tcb["bootloader"], tcb["tee"], tcb["snp"], 0, 0, 0, tcb["microcode"]))
        return bytes((tcb["bootloader"], tcb["tee"], 0, 0, 0, 0, tcb["snp"], tcb["microcode"]))

    def fields(self) -> dict[int, bytes]:
        """The bytes of a report that are not zero, by where they stand."""
        flags = 4 if self.signing_key is SigningKey.VLEK else 0
        made = {
            0x00: self.version.to_bytes(4, "little"),
            0x08: (0x30000).to_bytes(8, "little"),
            0x34: b"\1",
            0x38: self.raw_tcb(),
            0x40: b"\x25",
            0x48: bytes((flags,)),
            0x50: BOUND,
            0x90: b"\x4d" * 48,
            0xC0: b"\x48" * 32,
            0x180: self.raw_tcb(),
            0x1A0: self.chip,
            0x1E0: self.raw_tcb(),
            0x1F0: self.raw_tcb(),
        }
        return made if self.version < 3 else {**made, 0x188: bytes(CPUID[self.generation])}

    def report(
        self, changes: Mapping[int, bytes] | None = None, *, key: ec.EllipticCurvePrivateKey | None = None
    ) -> bytes:
        """A signed report; `changes`: bytes at places, those behind 0x2a0 after it was signed."""
        report = bytearray(1184)
        for at, value in {**self.fields(), **(changes or {})}.items():
            report[at : at + len(value)] = value
        halves = decode_dss_signature(
            (key or leaf_key()).sign(bytes(report[:0x2A0]), ec.ECDSA(hashes.SHA384()))
        )
        for at, half in zip((0x2A0, 0x2E8), halves, strict=True):
            report[at : at + 48] = half.to_bytes(48, "little")
        for at, value in (changes or {}).items():
            report[at : at + len(value)] = value
        return bytes(report)
