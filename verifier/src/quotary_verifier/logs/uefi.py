# SPDX-License-Identifier: Apache-2.0
"""Structures of UEFI that firmware puts into event data (UEFI 2.10; PFP 1.06 section 10.4): read, never trusted.

What these functions return is as true as the bytes they were given: give them `Event.covered`.
"""

from __future__ import annotations

from typing import Final

from quotary_verifier.errors import MalformedError
from quotary_verifier.logs.little import Reader
from quotary_verifier.wire.frozen import frozen

GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
IMAGE_SECURITY: Final = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
SHIM: Final = "605dab50-e046-4300-abb6-3dd810dd8b23"

CERT_SHA256: Final = "c1c41626-504c-4092-aca9-41f936934328"
CERT_X509: Final = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072"

_MAX_NAME = 1024
_MAX_SIGNATURES = 65_536
_MAX_PARTITIONS = 1024
_GPT_SIGNATURE = b"EFI PART"
_GPT_HEADER = 92
_GPT_ENTRY = 128
_LIST_HEAD = 28
_NODE = 4
_END_NODE = 0x7F
_FILE_NODE = b"\x04\x04"


@frozen
class Variable:
    """A UEFI_VARIABLE_DATA: the vendor's GUID, the name, and the content."""

    vendor: str
    name: str
    data: bytes


@frozen
class Signature:
    """One entry of a signature list: its type's GUID, its owner's, and the digest or certificate."""

    type: str
    owner: str
    data: bytes


@frozen
class ImageLoad:
    """A UEFI_IMAGE_LOAD_EVENT. Nothing of it is ever covered: the event's digest is that of the image."""

    address: int
    length: int
    link_address: int
    device_path: bytes


@frozen
class Partition:
    """One partition of a GPT: type, unique GUID, first and last block, attributes, name."""

    type: str
    unique: str
    first: int
    last: int
    attributes: int
    name: str


@frozen
class Gpt:
    """The partition table that firmware measured: the disk's GUID and the partitions in use."""

    disk: str
    partitions: tuple[Partition, ...]


def guid(data: bytes) -> str:
    """Return a GUID of 16 bytes in its usual form (the first three fields are little-endian)."""
    first, second, third = data[3::-1].hex(), data[5:3:-1].hex(), data[7:5:-1].hex()
    return f"{first}-{second}-{third}-{data[8:10].hex()}-{data[10:16].hex()}"


def utf16(data: bytes, what: str) -> str:
    """Decode UTF-16LE; MalformedError if it is not valid."""
    try:
        return data.decode("utf-16-le")
    except UnicodeDecodeError:
        raise MalformedError(f"{what} is not UTF-16") from None


def variable_end(data: bytes) -> int:
    """Return where the UEFI_VARIABLE_DATA at the beginning of some bytes ends.

    Raises:
        MalformedError: there is none, or it ends behind the bytes.
    """
    reader = Reader(data, "a UEFI variable")
    _read_variable(reader)
    return reader.at


def parse_variable(data: bytes) -> Variable:
    """Read a UEFI_VARIABLE_DATA (PFP 1.06 section 10.4.5).

    Raises:
        MalformedError: it is none.
    """
    reader = Reader(data, "a UEFI variable")
    variable = _read_variable(reader)
    reader.end()
    return variable


def _read_variable(reader: Reader) -> Variable:
    vendor = guid(reader.take(16))
    characters, size = reader.number(8), reader.number(8)
    if characters > _MAX_NAME:
        raise MalformedError(f"the name of a UEFI variable has {characters} characters")
    name = utf16(reader.take(2 * characters), "the name of a UEFI variable")
    return Variable(vendor, name, reader.take(size))


def parse_signature_lists(data: bytes) -> tuple[Signature, ...]:
    """Read a sequence of EFI_SIGNATURE_LISTs, the content of PK, KEK, db and dbx (UEFI 2.10 section 32.4.1).

    Raises:
        MalformedError: it is none.
    """
    found: list[Signature] = []
    reader = Reader(data, "a signature database")
    while reader.left:
        kind = guid(reader.take(16))
        total, header, size = reader.number(4), reader.number(4), reader.number(4)
        body = total - _LIST_HEAD - header
        if size <= 16 or body < 0 or body % size or len(found) + body // size > _MAX_SIGNATURES:
            raise MalformedError("a signature list has sizes that do not fit")
        reader.take(header)
        for _ in range(body // size):
            found.append(Signature(kind, guid(reader.take(16)), reader.take(size - 16)))
    return tuple(found)


def parse_image_load(data: bytes) -> ImageLoad:
    """Read a UEFI_IMAGE_LOAD_EVENT (PFP 1.06 section 10.4.4).

    Raises:
        MalformedError: it is none.
    """
    reader = Reader(data, "an image load event")
    address, length, link = reader.number(8), reader.number(8), reader.number(8)
    path = reader.take(reader.number(8))
    reader.end()
    return ImageLoad(address, length, link, path)


def parse_gpt(data: bytes) -> Gpt:
    """Read a UEFI_GPT_DATA: header, number of entries, entries (PFP 1.06 section 10.4.6; UEFI 2.10 section 5.3).

    Raises:
        MalformedError: it is none.
    """
    reader = Reader(data, "a GPT event")
    header = reader.take(_GPT_HEADER)
    size = int.from_bytes(header[84:88], "little")
    count = reader.number(8)
    if not header.startswith(_GPT_SIGNATURE) or size < _GPT_ENTRY or count > _MAX_PARTITIONS:
        raise MalformedError("a GPT event has no partition table")
    partitions = []
    for _ in range(count):
        entry = reader.take(size)
        partitions.append(
            Partition(
                guid(entry[:16]),
                guid(entry[16:32]),
                int.from_bytes(entry[32:40], "little"),
                int.from_bytes(entry[40:48], "little"),
                int.from_bytes(entry[48:56], "little"),
                utf16(entry[56:128], "the name of a partition").partition("\0")[0],
            )
        )
    reader.end()
    return Gpt(guid(header[56:72]), tuple(partitions))


def file_names(device_path: bytes) -> str:
    """Return the file names in a device path (UEFI 2.10 section 10.3), joined; empty where it has none.

    A device path is never covered by a digest. What is not well formed ends it.
    """
    names = []
    at = 0
    while at + _NODE <= len(device_path) and device_path[at] != _END_NODE:
        size = int.from_bytes(device_path[at + 2 : at + 4], "little")
        if size < _NODE:
            break
        if device_path[at : at + 2] == _FILE_NODE:
            content = device_path[at + _NODE : at + size]
            names.append(content.decode("utf-16-le", "replace").partition("\0")[0])
        at += size
    return "\\".join(names)
