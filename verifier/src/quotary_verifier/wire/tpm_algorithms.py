# SPDX-License-Identifier: Apache-2.0
"""The algorithm identifiers that Quotary knows (TCG Algorithm Registry), and the hashes behind them.

SHA-1 has an identifier and a size, so that it can be named and refused, and no hash function: nothing is ever
computed with it.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.hazmat.primitives import hashes

from quotary_verifier.errors import EvidenceError, UnsupportedError

ALG_RSA: Final = 0x0001
ALG_SHA1: Final = 0x0004
ALG_AES: Final = 0x0006
ALG_SHA256: Final = 0x000B
ALG_SHA384: Final = 0x000C
ALG_SHA512: Final = 0x000D
ALG_NULL: Final = 0x0010
ALG_SM4: Final = 0x0013
ALG_RSASSA: Final = 0x0014
ALG_RSAES: Final = 0x0015
ALG_RSAPSS: Final = 0x0016
ALG_OAEP: Final = 0x0017
ALG_ECDSA: Final = 0x0018
ALG_ECDH: Final = 0x0019
ALG_ECDAA: Final = 0x001A
ALG_SM2: Final = 0x001B
ALG_ECSCHNORR: Final = 0x001C
ALG_ECMQV: Final = 0x001D
ALG_ECC: Final = 0x0023
ALG_CAMELLIA: Final = 0x0026
ALG_CFB: Final = 0x0043

HASH_SIZES: Final = {ALG_SHA1: 20, ALG_SHA256: 32, ALG_SHA384: 48, ALG_SHA512: 64}
"""Bytes of a digest, by algorithm."""

HASH_NAMES: Final = {ALG_SHA1: "sha1", ALG_SHA256: "sha256", ALG_SHA384: "sha384", ALG_SHA512: "sha512"}
"""The name of each hash in messages and results."""

_DIGESTS: Final = {ALG_SHA256: hashlib.sha256, ALG_SHA384: hashlib.sha384, ALG_SHA512: hashlib.sha512}

_SIGNATURE_HASHES: Final[dict[int, hashes.HashAlgorithm]] = {
    ALG_SHA256: hashes.SHA256(),
    ALG_SHA384: hashes.SHA384(),
    ALG_SHA512: hashes.SHA512(),
}


def digest(alg: int, data: bytes) -> bytes:
    """The digest of `data` by `alg`. EvidenceError for SHA-1, UnsupportedError for an unknown hash."""
    function = _DIGESTS.get(alg)
    if function is None:
        raise _no_hash(alg)
    return function(data).digest()


def signature_hash(alg: int) -> hashes.HashAlgorithm:
    """The hash of a signature. EvidenceError for SHA-1, UnsupportedError for an unknown hash."""
    found = _SIGNATURE_HASHES.get(alg)
    if found is None:
        raise _no_hash(alg)
    return found


def _no_hash(alg: int) -> EvidenceError | UnsupportedError:
    if alg == ALG_SHA1:
        return EvidenceError("sha-1 is refused")
    return UnsupportedError(f"hash algorithm 0x{alg:04x} is not supported")
