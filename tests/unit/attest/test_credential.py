# SPDX-License-Identifier: Apache-2.0
"""TPM2_MakeCredential: opened with what was made. Published vectors of its key derivations: test_corpus_crypto."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from quotary_attest.enrol.credential import Credential, make_credential
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.wire.tpm import parse_public
from quotary_verifier.wire.tpm_public import EccPoint, Public, RsaKey, SymmetricDefinition, encode_public

HASH_NAMES = {4: "sha1", 11: "sha256", 12: "sha384", 13: "sha512"}
EK_ATTRIBUTES = 0x000300B2
AK_NAME = b"\x00\x0b" + bytes(range(32))
SECRET = bytes(range(100, 132))

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def software_ek(
    kind: str, *, name_alg: int = 11, bits: int = 128, mode: int = 0x43
) -> tuple[PrivateKey, Public]:
    """An endorsement key of which the tests hold the private part."""
    private: PrivateKey
    key: RsaKey | EccPoint
    if kind.startswith("rsa"):
        private = rsa.generate_private_key(65537, int(kind[4:]))
        modulus = private.public_key().public_numbers().n
        key = RsaKey(private.key_size, 65537, modulus.to_bytes(private.key_size // 8))
    else:
        identifier, curve = {"p256": (3, ec.SECP256R1()), "p384": (4, ec.SECP384R1())}[kind]
        private = ec.generate_private_key(curve)
        numbers, size = private.public_key().public_numbers(), curve.key_size // 8
        key = EccPoint(identifier, numbers.x.to_bytes(size), numbers.y.to_bytes(size))
    area = encode_public(
        attributes=EK_ATTRIBUTES,
        key=key,
        scheme=None,
        scheme_hash=None,
        name_alg=name_alg,
        symmetric=SymmetricDefinition(6, bits, mode),
    )
    return private, parse_public(area)


def take(data: bytes) -> tuple[bytes, bytes]:
    """The contents of a TPM2B and what follows it."""
    size = int.from_bytes(data[:2], "big")
    return data[2 : 2 + size], data[2 + size :]


def seed_of(private: PrivateKey, encrypted: bytes, name_alg: int) -> bytes:
    """Find the seed as a TPM does, by formulas written out once more for this test."""
    name = HASH_NAMES[name_alg]
    if isinstance(private, rsa.RSAPrivateKey):
        digest = getattr(hashes, name.upper())()
        return private.decrypt(encrypted, padding.OAEP(padding.MGF1(digest), digest, b"IDENTITY\0"))
    x, rest = take(encrypted)
    y, rest = take(rest)
    assert rest == b""
    point = ec.EllipticCurvePublicKey.from_encoded_point(private.curve, b"\x04" + x + y)
    own = private.public_key().public_numbers().x.to_bytes(len(x), "big")
    shared = private.exchange(ec.ECDH(), point)
    return hashlib.new(name, b"\0\0\0\x01" + shared + b"IDENTITY\0" + x + own).digest()


def open_credential(
    private: PrivateKey, made: Credential, *, ak_name: bytes, name_alg: int = 11, bits: int = 128
) -> bytes:
    """Open a credential in software; AssertionError where the HMAC does not hold."""
    name, size = HASH_NAMES[name_alg], hashlib.new(HASH_NAMES[name_alg]).digest_size
    seed = seed_of(private, made.encrypted_secret, name_alg)
    mac, identity = take(made.id_object)
    mac_key = hmac.digest(seed, b"\0\0\0\x01INTEGRITY\0" + (size * 8).to_bytes(4, "big"), name)
    assert hmac.compare_digest(mac, hmac.digest(mac_key, identity + ak_name, name))
    key = hmac.digest(seed, b"\0\0\0\x01STORAGE\0" + ak_name + bits.to_bytes(4, "big"), name)[: bits // 8]
    decryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).decryptor()
    secret, rest = take(decryptor.update(identity) + decryptor.finalize())
    assert rest == b""
    return secret


@pytest.mark.parametrize(
    ("kind", "name_alg", "bits"),
    [("rsa-2048", 11, 128), ("rsa-3072", 12, 256), ("p256", 11, 128), ("p384", 12, 256), ("p384", 13, 192)],
)
def test_the_holder_of_the_endorsement_key_opens_what_was_made(kind: str, name_alg: int, bits: int) -> None:
    private, ek = software_ek(kind, name_alg=name_alg, bits=bits)
    made = make_credential(ek, private.public_key(), ak_name=AK_NAME, secret=SECRET)
    assert open_credential(private, made, ak_name=AK_NAME, name_alg=name_alg, bits=bits) == SECRET


def test_a_credential_opens_for_no_other_name() -> None:
    private, ek = software_ek("p256")
    made = make_credential(ek, private.public_key(), ak_name=AK_NAME, secret=SECRET)
    with pytest.raises(AssertionError):
        open_credential(private, made, ak_name=b"\x00\x0b" + bytes(32))


def test_two_credentials_for_one_secret_share_nothing() -> None:
    private, ek = software_ek("p256")
    key = private.public_key()
    first, second = (make_credential(ek, key, ak_name=AK_NAME, secret=SECRET) for _ in range(2))
    assert first.encrypted_secret != second.encrypted_secret
    assert first.id_object != second.id_object


def test_the_credential_is_made_to_the_given_key_and_not_to_the_one_in_the_public_area() -> None:
    private, _ = software_ek("p256")
    _, other = software_ek("p256")
    made = make_credential(other, private.public_key(), ak_name=AK_NAME, secret=SECRET)
    assert open_credential(private, made, ak_name=AK_NAME) == SECRET


@settings(max_examples=25, deadline=None)
@given(secret=st.binary(max_size=32), digest=st.binary(min_size=32, max_size=32))
def test_any_secret_and_name_survive_the_round_trip(secret: bytes, digest: bytes) -> None:
    private, ek = SHARED
    made = make_credential(ek, private.public_key(), ak_name=b"\x00\x0b" + digest, secret=secret)
    assert open_credential(private, made, ak_name=b"\x00\x0b" + digest) == secret


SHARED = software_ek("p256")


def test_a_secret_longer_than_the_hash_of_the_endorsement_key_is_refused() -> None:
    private, ek = SHARED
    with pytest.raises(EvidenceError, match="does not fit"):
        make_credential(ek, private.public_key(), ak_name=AK_NAME, secret=bytes(33))


def test_a_name_that_is_none_is_refused() -> None:
    private, ek = SHARED
    with pytest.raises(MalformedError, match="TPM name"):
        make_credential(ek, private.public_key(), ak_name=AK_NAME[:-1], secret=SECRET)


def test_an_endorsement_key_with_sha_1_is_refused() -> None:
    private, ek = software_ek("p256", name_alg=4)
    with pytest.raises(EvidenceError, match="sha-1"):
        make_credential(ek, private.public_key(), ak_name=AK_NAME, secret=bytes(16))


def test_another_cipher_than_aes_in_cfb_mode_is_refused() -> None:
    private, ek = software_ek("p256", mode=0x44)
    with pytest.raises(UnsupportedError, match="cipher"):
        make_credential(ek, private.public_key(), ak_name=AK_NAME, secret=SECRET)


def test_a_short_rsa_key_is_refused() -> None:
    _, ek = software_ek("rsa-2048")
    short = rsa.generate_private_key(65537, 1024).public_key()
    with pytest.raises(UnsupportedError, match="1024 bits"):
        make_credential(ek, short, ak_name=AK_NAME, secret=SECRET)


@pytest.mark.judge
@pytest.mark.parametrize("kind", ["rsa-2048", "p256", "p384"])
def test_what_the_tss_makes_opens_by_the_same_formulas(kind: str) -> None:
    tss = pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed")
    from tpm2_pytss.utils import make_credential as tss_make_credential

    private, ek = software_ek(kind)
    area, _ = tss.TPMT_PUBLIC.unmarshal(ek.raw)
    blob, encrypted = tss_make_credential(tss.TPM2B_PUBLIC(publicArea=area), SECRET, tss.TPM2B_NAME(AK_NAME))
    made = Credential(bytes(blob.credential), bytes(encrypted.secret))
    assert open_credential(private, made, ak_name=AK_NAME) == SECRET
