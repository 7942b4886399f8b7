# SPDX-License-Identifier: Apache-2.0
"""Arm CCA attestation tokens (Arm DEN0137, "Realm Management Monitor", A7.2): a platform token and a realm token.

Each is a COSE_Sign1 with one header. The CBOR is read strictly but for the order of keys; claims that are not named
here are signed and passed over, as the profile has it.
"""

from __future__ import annotations

import enum
from typing import Any, Final

from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.shape import REPORT_DATA_BYTES
from quotary_verifier.wire import cbor
from quotary_verifier.wire.frozen import frozen

MAX_TOKEN: Final = 32 * 1024
"""Bytes of a token."""

ES256: Final = -7
ES384: Final = -35
HASHES: Final = {"sha-256": 32, "sha-384": 48, "sha-512": 64}
"""Names of hashes, and their bytes."""

LEGACY_PROFILE: Final = "http://arm.com/CCA-SSD/1.0.0"
PLATFORM_PROFILE: Final = "tag:arm.com,2023:cca_platform#1.0.0"
REALM_PROFILE: Final = "tag:arm.com,2023:realm#1.0.0"
"""Profile of a realm token whose key is a COSE_Key; older ones name none, and have the bare point."""

PROFILES: Final = (LEGACY_PROFILE, PLATFORM_PROFILE)
"""Profiles of platform tokens that are known."""

INSTANCE_BYTES: Final = 33
IMPLEMENTATION_BYTES: Final = 32
PERSONALIZATION_BYTES: Final = 64

_TAG_TOKEN: Final = b"\xd9\x01\x8f"  # 399
_TAG_COLLECTION: Final = b"\xd9\x03\x8b"  # 907, of draft-ffm-rats-cca-token from 2026 on
_TAG_SIGN1: Final = b"\xd2"
_PLATFORM, _REALM = 44234, 44241
_ALGORITHM: Final = 1
_SIGNATURES: Final = {ES256: 64, ES384: 96}
_PROFILE, _CHALLENGE = 265, 10
_LIFECYCLE, _IMPLEMENTATION, _INSTANCE, _COMPONENTS = 2395, 2396, 256, 2399
_PERSONALIZATION, _INITIAL, _EXTENSIBLE = 44235, 44238, 44239
_REALM_HASH, _REALM_KEY, _REALM_KEY_HASH = 44236, 44237, 44240
_KIND_OF_COMPONENT, _MEASUREMENT, _VERSION, _SIGNER = 1, 2, 4, 5
_REGISTERS: Final = 4
_MAX_COMPONENTS: Final = 64
_MAX_TEXT: Final = 256
_SHOWN: Final = 64
_MAX_LIFECYCLE: Final = 0xFFFF


class Lifecycle(enum.Enum):
    """State of a platform, the upper eight bits of its lifecycle claim (A7.2.3.2.7)."""

    UNKNOWN = 0x00
    ASSEMBLY_AND_TEST = 0x10
    PROVISIONING = 0x20
    SECURED = 0x30
    REALM_WORLD_DEBUG = 0x40
    """Debugging of what is not the platform's root of trust: of the realm world, too."""
    RECOVERABLE_DEBUG = 0x50
    DECOMMISSIONED = 0x60


@frozen
class Component:
    """Software of the platform. `measurement`: its digest, 32, 48 or 64 bytes; `signer`: digest of its signer's key."""

    name: str
    measurement: bytes
    version: str
    signer: bytes


@frozen
class Sign1:
    """A COSE_Sign1 as read. `signed`: what `signature` is over, by the algorithm's number."""

    algorithm: int
    signed: bytes
    signature: bytes


@frozen
class CcaToken:
    """A token as read: nothing in it is authenticated.

    `challenge`, `personalization`: 64 bytes. `initial`, `extensible`: five measurements by `hash_name`. `realm_key`:
    the key as it stands, bare where `realm_profile` is None. `named`: its hash, as the platform token has it.
    """

    platform: Sign1
    realm: Sign1
    profile: str
    realm_profile: str | None
    challenge: bytes
    personalization: bytes
    initial: bytes
    extensible: tuple[bytes, ...]
    hash_name: str
    realm_key: bytes
    realm_key_hash: str
    named: bytes
    implementation: bytes
    instance: bytes
    lifecycle: int
    state: Lifecycle
    components: tuple[Component, ...]


def parse_cca_token(evidence: bytes) -> CcaToken:
    """Read a token.

    Raises:
        MalformedError: it is none.
        UnsupportedError: a profile, algorithm, hash or state is not known.
    """
    if evidence.startswith(_TAG_COLLECTION):
        raise UnsupportedError("an arm cca token of the form of 2026 (tag 907) is not known")
    if not evidence.startswith(_TAG_TOKEN):
        raise MalformedError("an arm cca token begins with tag 399")
    parts = cbor.decode_unordered(evidence[len(_TAG_TOKEN) :], max_bytes=MAX_TOKEN, what="arm cca token")
    if type(parts) is not dict or parts.keys() != {_PLATFORM, _REALM}:
        raise MalformedError("an arm cca token has a platform token and a realm token")
    platform, below = _sign1(parts[_PLATFORM])
    realm, said = _sign1(parts[_REALM])
    hash_name = _hash(said, _REALM_HASH)
    initial, extensible = _measurements(said, HASHES[hash_name])
    lifecycle, state = _lifecycle(below)
    return CcaToken(
        platform=platform,
        realm=realm,
        profile=_profile(below),
        realm_profile=_realm_profile(said),
        challenge=_octets(said, _CHALLENGE, REPORT_DATA_BYTES),
        personalization=_octets(said, _PERSONALIZATION, PERSONALIZATION_BYTES),
        initial=initial,
        extensible=extensible,
        hash_name=hash_name,
        realm_key=_octets(said, _REALM_KEY),
        realm_key_hash=_hash(said, _REALM_KEY_HASH),
        named=_octets(below, _CHALLENGE),
        implementation=_octets(below, _IMPLEMENTATION, IMPLEMENTATION_BYTES),
        instance=_octets(below, _INSTANCE, INSTANCE_BYTES),
        lifecycle=lifecycle,
        state=state,
        components=_components(below),
    )


def _sign1(token: object) -> tuple[Sign1, dict[Any, Any]]:
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
    if header.keys() != {_ALGORITHM} or header[_ALGORITHM] not in tuple(_SIGNATURES):  # it may be a list, say
        raise UnsupportedError("an arm cca token is signed in a way that is not known")
    size = _SIGNATURES[header[_ALGORITHM]]
    if len(signature) != size:
        raise MalformedError(f"the signature of an arm cca token has {size} bytes")
    signed = cbor.encode(["Signature1", protected, b"", payload])
    return Sign1(header[_ALGORITHM], signed, signature), claims


def _measurements(realm: dict[Any, Any], size: int) -> tuple[bytes, tuple[bytes, ...]]:
    registers = realm.get(_EXTENSIBLE)
    measured = [realm.get(_INITIAL), *(registers if type(registers) is list else ())]
    if len(measured) != _REGISTERS + 1 or any(type(one) is not bytes or len(one) != size for one in measured):
        raise MalformedError(f"an arm cca token has five measurements of {size} bytes")
    return measured[0], tuple(measured[1:])


def _lifecycle(platform: dict[Any, Any]) -> tuple[int, Lifecycle]:
    lifecycle = platform.get(_LIFECYCLE)
    if type(lifecycle) is not int or not 0 <= lifecycle <= _MAX_LIFECYCLE:
        raise MalformedError("an arm cca token states no lifecycle")
    try:
        return lifecycle, Lifecycle(lifecycle >> 8)
    except ValueError:
        raise UnsupportedError(f"the lifecycle 0x{lifecycle:x} of an arm cca platform is not known") from None


def _profile(platform: dict[Any, Any]) -> str:
    profile = platform.get(_PROFILE)
    if type(profile) is not str:
        raise MalformedError("the platform token of arm cca names no profile")
    if profile not in PROFILES:
        raise UnsupportedError(f"the profile {_short(profile)} of arm cca platforms is not known")
    return profile


def _realm_profile(realm: dict[Any, Any]) -> str | None:
    if _PROFILE not in realm:
        return None
    profile = realm[_PROFILE]
    if type(profile) is not str:
        raise MalformedError("the profile of an arm cca realm token is not text")
    if profile != REALM_PROFILE:
        raise UnsupportedError(f"the profile {_short(profile)} of arm cca realms is not known")
    return REALM_PROFILE


def _components(platform: dict[Any, Any]) -> tuple[Component, ...]:
    listed = platform.get(_COMPONENTS)
    if type(listed) is not list or not 0 < len(listed) <= _MAX_COMPONENTS:
        raise MalformedError(f"the platform token of arm cca lists 1 to {_MAX_COMPONENTS} components")
    return tuple(_component(one) for one in listed)


def _component(value: Any) -> Component:
    fields = value if type(value) is dict else {}
    name, version = fields.get(_KIND_OF_COMPONENT, ""), fields.get(_VERSION, "")
    measurement, signer = fields.get(_MEASUREMENT, b""), fields.get(_SIGNER, b"")
    texts = all(type(text) is str and len(text) <= _MAX_TEXT for text in (name, version))
    digests = all(type(one) is bytes and len(one) in HASHES.values() for one in (measurement, signer))
    if not texts or not digests:
        raise MalformedError("a component of an arm cca platform has its measurement and its signer")
    return Component(name, measurement, version, signer)


def _octets(claims: dict[Any, Any], label: int, size: int | None = None) -> bytes:
    value = claims.get(label)
    if type(value) is not bytes or (size is not None and len(value) != size):
        wanted = "bytes" if size is None else f"{size} bytes"
        raise MalformedError(f"claim {label} of an arm cca token is not {wanted}")
    return value


def _hash(claims: dict[Any, Any], label: int) -> str:
    name = claims.get(label)
    if type(name) is not str:
        raise MalformedError(f"claim {label} of an arm cca token is not text")
    if name not in HASHES:
        raise UnsupportedError(f"the hash {_short(name)} of an arm cca token is not known")
    return name


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
