# SPDX-License-Identifier: Apache-2.0
"""A log as a host publishes it, laid out with our tile arithmetic and hashed with our trees."""

from __future__ import annotations

from quotary_verifier.tlog.compact import CompactRange
from quotary_verifier.tlog.tiles import TILE_WIDTH, Tile, encode_bundle, grown_bundles, grown_tiles


def root_of_leaves(leaves: bytes) -> bytes:
    """The root over leaf hashes."""
    tree = CompactRange()
    tree.append(leaves)
    return tree.root()


def hash_tiles(leaves: bytes) -> dict[str, bytes]:
    """Every hash tile of the tree over these leaf hashes, by its path."""
    levels = [leaves]
    while len(levels[-1]) >= 32 * TILE_WIDTH:
        below, span = levels[-1], 32 * TILE_WIDTH
        starts = range(0, len(below) - span + 1, span)
        levels.append(b"".join(root_of_leaves(below[start : start + span]) for start in starts))

    def content(tile: Tile) -> bytes:
        start = 32 * TILE_WIDTH * tile.number
        return levels[tile.level][start : start + 32 * tile.width]

    return {tile.path: content(tile) for tile in grown_tiles(0, len(leaves) // 32)}


def entry_bundles(entries: list[bytes]) -> dict[str, bytes]:
    """Every entry bundle of a log of these entries, by its path."""
    found = {}
    for tile in grown_bundles(0, len(entries)):
        start = TILE_WIDTH * tile.number
        found[tile.path] = encode_bundle(entries[start : start + tile.width])
    return found
