# SPDX-License-Identifier: Apache-2.0
"""A source that takes from an archive what it has already, and asks the log itself for the rest."""

from __future__ import annotations

from hashlib import sha256

from quotary_cli.output import ExitCode
from quotary_cli.sources.archive import ArchiveSource
from quotary_cli.sources.base import LogSource, SourceFailed, SourceMissing
from quotary_cli.sources.paths import Part, parse_path
from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.tlog.checkpoint import Checkpoint, parse_checkpoint
from quotary_verifier.tlog.compact import CompactRange
from quotary_verifier.tlog.merkle import HASH_SIZE, node_hash
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.tlog.tiles import TILE_HEIGHT, TILE_WIDTH, Tile
from quotary_verifier.wire.limits import MAX_NOTE

_LASTING = frozenset((Part.BLOB, Part.TILE))


class Reusing:
    """`archive` before `source`, for paths whose bytes never change; for all paths if it is the same export."""

    def __init__(self, archive: ArchiveSource, source: LogSource, *, everything: bool = False) -> None:
        self._archive = archive
        self._source = source
        self._everything = everything
        self.threads = getattr(source, "threads", 1)

    def read(self, path: str, most: int) -> bytes:
        """As LogSource says."""
        if path in self._archive and (self._everything or parse_path(path).part in _LASTING):
            data = self._archive.read(path, most)
            if not path.startswith("blob/") or sha256(data).hexdigest() == path[5:]:
                return data
        return self._source.read(path, most)


def checkpoint_of(source: LogSource, name: str) -> tuple[bytes, Checkpoint]:
    """Return the note at `checkpoint` and what it says; no signature is checked.

    Raises:
        SourceMissing, SourceFailed: it could not be read, or is none.
    """
    note = source.read("checkpoint", MAX_NOTE)
    try:
        return note, parse_checkpoint(parse_note(note).text)
    except (MalformedError, EvidenceError) as error:
        raise SourceFailed(f"{name}: checkpoint: {error}", code=ExitCode.REJECTED) from None


def check_continues(source: LogSource, name: str, earlier: Checkpoint, now: Checkpoint) -> None:
    """Check, by the tiles that `source` has, that a log goes on from an earlier checkpoint (RFC 6962 section 2.1).

    Raises:
        SourceFailed: it is another log, or no continuation of that one: two histories were shown.
        SourceMissing: a tile that tells is not there.
    """
    if earlier.origin != now.origin:
        raise SourceFailed(
            f"{name}: the log is {now.origin}, the earlier archive is of {earlier.origin}",
            code=ExitCode.USAGE,
        )
    if earlier.size > now.size:
        raise SourceFailed(
            f"{name}: the log has {now.size} leaves, and had {earlier.size} in the earlier archive",
            code=ExitCode.REJECTED,
            hint="a log never shrinks: keep both archives, they show that the host was rolled back",
        )
    if CompactRange(earlier.size, _peaks(source, earlier.size)).root() != earlier.root:
        raise SourceFailed(
            f"{name}: the log does not continue the earlier archive: its first {earlier.size} leaves are others",
            code=ExitCode.REJECTED,
            hint="keep both archives: together they show that the host has two histories",
        )


def _peaks(source: LogSource, size: int) -> list[bytes]:
    """Return the roots of the complete subtrees of the first `size` leaves, the largest first."""
    peaks, start = [], 0
    for bit in range(size.bit_length() - 1, -1, -1):
        if size >> bit & 1:
            level, inner = divmod(bit, TILE_HEIGHT)
            first = start >> (level * TILE_HEIGHT)
            peaks.append(_subtree(source, size, level, first, 1 << inner))
            start += 1 << bit
    return peaks


def _subtree(source: LogSource, size: int, level: int, first: int, count: int) -> bytes:
    """Return the root over `count` (1 to 128) hashes of one level, which all stand in one tile."""
    number, at = divmod(first, TILE_WIDTH)
    width = min(TILE_WIDTH, (size >> (level * TILE_HEIGHT)) - number * TILE_WIDTH)
    path = Tile(level, number, width).path
    data = source.read(path, HASH_SIZE * width)
    hashes = [data[HASH_SIZE * place :][:HASH_SIZE] for place in range(at, at + count)]
    if len(data) != HASH_SIZE * width:
        raise SourceMissing(path)
    while len(hashes) > 1:
        hashes = [node_hash(*hashes[place : place + 2]) for place in range(0, len(hashes), 2)]
    return hashes[0]
