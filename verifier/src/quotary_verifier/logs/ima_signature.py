# SPDX-License-Identifier: Apache-2.0
"""File signatures in IMA records (Linux, security/integrity/digsig.c and integrity.h).

The attribute is `type ‖ version ‖ hash algorithm ‖ key id ‖ u16 size ‖ signature`, big-endian. Version 2 signs the
file's digest; version 3 signs a hash over type, algorithm and digest, so that a
digest of fs-verity is no digest of a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.hashes import HashAlgorithm

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs.ima_fields import FileDigest
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tpm_algorithms import ALG_SHA256, ALG_SHA384, ALG_SHA512, digest, signature_hash
from quotary_verifier.wire.tpm_reader import Reader

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

IMA_XATTR_DIGSIG: Final = 3
EVM_XATTR_PORTABLE_DIGSIG: Final = 5
IMA_VERITY_DIGSIG: Final = 6
_KINDS: Final[Mapping[int, str]] = {IMA_XATTR_DIGSIG: "ima", IMA_VERITY_DIGSIG: "verity"}
_HASHES: Final = {2: "sha1", 4: "sha256", 5: "sha384", 6: "sha512", 7: "sha224", 17: "sm3"}
_ALGORITHMS: Final = {"sha256": ALG_SHA256, "sha384": ALG_SHA384, "sha512": ALG_SHA512}
_MAX_SIGNATURE = 1024
_MIN_RSA = 2048


@frozen
class ImaSignature:
    """A file signature as it stands in a record: nothing of it is verified."""

    type: int
    version: int
    hash_algorithm: int
    key_id: bytes
    signature: bytes


def parse_ima_signature(data: bytes) -> ImaSignature:
    """Read a security.ima attribute that holds a signature.

    Raises:
        MalformedError: it holds none.
        UnsupportedError: its version is not known.
    """
    reader = Reader(data, "an IMA signature")
    kind, version, algorithm = reader.u8(), reader.u8(), reader.u8()
    if kind not in {IMA_XATTR_DIGSIG, EVM_XATTR_PORTABLE_DIGSIG, IMA_VERITY_DIGSIG}:
        raise MalformedError(f"an IMA signature of type {kind} is none")
    if version not in {2, 3}:
        raise UnsupportedError(f"version {version} of IMA signatures is not known")
    key = reader.take(4)
    signature = reader.sized(_MAX_SIGNATURE, "the signature")
    reader.end()
    return ImaSignature(kind, version, algorithm, key, signature)


def key_id(key: PublicKey) -> bytes:
    """Return the four bytes by which a signature names its key: the end of the SHA-1 of the key's bits.

    They only find the key; several keys may have the same.
    """
    if isinstance(key, rsa.RSAPublicKey):
        bits = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    else:
        bits = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return hashlib.sha1(bits, usedforsecurity=False).digest()[-4:]


def verify_ima_signature(data: bytes, signed: FileDigest, keys: Iterable[PublicKey]) -> PublicKey:
    """Verify the signature of a record over its file digest; return the key that made it.

    Raises:
        MalformedError: the attribute holds no signature.
        EvidenceError: no key fits, the digest is of another kind or algorithm, the hash is SHA-1, or the signature
            does not verify.
        UnsupportedError: its version or hash is not known.
    """
    signature = parse_ima_signature(data)
    if _KINDS.get(signature.type) != signed.kind:
        raise EvidenceError(f"the signature is not over a digest of the kind {signed.kind}")
    name = _HASHES.get(signature.hash_algorithm, "")
    if name != signed.algorithm:
        raise EvidenceError(f"the signature is over another digest than {signed.algorithm}")
    if name == "sha1":
        raise EvidenceError("a file signature with SHA-1 is refused")
    if name not in _ALGORITHMS:
        raise UnsupportedError(f"file signatures with {name} are not supported")
    algorithm = _ALGORITHMS[name]
    message = signed.value
    if signature.version == 3:
        message = digest(algorithm, bytes((signature.type, signature.hash_algorithm)) + message)
    elif signature.type == IMA_VERITY_DIGSIG:
        raise EvidenceError("a signature over an fs-verity digest must be of version 3")
    for key in keys:
        if key_id(key) == signature.key_id and _verifies(key, signature.signature, message, algorithm):
            return key
    raise EvidenceError(f"no given key made the signature, which names key {signature.key_id.hex()}")


def _verifies(key: PublicKey, signature: bytes, message: bytes, algorithm: int) -> bool:
    hashed: HashAlgorithm = signature_hash(algorithm)
    try:
        if isinstance(key, rsa.RSAPublicKey):
            if key.key_size < _MIN_RSA:
                return False
            key.verify(signature, message, padding.PKCS1v15(), utils.Prehashed(hashed))
        else:
            key.verify(signature, message, ec.ECDSA(utils.Prehashed(hashed)))
    except InvalidSignature:
        return False
    return True
