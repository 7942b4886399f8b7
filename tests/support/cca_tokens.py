# SPDX-License-Identifier: Apache-2.0
"""A maker of Arm CCA tokens, with every fault that a test asks for."""

from __future__ import annotations

import hashlib
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quotary_verifier.evidence.tee.cca import PlatformKey
from quotary_verifier.evidence.tee.cca_token import PLATFORM_PROFILE, REALM_PROFILE

BOUND = bytes(range(64))
CPAK, RAK = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
SMALL = ec.generate_private_key(ec.SECP256R1())
FIRMWARE = b"\5" * 32
"""The measurement of the platform's one component."""


def spki(key: Any) -> bytes:
    """A public key, SubjectPublicKeyInfo in DER."""
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def pem_key(key: Any = None) -> str:
    """A platform's public key as it stands in a policy."""
    public = (key or CPAK).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def platform_key(key: Any = None) -> PlatformKey:
    """The key of the platform that makes these tokens, as a verifier takes it."""
    return PlatformKey(spki((key or CPAK).public_key()))


def sign1(
    claims: Any,
    key: ec.EllipticCurvePrivateKey,
    *,
    header: Any = None,
    rest: tuple[Any, ...] = (),
    size: int = 48,
    unprotected: Any = None,
) -> bytes:
    """A tagged COSE_Sign1; `claims`: bytes stand as they are. `rest`: parts behind the four."""
    protected = cbor2.dumps({1: -35} if header is None else header)
    payload = claims if isinstance(claims, bytes) else cbor2.dumps(claims)
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    chosen = hashes.SHA384() if size != 32 else hashes.SHA256()
    halves = decode_dss_signature(key.sign(signed, ec.ECDSA(chosen)))
    signature = b"".join(half.to_bytes(size, "big") for half in halves)
    return bytes(cbor2.dumps(cbor2.CBORTag(18, [protected, unprotected or {}, payload, signature, *rest])))


def point() -> bytes:
    """The realm's key as a bare point."""
    return bytes(RAK.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))


def cose_key(**changes: Any) -> bytes:
    """The realm's key as a COSE_Key; `changes`: `kty`, `alg`, `crv`, `x`, `y` or `kid`, None for none."""
    fields = {"kty": 2, "crv": 2, "x": point()[1:49], "y": point()[49:], **changes}
    labels = {"kty": 1, "kid": 2, "alg": 3, "crv": -1, "x": -2, "y": -3}
    named = {labels[name]: value for name, value in fields.items() if value is not None}
    return bytes(cbor2.dumps(named))


def realm_claims() -> dict[int, Any]:
    """What a realm token says, in the older form."""
    return {
        10: BOUND, 44235: bytes(64), 44236: "sha-256", 44237: point(), 44238: b"\1" * 32, 44239: [bytes(32)] * 4,
        44240: "sha-256",
    }  # fmt: skip


def platform_claims(realm_key: bytes | None = None) -> dict[int, Any]:
    """What a platform token says."""
    named = hashlib.sha256(realm_key or point()).digest()
    component = {1: "RMM", 2: FIRMWARE, 5: b"\6" * 32}
    return {
        265: PLATFORM_PROFILE, 10: named, 2396: b"\2" * 32, 256: b"\3" * 33, 2395: 0x3000, 2399: [component],
    }  # fmt: skip


def token(
    realm: dict[Any, Any] | None = None,
    platform: dict[Any, Any] | None = None,
    tokens: dict[int, bytes | None] | None = None,
) -> bytes:
    """A token; `realm`, `platform`: claims that differ, `tokens`: what stands in place of either, None for nothing."""
    below, said = platform_claims() | (platform or {}), realm_claims() | (realm or {})
    made = {44234: sign1(below, CPAK), 44241: sign1(said, RAK), **(tokens or {})}
    return bytes(cbor2.dumps(cbor2.CBORTag(399, {key: value for key, value in made.items() if value})))


def newer(key: bytes | None = None, realm: dict[Any, Any] | None = None) -> bytes:
    """A token whose realm key is a COSE_Key."""
    key = cose_key() if key is None else key
    named = {10: hashlib.sha256(key).digest()}
    return token({265: REALM_PROFILE, 44237: key, **(realm or {})}, named)


def cca_mint(data: bytes) -> bytes:
    """A token over 64 bytes, as the kernel's driver gives it."""
    return newer(realm={10: data})
