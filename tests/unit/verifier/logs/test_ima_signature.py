# SPDX-License-Identifier: Apache-2.0
"""File signatures in IMA records."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs.ima_fields import FileDigest
from quotary_verifier.logs.ima_signature import key_id, parse_ima_signature, verify_ima_signature

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
PREHASHED = utils.Prehashed(hashes.SHA256())
FILE = FileDigest("sha256", hashlib.sha256(b"file").digest())
VERITY = FileDigest("sha256", FILE.value, "verity")


def attribute(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    message: bytes = FILE.value,
    *,
    kind: int = 3,
    version: int = 2,
    algorithm: int = 4,
) -> bytes:
    if version == 3:
        message = hashlib.sha256(bytes((kind, algorithm)) + message).digest()
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(message, padding.PKCS1v15(), PREHASHED)
    else:
        signature = key.sign(message, ec.ECDSA(PREHASHED))
    head = bytes((kind, version, algorithm)) + key_id(key.public_key())
    return head + len(signature).to_bytes(2) + signature


@pytest.mark.parametrize("key", [RSA, EC], ids=["rsa", "ec"])
def test_a_signature_over_the_files_digest_verifies_with_the_key_it_names(key: rsa.RSAPrivateKey) -> None:
    keys = [RSA.public_key(), EC.public_key()]
    assert key_id(verify_ima_signature(attribute(key), FILE, keys)) == key_id(key.public_key())
    with pytest.raises(EvidenceError, match="no given key"):
        verify_ima_signature(attribute(key), FILE, [])
    other = FileDigest("sha256", hashlib.sha256(b"other").digest())
    with pytest.raises(EvidenceError, match="no given key"):
        verify_ima_signature(attribute(key), other, keys)


def test_no_byte_of_a_signature_can_be_altered() -> None:
    data = attribute(EC)
    for position in range(len(data)):
        altered = data[:position] + bytes((data[position] ^ 1,)) + data[position + 1 :]
        with pytest.raises((EvidenceError, MalformedError, UnsupportedError)):
            verify_ima_signature(altered, FILE, [EC.public_key()])


def test_a_signature_cut_off_or_extended_anywhere_is_malformed() -> None:
    data = attribute(EC)
    for wrong in [data[:length] for length in range(len(data))] + [data + b"\0"]:
        with pytest.raises(MalformedError):
            parse_ima_signature(wrong)


def test_a_digest_of_fs_verity_needs_a_signature_that_says_so() -> None:
    keys = [EC.public_key()]
    good = attribute(EC, kind=6, version=3)
    assert verify_ima_signature(good, VERITY, keys) is keys[0]
    for signed, digest in ((attribute(EC), VERITY), (good, FILE), (attribute(EC, kind=6, version=2), VERITY)):
        with pytest.raises(EvidenceError):
            verify_ima_signature(signed, digest, keys)


def test_a_signature_of_version_3_over_a_files_digest_verifies() -> None:
    assert verify_ima_signature(attribute(EC, version=3), FILE, [EC.public_key()])


def test_sha1_and_other_algorithms_than_the_digests_are_refused() -> None:
    sha1 = FileDigest("sha1", hashlib.sha1(b"file").digest())
    with pytest.raises(EvidenceError, match="SHA-1 is refused"):
        verify_ima_signature(attribute(EC, algorithm=2), sha1, [EC.public_key()])
    with pytest.raises(EvidenceError, match="another digest"):
        verify_ima_signature(attribute(EC, algorithm=6), FILE, [EC.public_key()])
    sm3 = FileDigest("sm3", bytes(32))
    with pytest.raises(UnsupportedError, match="sm3"):
        verify_ima_signature(attribute(EC, algorithm=17), sm3, [EC.public_key()])


def test_a_short_rsa_key_vouches_for_nothing() -> None:
    short = rsa.generate_private_key(65537, 1024)
    with pytest.raises(EvidenceError, match="no given key"):
        verify_ima_signature(attribute(short), FILE, [short.public_key()])


@pytest.mark.parametrize(("kind", "version"), [(1, 2), (4, 2), (2, 2)])
def test_another_attribute_is_no_signature(kind: int, version: int) -> None:
    with pytest.raises(MalformedError):
        parse_ima_signature(bytes((kind, version)) + attribute(EC)[2:])


@pytest.mark.parametrize("version", [1, 4])
def test_another_version_is_not_supported(version: int) -> None:
    with pytest.raises(UnsupportedError):
        parse_ima_signature(bytes((3, version)) + attribute(EC)[2:])
