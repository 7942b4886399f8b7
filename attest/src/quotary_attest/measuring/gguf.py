# SPDX-License-Identifier: Apache-2.0
"""What a GGUF file holds besides weights: tokenizer and chat template stand in its head (ggml, gguf.md, version
3).

The digest of the file covers all of it. This tells an auditor which part a change came from, and nothing rests on it:
of a file that is not understood nothing is told.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from quotary_attest.measuring.errors import MeasureError
from quotary_attest.measuring.files import Identity

_HEAD: Final = struct.Struct("<4sIQQ")
_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING: Final = 8
_ARRAY: Final = 9
_MAX_HEAD: Final = 64 << 20
_MAX_ENTRIES: Final = 1 << 16
_MAX_ELEMENTS: Final = 1 << 24
_MAX_KEY: Final = 1 << 16
_TEMPLATE: Final = b"tokenizer.chat_template"
_TOKENIZER: Final = b"tokenizer."


def gguf_parts(path: Path, identity: Identity) -> dict[str, bytes]:
    """Return digests of the parts in a GGUF file's head, by name; empty for a file that is not understood.

    `chat_template` is SHA-256 of the template's text, `tokenizer` of all other entries whose key begins with
    `tokenizer.`, as they lie in the file, joined.

    Raises:
        MeasureError: the file is no longer the one that was measured.
    """
    try:
        with path.open("rb") as file:
            if Identity.of(os.fstat(file.fileno())) != identity:
                raise MeasureError(f"{path} changed while it was measured")
            return _parts(
                file.read(_MAX_HEAD)
            )  # not mapped: a file cut short meanwhile would end the process
    except (struct.error, IndexError, ValueError):
        return {}
    except OSError as error:
        raise MeasureError(f"cannot read {path}: {(error.strerror or 'it failed').lower()}") from error


def _parts(data: bytes) -> dict[str, bytes]:
    tokenizer, seen, found = hashlib.sha256(), False, {}
    for key, start, value, end in _entries(data):
        if key == _TEMPLATE:
            found["chat_template"] = hashlib.sha256(data[value + 8 : end]).digest()
        elif key.startswith(_TOKENIZER):
            seen = True
            tokenizer.update(data[start:end])
    if seen:
        found["tokenizer"] = tokenizer.digest()
    return found


def _entries(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield key, begin, begin of the value and end of each entry. Raises ValueError, struct.error or IndexError."""
    magic, version, _, count = _HEAD.unpack_from(data, 0)
    if magic != _MAGIC or version not in _VERSIONS or count > _MAX_ENTRIES:
        raise ValueError("not a gguf file of a version that is known")
    at = _HEAD.size
    for _ in range(count):
        length = _u64(data, at)
        if length > _MAX_KEY:
            raise ValueError("a key is too long")
        key = data[at + 8 : at + 8 + length]
        kind = _u32(data, at + 8 + length)
        value = at + 12 + length
        end = _end(data, kind, value)
        if end > len(data):
            raise IndexError("an entry ends after the file")
        yield key, at, value, end
        at = end


def _end(data: bytes, kind: int, at: int) -> int:
    """Return where a value ends that begins at `at`."""
    if kind in _SIZES:
        return at + _SIZES[kind]
    if kind == _STRING:
        return at + 8 + _u64(data, at)
    if kind != _ARRAY:
        raise ValueError("a value of an unknown type")
    inner, count = _u32(data, at), _u64(data, at + 4)
    if count > _MAX_ELEMENTS or inner == _ARRAY:
        raise ValueError("an array that is too long, or of arrays")
    at += 12
    if inner in _SIZES:
        return at + count * _SIZES[inner]
    for _ in range(count):
        at = _end(data, inner, at)
    return at


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(_exactly(data, at, 4), "little")


def _u64(data: bytes, at: int) -> int:
    return int.from_bytes(_exactly(data, at, 8), "little")


def _exactly(data: bytes, at: int, count: int) -> bytes:
    found = data[at : at + count]
    if len(found) != count:
        raise IndexError("the file ends within its head")
    return found
