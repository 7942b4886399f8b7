# SPDX-License-Identifier: Apache-2.0
"""The HCL report of an Azure confidential VM: a hardware report, and the text whose digest that report binds.

Layout: 32 bytes of header, a slot of 1,184 bytes for the hardware's report, 20 bytes of header for the text, the text
(JSON with the vTPM's attestation key), zeros to the end of the NV index 0x01400001 that it is read from. All integers
are little-endian. Only the hardware's report and the text are bound by anything; the headers are held to one form.
"""

from __future__ import annotations

import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.logs.little import Reader
from quotary_verifier.wire.frozen import frozen

MAX_REPORT: Final = 8 * 1024
"""Bytes of an HCL report; the NV index has 2,600."""

SNP: Final = 2
TDX: Final = 4

_SNP_BYTES: Final = 1184
_TDREPORT_BYTES: Final = 1024
_TDREPORT_DATA: Final = 128
_REPORT_DATA_BYTES: Final = 64
_SNP_REPORT_DATA: Final = 0x50
_HEADERS: Final = 32 + _SNP_BYTES + 20
_REQUEST: Final = 2
_SHA256: Final = 1
_AK: Final = "HCLAkPub"
_EXPONENT: Final = b"\x01\x00\x01"
_MODULUS_BYTES: Final = (256, 384, 512)
_MAX_KEYS: Final = 8
_MAX_SETTINGS: Final = 64
_MAX_DIGITS: Final = 18
_USER_DATA_BYTES: Final = 64


@frozen
class HclReport:
    """A report as read: nothing in it is authenticated.

    `hardware_type`: SNP or TDX. `hardware`: the SNP report, or the TDREPORT, which only its own machine can check.
    `text`: what the hardware's report data has to be the SHA-256 of. `ak`: SubjectPublicKeyInfo of the vTPM's
    attestation key, an RSA key. `settings`: `vm-configuration`. `user_data`: 64 bytes that the guest wrote. `encoded`:
    the report's bytes without the zeros that fill the NV index.
    """

    version: int
    hardware_type: int
    hardware: bytes
    text: bytes
    ak: bytes
    settings: Mapping[str, str | int | bool]
    user_data: bytes
    encoded: bytes = b""

    @property
    def expected_report_data(self) -> bytes:
        """What the hardware's report data has to be: SHA-256 of the text, and zeros."""
        return hashlib.sha256(self.text).digest() + bytes(_REPORT_DATA_BYTES - 32)

    @property
    def report_data(self) -> bytes:
        """What it is, in the report that stands in this one."""
        start = _SNP_REPORT_DATA if self.hardware_type == SNP else _TDREPORT_DATA
        return self.hardware[start : start + _REPORT_DATA_BYTES]


def parse_hcl_report(data: bytes) -> HclReport:
    """Read an HCL report.

    Raises:
        MalformedError: it is none.
        UnsupportedError: its version, hardware, hash or key is not known.
    """
    if len(data) > MAX_REPORT:
        raise MalformedError(f"an hcl report of {len(data)} bytes is too large")
    reader = Reader(data, "an hcl report")
    if reader.take(4) != b"HCLA":
        raise MalformedError("the file is no hcl report")
    version, size, request, status = (reader.number(4) for _ in range(4))
    if version not in (1, 2):
        raise UnsupportedError(f"an hcl report of version {version} is not known")
    if request != _REQUEST or status or any(reader.take(12)):
        raise MalformedError("the header of the hcl report is not that of an answer")
    slot = reader.take(_SNP_BYTES)
    data_size, data_version, kind, hash_type, length = (reader.number(4) for _ in range(5))
    if data_version != 1 or kind not in (SNP, TDX) or hash_type != _SHA256:
        raise UnsupportedError(
            f"an hcl report with data {data_version}, type {kind}, hash {hash_type} is not known"
        )
    if size != _HEADERS + length or data_size != 20 + length:
        raise MalformedError("the sizes in the hcl report do not fit each other")
    text = reader.take(length)
    hardware = slot if kind == SNP else slot[:_TDREPORT_BYTES]
    if any(reader.rest()) or any(slot[len(hardware) :]):
        raise MalformedError("the hcl report has bytes where zeros are")
    fields = _json(text)
    ak, settings, user_data = _ak(fields), _settings(fields), _user_data(fields)
    return HclReport(version, kind, hardware, text, ak, settings, user_data, data[:size])


def _json(text: bytes) -> dict[str, Any]:
    """Read the text: no member twice, no number but whole ones of usual size."""
    try:
        value = json.loads(
            text.decode(),
            object_pairs_hook=_members,
            parse_int=_integer,
            parse_float=_refuse,
            parse_constant=_refuse,
        )
    except (ValueError, RecursionError):
        raise MalformedError("the text of the hcl report is not json") from None
    if type(value) is not dict:
        raise MalformedError("the text of the hcl report is not an object")
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedError("the text of the hcl report has a member twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise MalformedError("the text of the hcl report has a number that is too long")
    return int(digits)


def _refuse(_: str) -> NoReturn:
    raise MalformedError("the text of the hcl report has a number that is not whole")


def _ak(fields: Mapping[str, Any]) -> bytes:
    """Return the one attestation key, as SubjectPublicKeyInfo."""
    keys = fields.get("keys")
    if type(keys) is not list or len(keys) > _MAX_KEYS or any(type(key) is not dict for key in keys):
        raise MalformedError("the hcl report lists no keys")
    found = [key for key in keys if key.get("kid") == _AK]
    if len(found) != 1:
        raise MalformedError(f"the hcl report has {len(found)} attestation keys")
    (key,) = found
    if key.get("kty") != "RSA" or key.get("key_ops", ["sign"]) != ["sign"]:
        raise UnsupportedError("the attestation key of the hcl report is not an rsa key that signs")
    modulus, exponent = _base64url(key.get("n")), _base64url(key.get("e"))
    if (
        exponent != _EXPONENT
        or len(modulus) not in _MODULUS_BYTES
        or modulus[0] < 0x80
        or not modulus[-1] & 1
    ):
        raise UnsupportedError("the attestation key of the hcl report has another exponent or size")
    numbers = rsa.RSAPublicNumbers(int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big"))
    return numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _base64url(text: Any) -> bytes:
    """Decode base64url without padding (RFC 7515, section 2), in its one spelling."""
    if type(text) is not str or not text.isascii():
        raise MalformedError("a number of a key in the hcl report is not base64url")
    plain = text.translate(_FROM_URL).encode()
    try:
        data = binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except binascii.Error:
        raise MalformedError("a number of a key in the hcl report is not base64url") from None
    again = binascii.b2a_base64(data, newline=False).rstrip(b"=").translate(_TO_URL)
    if again != text.encode():
        raise MalformedError("a number of a key in the hcl report is not canonical base64url")
    return data


_FROM_URL: Final = str.maketrans("-_", "+/")
_TO_URL: Final = bytes.maketrans(b"+/", b"-_")


def _settings(fields: Mapping[str, Any]) -> dict[str, str | int | bool]:
    settings = fields.get("vm-configuration")
    if type(settings) is not dict or len(settings) > _MAX_SETTINGS:
        raise MalformedError("the hcl report has no configuration of the vm")
    if any(type(value) not in (str, int, bool) for value in settings.values()):
        raise MalformedError("a setting of the vm in the hcl report is neither text, number nor boolean")
    return settings


def _user_data(fields: Mapping[str, Any]) -> bytes:
    text = fields.get("user-data")
    if (
        type(text) is not str
        or len(text) != 2 * _USER_DATA_BYTES
        or set(text) - set("0123456789abcdefABCDEF")
    ):
        raise MalformedError("the user data of the hcl report are not 64 bytes in hexadecimal")
    return bytes.fromhex(text)
