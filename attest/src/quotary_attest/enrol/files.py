# SPDX-License-Identifier: Apache-2.0
"""The four files of an enrolment (docs/spec/enrolment.md): request, challenge, activation and grant.

::

    host  --- request (20) ------>  CA      genesis record, endorsement key and its certificate
    host  <-- challenge (21) -----  CA      a secret that only this TPM opens, for this AK
    host  --- activation (22) --->  CA      proof that it was opened
    host  <-- grant (23) ---------  CA      the AK certificate and the path to the CA's root

They travel by any means: none of them is secret, and whoever changes one makes the enrolment fail, because
the proof covers the challenge byte for byte and the challenge covers the request.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Any, Final

from quotary_verifier.errors import MalformedError
from quotary_verifier.wire import cbor
from quotary_verifier.wire.limits import MAX_CERTIFICATE, MAX_CERTIFICATES, MAX_ENROLMENT, MAX_RECORD
from quotary_verifier.wire.names import check_origin
from quotary_verifier.wire.tpm_names import name_algorithm

KIND_REQUEST: Final = 20
KIND_CHALLENGE: Final = 21
KIND_ACTIVATION: Final = 22
KIND_GRANT: Final = 23

SALT_BYTES: Final = 16
CHALLENGE_ID_BYTES: Final = 16
DIGEST_BYTES: Final = 32

_PROOF: Final = b"quotary/activation/v1\n\0"
_MAX_PUBLIC: Final = 1024
_MAX_ORIGIN: Final = 255
_MAX_NAME: Final = 66
_MAX_CREDENTIAL: Final = 1024
_MAX_TIME: Final = (1 << 53) - 1


def file_digest(data: bytes) -> bytes:
    """SHA-256 of a file, by which the next file refers to it."""
    return hashlib.sha256(data).digest()


def activation_proof(secret: bytes, challenge: bytes) -> bytes:
    """What only the opener of a challenge can say, 32 bytes; `challenge` is the file byte for byte."""
    return hmac.digest(secret, _PROOF + file_digest(challenge), "sha256")


@dataclass(frozen=True, slots=True)
class Identity:
    """What an enrolment is about, and what each file after the request repeats.

    The host is part of `origin`. `ak_name` is the TPM Name of the AK, `ek_digest` the SHA-256 of the
    endorsement key as SubjectPublicKeyInfo.
    """

    origin: str
    ak_name: bytes
    ek_digest: bytes

    @property
    def host(self) -> str:
        """The DNS name in the origin."""
        return self.origin.partition("/")[0]

    def fields(self, first: int) -> dict[int, Any]:
        """The identity as three fields of a map, from key `first` on."""
        return {first: self.origin, first + 1: self.ak_name, first + 2: self.ek_digest}

    @classmethod
    def take(cls, fields: cbor.Fields, first: int) -> Identity:
        """Take the three fields from key `first` on. MalformedError where one is not of its form."""
        origin = check_origin(fields.text(first, _MAX_ORIGIN))
        ak_name = fields.octets(first + 1, 1, _MAX_NAME)
        name_algorithm(ak_name)
        return cls(origin, ak_name, fields.octets(first + 2, DIGEST_BYTES))


def _open(data: bytes, what: str, kind: int) -> cbor.Fields:
    return cbor.Fields.artefact(cbor.decode(data, max_bytes=MAX_ENROLMENT, what=what), what, kind)


def _close(value: dict[int, Any], what: str) -> bytes:
    data = cbor.encode(value)
    if len(data) > MAX_ENROLMENT:
        raise MalformedError(f"{what} would have {len(data)} bytes, {MAX_ENROLMENT} are allowed")
    return data


def _certificates(fields: cbor.Fields, key: int, what: str, *, least: int, most: int) -> tuple[bytes, ...]:
    items = fields.array(key, most)
    if len(items) < least:
        raise MalformedError(f"{what}: field {key} has {len(items)} certificates, {least} is the least")
    for item in items:
        if type(item) is not bytes or not 0 < len(item) <= MAX_CERTIFICATE:
            raise MalformedError(f"{what}: field {key} holds something that is no certificate")
    return tuple(items)


@dataclass(frozen=True, slots=True)
class Request:
    """Kind 20: a host asks for an AK certificate. Its origin, host and AK are those of the genesis record.

    `ek_public` is the endorsement key's TPMT_PUBLIC, `ek_certificate` DER, `intermediates` DER certificates
    that may help to build its path, in any order. `salt` makes every request a new one.
    """

    salt: bytes
    genesis: bytes
    ek_public: bytes
    ek_certificate: bytes
    intermediates: tuple[bytes, ...] = ()
    not_understood: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return the file. MalformedError where it would be longer than a request may be."""
        value: dict[int, Any] = {0: KIND_REQUEST, 1: 1, 2: self.salt, 3: self.genesis, 4: self.ek_public}
        value |= {5: self.ek_certificate, 6: list(self.intermediates)}
        return _close(value, "enrolment request")

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Read a request; what it holds is bytes of the right length and not yet anything more.

        Raises:
            MalformedError: it is none.
            UnsupportedError: its version is unknown.
        """
        what = "enrolment request"
        fields = _open(data, what, KIND_REQUEST)
        return cls(
            salt=fields.octets(2, SALT_BYTES),
            genesis=fields.octets(3, 1, MAX_RECORD),
            ek_public=fields.octets(4, 1, _MAX_PUBLIC),
            ek_certificate=fields.octets(5, 1, MAX_CERTIFICATE),
            intermediates=_certificates(fields, 6, what, least=0, most=MAX_CERTIFICATES - 1),
            not_understood=fields.finish(),
        )


@dataclass(frozen=True, slots=True)
class Challenge:
    """Kind 21: a CA's secret, encrypted to the endorsement key for the AK.

    `request` is the digest of the request file, `expires` in milliseconds since the epoch. `id_object` and
    `encrypted_secret` are the contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET.
    """

    challenge_id: bytes
    request: bytes
    identity: Identity
    expires: int
    id_object: bytes = field(repr=False)
    encrypted_secret: bytes = field(repr=False)
    not_understood: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return the file."""
        value: dict[int, Any] = {0: KIND_CHALLENGE, 1: 1, 2: self.challenge_id, 3: self.request}
        value |= self.identity.fields(4)
        value |= {7: self.expires, 8: self.id_object, 9: self.encrypted_secret}
        return _close(value, "enrolment challenge")

    @classmethod
    def decode(cls, data: bytes) -> Challenge:
        """Read a challenge.

        Raises:
            MalformedError: it is none.
            UnsupportedError: its version is unknown.
        """
        fields = _open(data, "enrolment challenge", KIND_CHALLENGE)
        return cls(
            challenge_id=fields.octets(2, CHALLENGE_ID_BYTES),
            request=fields.octets(3, DIGEST_BYTES),
            identity=Identity.take(fields, 4),
            expires=fields.uint(7, _MAX_TIME),
            id_object=fields.octets(8, 1, _MAX_CREDENTIAL),
            encrypted_secret=fields.octets(9, 1, _MAX_CREDENTIAL),
            not_understood=fields.finish(),
        )


@dataclass(frozen=True, slots=True)
class Activation:
    """Kind 22: the host opened the challenge. `challenge` is the digest of that file, `proof` 32 bytes."""

    challenge_id: bytes
    challenge: bytes
    identity: Identity
    proof: bytes = field(repr=False)
    not_understood: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return the file."""
        value: dict[int, Any] = {0: KIND_ACTIVATION, 1: 1, 2: self.challenge_id, 3: self.challenge}
        value |= self.identity.fields(4)
        value[7] = self.proof
        return _close(value, "enrolment activation")

    @classmethod
    def decode(cls, data: bytes) -> Activation:
        """Read an activation.

        Raises:
            MalformedError: it is none.
            UnsupportedError: its version is unknown.
        """
        fields = _open(data, "enrolment activation", KIND_ACTIVATION)
        return cls(
            challenge_id=fields.octets(2, CHALLENGE_ID_BYTES),
            challenge=fields.octets(3, DIGEST_BYTES),
            identity=Identity.take(fields, 4),
            proof=fields.octets(7, DIGEST_BYTES),
            not_understood=fields.finish(),
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """Kind 23: the certificate that the CA issued. `certificates` are DER, leaf first, the CA's root last."""

    challenge_id: bytes
    identity: Identity
    certificates: tuple[bytes, ...]
    not_understood: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return the file. MalformedError where it would be longer than a grant may be."""
        value: dict[int, Any] = {0: KIND_GRANT, 1: 1, 2: self.challenge_id}
        value |= self.identity.fields(3)
        value[6] = list(self.certificates)
        return _close(value, "enrolment grant")

    @classmethod
    def decode(cls, data: bytes) -> Grant:
        """Read a grant; its certificates are not looked into.

        Raises:
            MalformedError: it is none.
            UnsupportedError: its version is unknown.
        """
        what = "enrolment grant"
        fields = _open(data, what, KIND_GRANT)
        return cls(
            challenge_id=fields.octets(2, CHALLENGE_ID_BYTES),
            identity=Identity.take(fields, 3),
            certificates=_certificates(fields, 6, what, least=2, most=MAX_CERTIFICATES + 1),
            not_understood=fields.finish(),
        )
