# SPDX-License-Identifier: Apache-2.0
"""Arm CCA attestation tokens (Arm DEN0137, "Realm Management Monitor", A7.2): a platform token and a realm token.

The realm's key (RAK) signs the realm token, and the platform token names that key by its hash and is signed by the
platform's key (CPAK). There is no public root for CPAKs: whoever relies on a token has to bring the key, as learned
from the platform's maker. No token of real hardware was at hand; what is here holds for those of the emulator.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.shape import REPORT_DATA_BYTES
from quotary_verifier.wire import cbor
from quotary_verifier.wire.frozen import frozen

KIND: Final = "arm-cca"
MAX_TOKEN: Final = 32 * 1024
"""Bytes of a token."""

_TAG_TOKEN: Final = b"\xd9\x01\x8f"  # 399
_TAG_SIGN1: Final = b"\xd2"
_PLATFORM, _REALM = 44234, 44241
_ALGORITHM: Final = 1
_SCHEMES: Final[dict[int, tuple[type[ec.EllipticCurve], hashes.HashAlgorithm, int]]] = {
    -7: (ec.SECP256R1, hashes.SHA256(), 32),
    -35: (ec.SECP384R1, hashes.SHA384(), 48),
}
_HASHES: Final = {"sha-256": hashlib.sha256, "sha-384": hashlib.sha384, "sha-512": hashlib.sha512}
_CHALLENGE: Final = 10
_LIFECYCLE, _IMPLEMENTATION, _INSTANCE = 2395, 2396, 256
_PERSONALIZATION, _INITIAL, _EXTENSIBLE = 44235, 44238, 44239
_REALM_HASH, _REALM_KEY, _REALM_KEY_HASH = 44236, 44237, 44240
_POINT_BYTES: Final = 97
_REGISTERS: Final = 4
_SECURED: Final = range(0x3000, 0x3100)


@frozen
class CcaClaims:
    """What a verified token says. `lifecycle`: the platform's state, secured from 0x3000 to 0x30ff.

    `initial`: the realm's measurement at its start, `extensible`: those that the realm extends; all by `hash_name`.
    """

    challenge: bytes
    personalization: bytes
    initial: bytes
    extensible: tuple[bytes, ...]
    hash_name: str
    implementation: bytes
    device: bytes
    lifecycle: int

    @property
    def kind(self) -> str:
        """Name of the kind."""
        return KIND

    @property
    def measurements(self) -> Mapping[str, bytes]:
        """The realm's measurements: "rim", and "rem0" to "rem3"."""
        registers = {f"rem{number}": value for number, value in enumerate(self.extensible)}
        return {"rim": self.initial, **registers}

    @property
    def secured(self) -> bool:
        """Whether the platform's debugging is closed."""
        return self.lifecycle in _SECURED


@frozen
class _Sign1:
    algorithm: int
    claims: dict[Any, Any]
    signed: bytes
    signature: bytes


def verify_cca(evidence: bytes, platform_key: bytes, *, challenge: bytes) -> CcaClaims:
    """Verify a token that has to carry `challenge` (64 bytes). `platform_key`: the CPAK, SPKI in DER.

    Raises:
        MalformedError: it is no token.
        EvidenceError: a signature, or the link between the two tokens, does not hold, or the challenge is another.
        UnsupportedError: an algorithm, or the form of the realm's key, is not known.
    """
    if len(challenge) != REPORT_DATA_BYTES:
        raise ValueError(f"{len(challenge)} bytes are expected as challenge, not {REPORT_DATA_BYTES}")
    platform, realm = _tokens(evidence)
    _check_signature(platform, _platform_key(platform_key), "platform")
    key = _octets(realm.claims, _REALM_KEY)
    _check_signature(realm, _realm_key(key), "realm")
    named = _hash(realm.claims, _REALM_KEY_HASH)(key).digest()
    if not hmac.compare_digest(_octets(platform.claims, _CHALLENGE), named):
        raise EvidenceError("the platform token of arm cca is for another realm key")
    if not hmac.compare_digest(_octets(realm.claims, _CHALLENGE), challenge):
        raise EvidenceError("the challenge is not what the arm cca token has to bind")
    return _claims(platform.claims, realm.claims, challenge)


def unverified_cca_do_not_trust(evidence: bytes) -> CcaClaims:
    """Return what a token says, its signatures not looked at. MalformedError, UnsupportedError as `verify_cca`."""
    platform, realm = _tokens(evidence)
    return _claims(platform.claims, realm.claims, _octets(realm.claims, _CHALLENGE))


def _tokens(evidence: bytes) -> tuple[_Sign1, _Sign1]:
    """Take a token apart into that of the platform and that of the realm."""
    if not evidence.startswith(_TAG_TOKEN):
        raise MalformedError("an arm cca token begins with tag 399")
    parts = cbor.decode_unordered(evidence[len(_TAG_TOKEN) :], max_bytes=MAX_TOKEN, what="arm cca token")
    if type(parts) is not dict or parts.keys() != {_PLATFORM, _REALM}:
        raise MalformedError("an arm cca token has a platform token and a realm token")
    return _sign1(parts[_PLATFORM]), _sign1(parts[_REALM])


def _claims(platform: dict[Any, Any], realm: dict[Any, Any], challenge: bytes) -> CcaClaims:
    size = _hash(realm, _REALM_HASH)().digest_size
    registers = realm.get(_EXTENSIBLE)
    measured = [_octets(realm, _INITIAL), *(registers if type(registers) is list else ())]
    if len(measured) != _REGISTERS + 1 or any(type(one) is not bytes or len(one) != size for one in measured):
        raise MalformedError(f"an arm cca token has five measurements of {size} bytes")
    lifecycle = platform.get(_LIFECYCLE)
    if type(lifecycle) is not int:
        raise MalformedError("an arm cca token states no lifecycle")
    return CcaClaims(
        challenge=challenge,
        personalization=_octets(realm, _PERSONALIZATION),
        initial=measured[0],
        extensible=tuple(measured[1:]),
        hash_name=realm[_REALM_HASH],
        implementation=_octets(platform, _IMPLEMENTATION),
        device=_octets(platform, _INSTANCE),
        lifecycle=lifecycle,
    )


def _sign1(token: object) -> _Sign1:
    if type(token) is not bytes or not token.startswith(_TAG_SIGN1):
        raise MalformedError("a token inside an arm cca token is a tagged COSE_Sign1")
    parts = cbor.decode_unordered(token[1:], max_bytes=MAX_TOKEN, what="arm cca token")
    if type(parts) is not list or len(parts) != 4 or parts[1] != {}:
        raise MalformedError("a token inside an arm cca token is a COSE_Sign1 without unprotected headers")
    protected, _, payload, signature = parts
    if any(type(part) is not bytes for part in (protected, payload, signature)):
        raise MalformedError("an arm cca token has headers, payload and signature as byte strings")
    header = cbor.decode_unordered(protected, max_bytes=256, what="header of an arm cca token")
    claims = cbor.decode_unordered(payload, max_bytes=MAX_TOKEN, what="payload of an arm cca token")
    if type(header) is not dict or type(claims) is not dict:
        raise MalformedError("header and payload of an arm cca token are maps")
    if header.keys() != {_ALGORITHM} or header[_ALGORITHM] not in tuple(_SCHEMES):  # it may be a list, say
        raise UnsupportedError("an arm cca token is signed in a way that is not known")
    return _Sign1(header[_ALGORITHM], claims, cbor.encode(["Signature1", protected, b"", payload]), signature)


def _check_signature(token: _Sign1, key: ec.EllipticCurvePublicKey, which: str) -> None:
    curve, chosen, size = _SCHEMES[token.algorithm]
    if not isinstance(key.curve, curve):
        raise EvidenceError(f"the {which} token of arm cca is signed by an algorithm of another key")
    if len(token.signature) != 2 * size:
        raise MalformedError(f"the signature of an arm cca token has {2 * size} bytes")
    halves = (int.from_bytes(token.signature[at : at + size], "big") for at in (0, size))
    try:
        key.verify(encode_dss_signature(*halves), token.signed, ec.ECDSA(chosen))
    except InvalidSignature:
        raise EvidenceError(f"the signature of the {which} token of arm cca does not verify") from None


def _platform_key(spki: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MalformedError(f"the platform key cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UnsupportedError("the platform key of arm cca is not on a curve")
    return key


def _realm_key(key: bytes) -> ec.EllipticCurvePublicKey:
    """The realm's key as a bare point; newer profiles wrap it into a COSE_Key, of which there was no sample."""
    if len(key) != _POINT_BYTES:
        raise UnsupportedError("the realm key of arm cca is not a point on p-384")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), key)
    except ValueError:
        raise MalformedError("the realm key of arm cca is no point on p-384") from None


def _octets(claims: dict[Any, Any], label: int) -> bytes:
    value = claims.get(label)
    if type(value) is not bytes:
        raise MalformedError(f"claim {label} of an arm cca token is not bytes")
    return value


def _hash(claims: dict[Any, Any], label: int) -> Any:
    name = claims.get(label)
    if type(name) is not str:
        raise MalformedError(f"claim {label} of an arm cca token is not text")
    if name not in _HASHES:
        raise UnsupportedError(f"the hash {name!r} of an arm cca token is not known")
    return _HASHES[name]
