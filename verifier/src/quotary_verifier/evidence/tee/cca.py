# SPDX-License-Identifier: Apache-2.0
"""Verification of Arm CCA tokens, and appraisal of what one that holds says.

The realm's key (RAK) signs the realm token, and the platform token names that key by its hash and is signed by the
platform's key (CPAK). There is no public root for CPAKs: whoever relies on a token has to bring the keys, as learned
from the platform's maker. Without one, what a token says of its platform and of its realm is nobody's word.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from datetime import UTC, datetime
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.cca_token import (
    ES256,
    ES384,
    HASHES,
    PROFILES,
    CcaToken,
    Lifecycle,
    Sign1,
    parse_cca_token,
)
from quotary_verifier.evidence.tee.shape import REPORT_DATA_BYTES, Finding, Severity, Signer
from quotary_verifier.pki.revocation import Revocation
from quotary_verifier.wire import cbor
from quotary_verifier.wire.frozen import frozen

KIND: Final = "cca"
PLATFORM: Final = "platform-signature"
"""Code of what is not shown where no platform key was given; no rules accept such claims."""

NO_KEY: Final = "none: no platform key was given"
_SCHEMES: Final[dict[int, tuple[type[ec.EllipticCurve], hashes.HashAlgorithm]]] = {
    ES256: (ec.SECP256R1, hashes.SHA256()),
    ES384: (ec.SECP384R1, hashes.SHA384()),
}
_DIGESTS: Final = {"sha-256": hashlib.sha256, "sha-384": hashlib.sha384, "sha-512": hashlib.sha512}
_ALWAYS: Final = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_BEGIN: Final = "-----BEGIN PUBLIC KEY-----"
_BLOCK: Final = re.compile(r"-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]*)-----END PUBLIC KEY-----")
_POINT_BYTES: Final = 97
_COORDINATE_BYTES: Final = 48
_COSE_KEY: Final = {1: 2, -1: 2}  # EC2, on P-384
_COSE_ALGORITHM, _COSE_X, _COSE_Y = 3, -2, -3
DEBUG_STATES: Final = frozenset({Lifecycle.REALM_WORLD_DEBUG, Lifecycle.RECOVERABLE_DEBUG})
"""States in which the realm's memory is open to who debugs the platform, or the realm world."""


class PlatformKey:
    """A platform's key (CPAK), from its SPKI in DER; `sha256` is the digest of that DER."""

    __slots__ = ("key", "sha256", "spki")

    def __init__(self, spki: bytes) -> None:
        """MalformedError if it cannot be read, UnsupportedError if it is not on P-256 or P-384."""
        try:
            key = load_der_public_key(spki)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise MalformedError(f"the platform key cannot be read: {error}") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
            key.curve, (ec.SECP256R1, ec.SECP384R1)
        ):
            raise UnsupportedError("the platform key of arm cca is not on p-256 or p-384")
        self.key: Final = key
        self.spki: Final = spki
        self.sha256: Final = hashlib.sha256(spki).digest()

    def __reduce__(self) -> tuple[object, ...]:
        """Between processes go the bytes alone: what the library read of them stays in its process."""
        return PlatformKey, (self.spki,)


def platform_key_pem(text: str) -> PlatformKey:
    """Read a platform's key as one block of PEM, and nothing beside it. Raises as `PlatformKey`."""
    return PlatformKey(_one_block(text))


def platform_keys_pem(text: str) -> tuple[PlatformKey, ...]:
    """Read all platform keys of a file in PEM. MalformedError where there is none, or one twice; else as the key."""
    keys = tuple(platform_key_pem(found[0]) for found in _BLOCK.finditer(text))
    if not keys or len(keys) != text.count(_BEGIN) or len({key.sha256 for key in keys}) != len(keys):
        raise MalformedError("there is no public key in pem form, one is cut off, or one stands there twice")
    return keys


def _one_block(text: str) -> bytes:
    found = _BLOCK.fullmatch(text.strip())
    if found is None:
        raise MalformedError("a public key is one block of pem, BEGIN PUBLIC KEY to END PUBLIC KEY")
    try:
        return binascii.a2b_base64("".join(found[1].split()), strict_mode=True)
    except (binascii.Error, ValueError):
        raise MalformedError("the block of a public key is not base64") from None


@frozen
class CcaClaims:
    """What a verified token says. `platform_key`: the key that signed for the platform, None where none was given."""

    token: CcaToken
    platform_key: PlatformKey | None

    @property
    def kind(self) -> str:
        """Name of the kind."""
        return KIND

    @property
    def signer(self) -> Signer:
        """The platform's key: no certificate, so without dates, and nothing says whether it was revoked."""
        key = self.platform_key
        name = NO_KEY if key is None else f"platform key sha256:{key.sha256.hex()}"
        return Signer(name, bytes(32) if key is None else key.sha256, *_ALWAYS, Revocation.UNKNOWN)

    @property
    def device(self) -> bytes:
        """The platform's instance id, 33 bytes."""
        return self.token.instance

    @property
    def measurements(self) -> Mapping[str, bytes]:
        """The realm's measurements: "rim" at its start, and "rem0" to "rem3", which the realm extends."""
        registers = {f"rem{number}": value for number, value in enumerate(self.token.extensible)}
        return {"rim": self.token.initial, **registers}

    @property
    def signed_time(self) -> datetime | None:
        """None: a token has no time."""
        return None

    @property
    def shown(self) -> tuple[str, ...]:
        """Codes of what was checked and holds."""
        always = ("report-data", "realm-signature", "realm-key")
        return always if self.platform_key is None else (*always, PLATFORM)

    @property
    def not_shown(self) -> tuple[str, ...]:
        """Codes of what could not be checked."""
        return (PLATFORM, "revocation") if self.platform_key is None else ("revocation",)


def verify_cca(evidence: bytes, keys: Sequence[PlatformKey], *, challenge: bytes) -> CcaClaims:
    """Verify a token that has to carry `challenge` (64 bytes). `keys`: those of the platforms, one of which signed it.

    Without keys everything but the platform's signature is verified, which anybody can make hold: the claims then have
    "platform-signature" in `not_shown`.

    Raises:
        MalformedError: it is no token.
        EvidenceError: a signature, or the link between the two tokens, does not hold, or the challenge is another.
        UnsupportedError: a profile, an algorithm, or the form of the realm's key, is not known.
    """
    if len(challenge) != REPORT_DATA_BYTES:
        raise ValueError(f"{len(challenge)} bytes are expected as challenge, not {REPORT_DATA_BYTES}")
    token = parse_cca_token(evidence)
    platform_key = _signed_by(token.platform, keys) if keys else None
    if not _verifies(token.realm, _realm_key(token)):
        raise EvidenceError("the signature of the realm token of arm cca does not verify")
    if not hmac.compare_digest(token.named, _DIGESTS[token.realm_key_hash](token.realm_key).digest()):
        raise EvidenceError("the platform token of arm cca is for another realm key")
    if not hmac.compare_digest(token.challenge, challenge):
        raise EvidenceError("the challenge is not what the arm cca token has to bind")
    return CcaClaims(token, platform_key)


def _signed_by(token: Sign1, keys: Sequence[PlatformKey]) -> PlatformKey:
    for key in keys:
        if _verifies(token, key.key):
            return key
    raise EvidenceError(
        "the signature of the platform token of arm cca verifies by no platform key that was given"
    )


def _verifies(token: Sign1, key: ec.EllipticCurvePublicKey) -> bool:
    """Whether the key made the signature; one of another curve than the algorithm's did not."""
    curve, chosen = _SCHEMES[token.algorithm]
    if not isinstance(key.curve, curve):
        return False
    half = len(token.signature) // 2
    halves = (int.from_bytes(token.signature[at : at + half], "big") for at in (0, half))
    try:
        key.verify(encode_dss_signature(*halves), token.signed, ec.ECDSA(chosen))
    except InvalidSignature:
        return False
    return True


def _realm_key(token: CcaToken) -> ec.EllipticCurvePublicKey:
    """The realm's key on P-384: a bare point, or a COSE_Key where the realm token names the profile that has one."""
    point = token.realm_key if token.realm_profile is None else _cose_point(token.realm_key)
    if len(point) != _POINT_BYTES:
        raise UnsupportedError("the realm key of arm cca is not a point on p-384")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
    except ValueError:
        raise MalformedError("the realm key of arm cca is no point on p-384") from None


def _cose_point(data: bytes) -> bytes:
    """The point of a COSE_Key (RFC 9053, 7.1.1) with both coordinates in full."""
    fields = cbor.decode_unordered(data, max_bytes=256, what="realm key of arm cca")
    if type(fields) is not dict:
        raise MalformedError("the realm key of arm cca is no COSE_Key")
    x, y = fields.get(_COSE_X, b""), fields.get(_COSE_Y, b"")
    known = {**_COSE_KEY, _COSE_X: x, _COSE_Y: y}
    if _COSE_ALGORITHM in fields:
        known[_COSE_ALGORITHM] = ES384
    if fields != known or any(type(one) is not bytes or len(one) != _COORDINATE_BYTES for one in (x, y)):
        raise UnsupportedError("the realm key of arm cca is not a COSE_Key with both coordinates on p-384")
    return b"".join((b"\x04", x, y))


@frozen
class CcaRules:
    """What is accepted. Whatever is None is not asked; the platform's keys are roots (`lines.TeeRoots`).

    `debug`: of the platform or the realm world is accepted. `profiles`: of the platform token. `hashes`: by which the
    realm is measured. `rims`: its measurements at its start, `rems`: register → values; 32, 48 or 64 bytes.
    `personalizations`: 64 bytes. `implementations`: 32 bytes, `devices`: instance ids of 33. `components`: digests that
    the platform's software may have, every component one of them.
    """

    debug: bool = False
    profiles: frozenset[str] = frozenset(PROFILES)
    hashes: frozenset[str] = frozenset(HASHES)
    rims: frozenset[bytes] | None = None
    rems: Mapping[int, frozenset[bytes]] = field(default_factory=dict)
    personalizations: frozenset[bytes] | None = None
    implementations: frozenset[bytes] | None = None
    devices: frozenset[bytes] | None = None
    components: frozenset[bytes] | None = None


def appraise_cca(claims: CcaClaims, rules: CcaRules) -> tuple[Finding, ...]:
    """Return every rule that the claims break; `shape.enforce` raises for them."""
    found = [
        Finding(f"cca.{rule}", Severity.FAIL, f"cca: {message}") for rule, message in _broken(claims, rules)
    ]
    if claims.platform_key is None:
        text = "cca: no platform key was given, so that nothing says whose platform this is"
        found.append(Finding("cca.platform-key", Severity.COULD_NOT, text))
    return tuple(found)


def _broken(claims: CcaClaims, rules: CcaRules) -> Iterator[tuple[str, str]]:
    yield from _of_platform(claims.token, rules)
    yield from _of_values(claims.token, rules)


def _of_platform(token: CcaToken, rules: CcaRules) -> Iterator[tuple[str, str]]:
    named = token.state.name.lower().replace("_", " ")
    if token.state in DEBUG_STATES:
        if not rules.debug:
            yield (
                "debug",
                f"the platform is open to debugging: its lifecycle is 0x{token.lifecycle:x}, {named}",
            )
    elif token.state is not Lifecycle.SECURED:
        yield "lifecycle", f"the platform is not secured: its lifecycle is 0x{token.lifecycle:x}, {named}"
    if token.profile not in rules.profiles:
        yield "profile", f"the profile {token.profile} is not accepted"
    if token.hash_name not in rules.hashes:
        yield "hash", f"a realm that is measured by {token.hash_name} is not accepted"
    if rules.components is not None:
        for component in token.components:
            if component.measurement not in rules.components:
                yield (
                    "component",
                    f"the platform's component {component.name!r} {component.measurement.hex()} is not accepted",
                )


def _of_values(token: CcaToken, rules: CcaRules) -> Iterator[tuple[str, str]]:
    for rule, value, accepted in (
        ("rim", token.initial, rules.rims),
        *(
            (f"rem{number}", token.extensible[number], values)
            for number, values in sorted(rules.rems.items())
        ),
        ("personalization", token.personalization, rules.personalizations),
        ("implementation", token.implementation, rules.implementations),
        ("device", token.instance, rules.devices),
    ):
        if accepted is not None and value not in accepted:
            yield rule, f"the {rule} {value.hex()} is not accepted"
