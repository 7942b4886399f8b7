# SPDX-License-Identifier: Apache-2.0
"""TPM2_MakeCredential without a TPM (TPM 2.0 Library, Part 1, "Credential Protection").

A credential is a secret encrypted to an endorsement key in such a way that only the TPM with that key opens
it, and only while a key with the given Name is loaded beside it. It says nothing about what that key is: its
attributes, which the Name covers, have to be judged before a credential is made at all.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from quotary_verifier.errors import EvidenceError, UnsupportedError
from quotary_verifier.wire.tpm_algorithms import ALG_AES, ALG_CFB, HASH_SIZES, signature_hash
from quotary_verifier.wire.tpm_names import name_algorithm
from quotary_verifier.wire.tpm_public import Public
from quotary_verifier.wire.tpm_reader import sized, u32

EkKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
"""An endorsement key, as a certificate holds it."""

_IDENTITY: Final = b"IDENTITY\0"
_AES_BITS: Final = frozenset({128, 192, 256})
_LEAST_RSA_BITS: Final = 2048


@dataclass(frozen=True, slots=True)
class Credential:
    """What TPM2_ActivateCredential takes, each without the leading 16-bit size of its TPM2B.

    `id_object` is the HMAC and the encrypted secret, `encrypted_secret` the seed encrypted to the EK.
    """

    id_object: bytes = field(repr=False)
    encrypted_secret: bytes = field(repr=False)


def kdfa(hash_name: str, key: bytes, label: bytes, context_u: bytes, context_v: bytes, bits: int) -> bytes:
    """KDFa: `bits` bits by HMAC in counter mode (Part 1, section 11.4.10.2; SP 800-108, section 5.1).

    `label` comes without its final zero byte. The unused high bits of the first byte are zero.
    """
    fixed = label + b"\0" + context_u + context_v + u32(bits)
    blocks = (hmac.digest(key, u32(counter) + fixed, hash_name) for counter in _blocks(hash_name, bits))
    return _cut(b"".join(blocks), bits)


def kdfe(hash_name: str, shared: bytes, label: bytes, party_u: bytes, party_v: bytes, bits: int) -> bytes:
    """KDFe: `bits` bits from an ECDH secret (Part 1, section 11.4.10.3; SP 800-56A, section 5.8.1).

    `shared` is the x coordinate of the shared point, `party_u` and `party_v` those of the two public keys.
    """
    fixed = shared + label + b"\0" + party_u + party_v
    blocks = (hashlib.new(hash_name, u32(counter) + fixed).digest() for counter in _blocks(hash_name, bits))
    return _cut(b"".join(blocks), bits)


def _blocks(hash_name: str, bits: int) -> range:
    size = hashlib.new(hash_name).digest_size * 8
    return range(1, 1 + -(-bits // size))


def _cut(stream: bytes, bits: int) -> bytes:
    """The leading bytes that hold `bits` bits, with the bits above masked off."""
    size = -(-bits // 8)
    kept = int.from_bytes(stream[:size]) & ((1 << bits) - 1)
    return kept.to_bytes(size)


def make_credential(ek: Public, key: EkKey, *, ak_name: bytes, secret: bytes) -> Credential:
    """Encrypt `secret` to the endorsement key `key`, for the object with the Name `ak_name`.

    `key` is the one from the verified EK certificate. Of the public area `ek` only the hash and the cipher
    are taken; the caller has shown that its key is the certificate's. `secret` is at most as long as the EK's
    hash.

    Raises:
        EvidenceError: the EK's hash is SHA-1, or `secret` is too long for it.
        UnsupportedError: an algorithm, cipher or key size that is not supported.
        MalformedError: `ak_name` is no Name.
    """
    name_algorithm(ak_name)
    hash_name = signature_hash(ek.name_alg).name
    size = HASH_SIZES[ek.name_alg]
    if len(secret) > size:
        raise EvidenceError(f"a secret of {len(secret)} bytes does not fit a {size}-byte hash")
    key_bits = _aes_bits(ek)
    seed, encrypted_secret = _share_seed(key, ek.name_alg)
    cipher_key = kdfa(hash_name, seed, b"STORAGE", ak_name, b"", key_bits)
    mac_key = kdfa(hash_name, seed, b"INTEGRITY", b"", b"", size * 8)
    identity = _encrypt(cipher_key, sized(secret))
    mac = hmac.digest(mac_key, identity + ak_name, hash_name)
    return Credential(sized(mac) + identity, encrypted_secret)


def _aes_bits(ek: Public) -> int:
    cipher = ek.symmetric
    if cipher is None or (cipher.algorithm, cipher.mode) != (ALG_AES, ALG_CFB):
        raise UnsupportedError("the endorsement key's cipher for credentials is not AES in CFB mode")
    if cipher.key_bits not in _AES_BITS:
        raise UnsupportedError(f"AES has no keys of {cipher.key_bits} bits")
    return cipher.key_bits


def _encrypt(key: bytes, plain: bytes) -> bytes:
    # a zero IV is what the specification demands: the key is fresh for each credential
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    return encryptor.update(plain) + encryptor.finalize()


def _share_seed(key: EkKey, name_alg: int) -> tuple[bytes, bytes]:
    """A fresh seed of the size of the EK's hash, and what lets the EK's holder find it."""
    if isinstance(key, rsa.RSAPublicKey):
        return _share_by_rsa(key, name_alg)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _share_by_ecdh(key, name_alg)
    raise UnsupportedError("the endorsement key is neither RSA nor on an elliptic curve")


def _share_by_rsa(key: rsa.RSAPublicKey, name_alg: int) -> tuple[bytes, bytes]:
    """RSAES-OAEP with the label IDENTITY and its zero byte (Part 1, annex B.10.3)."""
    if key.key_size < _LEAST_RSA_BITS:
        raise UnsupportedError(f"rsa endorsement keys of {key.key_size} bits are not supported")
    digest = signature_hash(name_alg)
    seed = secrets.token_bytes(HASH_SIZES[name_alg])
    oaep = padding.OAEP(mgf=padding.MGF1(digest), algorithm=digest, label=_IDENTITY)
    return seed, key.encrypt(seed, oaep)


def _share_by_ecdh(key: ec.EllipticCurvePublicKey, name_alg: int) -> tuple[bytes, bytes]:
    """One-pass ECDH with a fresh key (Part 1, annex C.6.1); the encrypted seed is a TPMS_ECC_POINT."""
    ephemeral = ec.generate_private_key(key.curve)
    shared = ephemeral.exchange(ec.ECDH(), key)
    x, y = _coordinates(ephemeral.public_key())
    ek_x, _ = _coordinates(key)
    bits = HASH_SIZES[name_alg] * 8
    seed = kdfe(signature_hash(name_alg).name, shared, _IDENTITY[:-1], x, ek_x, bits)
    return seed, sized(x) + sized(y)


def _coordinates(key: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    """Both coordinates, big-endian, padded to the size of the curve's field."""
    numbers = key.public_numbers()
    size = -(-key.curve.key_size // 8)
    return numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")
