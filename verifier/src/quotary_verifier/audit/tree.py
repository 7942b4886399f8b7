# SPDX-License-Identifier: Apache-2.0
"""Puts the subtrees of a log together, checkpoint by checkpoint, and holds the higher tiles against them.

What is kept between two checkpoints are the hashes that no whole tile holds yet: less than one tile for each level,
whatever the size of the log. That each tree begins with the one before it needs no proof: it is grown from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.audit.reading import Absent, Read
from quotary_verifier.audit.subtrees import HashedTile, Subtree, tile_root
from quotary_verifier.errors import MalformedError
from quotary_verifier.tlog.compact import CompactRange
from quotary_verifier.tlog.merkle import HASH_SIZE
from quotary_verifier.tlog.tiles import TILE_HEIGHT, TILE_WIDTH, Tile

_TILE_BYTES: Final = TILE_WIDTH * HASH_SIZE


class TreeFold:
    """A tree that grows by subtrees. `tiles` whole tiles of level 0 are under checkpoints that were looked at."""

    def __init__(self, read: Read, tiles: int = 0, rows: Sequence[bytes] = ()) -> None:
        """Go on behind `tiles` whole tiles; `rows` are what `rows` was then."""
        self._read = read
        self.tiles = tiles
        self.rows = list(rows)
        """For each level from 1 up, the hashes that no whole tile of it holds yet."""
        self._range = CompactRange()
        for level in range(len(self.rows), 0, -1):
            self._range.append(self.rows[level - 1], TILE_HEIGHT * level)
        self._base = (self._range.size, self._range.peaks)
        self._fresh: list[bytes] = []
        self._doubtful: dict[int, HashedTile] = {}
        self._reported: set[int] = set()
        self._subtree: Subtree | None = None
        self._used = 0
        self._lost = False

    def take(self, subtree: Subtree) -> None:
        """Take the next subtree; the one before it is finished."""
        self._finish_subtree()
        self._subtree, self._used = subtree, 0
        self._doubtful.update({tile.number: tile for tile in subtree.doubtful})

    def root_at(self, size: int) -> bytes:
        """Return the root of the tree of the first `size` leaves, which a job had as a cut; they never fall."""
        self._advance(size // TILE_WIDTH)
        return CompactRange(size, (*self._range.peaks, *self._partial(size))).root()

    def _partial(self, size: int) -> tuple[bytes, ...]:
        """Return the roots of the complete subtrees of the tile in which a tree of this size ends."""
        return () if not size % TILE_WIDTH or self._subtree is None else self._subtree.partials[size]

    def check(self, commit: int, size: int, root: bytes) -> Iterator[Finding]:
        """Hold a checkpoint's root against the leaves; its size lies in the subtree taken last.

        Yields what is false, and where bundle and hash tile differed, which of them it is.
        """
        own_root, own = self.root_at(size), self._partial(size)
        doubtful = [tile for _, tile in sorted(self._doubtful.items()) if self._decidable(tile, size)]
        told = [tile for tile in doubtful if tile.number not in self._reported]
        if own_root == root:
            self._lost = False
            yield from (tile.finding for tile in told)
        elif self._by_tiles(size, own, doubtful) == root:
            self._lost = False
            self._adopt(doubtful)
            yield from (tile.otherwise for tile in told)
        else:
            yield from (tile.finding for tile in told)
            if not self._lost:
                message = f"the root of checkpoint {size} is not that of the first {size} leaves of the log"
                yield Finding(Code.ROOT, Severity.FALSE, Place(commit=commit, leaf=size - 1), message)
            self._lost = True
        self._settle(doubtful, size)
        yield from self._flush()

    def _decidable(self, tile: HashedTile, size: int) -> bool:
        """Tell whether the two forms of a tile differ in what a checkpoint's tree has of it."""
        if (tile.number + 1) * TILE_WIDTH <= size:
            return True
        if tile.number * TILE_WIDTH >= size or self._subtree is None:
            return False
        return not tile.own or tile.partials.get(size) != self._subtree.partials[size]

    def _settle(self, doubtful: list[HashedTile], size: int) -> None:
        """Forget tiles that are whole now; of the one that is not, the next checkpoint may still want either form."""
        for tile in doubtful:
            self._reported.add(tile.number)
            if (tile.number + 1) * TILE_WIDTH <= size:
                del self._doubtful[tile.number]
                self._reported.discard(tile.number)

    def finish(self) -> Iterator[Finding]:
        """Hold the partial tiles above level 0 against the tree, at the end of the log."""
        for level, row in enumerate(self.rows, start=1):
            if row:
                number = (self.tiles >> TILE_HEIGHT * (level - 1)) // TILE_WIDTH
                yield from self._compare(Tile(level, number, len(row) // HASH_SIZE), row)

    def _advance(self, tiles: int) -> None:
        """Take over the roots of the whole tiles below number `tiles`."""
        if self._subtree is None:
            return
        until = min(tiles - self._subtree.first, len(self._subtree.roots) // HASH_SIZE)
        if until > self._used:
            roots = self._subtree.roots[HASH_SIZE * self._used : HASH_SIZE * until]
            self._range.append(roots, TILE_HEIGHT)
            self._fresh.append(roots)
            self._used = until

    def _finish_subtree(self) -> None:
        if self._subtree is not None:
            self._advance(self._subtree.first + len(self._subtree.roots) // HASH_SIZE)

    def _by_tiles(self, size: int, own: tuple[bytes, ...], doubtful: list[HashedTile]) -> bytes | None:
        """Return the root that the hash tiles give where bundles differ from them; None where they give no other."""
        usable = [tile for tile in doubtful if tile.own and tile.stored is not None]
        if not usable:
            return None
        last = usable[-1]
        if size % TILE_WIDTH and last.number == size // TILE_WIDTH:
            own = last.partials[size]
        grown = CompactRange(*self._base)
        grown.append(self._replaced(doubtful), TILE_HEIGHT)
        return CompactRange(size, (*grown.peaks, *own)).root()

    def _replaced(self, doubtful: list[HashedTile]) -> bytes:
        """Return the roots since the last checkpoint with those of the hash tiles in the doubtful places."""
        roots = bytearray(b"".join(self._fresh))
        first = self._base[0] // TILE_WIDTH
        for tile in doubtful:
            at = HASH_SIZE * (tile.number - first)
            if tile.stored and at < len(roots):
                roots[at : at + HASH_SIZE] = tile.stored
        return bytes(roots)

    def _adopt(self, doubtful: list[HashedTile]) -> None:
        roots = self._replaced(doubtful)
        self._range = CompactRange(*self._base)
        self._range.append(roots, TILE_HEIGHT)
        self._fresh = [roots]

    def _flush(self) -> Iterator[Finding]:
        """Put the roots of whole tiles into the rows, and hold every row that became a tile against it."""
        hashes, self._fresh = b"".join(self._fresh), []
        self._base = (self._range.size, self._range.peaks)
        self.tiles += len(hashes) // HASH_SIZE
        level = 1
        while hashes:
            if level > len(self.rows):
                self.rows.append(b"")
            row = self.rows[level - 1] + hashes
            whole = len(row) // _TILE_BYTES
            first = (self.tiles >> TILE_HEIGHT * (level - 1)) // TILE_WIDTH - whole
            parents = []
            for at in range(whole):
                tile = row[at * _TILE_BYTES : (at + 1) * _TILE_BYTES]
                yield from self._compare(Tile(level, first + at), tile)
                parents.append(tile_root(tile))
            self.rows[level - 1] = row[whole * _TILE_BYTES :]
            hashes = b"".join(parents)
            level += 1

    def _compare(self, tile: Tile, hashes: bytes) -> Iterator[Finding]:
        """Hold a published tile of a higher level against the tree."""
        if self._lost:
            return  # these hashes are of no tree that the host signed
        path = tile.path
        where = Place(path=path, leaf=tile.number << TILE_HEIGHT * (tile.level + 1))
        try:
            stored = self._read(path, len(hashes))
        except Absent as error:
            yield Finding(Code.TILE, Severity.COULD_NOT, where, str(error))
            return
        except MalformedError as error:
            yield Finding(Code.TILE, Severity.FALSE, where, f"{path}: {error}")
            return
        if stored != hashes:
            pairs = range(0, len(hashes), HASH_SIZE)
            at = next(at for at in pairs if stored[at : at + HASH_SIZE] != hashes[at : at + HASH_SIZE])
            message = f"{path}: hash {at // HASH_SIZE} is not that of the tiles below it"
            yield Finding(Code.TILE, Severity.FALSE, where, message)
