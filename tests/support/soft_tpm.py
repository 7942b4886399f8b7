# SPDX-License-Identifier: Apache-2.0
"""TPM structures signed by keys in memory: what a TPM would sign, and what it never would.

A verifier cannot tell such a structure from a TPM's own by its bytes, which is why the attributes of a key and its
certificate matter; for tests that is handy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from quotary_verifier.wire import tpm
from quotary_verifier.wire.tpm_reader import sized, u16, u32, u64

OWN_ATTRIBUTES = 0x00050472
CLOUD_ATTRIBUTES = 0x00050072
CLOCK = tpm.ClockInfo(123_456, 7, 2, True)
FIRMWARE = 0x2019_1023_0016_3636

HASHES = {tpm.ALG_SHA256: hashes.SHA256(), tpm.ALG_SHA384: hashes.SHA384(), tpm.ALG_SHA512: hashes.SHA512()}
_CURVES = {tpm.CURVE_P256: (ec.SECP256R1(), 32), tpm.CURVE_P384: (ec.SECP384R1(), 48)}


@dataclass(frozen=True)
class SoftKey:
    """A key pair with the public area that a TPM would show for it."""

    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    public: tpm.Public

    def sign(self, data: bytes, *, scheme: int | None = None, hash_alg: int | None = None) -> bytes:
        """TPMT_SIGNATURE of `data`, by the scheme and hash of the public area unless others are given."""
        scheme = scheme or self.public.scheme or tpm.ALG_ECDSA
        hash_alg = hash_alg or self.public.scheme_hash or tpm.ALG_SHA256
        head = u16(scheme) + u16(hash_alg)
        chosen = HASHES[hash_alg]
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(chosen)))
            size = (self.private.key_size + 7) // 8
            return head + sized(r.to_bytes(size, "big")) + sized(s.to_bytes(size, "big"))
        pss = padding.PSS(padding.MGF1(chosen), padding.PSS.DIGEST_LENGTH)
        chosen_padding = pss if scheme == tpm.ALG_RSAPSS else padding.PKCS1v15()
        return head + sized(self.private.sign(data, chosen_padding, chosen))

    def evidence(self, attest: bytes) -> bytes:
        """Packed TPM evidence of `attest`."""
        return tpm.pack_evidence(attest, self.sign(attest))


def ecc_key(
    curve: int = tpm.CURVE_P256,
    *,
    attributes: int = OWN_ATTRIBUTES,
    scheme: int | None = tpm.ALG_ECDSA,
    hash_alg: int | None = tpm.ALG_SHA256,
    name_alg: int = tpm.ALG_SHA256,
    auth_policy: bytes = b"",
    symmetric: tpm.SymmetricDefinition | None = None,
) -> SoftKey:
    """A new key on a curve; by default as the agent makes its AKs."""
    known, size = _CURVES[curve]
    private = ec.generate_private_key(known)
    numbers = private.public_key().public_numbers()
    point = tpm.EccPoint(curve, numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big"))
    raw = tpm.encode_public(
        attributes=attributes,
        key=point,
        scheme=scheme,
        scheme_hash=hash_alg,
        name_alg=name_alg,
        auth_policy=auth_policy,
        symmetric=symmetric,
    )
    return SoftKey(private, tpm.parse_public(raw))


@functools.cache
def _rsa_private(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def rsa_key(
    bits: int = 2048,
    *,
    attributes: int = CLOUD_ATTRIBUTES,
    scheme: int | None = tpm.ALG_RSASSA,
    hash_alg: int | None = tpm.ALG_SHA256,
    symmetric: tpm.SymmetricDefinition | None = None,
) -> SoftKey:
    """An RSA key, one pair per size and test run; by default as clouds make their AKs."""
    private = _rsa_private(bits)
    modulus = private.public_key().public_numbers().n.to_bytes(bits // 8, "big")
    raw = tpm.encode_public(
        attributes=attributes,
        key=tpm.RsaKey(bits, 65537, modulus),
        scheme=scheme,
        scheme_hash=hash_alg,
        symmetric=symmetric,
    )
    return SoftKey(private, tpm.parse_public(raw))


def attest_bytes(
    body: bytes,
    *,
    kind: int = tpm.ST_ATTEST_QUOTE,
    signer: bytes = b"",
    extra: bytes = bytes(32),
    clock: tpm.ClockInfo = CLOCK,
    firmware: int = FIRMWARE,
    magic: int = tpm.TPM_GENERATED,
) -> bytes:
    """TPMS_ATTEST around the type-specific `body`."""
    counts = u64(clock.clock) + u32(clock.reset_count) + u32(clock.restart_count) + bytes((clock.safe,))
    return u32(magic) + u16(kind) + sized(signer) + sized(extra) + counts + u64(firmware) + body


def quote_body(selections: Sequence[tpm.PcrSelection], pcr_digest: bytes) -> bytes:
    """TPMS_QUOTE_INFO."""
    listed = (u16(one.hash_alg) + bytes((len(one.bitmap),)) + one.bitmap for one in selections)
    return u32(len(selections)) + b"".join(listed) + sized(pcr_digest)


def nv_body(name: bytes, contents: bytes, offset: int = 0) -> bytes:
    """TPMS_NV_CERTIFY_INFO."""
    return sized(name) + u16(offset) + sized(contents)
