# SPDX-License-Identifier: Apache-2.0
"""Signed policies: a policy with its name, version and dates, in a COSE_Sign1 (docs/spec/signed-policy.md).

RFC 9052 section 4.2, in one form only: tagged, protected header of algorithm, content type and key identifier, empty
unprotected header, payload attached, deterministic CBOR. The algorithm is one of two and must be that of the key which
the relying party gave; nothing in the envelope chooses a key, a hash or a place to fetch anything from.

The signature says who wrote a policy. That it is not one from last year is what version and expiry are for: who
verifies says the least version it accepts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.policy.load import MAX_POLICY
from quotary_verifier.wire import cbor
from quotary_verifier.wire.frozen import frozen

KIND_SIGNED_POLICY: Final = 24
MEDIA_TYPE: Final = "application/vnd.quotary.policy+cose"
CONTENT_TYPE: Final = "application/vnd.quotary.policy+cbor"
MAX_SIGNED_POLICY: Final = MAX_POLICY + 4096
MAX_POLICY_NAME: Final = 128
"""UTF-8 bytes of a policy's name."""
ALG_EDDSA: Final = -8
ALG_ES256: Final = -7
SIGNATURE_BYTES: Final = 64
"""Of both algorithms: R and S of Ed25519, r and s of P-256."""

_TAG: Final = b"\xd2"
_ALGORITHM, _CRITICAL, _CONTENT_TYPE, _KEY_ID = 1, 2, 3, 4
_UNDERSTOOD: Final = (_ALGORITHM, _CRITICAL, _CONTENT_TYPE, _KEY_ID)
_NAMES: Final = {ALG_EDDSA: "EdDSA (Ed25519)", ALG_ES256: "ES256"}
_MAX_HEADER: Final = 1024
_MAX_LABELS: Final = 16
_CONTEXT: Final = "Signature1"


@frozen
class PolicyKey:
    """A public key that may sign policies: Ed25519, or ECDSA on P-256 with SHA-256.

    `kid` is the SHA-256 thumbprint of its COSE_Key (RFC 9679), which the envelope must name.
    """

    algorithm: int
    kid: bytes
    public: Ed25519PublicKey | EllipticCurvePublicKey

    @property
    def name(self) -> str:
        """The algorithm in words."""
        return _NAMES[self.algorithm]

    def check(self, signature: bytes, message: bytes) -> None:
        """Verify a signature of 64 bytes.

        Raises:
            EvidenceError: it is not this key's over the message.
        """
        try:
            if isinstance(self.public, Ed25519PublicKey):
                self.public.verify(signature, message)
            else:
                r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
                self.public.verify(encode_dss_signature(r, s), message, ECDSA(SHA256()))
        except InvalidSignature:
            raise EvidenceError("the signature of the policy does not verify") from None


def policy_key(public: object) -> PolicyKey:
    """Take a public key of the library `cryptography`.

    Raises:
        UnsupportedError: it is neither an Ed25519 nor a P-256 key.
    """
    if isinstance(public, Ed25519PublicKey):
        raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return PolicyKey(ALG_EDDSA, _thumbprint({1: 1, -1: 6, -2: raw}), public)
    if isinstance(public, EllipticCurvePublicKey) and isinstance(public.curve, SECP256R1):
        point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return PolicyKey(ALG_ES256, _thumbprint({1: 2, -1: 1, -2: point[1:33], -3: point[33:]}), public)
    raise UnsupportedError("a policy is signed with an Ed25519 or a P-256 key, and this is neither")


def read_policy_key(pem: bytes) -> PolicyKey:
    """Read a public key in PEM (SubjectPublicKeyInfo).

    Raises:
        MalformedError: it is none.
        UnsupportedError: it is of a kind that signs no policies.
    """
    try:
        public = load_pem_public_key(pem)
    except ValueError:
        raise MalformedError("the file is no public key in PEM") from None
    except UnsupportedAlgorithm:
        raise UnsupportedError("the file is a public key of a kind that is not known") from None
    return policy_key(public)


def _thumbprint(key: dict[int, int | bytes]) -> bytes:
    return hashlib.sha256(cbor.encode(key)).digest()


@frozen
class SignedPolicy:
    """A policy as its author signed it. What `open_signed_policy` returns was verified; one made by hand was not.

    `policy` is the TOML, byte for byte. `name` tells policies of one author apart, `version` (1 and up) must rise with
    each of that name, `issued` and `expires` are in seconds since the epoch.
    """

    policy: bytes
    name: str
    version: int
    issued: int
    expires: int

    def encode(self) -> bytes:
        """Return the payload that is signed.

        Raises:
            MalformedError: a value is outside its range.
        """
        fields = {0: KIND_SIGNED_POLICY, 1: 1, 2: self.policy, 3: self.name, 4: self.version}
        payload = cbor.encode(fields | {5: self.issued, 6: self.expires})
        SignedPolicy.decode(payload)
        return payload

    @classmethod
    def decode(cls, payload: bytes) -> SignedPolicy:
        """Read a payload, which nothing here shows to be signed.

        Raises:
            MalformedError: it is none.
            UnsupportedError: its version is unknown.
        """
        value = cbor.decode(payload, max_bytes=MAX_SIGNED_POLICY, what="signed policy")
        fields = cbor.Fields.artefact(value, "signed policy", KIND_SIGNED_POLICY)
        signed = cls(
            policy=fields.octets(2, 1, MAX_POLICY),
            name=fields.text(3, MAX_POLICY_NAME),
            version=fields.uint(4),
            issued=fields.uint(5),
            expires=fields.uint(6),
        )
        if fields.finish():
            raise MalformedError("signed policy: it has fields that are not known")
        if not signed.name or not signed.name.isprintable():
            raise MalformedError("signed policy: the name is empty or not printable")
        if not signed.version:
            raise MalformedError("signed policy: versions begin with 1")
        if signed.expires <= signed.issued:
            raise MalformedError("signed policy: it expires before it is issued")
        return signed


def is_signed_policy(data: bytes) -> bool:
    """Tell by the first byte whether a file claims to be a signed policy. No TOML begins with it."""
    return data[:1] == _TAG


def sign_policy(policy: SignedPolicy, key: PolicyKey, sign: Callable[[bytes], bytes]) -> bytes:
    """Return the signed policy. `sign` returns 64 bytes of signature over the message it is given.

    Raises:
        MalformedError: a value of the policy is outside its range.
        EvidenceError: what `sign` returned is no signature of the key.
    """
    payload = policy.encode()
    protected = cbor.encode({_ALGORITHM: key.algorithm, _CONTENT_TYPE: CONTENT_TYPE, _KEY_ID: key.kid})
    message = _message(protected, payload)
    signature = sign(message)
    key.check(signature, message)
    return _TAG + cbor.encode([protected, {}, payload, signature])


def open_signed_policy(
    data: bytes, keys: Iterable[PolicyKey], at: int, *, least_version: int = 1
) -> tuple[SignedPolicy, PolicyKey]:
    """Verify a signed policy with one of the keys; return it and the key.

    `at` is the time of verification in seconds since the epoch, `least_version` the least version to accept.

    Raises:
        MalformedError: it is no signed policy.
        EvidenceError: none of the keys signed it, it has expired, or it is older than `least_version`.
        UnsupportedError: it demands an algorithm or a header that this verifier does not know.
    """
    protected, payload, signature = _envelope(data)
    algorithm, kid = _header(protected)
    key = next((key for key in keys if key.kid == kid), None)
    if key is None:
        raise EvidenceError(f"the policy is signed with key {kid.hex()}, which is none of those given")
    if algorithm != key.algorithm:
        raise EvidenceError(f"the policy names algorithm {algorithm}, and its key is of {key.name}")
    key.check(signature, _message(protected, payload))
    signed = SignedPolicy.decode(payload)
    if signed.expires <= at:
        raise EvidenceError("the signed policy has expired")
    if signed.version < least_version:
        raise EvidenceError(
            f"the signed policy is version {signed.version}, and at least {least_version} is accepted"
        )
    return signed, key


def unverified_signed_policy(data: bytes) -> tuple[SignedPolicy, int, bytes]:
    """Return what a file says, its algorithm and key identifier. Nothing shows that anybody signed it.

    Raises:
        MalformedError: it is no signed policy.
        UnsupportedError: as `open_signed_policy`.
    """
    protected, payload, _ = _envelope(data)
    algorithm, kid = _header(protected)
    return SignedPolicy.decode(payload), algorithm, kid


def _envelope(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Take a tagged COSE_Sign1 apart: protected header, payload, signature."""
    if not is_signed_policy(data):
        raise MalformedError("the file is no signed policy: it does not begin with the tag of a COSE_Sign1")
    value = cbor.decode(data[1:], max_bytes=MAX_SIGNED_POLICY, what="signed policy")
    if type(value) is not list or [type(item) for item in value] != [bytes, dict, bytes, bytes]:
        raise MalformedError("signed policy: it is no COSE_Sign1 with its payload attached")
    protected, unprotected, payload, signature = value
    if unprotected:
        raise MalformedError("signed policy: it has an unprotected header")
    if len(signature) != SIGNATURE_BYTES:
        raise MalformedError(f"signed policy: a signature of {len(signature)} bytes is of neither algorithm")
    return protected, payload, signature


def _header(protected: bytes) -> tuple[int, bytes]:
    """Read the protected header: algorithm and key identifier."""
    header = cbor.decode(protected, max_bytes=_MAX_HEADER, what="header of a signed policy")
    fields = cbor.Fields(header, "header of a signed policy")
    if fields.has(_CRITICAL):
        _check_critical(fields.array(_CRITICAL, _MAX_LABELS), header)
    algorithm = header.get(_ALGORITHM)
    if type(algorithm) is not int:
        raise MalformedError("header of a signed policy: it names no algorithm by its number")
    if algorithm not in _NAMES:
        raise UnsupportedError(f"the policy is signed with algorithm {algorithm}, which is not known")
    if header.get(_CONTENT_TYPE) != CONTENT_TYPE:
        raise MalformedError(f"header of a signed policy: the content type is not {CONTENT_TYPE}")
    kid = fields.octets(_KEY_ID, 32)
    unknown = header.keys() - _UNDERSTOOD
    if unknown:
        raise MalformedError(f"header of a signed policy: header {min(unknown)} is unknown")
    return algorithm, kid


def _check_critical(labels: list[object], header: dict[int, object]) -> None:
    """Refuse a header that must be understood and is not (RFC 9052 section 3.1)."""
    if not labels:
        raise MalformedError("header of a signed policy: it lists no header as critical")
    for label in labels:
        if label not in _UNDERSTOOD:
            raise UnsupportedError(f"the signed policy demands that header {label!r:.40} is understood")
        if label not in header:
            raise MalformedError(f"header of a signed policy: critical header {label!r} is not there")


def _message(protected: bytes, payload: bytes) -> bytes:
    """Return the Sig_structure that is signed, without external data (RFC 9052 section 4.4)."""
    return cbor.encode([_CONTEXT, protected, b"", payload])
