# SPDX-License-Identifier: Apache-2.0
"""Reading roots: strict ones, and those of vendors that break DER in known ways."""

from __future__ import annotations

import hashlib

import pytest
from corpus import corpus_bytes, needs_corpus
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from small_pki import NOW, Ca, p256, root, rsa_private, usage

from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.pki.anchors import TrustAnchors, load_bundle, read_ca_certificate
from quotary_verifier.pki.chain import verify_ak_chain
from quotary_verifier.pki.lenient import NULL_PARAMETERS, SET_ORDER, mend

ROOT = root()
SUB = ROOT.sub_ca("Issuing CA")
BUNDLE = "tpm/cert/tpm-vendor-roots.pem"

ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
WITH_NULL = bytes.fromhex("300c06082a8648ce3d0403020500")


def pem(*ders: bytes) -> str:
    return "".join(
        x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode("ascii") for der in ders
    )


def signed_with_null_parameters() -> tuple[bytes, Ca]:
    """A root whose body, and so its signature, has a NULL after the signature algorithm."""
    ca = root("Null root")
    tbs = _content_of_first(ca.der[4:])
    changed = _sequence(tbs.replace(ECDSA_SHA256, WITH_NULL, 1))
    return _signed(changed, WITH_NULL, ca), ca


def signed_out_of_order() -> tuple[bytes, Ca]:
    """A root whose name is one set of two attributes in the wrong order."""
    key = p256()
    values = [(NameOID.COMMON_NAME, "Odd"), (NameOID.COUNTRY_NAME, "TW")]
    attributes = [x509.NameAttribute(oid, value) for oid, value in values]
    subject = x509.Name([x509.RelativeDistinguishedName(attributes)])
    extensions = [(x509.BasicConstraints(True, None), True), (usage("key_cert_sign", "crl_sign"), True)]
    issuer = Ca(x509.load_der_x509_certificate(root("x").der), key)
    made = issuer.issue(subject, key, extensions)
    ca = Ca(made, key)
    set_content = subject.public_bytes()[4:]
    first = set_content[: 2 + set_content[1]]
    second = set_content[2 + set_content[1] :]
    assert first < second
    wrong = subject.public_bytes()[:4] + second + first
    tbs = _content_of_first(ca.der[4:])
    tbs = tbs.replace(made.issuer.public_bytes(), wrong).replace(subject.public_bytes(), wrong)
    return _signed(_sequence(tbs), ECDSA_SHA256, ca), ca


def _signed(tbs: bytes, algorithm: bytes, ca: Ca) -> bytes:
    assert isinstance(ca.key, ec.EllipticCurvePrivateKey)
    signature = b"\x00" + ca.key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return _sequence(tbs + algorithm + bytes((0x03, len(signature))) + signature)


def _content_of_first(data: bytes) -> bytes:
    assert data[:2] == b"\x30\x82"
    return data[4 : 4 + int.from_bytes(data[2:4], "big")]


def _sequence(content: bytes) -> bytes:
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


def test_a_strict_certificate_is_left_as_it_is() -> None:
    assert mend(ROOT.der).der == ROOT.der
    assert mend(ROOT.der).signed == ROOT.certificate.tbs_certificate_bytes
    read = read_ca_certificate(ROOT.der)
    assert (read.faults, read.root, read.subject) == ((), True, "CN=Root")
    assert read.sha256 == hashlib.sha256(ROOT.der).digest()


@pytest.mark.parametrize(
    ("made", "fault"),
    [(signed_with_null_parameters(), NULL_PARAMETERS), (signed_out_of_order(), SET_ORDER)],
    ids=["null parameters", "set order"],
)
def test_a_root_with_a_known_fault_vouches_and_is_known_by_its_own_bytes(
    made: tuple[bytes, Ca], fault: str
) -> None:
    der, ca = made
    with pytest.raises(ValueError, match="error parsing asn1"):
        x509.load_der_x509_certificate(der)
    read = read_ca_certificate(der)
    assert (read.faults, read.root, read.sha256) == ((fault,), True, hashlib.sha256(der).digest())
    leaf = Ca(read.certificate, ca.key).ak()
    assert verify_ak_chain([leaf], TrustAnchors([read]), NOW).authority_sha256 == read.sha256


def test_the_self_signature_is_verified_over_the_original_bytes() -> None:
    der, ca = signed_with_null_parameters()
    mended_but_unsigned = mend(der).der
    assert not read_ca_certificate(mended_but_unsigned).root
    assert mend(mended_but_unsigned).faults == ()
    assert ca.certificate.subject.rfc4514_string() == "CN=Null root"


def test_a_certificate_with_a_fault_is_mended_only_as_a_ca() -> None:
    der, _ = signed_with_null_parameters()
    with pytest.raises(UnsupportedError, match="null parameters"):
        verify_ak_chain([der], TrustAnchors.from_der([ROOT.der]), NOW)


@given(st.integers(0, len(ROOT.der) - 1), st.binary(max_size=3))
def test_a_damaged_certificate_raises_nothing_but_malformed(at: int, replacement: bytes) -> None:
    damaged = ROOT.der[:at] + replacement + ROOT.der[at + 1 :]
    try:
        read_ca_certificate(damaged)
    except MalformedError:
        return
    assert damaged == ROOT.der or not read_ca_certificate(damaged).root


@given(st.binary(max_size=300))
def test_any_bytes_raise_nothing_but_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        mend(data)


def test_a_sequence_that_is_no_certificate_is_malformed() -> None:
    with pytest.raises(MalformedError, match="body, algorithm and signature"):
        mend(_sequence(bytes((0x05, 0x00))))
    with pytest.raises(MalformedError, match="body is too short"):
        mend(_sequence(b"\x30\x00" + b"\x30\x00" + b"\x03\x01\x00"))
    name_of_a_null = bytes.fromhex("020100") + bytes.fromhex("3000") + bytes.fromhex("30020500")
    with pytest.raises(MalformedError, match="not made of sets"):
        mend(_sequence(b"\x30\x0f" + name_of_a_null + b"\x30\x00" * 3 + b"\x30\x00" + b"\x03\x01\x00"))


def test_a_certificate_that_is_too_large_is_refused_unread() -> None:
    with pytest.raises(MalformedError, match="too large"):
        mend(bytes(16385))


@pytest.mark.parametrize(
    "der",
    [
        ROOT.ak(),
        ROOT.sub_ca("A", ca=False).der,
        root("B", flags=("crl_sign",)).der,
        ROOT.issue(
            x509.Name([]), p256(), [(x509.BasicConstraints(True, None), True)]
        ).public_bytes(Encoding.DER),
    ],
    ids=["leaf", "not a ca", "no keyCertSign", "no key usage"],
)  # fmt: skip
def test_what_may_not_issue_is_not_read_as_a_ca(der: bytes) -> None:
    with pytest.raises(MalformedError, match="not a ca certificate"):
        read_ca_certificate(der)


def test_a_ca_with_a_key_that_paths_cannot_use_is_refused() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    extensions = [(x509.BasicConstraints(True, None), True), (usage("key_cert_sign"), True)]
    certificate = Ca(root("Ed").certificate, p256()).issue(
        root("Ed").certificate.subject,
        key,
        extensions,  # type: ignore[arg-type]
    )
    with pytest.raises(MalformedError, match="neither rsa nor elliptic"):
        read_ca_certificate(certificate.public_bytes(Encoding.DER))


def test_rsa_roots_sign_themselves_too() -> None:
    assert read_ca_certificate(root("Rsa", key=rsa_private(2048)).der).root


def test_anchors_are_roots_and_what_stands_beside_them_only_helps() -> None:
    anchors = TrustAnchors.from_pem(pem(SUB.der, ROOT.der))
    assert [anchor.subject for anchor in anchors.roots] == ["CN=Root"]
    assert len(anchors.helpers) == 1
    sub = read_ca_certificate(SUB.der)
    with pytest.raises(MalformedError, match="not a root"):
        TrustAnchors([sub])
    with pytest.raises(MalformedError, match="no root"):
        TrustAnchors([])


@pytest.mark.parametrize("text", ["", "no pem", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_bundle_without_a_whole_certificate_is_malformed(text: str) -> None:
    for read in (load_bundle, TrustAnchors.from_pem):
        with pytest.raises(MalformedError, match="no certificate in pem form"):
            read(text)


def test_what_a_bundle_holds_is_used_or_reported_with_its_place() -> None:
    leaf = ROOT.ak()
    broken = "-----BEGIN CERTIFICATE-----\nAA=A\n-----END CERTIFICATE-----\n"
    bundle = load_bundle("# comment\n" + pem(ROOT.der) + broken + pem(leaf, SUB.der))
    assert [one.subject for one in bundle.certificates] == ["CN=Root", "CN=Issuing CA"]
    assert [(one.position, one.sha256) for one in bundle.unreadable] == [
        (1, None),
        (2, hashlib.sha256(leaf).digest()),
    ]
    assert "base64" in bundle.unreadable[0].reason
    assert "not a ca" in bundle.unreadable[1].reason
    with pytest.raises(MalformedError, match="base64"):
        TrustAnchors.from_pem(pem(ROOT.der) + broken)


def test_a_bundle_that_is_too_large_is_refused_unread() -> None:
    with pytest.raises(MalformedError, match="too large"):
        load_bundle(b" " * (1 << 22) + b" ")


@needs_corpus
def test_all_vendor_roots_load_and_five_of_them_only_mended() -> None:
    bundle = load_bundle(corpus_bytes(BUNDLE))
    assert bundle.unreadable == ()
    assert len(bundle.certificates) == 26
    faults = [one.faults for one in bundle.certificates if one.faults]
    assert faults == [(NULL_PARAMETERS,), (SET_ORDER,), (SET_ORDER,), (SET_ORDER,), (SET_ORDER,)]
    helpers = [one.subject.split(",")[0] for one in bundle.certificates if not one.root]
    assert helpers == [
        "CN=AMD Pluton Global Factory ICA",
        "CN=STM TPM ECC Root CA 01",
        "CN=STM TPM EK Root CA",
    ]
    assert len(TrustAnchors.of(bundle.certificates).roots) == 23


@needs_corpus
def test_vendor_roots_keep_the_digests_that_the_bundle_states() -> None:
    text = corpus_bytes(BUNDLE).decode("utf-8")
    stated = [
        bytes.fromhex(line.partition(": ")[2].replace(":", ""))
        for line in text.splitlines()
        if line.startswith("# Fingerprint (SHA-256)")
    ]
    assert [one.sha256 for one in load_bundle(text).certificates] == stated
