# SPDX-License-Identifier: Apache-2.0
"""OpenSSF model signatures: what verifies, what is false, and what is said to be not checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_pki
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from signed_models import bundle, public_pem, statement, text, write_files

from quotary_attest.measure import MeasureError, ModelFile, SignatureError
from quotary_attest.measuring.openssf import load_signers
from quotary_attest.measuring.signers import Signers
from quotary_attest.workload import ServedModel, measure_model

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "sub/tokenizer.json": b"tokens"}
KEY = ec.generate_private_key(ec.SECP256R1())
TRUSTED = Signers((KEY.public_key(),))
Bundle = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    write_files(made, FILES)
    return made


def checked(folder: Path, signed: Bundle | bytes, signers: Signers = TRUSTED) -> ServedModel:
    """Measure a folder with this signature in it."""
    data = signed if isinstance(signed, bytes) else json.dumps(signed).encode()
    (folder / "model.sig").write_bytes(data)
    return measure_model(ModelFile("m", (folder,)), signers=signers)[0]


def test_a_signature_by_a_trusted_key_verifies_and_names_the_key(folder: Path) -> None:
    others = ec.generate_private_key(ec.SECP256R1()).public_key()
    model = checked(folder, bundle(KEY, statement(FILES)), Signers((others, KEY.public_key())))
    der = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert model.details["signature"] == "verified"
    assert model.details["signer"] == f"key sha256:{hashlib.sha256(der).hexdigest()}"
    root = statement(FILES)["subject"][0]["digest"]["sha256"]
    assert model.details["openssf"] == bytes.fromhex(root)


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_signatures_of_the_longer_curves_verify(folder: Path, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    model = checked(folder, bundle(key, statement(FILES)), Signers((key.public_key(),)))
    assert model.details["signature"] == "verified"


def test_a_single_file_is_signed_as_the_file_that_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    signature = tmp_path / "model.gguf.sig"
    signature.write_text(json.dumps(bundle(KEY, statement({".": b"weights"}))))
    model, _ = measure_model(ModelFile("m", (path,)), signers=TRUSTED)
    assert model.details["signature"] == "verified"
    path.write_bytes(b"swapped")
    with pytest.raises(SignatureError, match="differ from what was signed"):
        measure_model(ModelFile("m", (path,)), signers=TRUSTED)


def test_what_git_and_tools_left_may_be_signed_or_not(folder: Path) -> None:
    model = checked(folder, bundle(KEY, statement(FILES | {".gitattributes": b"lfs"})))
    assert model.details["signature"] == "verified"


def _altered_payload(signed: Bundle) -> None:
    signed["dsseEnvelope"]["payload"] = text(json.dumps(statement(FILES | {"x": b"x"})).encode())


def _second_signature(signed: Bundle) -> None:
    signed["dsseEnvelope"]["signatures"] *= 2


def _no_base64(signed: Bundle) -> None:
    signed["dsseEnvelope"]["payload"] += "!"


FAULTS: list[tuple[Callable[[Bundle], None], str]] = [
    (_altered_payload, "none of the keys"),
    (_second_signature, "exactly one signature"),
    (_no_base64, "not base64"),
    (lambda signed: signed.pop("dsseEnvelope"), "no proper dsseEnvelope"),
    (lambda signed: signed.update(mediaType="application/json"), "sigstore bundle"),
    (lambda signed: signed["dsseEnvelope"].update(payloadType="text/plain"), "in-toto"),
    (lambda signed: signed["dsseEnvelope"].update(signatures=[1]), "exactly one signature"),
    (lambda signed: signed["dsseEnvelope"]["signatures"][0].update(sig=7), "no proper sig"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_faulty_signature_is_refused(folder: Path, fault: Callable[[Bundle], None], message: str) -> None:
    signed = bundle(KEY, statement(FILES))
    fault(signed)
    with pytest.raises(SignatureError, match=message):
        checked(folder, signed)


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"[]", b"[" * 100_000, b'{"mediaType": 1, "mediaType": 1}', b"null"], ids=str
)
def test_what_is_no_bundle_is_refused(folder: Path, data: bytes) -> None:
    with pytest.raises(SignatureError):
        checked(folder, data)


SIGNED_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"resources": {}}, "no proper resources"),
    ({"resources": [1]}, "without a sha-256 digest"),
    ({"resources": [{"name": "a", "algorithm": "sha256", "digest": "zz"}]}, "another length"),
    ({"resources": statement(FILES)["predicate"]["resources"] * 2}, "twice"),
    ({"serialization": []}, "no proper serialization"),
]


@pytest.mark.parametrize(("changes", "message"), SIGNED_FAULTS, ids=[message for _, message in SIGNED_FAULTS])
def test_a_statement_of_another_form_is_refused_though_it_is_signed(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SignatureError, match=message):
        checked(folder, bundle(KEY, statement(FILES, **changes)))
    with pytest.raises(SignatureError, match="model-signing"):
        checked(
            folder, bundle(KEY, statement(FILES) | {"predicateType": "https://model_signing/Digests/v0.1"})
        )


def test_every_file_that_is_measured_must_be_signed_and_the_other_way_round(folder: Path) -> None:
    with pytest.raises(SignatureError, match=r"not covered by the signature: config\.json"):
        checked(
            folder, bundle(KEY, statement({name: FILES[name] for name in FILES if name != "config.json"}))
        )
    with pytest.raises(SignatureError, match="not there: gone"):
        checked(folder, bundle(KEY, statement(FILES | {"gone": b"x"})))
    with pytest.raises(SignatureError, match="differ from what was signed"):
        checked(folder, bundle(KEY, statement(FILES | {"config.json": b"[]"})))
    swapped = dict(zip(FILES, reversed(FILES.values()), strict=True))
    with pytest.raises(SignatureError, match="differ from what was signed"):
        checked(folder, bundle(KEY, statement(swapped)))


def test_what_cannot_be_checked_here_says_so(folder: Path) -> None:
    signed = bundle(KEY, statement(FILES))
    nobody = checked(folder, signed, Signers())
    assert nobody.details["signature"] == "could not be checked"
    assert nobody.details["signature_reason"] == "no signer is trusted"
    assert "signer" not in nobody.details
    assert checked(folder, b"not openssf's at all", Signers()).details["signature"] == "could not be checked"
    for material in ({"certificate": {"rawBytes": ""}}, {"publicKey": {}, "tlogEntries": [{}]}):
        by_sigstore = checked(folder, signed | {"verificationMaterial": material})
        assert "sigstore" in str(by_sigstore.details["signature_reason"])
    for serialization in (
        {"method": "shards", "hash_type": "sha256"},
        {"method": "files", "hash_type": "blake3"},
    ):
        other = checked(folder, bundle(KEY, statement(FILES, serialization=serialization)))
        assert other.details["signature"] == "could not be checked"


# -- certificates


class Authority:
    """A root, an intermediate, and a certificate for signing."""

    def __init__(
        self, *, flags: tuple[str, ...] = ("digital_signature",), usages: tuple[Any, ...] = ()
    ) -> None:
        self.root = small_pki.root("model root")
        self.issuer = self.root.sub_ca("model issuer")
        self.key = small_pki.p256()
        self.leaf = self.issuer.ak(self.key, flags=flags, usages=usages, names=(), ca=None, days=(-30, -1))
        self.signers = Signers((), (self.root.certificate,))

    def sign(self) -> Bundle:
        """A bundle with the certificate's path."""
        return bundle(self.key, statement(FILES), [self.leaf, self.issuer.der])


def test_a_signature_by_a_certificate_verifies_as_of_the_time_it_was_issued(folder: Path) -> None:
    authority = Authority()
    model = checked(folder, authority.sign(), authority.signers)
    assert model.details["signature"] == "verified"
    assert f"sha256:{hashlib.sha256(authority.leaf).hexdigest()}" in str(model.details["signer"])


def test_a_certificate_for_code_signing_is_for_models_too(folder: Path) -> None:
    authority = Authority(flags=("key_agreement",), usages=(ExtendedKeyUsageOID.CODE_SIGNING,))
    assert checked(folder, authority.sign(), authority.signers).details["signature"] == "verified"


def test_certificates_that_may_not_sign_or_lead_nowhere_are_refused(folder: Path) -> None:
    authority = Authority()
    with pytest.raises(SignatureError, match="no authority is trusted"):
        checked(folder, authority.sign())
    with pytest.raises(SignatureError, match="does not hold"):
        checked(folder, authority.sign(), Authority().signers)
    unfit = Authority(flags=("key_agreement",))
    with pytest.raises(SignatureError, match="not for signatures"):
        checked(folder, unfit.sign(), unfit.signers)
    stranger = bundle(small_pki.p256(), statement(FILES), [authority.leaf, authority.issuer.der])
    with pytest.raises(SignatureError, match="false"):
        checked(folder, stranger, authority.signers)
    without_issuer = bundle(authority.key, statement(FILES), [authority.leaf])
    with pytest.raises(SignatureError, match="does not hold"):
        checked(folder, without_issuer, authority.signers)
    with pytest.raises(SignatureError, match="1 to 8 certificates"):
        checked(folder, bundle(authority.key, statement(FILES), [authority.leaf] * 9), authority.signers)


def test_certificates_too_large_for_the_log_are_refused(folder: Path) -> None:
    authority = Authority()
    huge = bundle(authority.key, statement(FILES), [bytes(20_000)])
    with pytest.raises(SignatureError, match="too large"):
        checked(folder, huge, authority.signers)
    names = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "x" * 64)] * 20
    leaf = authority.issuer.issue(
        x509.Name(names), authority.key, [(small_pki.usage("digital_signature"), True)], days=(-30, -1)
    )
    long = bundle(authority.key, statement(FILES), [leaf.public_bytes(Encoding.DER), authority.issuer.der])
    with pytest.raises(SignatureError, match="name is too long"):
        checked(folder, long, authority.signers)


def test_an_end_certificate_cannot_issue_signers(folder: Path) -> None:
    root = small_pki.root("model root")
    false_issuer = root.sub_ca("no authority", ca=False, flags=("digital_signature",))
    key = small_pki.p256()
    leaf = false_issuer.ak(key, usages=(), names=(), ca=None)
    with pytest.raises(SignatureError, match="does not hold"):
        checked(
            folder,
            bundle(key, statement(FILES), [leaf, false_issuer.der]),
            Signers((), (root.certificate,)),
        )


# -- reading who is trusted


def test_signers_are_read_from_pem_files(tmp_path: Path) -> None:
    authority = Authority()
    (tmp_path / "key.pem").write_bytes(public_pem(KEY))
    (tmp_path / "ca.pem").write_bytes(authority.root.certificate.public_bytes(Encoding.PEM))
    signers = load_signers([tmp_path / "key.pem"], [tmp_path / "ca.pem"])
    assert signers
    assert not load_signers([], [])
    assert signers.authorities == (authority.root.certificate,)


def test_files_that_hold_no_signer_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    key = small_pki.rsa_private(2048).public_key()
    (tmp_path / "rsa.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(MeasureError, match="no public key"):
        load_signers([tmp_path / "text"], [])
    with pytest.raises(MeasureError, match="not on p-256"):
        load_signers([tmp_path / "rsa.pem"], [])
    with pytest.raises(MeasureError, match="no certificate"):
        load_signers([], [tmp_path / "text"])
    with pytest.raises(MeasureError, match="cannot read"):
        load_signers([tmp_path / "absent"], [])
