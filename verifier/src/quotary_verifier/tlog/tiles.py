# SPDX-License-Identifier: Apache-2.0
"""Where the hashes and entries of a log lie (C2SP tlog-tiles v0.1.0): paths, widths and entry bundles.

A tile is up to 256 consecutive hashes of one level of 256-ary subtrees: the n-th tile of level l begins at
leaf n·256^(l+1), each of its hashes is the root of 256^l leaves, and it is *full* with 256 hashes, else
*partial*. Entry bundles have the same numbers and widths as the tiles of level 0. A number is written in
groups of three digits, all but the last prefixed with `x`, and a partial width follows as `.p/<width>`; the
history's files of 256 commits are named by the same rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from quotary_verifier.errors import MalformedError
from quotary_verifier.tlog.merkle import HASH_SIZE, MAX_TREE_SIZE
from quotary_verifier.wire.frozen import frozen

TILE_WIDTH: Final = 256
"""Hashes of a full tile, entries of a full bundle."""

TILE_HEIGHT: Final = 8
"""Levels of the Merkle tree that one tile spans."""

MAX_LEVEL: Final = 63
"""The highest tile level that a path can name."""

ENTRIES: Final = -1
"""The level under which entry bundles are listed."""

MAX_ENTRY_BYTES: Final = 0xFFFF
"""The longest entry: a bundle gives its length as u16."""

_NUMBER: Final = re.compile(r"((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")
_TILE: Final = re.compile(r"tile/(entries|0|[1-9][0-9]?)/(.+)")


@frozen
class Tile:
    """A tile by its coordinates: level (0..63, or ENTRIES), number within the level, width (1..256)."""

    level: int
    number: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """The path below the log's prefix. Raises MalformedError for coordinates that no tile has."""
        if not ENTRIES <= self.level <= MAX_LEVEL:
            raise MalformedError(f"no tile has level {self.level}")
        level = "entries" if self.level == ENTRIES else str(self.level)
        return f"tile/{level}/{numbered_path(self.number, self.width)}"

    def split(self, data: bytes) -> tuple[bytes, ...]:
        """Return the hashes of the tile's content. Raises MalformedError unless their number is its width."""
        if len(data) != HASH_SIZE * self.width:
            raise MalformedError(f"{self.path} has {self.width} hashes of 32 bytes, not {len(data)} bytes")
        return tuple([data[start : start + HASH_SIZE] for start in range(0, len(data), HASH_SIZE)])


def numbered_path(number: int, width: int = TILE_WIDTH) -> str:
    """Return a number and width as path elements: 1234067 is `x001/x234/067`, width 5 adds `.p/5`.

    Raises MalformedError for a number that is negative or above 2^63-1, or a width outside of 1..256.
    """
    if not 0 <= number <= MAX_TREE_SIZE or not 0 < width <= TILE_WIDTH:
        raise MalformedError("a tile has a number between 0 and 2^63-1 and a width between 1 and 256")
    path = f"{number % 1000:03}"
    while number := number // 1000:
        path = f"x{number % 1000:03}/{path}"
    return path if width == TILE_WIDTH else f"{path}.p/{width}"


def parse_numbered_path(path: str) -> tuple[int, int]:
    """Return the number and width that `numbered_path` wrote. Raises MalformedError for any other text."""
    match = _NUMBER.fullmatch(path)
    if match is None:
        raise MalformedError("the path is not a number in groups of three digits")
    number = int(match[1].replace("x", "").replace("/", ""))
    width = int(match[2]) if match[2] else TILE_WIDTH
    if numbered_path(number, width) != path:
        raise MalformedError("the path is not the canonical one of its number and width")
    return number, width


def parse_tile_path(path: str) -> Tile:
    """Return the tile or bundle at `path`, below the log's prefix. Raises MalformedError if it is none."""
    match = _TILE.fullmatch(path)
    if match is None:
        raise MalformedError("a tile path begins with tile/ and a level, or tile/entries")
    level = ENTRIES if match[1] == "entries" else int(match[1])
    if level > MAX_LEVEL:
        raise MalformedError(f"no tile has level {level}")
    return Tile(level, *parse_numbered_path(match[2]))


def grown_tiles(old_size: int, new_size: int) -> Iterator[Tile]:
    """Yield the hash tiles that a tree has at `new_size` and had not, or had narrower, at `old_size`.

    Level by level, from level 0 up, each level from left to right: full tiles first, then the partial one.
    With `old_size` 0 these are all tiles of the tree. Raises MalformedError for sizes that no tree has or
    that shrink.
    """
    if not 0 <= old_size <= new_size <= MAX_TREE_SIZE:
        raise MalformedError("a tree grows from a size of at least 0 to one of at most 2^63-1")
    level = 0
    while new_size:
        yield from _grown_level(level, old_size, new_size)
        old_size >>= TILE_HEIGHT
        new_size >>= TILE_HEIGHT
        level += 1


def grown_bundles(old_size: int, new_size: int) -> Iterator[Tile]:
    """Yield the entry bundles that a log has at `new_size` and had not, or had narrower, at `old_size`.

    Raises as `grown_tiles`.
    """
    if not 0 <= old_size <= new_size <= MAX_TREE_SIZE:
        raise MalformedError("a tree grows from a size of at least 0 to one of at most 2^63-1")
    yield from _grown_level(ENTRIES, old_size, new_size)


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """Return an entry bundle: for each entry u16 length ‖ entry. Raises MalformedError for a longer entry."""
    parts: list[bytes] = []
    for entry in entries:
        if len(entry) > MAX_ENTRY_BYTES:
            raise MalformedError(f"an entry has at most {MAX_ENTRY_BYTES} bytes, this one has {len(entry)}")
        parts += (len(entry).to_bytes(2, "big"), entry)
    return b"".join(parts)


def decode_bundle(data: bytes, width: int) -> tuple[bytes, ...]:
    """Return the `width` entries of a bundle. Raises MalformedError unless they are exactly all of it."""
    entries: list[bytes] = []
    start = 0
    while start < len(data):
        end = start + 2 + int.from_bytes(data[start : start + 2], "big")
        if end > len(data):
            raise MalformedError("the entry bundle ends within an entry")
        entries.append(data[start + 2 : end])
        start = end
    if len(entries) != width:
        raise MalformedError(f"the entry bundle has {len(entries)} entries, not {width}")
    return tuple(entries)


def _grown_level(level: int, old: int, new: int) -> Iterator[Tile]:
    """Yield the tiles of one level that change when its number of hashes grows from `old` to `new`."""
    for number in range(old // TILE_WIDTH, new // TILE_WIDTH):
        yield Tile(level, number)
    width = new % TILE_WIDTH
    if width and new > old:
        yield Tile(level, new // TILE_WIDTH, width)
