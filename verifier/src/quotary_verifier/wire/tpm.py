# SPDX-License-Identifier: Apache-2.0
"""TPM structures that carry evidence (TPM 2.0 Library, Part 2): attestations, signatures, NV public areas.

All are big endian; none may have trailing bytes. `parse_attest` reads a quote or an NV certification and
refuses every other attestation by its type, so that one can never stand for another. What callers need of the
other TPM modules of this package is re-exported here.
"""

from __future__ import annotations

import functools
import struct
from typing import Final

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tpm_algorithms import (
    ALG_AES,
    ALG_CFB,
    ALG_ECC,
    ALG_ECDSA,
    ALG_NULL,
    ALG_RSA,
    ALG_RSAPSS,
    ALG_RSASSA,
    ALG_SHA1,
    ALG_SHA256,
    ALG_SHA384,
    ALG_SHA512,
    HASH_NAMES,
    HASH_SIZES,
    digest,
)
from quotary_verifier.wire.tpm_names import (
    RH_ENDORSEMENT,
    RH_OWNER,
    RH_PLATFORM,
    entity_name,
    hierarchy_qn,
    qualified_name,
)
from quotary_verifier.wire.tpm_public import (
    CURVE_P256,
    CURVE_P384,
    EccPoint,
    Public,
    RsaKey,
    SymmetricDefinition,
    encode_public,
    parse_public,
)
from quotary_verifier.wire.tpm_reader import Reader, sized, u16, u32

__all__ = [
    "ALG_AES",
    "ALG_CFB",
    "ALG_ECC",
    "ALG_ECDSA",
    "ALG_NULL",
    "ALG_RSA",
    "ALG_RSAPSS",
    "ALG_RSASSA",
    "ALG_SHA1",
    "ALG_SHA256",
    "ALG_SHA384",
    "ALG_SHA512",
    "CURVE_P256",
    "CURVE_P384",
    "HASH_NAMES",
    "HASH_SIZES",
    "RH_ENDORSEMENT",
    "RH_OWNER",
    "RH_PLATFORM",
    "ST_ATTEST_NV",
    "ST_ATTEST_QUOTE",
    "TPM_GENERATED",
    "Attest",
    "ClockInfo",
    "EccPoint",
    "NvInfo",
    "NvPublic",
    "PcrSelection",
    "Public",
    "QuoteInfo",
    "RsaKey",
    "Signature",
    "SymmetricDefinition",
    "digest",
    "encode_nv_public",
    "encode_public",
    "entity_name",
    "hierarchy_qn",
    "pack_evidence",
    "parse_attest",
    "parse_nv_public",
    "parse_public",
    "parse_signature",
    "qualified_name",
    "unpack_evidence",
]

TPM_GENERATED: Final = 0xFF544347
ST_ATTEST_NV: Final = 0x8014
ST_ATTEST_QUOTE: Final = 0x8018

_ATTEST_TYPES: Final = {
    0x8014: "nv certification",
    0x8015: "command audit",
    0x8016: "session audit",
    0x8017: "key certification",
    0x8018: "quote",
    0x8019: "time",
    0x801A: "key creation",
    0x801C: "nv digest certification",
}

_MAX_NAME: Final = 66  # a name is two bytes of algorithm and at most 64 of digest
_MAX_DATA: Final = 66  # TPM2B_DATA
_MAX_DIGEST: Final = 64
_MAX_BANKS: Final = 16
_MAX_SELECT: Final = 32
_MAX_NV_BUFFER: Final = 2048
_MAX_RSA: Final = 512
_MAX_SCALAR: Final = 66

_SELECTION_HEAD = struct.Struct(">HB")
_CLOCK_AND_FIRMWARE = struct.Struct(">QIIBQ")


@frozen
class ClockInfo:
    """TPMS_CLOCK_INFO: milliseconds, resets, restarts; `safe` claims that clock never ran back."""

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


@frozen
class PcrSelection:
    """TPMS_PCR_SELECTION: one bank and a bitmap, bit i of byte i/8 for PCR i."""

    hash_alg: int
    bitmap: bytes

    @property
    def pcrs(self) -> tuple[int, ...]:
        """The selected PCR numbers, rising."""
        return _pcr_numbers(self.bitmap)


@frozen
class QuoteInfo:
    """TPMS_QUOTE_INFO: the selections, one a bank, and the digest over the selected values."""

    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes


@frozen
class NvInfo:
    """TPMS_NV_CERTIFY_INFO: the name of the index, and bytes of it from `offset` on."""

    index_name: bytes
    offset: int
    contents: bytes


@frozen
class Attest:
    """TPMS_ATTEST of a quote (has `quote`) or an NV certification (has `nv`); `raw` is what was signed."""

    magic: int
    type: int
    qualified_signer: bytes
    extra_data: bytes
    clock: ClockInfo
    firmware_version: int
    quote: QuoteInfo | None
    nv: NvInfo | None
    raw: bytes

    def require_quote(self) -> QuoteInfo:
        """What was quoted. EvidenceError if this is not a quote."""
        if self.quote is None:
            raise EvidenceError(f"not a quote but {describe_attest_type(self.type)}")
        return self.quote

    def require_nv(self) -> NvInfo:
        """What was certified. EvidenceError if this is not an NV certification."""
        if self.nv is None:
            raise EvidenceError(f"not an nv certification but {describe_attest_type(self.type)}")
        return self.nv


@frozen
class Signature:
    """TPMT_SIGNATURE: `rsa` for RSASSA and RSAPSS, `r` and `s` for ECDSA; the others are None."""

    alg: int
    hash_alg: int
    rsa: bytes | None
    r: int | None
    s: int | None


@frozen
class NvPublic:
    """TPMS_NV_PUBLIC: the public area of an NV index; `raw` are its bytes."""

    index: int
    name_alg: int
    attributes: int
    auth_policy: bytes
    data_size: int
    raw: bytes

    @property
    def name(self) -> bytes:
        """The TPM name of the index: nameAlg and the hash of `raw` by it."""
        return entity_name(self.name_alg, self.raw)


def describe_attest_type(kind: int) -> str:
    """A TPMI_ST_ATTEST for people: its name where known, and its number."""
    return f"{_ATTEST_TYPES.get(kind, 'an unknown structure')} (0x{kind:04x})"


def parse_attest(data: bytes) -> Attest:
    """Parse a TPMS_ATTEST that is a quote or an NV certification.

    EvidenceError where the magic says that no TPM made it, or the type is another; MalformedError for bad
    bytes.
    """
    reader = Reader(data, "TPMS_ATTEST")
    magic = reader.u32()
    if magic != TPM_GENERATED:
        raise EvidenceError(f"the magic 0x{magic:08x} is not that of a structure made inside a TPM")
    kind = reader.u16()
    if kind not in {ST_ATTEST_QUOTE, ST_ATTEST_NV}:
        raise EvidenceError(f"not a quote but {describe_attest_type(kind)}")
    signer = reader.sized(_MAX_NAME, "qualifiedSigner")
    extra = reader.sized(_MAX_DATA, "extraData")
    clock, resets, restarts, safe, firmware = reader.unpack(_CLOCK_AND_FIRMWARE)
    if safe > 1:
        raise MalformedError(f"TPMS_ATTEST: safe is {safe}, neither 0 nor 1")
    counts = ClockInfo(clock, resets, restarts, safe == 1)
    quote = _parse_quote(reader) if kind == ST_ATTEST_QUOTE else None
    nv = _parse_nv(reader) if kind == ST_ATTEST_NV else None
    reader.end()
    return Attest(magic, kind, signer, extra, counts, firmware, quote, nv, data)


def parse_signature(data: bytes) -> Signature:
    """Parse a TPMT_SIGNATURE: RSASSA, RSAPSS or ECDSA. MalformedError, UnsupportedError for other schemes."""
    reader = Reader(data, "TPMT_SIGNATURE")
    scheme = reader.u16()
    if scheme == ALG_ECDSA:
        parsed = Signature(scheme, reader.u16(), None, _scalar(reader, "r"), _scalar(reader, "s"))
    elif scheme in {ALG_RSASSA, ALG_RSAPSS}:
        parsed = Signature(scheme, reader.u16(), reader.sized(_MAX_RSA, "signature"), None, None)
    else:
        raise UnsupportedError(f"signature scheme 0x{scheme:04x} is not supported")
    reader.end()
    return parsed


def parse_nv_public(data: bytes) -> NvPublic:
    """Parse a TPMS_NV_PUBLIC (without the length of a TPM2B). MalformedError for bad bytes."""
    reader = Reader(data, "TPMS_NV_PUBLIC")
    index, name_alg, attributes = reader.u32(), reader.u16(), reader.u32()
    if index >> 24 != 0x01:
        raise MalformedError(f"0x{index:08x} is not the handle of an nv index")
    policy = reader.sized(_MAX_DIGEST, "authPolicy")
    size = reader.u16()
    reader.end()
    return NvPublic(index, name_alg, attributes, policy, size, data)


def encode_nv_public(
    *, index: int, attributes: int, data_size: int, name_alg: int = ALG_SHA256, auth_policy: bytes = b""
) -> bytes:
    """The bytes of a TPMS_NV_PUBLIC."""
    return u32(index) + u16(name_alg) + u32(attributes) + sized(auth_policy) + u16(data_size)


def pack_evidence(attest: bytes, signature: bytes) -> bytes:
    """TPM evidence: u16 length, TPMS_ATTEST, u16 length, TPMT_SIGNATURE. MalformedError if one is too big."""
    return sized(attest) + sized(signature)


def unpack_evidence(data: bytes) -> tuple[bytes, bytes]:
    """TPMS_ATTEST and TPMT_SIGNATURE, unparsed, of TPM evidence. MalformedError for bad bytes."""
    reader = Reader(data, "TPM evidence")
    attest = reader.sized(0xFFFF, "TPMS_ATTEST")
    signature = reader.sized(0xFFFF, "TPMT_SIGNATURE")
    reader.end()
    return attest, signature


def _parse_quote(reader: Reader) -> QuoteInfo:
    count = reader.u32()
    if count > _MAX_BANKS:
        raise MalformedError(f"TPMS_ATTEST: {count} pcr selections, at most {_MAX_BANKS} are allowed")
    selections = tuple(_parse_selection(reader) for _ in range(count))
    return QuoteInfo(selections, reader.sized(_MAX_DIGEST, "pcrDigest"))


@functools.lru_cache(maxsize=64)
def _pcr_numbers(bitmap: bytes) -> tuple[int, ...]:
    bits = int.from_bytes(bitmap, "little")
    return tuple(number for number in range(8 * len(bitmap)) if bits >> number & 1)


def _parse_selection(reader: Reader) -> PcrSelection:
    hash_alg, size = reader.unpack(_SELECTION_HEAD)
    if size > _MAX_SELECT:
        raise MalformedError(f"TPMS_ATTEST: a pcr bitmap of {size} bytes, at most {_MAX_SELECT} are allowed")
    return PcrSelection(hash_alg, reader.take(size))


def _parse_nv(reader: Reader) -> NvInfo:
    name = reader.sized(_MAX_NAME, "indexName")
    return NvInfo(name, reader.u16(), reader.sized(_MAX_NV_BUFFER, "nvContents"))


def _scalar(reader: Reader, field: str) -> int:
    value = reader.sized(_MAX_SCALAR, field)
    if not value:
        raise MalformedError(f"TPMT_SIGNATURE: {field} is empty")
    return int.from_bytes(value, "big")
