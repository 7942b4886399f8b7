# SPDX-License-Identifier: Apache-2.0
"""The paths of a published log and of an archive: their grammar, their order, their limits (docs/spec/archive.md).

Whatever names a file, a caller, an archive or a listing, goes through `parse_path` before anything is opened, so
that no name can mean another place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from quotary_verifier.errors import MalformedError
from quotary_verifier.tlog.tiles import ENTRIES, TILE_WIDTH, decode_bundle, numbered_path, parse_tile_path
from quotary_verifier.tlog.tiles import parse_numbered_path as parse_number
from quotary_verifier.wire.history import COMMITS_PER_FILE, split
from quotary_verifier.wire.limits import MAX_ATTESTATION, MAX_COMMIT, MAX_NOTE
from quotary_verifier.wire.names import parse_output_id

MAX_BLOB: Final = 64 * 1024 * 1024
"""Bytes of a blob: a boot log, a workload log, a certificate, a record."""

MAX_POLICY_FILE: Final = 256 * 1024 * 1024
"""Bytes of a file below `policy/`: a policy, or a list that stands beside it."""

MAX_HISTORY: Final = COMMITS_PER_FILE * MAX_COMMIT
"""Bytes of a history file."""

SUFFIX: Final = ".attestation"
_HASH: Final = 32
_BUNDLED: Final = 34
_SIZE: Final = re.compile(r"[1-9][0-9]{0,18}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


class Part(IntEnum):
    """What a path names, in the order of an archive."""

    CHECKPOINT = 0
    HISTORY = 1
    COSIGNED = 2
    BLOB = 3
    TILE = 4
    ATTESTATION = 5
    POLICY = 6

    @property
    def folder(self) -> str:
        """The head of its paths."""
        return _FOLDERS[self]


_FOLDERS: Final = ("checkpoint", "history", "cosigned", "blob", "tile", "attestations", "policy")


@dataclass(frozen=True, slots=True)
class LogPath:
    """A path that follows the grammar: its text, its place in an archive, and the most bytes that may stand there."""

    text: str
    part: Part
    order: tuple[int | str, ...]
    most: int


def parse_path(path: str) -> LogPath:
    """Read a path of a log or an archive.

    Raises:
        MalformedError: nothing has this path.
    """
    head, _, rest = path.partition("/")
    if path == "checkpoint":
        return LogPath(path, Part.CHECKPOINT, (), MAX_NOTE)
    if head == "tile":
        return _tile(path)
    if head == "history":
        number, width = parse_number(rest)
        return LogPath(path, Part.HISTORY, (number, width), width * MAX_COMMIT)
    if head == "cosigned" and _SIZE.fullmatch(rest):
        return LogPath(path, Part.COSIGNED, (int(rest),), MAX_NOTE)
    if head == "blob" and _DIGEST.fullmatch(rest):
        return LogPath(path, Part.BLOB, (rest,), MAX_BLOB)
    if head == "attestations" and rest.endswith(SUFFIX):
        parse_output_id(rest.removesuffix(SUFFIX))
        return LogPath(path, Part.ATTESTATION, (rest,), MAX_ATTESTATION)
    if head == "policy" and _NAME.fullmatch(rest):
        return LogPath(path, Part.POLICY, (rest,), MAX_POLICY_FILE)
    raise MalformedError("the path is none of a log's or an archive's")


def _tile(path: str) -> LogPath:
    tile = parse_tile_path(path)
    size = _BUNDLED if tile.level == ENTRIES else _HASH
    return LogPath(path, Part.TILE, (tile.level, tile.number, tile.width), size * tile.width)


def wider(path: LogPath) -> LogPath | None:
    """Return the path of the whole file of which a partial tile or history file is the beginning, or None."""
    if ".p/" not in path.text or path.part not in (Part.TILE, Part.HISTORY):
        return None
    return parse_path(path.text.partition(".p/")[0])


def cut(path: LogPath, whole: bytes) -> bytes | None:
    """Return what stands at a partial path from the whole file's bytes, or None where that has fewer.

    Raises:
        MalformedError: the whole file is not what its path says.
    """
    width = path.order[-1]
    assert isinstance(width, int)
    if path.part is Part.HISTORY:
        commits = list(split(whole))
        return b"".join(commits[:width]) if len(commits) >= width else None
    if path.order[0] == ENTRIES:
        entries = decode_bundle(whole, TILE_WIDTH)
        return whole[: sum(2 + len(entry) for entry in entries[:width])]
    if len(whole) != _HASH * TILE_WIDTH:
        raise MalformedError("a full tile has not 256 hashes")
    return whole[: _HASH * width]


def history_path(number: int, width: int = COMMITS_PER_FILE) -> str:
    """Return the path of a history file, or of its first `width` commits."""
    return f"history/{numbered_path(number, width)}"
