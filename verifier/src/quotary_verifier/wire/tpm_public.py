# SPDX-License-Identifier: Apache-2.0
"""TPMT_PUBLIC of asymmetric keys: parser, encoder, name, conversion (TPM 2.0 Library, Part 2, section 12.2).

Read are RSA keys and keys on NIST P-256 and P-384, signing keys and storage or endorsement keys alike. What a
key may be used for is not judged here but by `quotary_verifier.evidence.tpm_keys`.
"""

from __future__ import annotations

import struct
from dataclasses import field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.wire import tpm_algorithms as alg
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tpm_names import entity_name
from quotary_verifier.wire.tpm_reader import Reader, sized, u16, u32

FIXED_TPM: Final = 0x00000002
FIXED_PARENT: Final = 0x00000010
SENSITIVE_DATA_ORIGIN: Final = 0x00000020
USER_WITH_AUTH: Final = 0x00000040
ADMIN_WITH_POLICY: Final = 0x00000080
NO_DA: Final = 0x00000400
RESTRICTED: Final = 0x00010000
DECRYPT: Final = 0x00020000
SIGN: Final = 0x00040000
_RESERVED_ATTRIBUTES: Final = 0xFFF0F009

CURVE_P256: Final = 0x0003
CURVE_P384: Final = 0x0004

_COORDINATE_BYTES: Final = {CURVE_P256: 32, CURVE_P384: 48}
_CURVES: Final[dict[int, ec.EllipticCurve]] = {CURVE_P256: ec.SECP256R1(), CURVE_P384: ec.SECP384R1()}
_RSA_BITS: Final = frozenset({1024, 2048, 3072, 4096})
_RSA_EXPONENT: Final = 65537
_MAX_DIGEST: Final = 64
_HEAD: Final = struct.Struct(">HHI")

SPKI_EC_PREFIX: Final = {
    CURVE_P256: bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"),
    CURVE_P384: bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004"),
}
"""SubjectPublicKeyInfo of each curve up to and with the 0x04 of an uncompressed point (RFC 5480, section 2)."""

_SPKI_RSA_ALGORITHM: Final = bytes.fromhex("300d06092a864886f70d0101010500")

_SYMMETRIC: Final = frozenset({alg.ALG_AES, alg.ALG_SM4, alg.ALG_CAMELLIA})
_RSA_SCHEMES: Final = frozenset({alg.ALG_RSASSA, alg.ALG_RSAPSS, alg.ALG_OAEP, alg.ALG_RSAES})
_ECC_SCHEMES: Final = frozenset({alg.ALG_ECDSA, alg.ALG_ECDH, alg.ALG_ECMQV, alg.ALG_SM2, alg.ALG_ECSCHNORR})


@frozen
class SymmetricDefinition:
    """TPMT_SYM_DEF_OBJECT other than null: the cipher by which a parent protects its children."""

    algorithm: int
    key_bits: int
    mode: int


@frozen
class EccPoint:
    """A public point: TPM curve identifier, coordinates as big-endian bytes of the full coordinate length."""

    curve: int
    x: bytes
    y: bytes


@frozen
class RsaKey:
    """An RSA public key: modulus length in bits, exponent (always 65537), modulus as big-endian bytes."""

    bits: int
    exponent: int
    modulus: bytes


@frozen
class Public:
    """A parsed TPMT_PUBLIC. `scheme` and `scheme_hash` may be None; `raw` is its bytes."""

    type: int
    name_alg: int
    attributes: int
    auth_policy: bytes
    symmetric: SymmetricDefinition | None
    scheme: int | None
    scheme_hash: int | None
    key: EccPoint | RsaKey
    raw: bytes
    _built: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | None = field(
        default=None, init=False, repr=False, compare=False
    )

    @property
    def name(self) -> bytes:
        """The TPM name: nameAlg and the hash of `raw` by it."""
        return entity_name(self.name_alg, self.raw)

    def to_spki_der(self) -> bytes:
        """The key as DER SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7)."""
        key = self.key
        if isinstance(key, EccPoint):
            return SPKI_EC_PREFIX[key.curve] + key.x + key.y
        numbers = _der(0x30, _der_unsigned(key.modulus) + _der_unsigned(key.exponent.to_bytes(3, "big")))
        return _der(0x30, _SPKI_RSA_ALGORITHM + _der(0x03, b"\0" + numbers))

    def public_key(self) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
        """The key for use with cryptography, built once. MalformedError if the numbers are not a key."""
        if self._built is None:
            object.__setattr__(self, "_built", _build_key(self.key))
        built = self._built
        assert built is not None
        return built


def parse_public(data: bytes) -> Public:
    """Parse a TPMT_PUBLIC.

    MalformedError for bad bytes, UnsupportedError for key types, curves, sizes and schemes not known here.
    """
    reader = Reader(data, "TPMT_PUBLIC")
    kind, name_alg, attributes = reader.unpack(_HEAD)
    if attributes & _RESERVED_ATTRIBUTES:
        raise MalformedError(f"object attributes 0x{attributes:08x} set a reserved bit")
    auth_policy = reader.sized(_MAX_DIGEST, "authPolicy")
    if kind not in {alg.ALG_ECC, alg.ALG_RSA}:
        raise UnsupportedError(f"key type 0x{kind:04x} is not supported")
    symmetric = _parse_symmetric(reader)
    if kind == alg.ALG_ECC:
        scheme, scheme_hash = _parse_scheme(reader, _ECC_SCHEMES)
        key: EccPoint | RsaKey = _parse_ecc(reader)
    else:
        scheme, scheme_hash = _parse_scheme(reader, _RSA_SCHEMES)
        key = _parse_rsa(reader)
    reader.end()
    return Public(kind, name_alg, attributes, auth_policy, symmetric, scheme, scheme_hash, key, data)


def encode_public(
    *,
    attributes: int,
    key: EccPoint | RsaKey,
    scheme: int | None,
    scheme_hash: int | None,
    name_alg: int = alg.ALG_SHA256,
    auth_policy: bytes = b"",
    symmetric: SymmetricDefinition | None = None,
) -> bytes:
    """The bytes of a TPMT_PUBLIC. Empty coordinates or an empty modulus make a template for TPM2_Create."""
    ecc = isinstance(key, EccPoint)
    parts = [
        u16(alg.ALG_ECC if ecc else alg.ALG_RSA) + u16(name_alg) + u32(attributes) + sized(auth_policy),
        _encode_symmetric(symmetric),
        _encode_scheme(scheme, scheme_hash),
        _encode_ecc(key) if isinstance(key, EccPoint) else _encode_rsa(key),
    ]
    return b"".join(parts)


def _parse_symmetric(reader: Reader) -> SymmetricDefinition | None:
    algorithm = reader.u16()
    if algorithm == alg.ALG_NULL:
        return None
    if algorithm not in _SYMMETRIC:
        raise UnsupportedError(f"symmetric algorithm 0x{algorithm:04x} is not supported")
    return SymmetricDefinition(algorithm, reader.u16(), reader.u16())


def _parse_scheme(reader: Reader, known: frozenset[int]) -> tuple[int | None, int | None]:
    scheme = reader.u16()
    if scheme == alg.ALG_NULL:
        return None, None
    if scheme not in known:
        raise UnsupportedError(f"key scheme 0x{scheme:04x} is not supported")
    return scheme, None if scheme == alg.ALG_RSAES else reader.u16()


def _parse_ecc(reader: Reader) -> EccPoint:
    curve = reader.u16()
    size = _COORDINATE_BYTES.get(curve)
    if size is None:
        raise UnsupportedError(f"curve 0x{curve:04x} is not supported")
    if reader.u16() != alg.ALG_NULL:
        reader.u16()  # a KDF other than null names its hash; no key of ours or of a cloud has one
    return EccPoint(curve, _coordinate(reader, size, "x"), _coordinate(reader, size, "y"))


def _coordinate(reader: Reader, size: int, field_name: str) -> bytes:
    value = reader.sized(size, field_name)
    if not value:
        raise MalformedError(f"TPMT_PUBLIC: coordinate {field_name} is empty")
    return value.rjust(size, b"\0")  # some TPMs drop leading zeros


def _parse_rsa(reader: Reader) -> RsaKey:
    bits = reader.u16()
    if bits not in _RSA_BITS:
        raise UnsupportedError(f"rsa keys of {bits} bits are not supported")
    exponent = reader.u32() or _RSA_EXPONENT
    if exponent != _RSA_EXPONENT:
        raise UnsupportedError(f"rsa exponent {exponent} is not supported")
    modulus = reader.sized(bits // 8, "modulus")
    if len(modulus) != bits // 8 or modulus[0] < 0x80:
        raise MalformedError(f"TPMT_PUBLIC: the modulus does not have {bits} bits")
    return RsaKey(bits, exponent, modulus)


def _build_key(key: EccPoint | RsaKey) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    try:
        if isinstance(key, EccPoint):
            point = b"\x04" + key.x + key.y
            return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[key.curve], point)
        return rsa.RSAPublicNumbers(key.exponent, int.from_bytes(key.modulus, "big")).public_key()
    except ValueError:
        raise MalformedError("TPMT_PUBLIC: the numbers are not a public key") from None


def _encode_symmetric(symmetric: SymmetricDefinition | None) -> bytes:
    if symmetric is None:
        return u16(alg.ALG_NULL)
    return u16(symmetric.algorithm) + u16(symmetric.key_bits) + u16(symmetric.mode)


def _encode_scheme(scheme: int | None, scheme_hash: int | None) -> bytes:
    if scheme is None:
        return u16(alg.ALG_NULL)
    return u16(scheme) + (b"" if scheme_hash is None else u16(scheme_hash))


def _encode_ecc(key: EccPoint) -> bytes:
    return u16(key.curve) + u16(alg.ALG_NULL) + sized(key.x) + sized(key.y)


def _encode_rsa(key: RsaKey) -> bytes:
    exponent = 0 if key.exponent == _RSA_EXPONENT else key.exponent
    return u16(key.bits) + u32(exponent) + sized(key.modulus)


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _der_unsigned(value: bytes) -> bytes:
    return _der(0x02, b"\0" + value if value[0] & 0x80 else value)
