# SPDX-License-Identifier: Apache-2.0
"""Makes attestations with keys of its own, so that tests can make false ones: a TPM would refuse to sign them.

What a real TPM signs is tested in tests/integration; this is the attacker's workshop. `Forge().attestation()` is
valid in every respect, and each knob breaks one thing.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID
from nacl.signing import SigningKey

from quotary_verifier.logs.cel import content_digest
from quotary_verifier.logs.workload import WorkloadEvent, reveal, separator
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, HardwareLine, encode_hardware_line
from quotary_verifier.tlog.merkle import leaf_hash, node_hash
from quotary_verifier.tlog.note import Note, sign_ed25519
from quotary_verifier.wire.attestation import Attestation, TpmSupport
from quotary_verifier.wire.bindings import ZERO, chain_extend, commit_digest, request_commitment
from quotary_verifier.wire.names import origin_of
from quotary_verifier.wire.records import (
    Genesis,
    Link,
    ModelClaim,
    Output,
    Source,
    State,
    TpmIdentity,
    entry_of,
)
from quotary_verifier.wire.tee_support import TeeSupport
from quotary_verifier.wire.tpm import pack_evidence
from quotary_verifier.wire.tpm_names import RH_ENDORSEMENT, hierarchy_qn, qualified_name
from quotary_verifier.wire.tpm_public import parse_public

TeeRoot = Callable[[bytes, bytes], tuple[bytes, TeeSupport]]
"""Makes evidence that binds D and SHA-256 of the genesis record, with what vouches for it."""

NOW = 1_795_435_200
"""The time of verification of every forged attestation: 2026-11-23T12:00:00Z."""

AIK_EKU = x509.ObjectIdentifier("2.23.133.8.3")
OWN_ATTRIBUTES = 0x00050472


def u16(value: int) -> bytes:
    return value.to_bytes(2)


def sized(data: bytes) -> bytes:
    return u16(len(data)) + data


def ec_public(key: ec.EllipticCurvePrivateKey, attributes: int = OWN_ATTRIBUTES) -> bytes:
    """TPMT_PUBLIC of a P-256 ECDSA-SHA256 key with these object attributes."""
    numbers = key.public_key().public_numbers()
    head = u16(0x23) + u16(0x0B) + attributes.to_bytes(4) + sized(b"") + u16(0x10)
    scheme = u16(0x18) + u16(0x0B) + u16(0x03) + u16(0x10)
    return head + scheme + sized(numbers.x.to_bytes(32)) + sized(numbers.y.to_bytes(32))


def nv_counter(index: int = 0x01800100) -> bytes:
    """TPMS_NV_PUBLIC of a written counter."""
    attributes = 0x2 | 0x4 | 0x10 | 0x20000 | 0x40000 | 0x2000000 | 0x20000000
    return index.to_bytes(4) + u16(0x0B) + attributes.to_bytes(4) + sized(b"") + u16(8)


def sign_tpm(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """TPMT_SIGNATURE, ECDSA with SHA-256."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return u16(0x18) + u16(0x0B) + sized(r.to_bytes(32)) + sized(s.to_bytes(32))


def tree(leaves: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
    """Root and paths of a small tree, by the recursive definition of RFC 6962 section 2.1."""
    if len(leaves) == 1:
        return leaves[0], [b""]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    left, left_paths = tree(leaves[:split])
    right, right_paths = tree(leaves[split:])
    paths = [path + right for path in left_paths] + [path + left for path in right_paths]
    return node_hash(left, right), paths


@dataclass
class Quote:
    """The fields of TPMS_ATTEST for a quote; change any before it is signed."""

    magic: int = 0xFF544347
    kind: int = 0x8018
    signer: bytes = b""
    extra_data: bytes = b""
    clock: int = 123456
    reset_count: int = 7
    restart_count: int = 0
    safe: int = 1
    firmware: int = 0x0007_0002_0003_0004
    selections: tuple[tuple[int, bytes], ...] = ((0x0B, b"\xff\xff\x00"),)
    pcr_digest: bytes = b""
    tail: bytes = b""

    def encode(self) -> bytes:
        counts = self.reset_count.to_bytes(4) + self.restart_count.to_bytes(4)
        head = self.magic.to_bytes(4) + u16(self.kind) + sized(self.signer) + sized(self.extra_data)
        clock = self.clock.to_bytes(8) + counts + bytes((self.safe,)) + self.firmware.to_bytes(8)
        selections = len(self.selections).to_bytes(4) + b"".join(
            u16(bank) + bytes((len(bitmap),)) + bitmap for bank, bitmap in self.selections
        )
        return head + clock + selections + sized(self.pcr_digest) + self.tail


@dataclass
class Authority:
    """A CA of the test's own."""

    name: str = "Test CA"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        self.certificate = (
            _builder(subject, subject, self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(cert_sign=True), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def crl(self, *revoked: bytes) -> str:
        """PEM of a CRL of the day that revokes these certificates (DER)."""
        start = dt.datetime.fromtimestamp(NOW, dt.UTC) - dt.timedelta(hours=1)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(start)
            .next_update(start + dt.timedelta(days=7))
        )
        for der in revoked:
            serial = x509.load_der_x509_certificate(der).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start).build()
            builder = builder.add_revoked_certificate(entry)
        crl = builder.sign(self.key, hashes.SHA256())
        return crl.public_bytes(serialization.Encoding.PEM).decode()

    def issue(
        self,
        key: ec.EllipticCurvePublicKey,
        host: str,
        origin: str | None,
        *,
        model: str = "SLB9670",
        manufacturer: str = "id:49465800",
        days: int = 365,
        eku: x509.ObjectIdentifier = AIK_EKU,
        ca: bool = False,
    ) -> bytes:
        """DER of an AK certificate."""
        identity = x509.Name(
            [
                x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.1"), manufacturer),
                x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.2"), model),
                x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.3"), "id:0001"),
            ]
        )
        names: list[x509.GeneralName] = [x509.DNSName(host), x509.DirectoryName(identity)]
        if origin is not None:
            names.append(x509.UniformResourceIdentifier(f"quotary://{origin}"))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
        certificate = (
            _builder(subject, self.certificate.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=not ca, cert_sign=ca), critical=True)
            .add_extension(x509.ExtendedKeyUsage([eku]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.DER)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int = 3650
) -> x509.CertificateBuilder:
    start = dt.datetime.fromtimestamp(NOW, dt.UTC) - dt.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=days))
    )


def _usage(*, digital_signature: bool = False, cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=cert_sign,
        crl_sign=cert_sign,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass
class Forge:
    """A host with a log of a few leaves, whose AK is a key in memory."""

    host: str = "gpu-07.example.net"
    body: bytes = b'{"choices":[{"index":0,"message":{"content":"Paris."}}]}'
    request: bytes = b'{"model":"m","messages":[]}'
    nonce: bytes | None = b"n" * 32
    leaves: int = 5
    first: int = 2
    index: int = 3
    chain_pcr: int = 15
    workload_pcr: int = 13
    attributes: int = OWN_ATTRIBUTES
    ak: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    signer: ec.EllipticCurvePrivateKey | None = None
    note_key: SigningKey = field(default_factory=SigningKey.generate)
    authority: Authority = field(default_factory=Authority)
    pcrs: Mapping[int, bytes] = field(
        default_factory=lambda: {pcr: hashlib.sha256(b"pcr%d" % pcr).digest() for pcr in (0, 2, 4, 7)}
    )
    before: bytes = hashlib.sha256(b"before").digest()
    model: str = "SmolLM2-135M"
    weights: bytes = hashlib.sha256(b"weights").digest()
    link: Link = Link.STARTED
    keep: frozenset[int] = frozenset({1})
    source: Source = Source.RELAYED
    state: State = State.COMPLETE
    certificate: bytes | None = None
    counter: bytes = field(default_factory=nv_counter)
    tees: tuple[TeeRoot, ...] = ()
    endorsements: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.public = self.area()
        self.parent = self.ak_parent()
        self.genesis = Genesis(
            salt=b"g" * 16,
            time=NOW * 1000 - 86_400_000,
            host=self.host,
            note_key=bytes(self.note_key.verify_key),
            tpm=TpmIdentity(self.public, self.parent, self.chain_pcr, self.workload_pcr, self.counter),
        )
        self.genesis_record = self.genesis.encode()
        self.origin = origin_of(self.host, self.genesis_record)
        if self.certificate is None:
            self.certificate = self.authority.issue(self.ak.public_key(), self.host, self.origin)

    def area(self) -> bytes:
        """The AK as TPMT_PUBLIC."""
        return ec_public(self.ak, self.attributes)

    def ak_parent(self) -> bytes:
        """Item 6 of the genesis record."""
        return b"\x00\x0b" + hashlib.sha256(b"parent").digest()

    def signer_name(self) -> bytes:
        """The qualified name of the AK."""
        parent_qn = qualified_name(hierarchy_qn(RH_ENDORSEMENT), self.parent)
        return qualified_name(parent_qn, parse_public(self.public).name)

    def sign(self, attest: bytes) -> bytes:
        """The AK's TPMT_SIGNATURE."""
        return sign_tpm(self.signer or self.ak, attest)

    def events(self) -> list[bytes]:
        """The workload log in full: agent, model, engine and the separator."""
        contents = [
            WorkloadEvent("agent", "quotary", hashlib.sha256(b"agent").digest(), {}).encode(),
            WorkloadEvent("model", self.model, self.weights, {}).encode(),
            WorkloadEvent("engine", "llama-server", hashlib.sha256(b"engine").digest(), {}).encode(),
        ]
        return [*contents, separator(0, [content_digest(content) for content in contents])]

    def record(self) -> Output:
        """The output record of the attested leaf."""
        return Output(
            salt=b"s" * 16,
            time=NOW * 1000 - 5000,
            output_id=bytes(range(24)),
            state=self.state,
            digests={
                "body": hashlib.sha256(self.body).digest(),
                "text/0": hashlib.sha256(b"Paris.").digest(),
            },
            request=request_commitment(b"k" * 32, self.request),
            nonce=self.nonce,
            model=ModelClaim(self.model, self.weights, 1, content_digest(self.events()[1]), self.link),
            context={"endpoint": "/v1/chat/completions"},
            source=self.source,
        )

    def quote(self, digest: bytes, log: Sequence[bytes]) -> Quote:
        """A quote over D with the PCR values of this host."""
        values = {pcr: self.pcrs.get(pcr, ZERO) for pcr in range(16)}
        values[self.chain_pcr] = chain_extend(self.before, digest)
        value = ZERO
        for content in log:
            value = chain_extend(value, content_digest(content))
        values[self.workload_pcr] = value
        return Quote(
            signer=self.signer_name(),
            extra_data=digest,
            pcr_digest=hashlib.sha256(b"".join(values[pcr] for pcr in range(16))).digest(),
        )

    def attestation(self, *, record: Output | bytes | None = None, **quote_fields: object) -> Attestation:
        """A whole attestation; `quote_fields` replace fields of the quote before it is signed."""
        record = self.record() if record is None else record
        octets = record if isinstance(record, bytes) else record.encode()
        entries = [entry_of(b"leaf %d" % number) for number in range(self.leaves)]
        entries[0] = entry_of(self.genesis_record)
        entries[self.index] = entry_of(octets)
        root, paths = tree([leaf_hash(entry) for entry in entries])
        text = Checkpoint(self.origin, self.leaves, root).text
        digest = commit_digest(self.origin, self.first, text)
        quote = replace(self.quote(digest, self.events()), **quote_fields)
        attest = quote.encode()
        evidence = pack_evidence(attest, self.sign(attest))
        spki = parse_public(self.public).to_spki_der()
        tees = [make(digest, hashlib.sha256(self.genesis_record).digest()) for make in self.tees]
        lines = (
            sign_ed25519(text, self.origin, self.note_key),
            encode_hardware_line(
                self.origin, spki, HardwareLine(IDENTIFIER_TPM2_QUOTE, self.first, evidence)
            ),
            *(
                encode_hardware_line(self.origin, b"", HardwareLine(support.identifier, self.first, tee))
                for tee, support in tees
            ),
        )
        certificates = () if self.certificate is None else (self.certificate,)
        support = TpmSupport(
            identifier=IDENTIFIER_TPM2_QUOTE,
            pcrs=dict(self.pcrs),
            chain_before=self.before,
            certificates=certificates,
            workload_log=reveal(self.events(), self.keep),
            endorsements=self.endorsements,
        )
        return Attestation(
            record=octets,
            genesis=self.genesis_record,
            index=self.index,
            path=paths[self.index],
            note=Note(text, lines).encode(),
            supports=(support,),
            request_key=b"k" * 32,
            tees=tuple(support for _, support in tees),
        )

    def policy(self, extra: str = "", *, head: str = "") -> str:
        """A policy that accepts this host and nothing else, in TOML."""
        return (
            f'schema = "quotary-policy/v1"\n{head}\n[[authority]]\nname = "{self.authority.name}"\n'
            f'certificates = """\n{self.authority.pem}"""\n{extra}'
        )
