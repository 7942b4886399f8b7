# SPDX-License-Identifier: Apache-2.0
"""The tree on disk: entries and tile levels as flat files of 32 bytes a hash.

`entries` has SHA-256(record) of every leaf and is what the tree is made of. `tiles.<L>` has the nodes of height
8·L, for L >= 1: tile N of tlog-tiles is its bytes [N·8192, (N+1)·8192), and a partial tile is a prefix of that.
Level 0 is derived from the entries. So an append writes only what is new, at the end of three or four files,
however large the log is, and nothing is ever rewritten.

Bytes past the end that the caller knows are leftovers of a write that did not count; they are overwritten.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from quotary_attest.log.durable import fsync_data, open_file, read_at, truncate, write_at
from quotary_attest.log.errors import DamagedError, storage
from quotary_attest.log.tree import Growth
from quotary_verifier.tlog.compact import leaf_hashes, parent_hashes
from quotary_verifier.tlog.merkle import HASH_SIZE
from quotary_verifier.tlog.tiles import TILE_HEIGHT, TILE_WIDTH


class HashFile:
    """A flat file of 32-byte hashes, written at given places and read by any thread."""

    __slots__ = ("_descriptor", "_path")

    def __init__(self, path: Path) -> None:
        """Open the file, creating it."""
        self._path = path
        self._descriptor = open_file(path, create=True)

    def __len__(self) -> int:
        """The number of whole hashes in the file, counted or not."""
        with storage("read", self._path):
            return os.fstat(self._descriptor).st_size // HASH_SIZE

    def write(self, first: int, hashes: Sequence[bytes]) -> None:
        """Write hashes from place `first` on. Not fsynced."""
        write_at(self._descriptor, b"".join(hashes), first * HASH_SIZE, self._path)

    def read(self, first: int, count: int) -> bytes:
        """Return `count` hashes from place `first` as one byte string. Raises DamagedError if they are not there."""
        data = read_at(self._descriptor, count * HASH_SIZE, first * HASH_SIZE, self._path)
        if len(data) != count * HASH_SIZE:
            raise DamagedError(f"{self._path.name} ends before hash {first + count}")
        return data

    def cut(self, count: int) -> None:
        """Cut the file to `count` hashes."""
        truncate(self._descriptor, count * HASH_SIZE, self._path)

    def sync(self) -> None:
        """Make the file durable."""
        fsync_data(self._descriptor, self._path)

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


class HashTree:
    """Entries and tile levels of one log. One thread writes; reading is safe from any thread."""

    def __init__(self, folder: Path) -> None:
        """Open the files in `folder`, creating those that a new log has."""
        self._folder = folder
        self.entries = HashFile(folder / "entries")
        self._levels: list[HashFile] = []
        while (folder / f"tiles.{len(self._levels) + 1}").exists():
            self._add_level()

    def _add_level(self) -> None:
        self._levels.append(HashFile(self._folder / f"tiles.{len(self._levels) + 1}"))

    def append(self, entries: Sequence[bytes], growth: Growth) -> None:
        """Write a batch's entries and the tile nodes that it completed. Not fsynced; may be repeated."""
        self.entries.write(growth.start, entries)
        for level in range(1, _top_level(growth.size) + 1):
            first, nodes = growth.tile_nodes(level)
            if nodes:
                self._level(level).write(first, nodes)

    def _level(self, level: int) -> HashFile:
        while len(self._levels) < level:
            self._add_level()
        return self._levels[level - 1]

    def rebuild(self, good: int, size: int) -> None:
        """Derive the tile nodes above leaf `good` from the entries, and cut every file to `size` leaves.

        The nodes below `good` leaves are known to be durable; where a file lacks some even so, they are made
        again. Reads only what lies above.
        """
        self.entries.cut(size)
        for level in range(1, max(_top_level(size), len(self._levels)) + 1):
            file = self._level(level)
            end = size >> (level * TILE_HEIGHT)
            for number in range(min(good >> (level * TILE_HEIGHT), len(file)), end):
                file.write(number, [_fold(self._row(level - 1, number * TILE_WIDTH, TILE_WIDTH))])
            file.cut(end)

    def _row(self, level: int, first: int, count: int) -> bytes:
        """Return consecutive nodes of tile level `level`; those of level 0 are made from the entries."""
        if level:
            return self._levels[level - 1].read(first, count)
        entries = self.entries.read(first, count)
        return leaf_hashes([entries[at : at + HASH_SIZE] for at in range(0, len(entries), HASH_SIZE)])

    def node(self, height: int, number: int) -> bytes:
        """Return the hash of a complete node by one read of at most 128 hashes. The caller knows that it exists."""
        level, below = divmod(height, TILE_HEIGHT)
        return _fold(self._row(level, number << below, 1 << below))

    def tile(self, level: int, number: int, width: int) -> bytes:
        """Return the content of a hash tile. The caller knows that it exists."""
        return self._row(level, number * TILE_WIDTH, width)

    def bundle(self, number: int, width: int) -> bytes:
        """Return the content of an entry bundle: u16 length ‖ entry, `width` times."""
        data = self.entries.read(number * TILE_WIDTH, width)
        return b"".join([_LENGTH + data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)])

    def sync(self) -> None:
        """Make all files durable."""
        for file in (self.entries, *self._levels):
            file.sync()

    def close(self) -> None:
        """Close all files."""
        for file in (self.entries, *self._levels):
            file.close()


_LENGTH: Final = HASH_SIZE.to_bytes(2)


def _fold(nodes: bytes) -> bytes:
    """Return the root over 2^k nodes."""
    while len(nodes) > HASH_SIZE:
        nodes = parent_hashes(nodes)
    return nodes


def _top_level(size: int) -> int:
    """Return the highest tile level that has a node in a tree of `size` leaves."""
    return max(size.bit_length() - 1, 0) // TILE_HEIGHT
