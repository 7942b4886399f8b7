# SPDX-License-Identifier: Apache-2.0
"""Signatures and certificate paths of real TEE evidence, judged by the command line of OpenSSL beside ours.

The judge is given the bytes at the places that the makers' tables name, and CBOR as cbor2 reads and writes it: nothing
of our parsers. It has to accept each sample that we accept, and to refuse it with one bit of the signed bytes altered.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from base64 import b64decode, encodebytes, urlsafe_b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cbor2
import pytest
from corpus import corpus_bytes, entries, entry, needs_corpus
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quotary_verifier.errors import EvidenceError
from quotary_verifier.evidence.tee.amd_certs import read_amd_certificate, verify_link
from quotary_verifier.evidence.tee.snp import SnpEndorsements, verify_snp

OPENSSL = shutil.which("openssl")
pytestmark = [
    pytest.mark.judge,
    needs_corpus,
    pytest.mark.skipif(OPENSSL is None, reason="there is no openssl"),
]


def pem(der: bytes, label: str = "CERTIFICATE") -> bytes:
    return f"-----BEGIN {label}-----\n".encode() + encodebytes(der) + f"-----END {label}-----\n".encode()


def der(data: bytes) -> bytes:
    return b64decode(b"".join(data.split(b"-----")[2].split())) if data.startswith(b"-----") else data


@dataclass(frozen=True)
class Judge:
    """The command line, with files in a folder of the test's own."""

    folder: Path

    def _file(self, name: str, data: bytes) -> str:
        path = self.folder / name
        path.write_bytes(data)
        return str(path)

    def signed(self, key: bytes, signature: bytes, content: bytes, digest: str) -> bool:
        """Whether a key (SubjectPublicKeyInfo, DER) made a signature (DER) over the content."""
        public, made = self._file("key.pem", pem(key, "PUBLIC KEY")), self._file("signature", signature)
        command = ["openssl", "dgst", f"-{digest}", "-verify", public, "-signature", made]
        run = subprocess.run(command, input=content, capture_output=True, check=False)
        assert (run.returncode == 0) is (b"Verified OK" in run.stdout)
        return run.returncode == 0

    def leads(self, leaf: bytes, others: Sequence[bytes], root: bytes, at: datetime) -> bool:
        """Whether a path leads from a leaf to a root at a time (all DER)."""
        given = ["-trusted", self._file("root.pem", pem(root))]
        if others:
            given += ["-untrusted", self._file("others.pem", b"".join(map(pem, others)))]
        seconds = str(int(at.timestamp()))
        command = ["openssl", "verify", "-attime", seconds, *given, self._file("leaf.pem", pem(leaf))]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return Judge(tmp_path)


def spki(certificate: bytes) -> bytes:
    return key_der(x509.load_der_x509_certificate(certificate).public_key())


def key_der(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def ecdsa(halves: bytes, order: str = "big") -> bytes:
    half = len(halves) // 2
    return encode_dss_signature(*(int.from_bytes(halves[at : at + half], order) for at in (0, half)))  # type: ignore[arg-type]


def altered(data: bytes, at: int = 100) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


REPORTS = [one["file"] for one in entries("tee/snp/") if one["kind"] == "snp-report"]


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("file", REPORTS)
def test_the_signature_of_an_amd_report_and_its_path(file: str, judge: Judge) -> None:
    item = entry(file)
    vcek, ask, ark = (der(corpus_bytes(name)) for name in item["needs"])
    report, at = corpus_bytes(file), datetime.fromisoformat(item["expected"]["valid_at"])
    bound = bytes.fromhex(item["expected"]["report_data"])
    assert verify_snp(report, SnpEndorsements(vcek, ask), at, report_data=bound)
    assert judge.leads(vcek, [ask], ark, at)
    assert not judge.leads(vcek, [], ark, at)
    halves = report[0x2A0:0x2D0] + report[0x2E8:0x318]
    signature, content = ecdsa(halves, "little"), report[:0x2A0]
    key = key_der(read_amd_certificate(vcek).key)
    assert judge.signed(key, signature, content, "sha384")
    assert not judge.signed(key, signature, altered(content), "sha384")


def test_a_vcek_of_another_processor_neither_leads_to_the_root_nor_signed_the_report(judge: Judge) -> None:
    item = entry("tee/snp/milan-v2-report.bin")
    other = corpus_bytes("tee/snp/bad-milan-v2-other-vcek.der")
    _, ask, ark = (corpus_bytes(name) for name in item["needs"])
    assert not judge.leads(other, [ask], ark, datetime.fromisoformat(item["expected"]["valid_at"]))
    with pytest.raises(EvidenceError):
        verify_link(read_amd_certificate(other), read_amd_certificate(ask))


@pytest.mark.parametrize("generation", ["milan", "genoa", "turin"])
def test_every_link_below_a_root_of_amds(generation: str, judge: Judge) -> None:
    ark = corpus_bytes(f"tee/snp/ark-{generation}.der")
    others = [
        corpus_bytes(f"tee/snp/ark-{one}.der") for one in ("milan", "genoa", "turin") if one != generation
    ]
    for kind in ("ask", "asvk"):
        issuer = corpus_bytes(f"tee/snp/{kind}-{generation}.der")
        verify_link(read_amd_certificate(issuer), read_amd_certificate(ark))
        assert judge.leads(issuer, [], ark, datetime(2026, 6, 1, tzinfo=UTC))
        for other in others:
            assert not judge.leads(issuer, [], other, datetime(2026, 6, 1, tzinfo=UTC))


@pytest.mark.parametrize("file", [one["file"] for one in entries("tee/tdx/") if one["kind"] == "tdx-quote"])
def test_the_signatures_of_a_tdx_quote_and_its_path(file: str, judge: Judge) -> None:
    quote = corpus_bytes(file)
    signed, rest = quote[:632], quote[636:]
    signature, key, report, by_pck = rest[:64], rest[64:128], rest[134:518], rest[518:582]
    auth = int.from_bytes(rest[582:584], "little")
    pck, middle, root = (
        der(b"-----BEGIN CERTIFICATE-----" + one)
        for one in rest[584 + auth :].split(b"-----BEGIN CERTIFICATE-----")[1:]
    )
    assert root == corpus_bytes("tee/tdx/intel-sgx-root-ca.der")
    assert judge.leads(pck, [middle], root, datetime(2025, 6, 20, tzinfo=UTC))
    assert judge.signed(spki(pck), ecdsa(by_pck), report, "sha256")
    assert not judge.signed(spki(pck), ecdsa(by_pck), altered(report), "sha256")
    point = key_der(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + key))
    assert judge.signed(point, ecdsa(signature), signed, "sha256")
    assert not judge.signed(point, ecdsa(signature), altered(signed), "sha256")


def test_the_signatures_of_intels_collateral(judge: Judge) -> None:
    content = json.loads(corpus_bytes("tee/tdx/tdx-v4-collateral.json"))
    for name in ("tcb_info", "qe_identity"):
        chain = content[f"{name}_issuer_chain"].split("-----BEGIN CERTIFICATE-----")[1:]
        signer, root = (der(f"-----BEGIN CERTIFICATE-----{one}".encode()) for one in chain)
        assert judge.leads(signer, [], root, datetime(2025, 6, 20, tzinfo=UTC))
        signature, text = bytes.fromhex(content[f"{name}_signature"]), content[name].encode()
        assert judge.signed(spki(signer), ecdsa(signature), text, "sha256")
        assert not judge.signed(spki(signer), ecdsa(signature), altered(text), "sha256")


def test_the_signature_of_a_nitro_document_and_its_path(judge: Judge) -> None:
    protected, _, payload, signature = cbor2.loads(corpus_bytes("tee/nitro/nitro-enclave-document.cbor"))
    fields = cbor2.loads(payload)
    root, *between = fields["cabundle"]
    assert root == der(corpus_bytes("tee/nitro/aws-nitro-root.pem"))
    leaf, made = fields["certificate"], datetime.fromtimestamp(fields["timestamp"] / 1000, UTC)
    assert judge.leads(leaf, between, root, made)
    assert not judge.leads(leaf, between, root, datetime(2026, 1, 1, tzinfo=UTC))
    assert not judge.leads(leaf, between[1:], root, made)
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    assert judge.signed(spki(leaf), ecdsa(signature), signed, "sha384")
    assert not judge.signed(spki(leaf), ecdsa(signature), altered(signed), "sha384")


def test_both_signatures_of_a_realms_token(judge: Judge) -> None:
    jwk = json.loads(corpus_bytes("tee/cca/cpak-public.jwk.json"))
    x, y = (int.from_bytes(urlsafe_b64decode(jwk[name] + "=="), "big") for name in "xy")
    tokens = cbor2.loads(corpus_bytes("tee/cca/cca-token-emulator.cbor")).value
    platform, realm = (cbor2.loads(tokens[label]).value for label in (44234, 44241))
    rak = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), cbor2.loads(realm[2])[44237])
    keys = ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key(), rak
    for key, (protected, _, payload, signature) in zip(keys, (platform, realm), strict=True):
        signed = cbor2.dumps(["Signature1", protected, b"", payload])
        assert judge.signed(key_der(key), ecdsa(signature), signed, "sha384")
        assert not judge.signed(key_der(key), ecdsa(signature), altered(signed), "sha384")


def test_the_quote_of_a_confidential_vms_tpm(judge: Judge) -> None:
    found = json.loads(corpus_bytes("tee/azure-snp/evidence-v1.json"))
    hcl = urlsafe_b64decode(found["hcl_report"])
    length = int.from_bytes(hcl[1232:1236], "little")
    (jwk,) = (one for one in json.loads(hcl[1236 : 1236 + length])["keys"] if one["kid"] == "HCLAkPub")
    modulus, exponent = (int.from_bytes(urlsafe_b64decode(jwk[name] + "=="), "big") for name in "ne")
    key = key_der(rsa.RSAPublicNumbers(exponent, modulus).public_key())
    message, signature = (bytes.fromhex(found["tpm_quote"][name]) for name in ("message", "signature"))
    assert judge.signed(key, signature, message, "sha256")
    assert not judge.signed(key, signature, altered(message), "sha256")
