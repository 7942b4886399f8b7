# SPDX-License-Identifier: Apache-2.0
"""Attestation reports of NVIDIA's GPUs and switches: an SPDM exchange (DMTF DSP0274 1.1, "GET_MEASUREMENTS").

A report is the request, 37 bytes, and the response to it: head, measurement blocks, the device's nonce, NVIDIA's own
fields, an ES384 signature over everything before it. Integers are little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.device_pki import SIGNATURE_BYTES
from quotary_verifier.logs.little import Reader
from quotary_verifier.wire.frozen import frozen

MAX_REPORT: Final = 32 * 1024
"""Bytes of a report; those of Hopper and Blackwell have 4 KiB."""

FIELD_DRIVER: Final = 3
FIELD_VBIOS: Final = 6
FIELD_FWID: Final = 20
FWID_BYTES: Final = 48

_VERSION_1_1: Final = 0x11
_GET_MEASUREMENTS: Final = 0xE0
_MEASUREMENTS: Final = 0x60
_SIGNATURE_REQUESTED: Final = 1
_NONCE_BYTES: Final = 32
_SPECIFICATION_DMTF: Final = 1
_VALUE_HEAD: Final = 3
_MAX_TEXT: Final = 64


@frozen
class SpdmReport:
    """A report as read: nothing in it is authenticated.

    `nonce`: the requester's. `measurements`: index → value. `fields`: NVIDIA's own, by number. `signed`: what
    `signature` (96 bytes) is over. `driver`, `vbios`: versions, empty where the device does not say. `fwid`: digest of
    the firmware that holds the signing key, or None.
    """

    nonce: bytes
    measurements: Mapping[int, bytes]
    fields: Mapping[int, bytes]
    driver: str
    vbios: str
    fwid: bytes | None
    signed: bytes
    signature: bytes


def parse_spdm_report(data: bytes) -> SpdmReport:
    """Read a report.

    Raises:
        MalformedError: it is none.
        UnsupportedError: its version, or the layout of its measurements, is not known.
    """
    if len(data) > MAX_REPORT:
        raise MalformedError(f"a device's report of {len(data)} bytes is too large")
    reader = Reader(data, "a device's report")
    version, code, attributes = reader.number(1), reader.number(1), reader.number(1)
    reader.take(1)  # which measurements: the response shows which there are
    nonce = reader.take(_NONCE_BYTES)
    reader.take(1)  # the slot of the key: the certificate shows which it was
    answered, answer = reader.number(1), reader.number(1)
    if version != _VERSION_1_1 or answered != _VERSION_1_1:
        raise UnsupportedError(
            f"spdm of version 0x{version:02x}, answered in 0x{answered:02x}, is not supported"
        )
    if code != _GET_MEASUREMENTS or answer != _MEASUREMENTS or not attributes & _SIGNATURE_REQUESTED:
        raise MalformedError("the report is no signed exchange of measurements")
    reader.take(2)
    count = reader.number(1)
    measurements = _measurements(reader.take(reader.number(3)), count)
    reader.take(_NONCE_BYTES)  # the device's own
    fields = _fields(reader.take(reader.number(2)))
    end = reader.at
    signature = reader.take(SIGNATURE_BYTES)
    reader.end()
    return SpdmReport(
        nonce,
        measurements,
        fields,
        _text(fields.get(FIELD_DRIVER, b"")),
        _vbios(fields.get(FIELD_VBIOS, b"")),
        _fwid(fields.get(FIELD_FWID)),
        data[:end],
        signature,
    )


def _measurements(record: bytes, count: int) -> dict[int, bytes]:
    reader = Reader(record, "the measurements of a device")
    found: dict[int, bytes] = {}
    for _ in range(count):
        index, specification, size = reader.number(1), reader.number(1), reader.number(2)
        reader.take(1)  # what kind of measurement it is
        length = reader.number(2)
        if specification != _SPECIFICATION_DMTF:
            raise UnsupportedError(f"measurements of specification {specification} are not supported")
        if index in found or size != _VALUE_HEAD + length:
            raise MalformedError(f"measurement {index} of the device stands twice, or its sizes do not fit")
        found[index] = reader.take(length)
    reader.end()
    return found


def _fields(data: bytes) -> dict[int, bytes]:
    reader = Reader(data, "the fields of a device's report")
    found: dict[int, bytes] = {}
    while reader.left:
        kind, size = reader.number(2), reader.number(2)
        if kind in found:
            raise MalformedError(f"field {kind} of the device's report stands twice")
        found[kind] = reader.take(size)
    return found


def _text(value: bytes) -> str:
    text = value.rstrip(b"\0")
    if len(text) > _MAX_TEXT or not text.isascii() or not text.decode("ascii").isprintable():
        raise MalformedError("a version in the device's report is no short text")
    return text.decode("ascii")


def _vbios(value: bytes) -> str:
    """Return the version as NVIDIA writes it: the first half backwards, then one byte of the second."""
    if len(value) % 2 or len(value) > _MAX_TEXT:
        raise MalformedError(f"the vbios version in the device's report has {len(value)} bytes")
    half = len(value) // 2
    return ".".join(f"{byte:02x}" for byte in (*reversed(value[:half]), *value[half : half + 1]))


def _fwid(value: bytes | None) -> bytes | None:
    if value is not None and len(value) != FWID_BYTES:
        raise MalformedError(f"the firmware's id in the device's report has {len(value)} bytes")
    return value
