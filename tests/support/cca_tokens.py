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

BOUND = bytes(range(64))
CPAK, RAK = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))


def spki(key: Any) -> bytes:
    """A public key, SubjectPublicKeyInfo in DER."""
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def sign1(
    claims: Any,
    key: ec.EllipticCurvePrivateKey,
    *,
    header: Any = None,
    rest: tuple[Any, ...] = (),
    size: int = 48,
) -> bytes:
    """A tagged COSE_Sign1; `claims`: bytes stand as they are. `rest`: parts behind the four."""
    protected = cbor2.dumps({1: -35} if header is None else header)
    payload = claims if isinstance(claims, bytes) else cbor2.dumps(claims)
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    halves = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA384())))
    signature = b"".join(half.to_bytes(size, "big") for half in halves)
    return bytes(cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, signature, *rest])))


def realm_claims() -> dict[int, Any]:
    """What a realm token says."""
    point = RAK.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return {
        10: BOUND, 44235: bytes(64), 44236: "sha-256", 44237: point, 44238: b"\1" * 32, 44239: [bytes(32)] * 4,
        44240: "sha-256",
    }  # fmt: skip


def platform_claims() -> dict[int, Any]:
    """What a platform token says."""
    named = hashlib.sha256(realm_claims()[44237]).digest()
    return {10: named, 2396: b"\2" * 32, 256: b"\3" * 33, 2395: 0x3000}


def token(
    realm: dict[Any, Any] | None = None,
    platform: dict[Any, Any] | None = None,
    tokens: dict[int, bytes | None] | None = None,
) -> bytes:
    """A token; `realm`, `platform`: claims that differ, `tokens`: what stands in place of either, None for nothing."""
    below, said = platform_claims() | (platform or {}), realm_claims() | (realm or {})
    made = {44234: sign1(below, CPAK), 44241: sign1(said, RAK), **(tokens or {})}
    return bytes(cbor2.dumps(cbor2.CBORTag(399, {key: value for key, value in made.items() if value})))
