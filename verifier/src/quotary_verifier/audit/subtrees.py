# SPDX-License-Identifier: Apache-2.0
"""Hashing the leaves of a log, tile by tile (RFC 6962 section 2.1): nearly all of an audit's work.

A job is a run of entry bundles. Each is hashed to its leaf hashes, these are held against the hash tile that the
host publishes, and folded to the root of the tile. Where a checkpoint's tree ends within a tile, the job also gives the
roots of the complete subtrees from the tile's begin up to there, so that whoever put the tiles before them together has
the checkpoint's root. A job needs nothing of any other, so that processes can share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from hashlib import sha256
from struct import Struct
from typing import Final

from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.audit.reading import Absent, Read
from quotary_verifier.errors import MalformedError
from quotary_verifier.tlog.compact import CompactRange
from quotary_verifier.tlog.merkle import HASH_SIZE
from quotary_verifier.tlog.tiles import ENTRIES, TILE_WIDTH, Tile
from quotary_verifier.wire.frozen import frozen

ENTRY_BYTES: Final = 2 + HASH_SIZE
"""Bytes of one entry in a bundle: u16 32, and SHA-256 of a record."""

TILES_PER_JOB: Final = 256
"""Tiles of a whole job: those under one tile of level 1."""

_PREFIXED: Final = Struct("x33s" * TILE_WIDTH)
_PAIRS: Final = tuple(Struct("64s" * (TILE_WIDTH >> step)) for step in range(1, 9))
_ZEROS: Final = bytes(TILE_WIDTH)
_LENGTHS: Final = bytes((HASH_SIZE,)) * TILE_WIDTH


@frozen
class SubtreeJob:
    """Hash the tiles from number `first` on, up to leaf `end`.

    `end` is a multiple of 256 but where the commits end, and `size` the published tree's: a tile is read in the widest
    form that it has. `cuts` are the sizes, ascending, at which a checkpoint's tree
    ends in these tiles; `entries` the leaves whose entries are wanted.
    """

    first: int
    end: int
    cuts: tuple[int, ...] = ()
    entries: tuple[int, ...] = ()
    size: int = 0


@frozen
class HashedTile:
    """A tile where bundle and hash tile do not agree, or one of them cannot be used: its root by the hash tile.

    `own` tells whether the tree goes on with the entries' hashes, `stored` is the root by the hash tile and `partials`
    what it gives at each cut, None where it cannot be used either. `finding` is what to report if the entries turn out
    to be right, `otherwise` if the hash tile does.
    """

    number: int
    own: bool
    stored: bytes | None
    partials: Mapping[int, tuple[bytes, ...]]
    finding: Finding
    otherwise: Finding


@frozen
class Subtree:
    """What a job came to: the roots of its whole tiles as one byte string, and at each cut the partial roots.

    `entries` are those that were wanted, `found` the leaves whose entries are among those looked for. Where a tile
    could be had in neither form, hashing ended before it, and `stopped` says why.
    """

    first: int
    end: int
    roots: bytes
    partials: Mapping[int, tuple[bytes, ...]]
    entries: Mapping[int, bytes]
    found: Mapping[int, bytes]
    doubtful: tuple[HashedTile, ...] = ()
    stopped: Finding | None = field(default=None)


def leaves_of(bundle: bytes, width: int) -> tuple[bytes, ...]:
    """Return the leaves of an entry bundle of `width` entries of 32 bytes, as they are hashed: 0x00 ‖ entry.

    Raises MalformedError unless it is exactly that.
    """
    if (
        len(bundle) != ENTRY_BYTES * width
        or bundle[::ENTRY_BYTES] != _ZEROS[:width]
        or bundle[1::ENTRY_BYTES] != _LENGTHS[:width]
    ):
        raise MalformedError(f"it is no bundle of {width} entries of 32 bytes")
    prefixed = bytearray(bundle)
    prefixed[1::ENTRY_BYTES] = _ZEROS[:width]  # the low byte of each length becomes the prefix of a leaf
    return _PREFIXED.unpack(prefixed) if width == TILE_WIDTH else Struct("x33s" * width).unpack(prefixed)


def hashes_of(leaves: Sequence[bytes]) -> bytes:
    """Return the hashes of leaves as one byte string."""
    sha = sha256
    return b"".join([sha(leaf).digest() for leaf in leaves])


def tile_root(hashes: bytes) -> bytes:
    """Return the root over the 256 hashes of a whole tile."""
    sha = sha256
    for pairs in _PAIRS:
        hashes = b"".join([sha(b"\x01" + pair).digest() for pair in pairs.unpack(hashes)])
    return hashes


def partial_roots(hashes: bytes, start: int, cuts: Sequence[int]) -> Iterator[tuple[int, tuple[bytes, ...]]]:
    """Yield, for each cut, the roots of the complete subtrees over the leaves [start, cut) of one tile."""
    grown = CompactRange()
    for cut in cuts:
        grown.append(hashes[HASH_SIZE * grown.size : HASH_SIZE * (cut - start)])
        yield cut, grown.peaks


def hash_subtree(read: Read, job: SubtreeJob, wanted: frozenset[bytes] = frozenset()) -> Subtree:
    """Do a job; entries among `wanted` are reported with their leaves."""
    return _Hashing(read, job, wanted).run()


class _Hashing:
    """One job on its way."""

    __slots__ = (
        "_cuts",
        "_doubtful",
        "_entries",
        "_found",
        "_job",
        "_partials",
        "_read",
        "_roots",
        "_wanted",
    )

    def __init__(self, read: Read, job: SubtreeJob, wanted: frozenset[bytes]) -> None:
        self._read, self._job = read, job
        self._wanted = frozenset([b"\0" + entry for entry in wanted])
        self._roots: list[bytes] = []
        self._partials: dict[int, tuple[bytes, ...]] = {}
        self._entries: dict[int, bytes] = {}
        self._found: dict[int, bytes] = {}
        self._doubtful: list[HashedTile] = []
        self._cuts = _by_tile(job.cuts, last=True)

    def run(self) -> Subtree:
        job = self._job
        asked = _by_tile(job.entries, last=False)
        end, stopped = job.end, None
        for number in range(job.first, -(-job.end // TILE_WIDTH)):
            start = number * TILE_WIDTH
            stopped = self._tile(number, min(TILE_WIDTH, job.end - start), asked.get(number, []))
            if stopped is not None:
                end = start
                break
        return Subtree(
            job.first,
            end,
            b"".join(self._roots),
            self._partials,
            self._entries,
            self._found,
            tuple(self._doubtful),
            stopped,
        )

    def _tile(self, number: int, width: int, asked: list[int]) -> Finding | None:
        bundle_at, tile_at = self._paths(number, width)
        bundle, bundle_wrong = self._part(bundle_at, Code.BUNDLE, number, ENTRY_BYTES, width)
        tile, tile_wrong = self._part(tile_at, Code.TILE, number, HASH_SIZE, width)
        hashes = b""
        if bundle is not None:
            try:
                leaves = leaves_of(bundle, width)
                hashes = hashes_of(leaves)
                self._take_entries(leaves, number, asked)
            except MalformedError as error:
                bundle_wrong = _false(Code.BUNDLE, bundle_at, number, f"{bundle_at}: {error}")
        if hashes and hashes == tile:
            self._keep(hashes, number, width)
            return None
        if not hashes and tile is None:
            return bundle_wrong or tile_wrong
        self._doubt(number, width, hashes, tile, bundle_wrong, tile_wrong)
        return None

    def _paths(self, number: int, width: int) -> tuple[str, str]:
        """Return where a tile's bundle and hashes stand in the published tree."""
        width = self._width(number, width)
        return Tile(ENTRIES, number, width).path, Tile(0, number, width).path

    def _width(self, number: int, width: int) -> int:
        return min(TILE_WIDTH, max(self._job.size - number * TILE_WIDTH, width))

    def _part(
        self, path: str, code: Code, number: int, item: int, width: int
    ) -> tuple[bytes | None, Finding | None]:
        """Read `width` items of a bundle or tile; say what is wrong where they cannot be had."""
        try:
            data = self._read(path, item * self._width(number, width))
            if len(data) != item * self._width(number, width):
                raise MalformedError(
                    f"it has {len(data)} bytes, not {self._width(number, width)} times {item}"
                )
            return data[: item * width], None
        except Absent as error:
            where = Place(path=path, leaf=number * TILE_WIDTH)
            return None, Finding(code, Severity.COULD_NOT, where, str(error))
        except MalformedError as error:
            return None, _false(code, path, number, f"{path}: {error}")

    def _keep(self, hashes: bytes, number: int, width: int) -> None:
        """Take over the leaf hashes of a tile."""
        cuts = self._cuts.get(number)
        if cuts:
            self._partials.update(partial_roots(hashes, number * TILE_WIDTH, cuts))
        if width == TILE_WIDTH:
            self._roots.append(tile_root(hashes))

    def _doubt(
        self,
        number: int,
        width: int,
        hashes: bytes,
        tile: bytes | None,
        bundle_wrong: Finding | None,
        tile_wrong: Finding | None,
    ) -> None:
        """Keep what either form gives: the next checkpoint's root tells which one is right."""
        bundle_at, tile_at = self._paths(number, width)
        cuts = self._cuts.get(number, [])
        if hashes and tile is not None:
            at = next(
                at for at in range(0, len(tile), HASH_SIZE) if hashes[at : at + 32] != tile[at : at + 32]
            )
            leaf = number * TILE_WIDTH + at // HASH_SIZE
            finding = _false(
                Code.TILE,
                tile_at,
                number,
                f"{tile_at}: the hash of leaf {leaf} is not that of its entry",
                leaf,
            )
            otherwise = _false(
                Code.BUNDLE,
                bundle_at,
                number,
                f"{bundle_at}: entry {leaf} is not the one that the tree was made of",
                leaf,
            )
        else:
            problem = bundle_wrong or tile_wrong
            assert problem is not None
            finding = otherwise = problem
        stored: dict[int, tuple[bytes, ...]] = {}
        root = None
        if tile is not None:
            stored = dict(partial_roots(tile, number * TILE_WIDTH, cuts))
            root = tile_root(tile) if width == TILE_WIDTH else b""
        if hashes or tile is not None:
            self._keep(hashes or tile or b"", number, width)
        self._doubtful.append(HashedTile(number, bool(hashes), root, stored, finding, otherwise))

    def _take_entries(self, leaves: tuple[bytes, ...], number: int, asked: list[int]) -> None:
        start = number * TILE_WIDTH
        for leaf in asked:
            if leaf - start < len(leaves):
                self._entries[leaf] = leaves[leaf - start][1:]
        if not self._wanted.isdisjoint(leaves):
            hits = ((start + at, leaf[1:]) for at, leaf in enumerate(leaves) if leaf in self._wanted)
            self._found.update(hits)


def _by_tile(leaves: Sequence[int], *, last: bool) -> dict[int, list[int]]:
    """Group leaves, or sizes by their last leaf, by the tile in which they are."""
    grouped: dict[int, list[int]] = {}
    for leaf in leaves:
        grouped.setdefault((leaf - last) // TILE_WIDTH, []).append(leaf)
    return grouped


def _false(code: Code, path: str, number: int, message: str, leaf: int | None = None) -> Finding:
    where = Place(path=path, leaf=number * TILE_WIDTH if leaf is None else leaf)
    return Finding(code, Severity.FALSE, where, message)
