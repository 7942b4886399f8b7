# SPDX-License-Identifier: Apache-2.0
"""Attestation documents of AWS Nitro: a COSE_Sign1 whose payload is a map of text keys (AWS, "attestation_process.md").

Nitro Enclaves and NitroTPM differ by one key, `pcrs` or `nitrotpm_pcrs`. The CBOR is read strictly but for the order of
keys, in which the documents do not keep to RFC 8949: definite and shortest lengths, no key twice, no trailing bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.device_pki import SIGNATURE_BYTES
from quotary_verifier.wire import cbor
from quotary_verifier.wire.frozen import frozen

MAX_DOCUMENT: Final = 16 * 1024
"""Bytes of a document; the driver's own buffer has 12 KiB."""

_TAG_SIGN1: Final = b"\xd2"
_ALGORITHM: Final = {1: -35}  # ES384, the one that the profile allows
_MAX_CERTIFICATE: Final = 1024
_MAX_BUNDLE: Final = 6
_MAX_DATA: Final = 1024
_MAX_MODULE: Final = 256
_PCRS: Final = 32
_PCR_BYTES: Final = 48
_MAX_TIME: Final = 250_000_000_000_000  # in the year 9892, as far as dates go
_KEYS: Final = frozenset(
    {"module_id", "digest", "timestamp", "certificate", "cabundle", "public_key", "user_data", "nonce"}
)
_ENCLAVE, _TPM = "pcrs", "nitrotpm_pcrs"


@frozen
class NitroDocument:
    """A document as read: nothing in it is authenticated.

    `tpm`: whether it is of a NitroTPM. `timestamp`: milliseconds since the epoch. `pcrs`: index → 48 bytes.
    `certificate`, `bundle`: DER; the bundle begins with the root. `signed`: what `signature` (96 bytes) is over.
    """

    module_id: str
    tpm: bool
    timestamp: int
    pcrs: Mapping[int, bytes]
    certificate: bytes
    bundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    signed: bytes
    signature: bytes


def parse_nitro_document(data: bytes) -> NitroDocument:
    """Read a document, with or without the tag of COSE_Sign1.

    Raises:
        MalformedError: it is none.
        UnsupportedError: its algorithm or digest is another, or it has a field that is not known.
    """
    if len(data) > MAX_DOCUMENT:
        raise MalformedError(f"a nitro document of {len(data)} bytes is too large")
    parts = cbor.decode_unordered(
        data.removeprefix(_TAG_SIGN1), max_bytes=MAX_DOCUMENT, what="nitro document"
    )
    if type(parts) is not list or len(parts) != 4 or parts[1] != {}:
        raise MalformedError("a nitro document is a COSE_Sign1 without unprotected headers")
    protected, _, payload, signature = parts
    if any(type(part) is not bytes for part in (protected, payload, signature)):
        raise MalformedError("a nitro document has headers, payload and signature as byte strings")
    header = cbor.decode_unordered(protected, max_bytes=64, what="header of a nitro document")
    if header != _ALGORITHM:
        raise UnsupportedError("the nitro document is not signed by ES384 alone")
    if len(signature) != SIGNATURE_BYTES:
        raise MalformedError(f"the signature of a nitro document has {len(signature)} bytes")
    signed = cbor.encode(["Signature1", protected, b"", payload])
    fields = cbor.decode_unordered(payload, max_bytes=MAX_DOCUMENT, what="payload of a nitro document")
    return _document(fields, signed, signature)


def _document(fields: Any, signed: bytes, signature: bytes) -> NitroDocument:
    if type(fields) is not dict:
        raise MalformedError("the payload of a nitro document is not a map")
    unknown = fields.keys() - _KEYS - {_ENCLAVE, _TPM}
    if unknown:
        raise UnsupportedError(
            f"the nitro document has the field {sorted(map(str, unknown))[0]!r}, not known here"
        )
    if fields.get("digest") != "SHA384":
        raise UnsupportedError("the pcrs of the nitro document are not of sha-384")
    tpm = _TPM in fields
    if tpm == (_ENCLAVE in fields):
        raise MalformedError("a nitro document has the pcrs of an enclave or those of a tpm")
    module, timestamp, bundle = fields.get("module_id"), fields.get("timestamp"), fields.get("cabundle")
    if type(module) is not str or not 0 < len(module) <= _MAX_MODULE:
        raise MalformedError("a nitro document names no module")
    if type(timestamp) is not int or not 0 < timestamp < _MAX_TIME:
        raise MalformedError("a nitro document has no time")
    if type(bundle) is not list or not 0 < len(bundle) <= _MAX_BUNDLE:
        raise MalformedError("a nitro document has no bundle of certificates")
    return NitroDocument(
        module,
        tpm,
        timestamp,
        _pcrs(fields[_TPM if tpm else _ENCLAVE]),
        _certificate(fields.get("certificate")),
        tuple(_certificate(one) for one in bundle),
        _optional(fields, "public_key"),
        _optional(fields, "user_data"),
        _optional(fields, "nonce"),
        signed,
        signature,
    )


def _pcrs(value: Any) -> dict[int, bytes]:
    if type(value) is not dict or not 0 < len(value) <= _PCRS:
        raise MalformedError("a nitro document has 1 to 32 pcrs")
    for index, pcr in value.items():
        if (
            type(index) is not int
            or not 0 <= index < _PCRS
            or type(pcr) is not bytes
            or len(pcr) != _PCR_BYTES
        ):
            raise MalformedError("a pcr of a nitro document is not a number below 32 with 48 bytes")
    return value


def _certificate(value: Any) -> bytes:
    if type(value) is not bytes or not 0 < len(value) <= _MAX_CERTIFICATE:
        raise MalformedError(f"a certificate of a nitro document has 1 to {_MAX_CERTIFICATE} bytes")
    return value


def _optional(fields: Mapping[str, Any], name: str) -> bytes | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not bytes or len(value) > _MAX_DATA:
        raise MalformedError(f"{name} of a nitro document is not a byte string of at most {_MAX_DATA} bytes")
    return value
