# SPDX-License-Identifier: Apache-2.0
"""What the digest of a firmware event was computed over, found by hashing and never by the event's type alone.

Firmware hashes an event's data for most types. The exceptions that leave something of the log covered:

- a boot variable, of which older firmware hashes the content only (PFP 1.06 section 10.4.5);
- what old versions of shim logged of the authorities they used, with a few stray bytes behind the structure;
- GRUB's commands and command lines, hashed without the label (`grub_cmd: `) and the final zero of the log's text;
- the names of a unified kernel image's sections, hashed in ASCII and logged in UTF-16 (systemd-stub).
"""

from __future__ import annotations

from quotary_verifier.errors import MalformedError
from quotary_verifier.logs.banks import Hash
from quotary_verifier.logs.tcg_types import EV_IPL, VARIABLE_TYPES, Coverage
from quotary_verifier.logs.uefi import parse_variable, variable_end

_LABEL = b": "
_OLD_LABEL = b" "
_MAX_LABEL = 64
_MAX_SLACK = 16


def cover(kind: int, data: bytes, digest: bytes, function: Hash) -> tuple[Coverage, bytes | None]:
    """Return which bytes of an event's data its digest is of, and these bytes; (NOTHING, None) if none are found.

    `kind`, as logged, only decides which candidates are tried; each is proved by its hash.
    """
    if function(data).digest() == digest:
        return Coverage.DATA, data
    if kind in VARIABLE_TYPES:
        return _variable(data, digest, function)
    if kind == EV_IPL:
        return _label(data, digest, function)
    return Coverage.NOTHING, None


def _variable(data: bytes, digest: bytes, function: Hash) -> tuple[Coverage, bytes | None]:
    try:
        end = variable_end(data)
    except MalformedError:
        return Coverage.NOTHING, None
    content = parse_variable(data[:end]).data
    if function(content).digest() == digest:
        return Coverage.VARIABLE_DATA, content
    if len(data) - end <= _MAX_SLACK:
        for stop in range(end, len(data)):
            if function(data[:stop]).digest() == digest:
                return Coverage.STRUCTURE, data[:end]
    return Coverage.NOTHING, None


def _label(data: bytes, digest: bytes, function: Hash) -> tuple[Coverage, bytes | None]:
    for text in _texts(data):
        if function(text).digest() == digest:
            return Coverage.TEXT, text
    name = _ascii_name(data)
    if name and function(name).digest() == digest:
        return Coverage.NAME, name
    return Coverage.NOTHING, None


def _texts(data: bytes) -> list[bytes]:
    """Return what a boot loader's text may be without the zero behind it and the label before it."""
    texts = []
    bare = data.removesuffix(b"\0")
    if bare != data:
        texts.append(bare)
    for separator in (_LABEL, _OLD_LABEL):
        label, found, text = bare.partition(separator)
        if found and len(label) <= _MAX_LABEL:
            texts += [text, text + b"\0"]
    return texts


def _ascii_name(data: bytes) -> bytes | None:
    """Return a short UTF-16 text in ASCII with its final zero, None if the data is no such text."""
    if len(data) % 2 or not 4 <= len(data) <= 2 * _MAX_LABEL or any(data[1::2]):
        return None
    return data[::2]
