# SPDX-License-Identifier: Apache-2.0
"""The right edge of the tree: all that has to be kept in memory to append leaves and to prove them.

RFC 6962 section 2.1. Node `n` of height `h` covers the leaves [n·2^h, (n+1)·2^h); it is complete when all of
them exist. A tree of `size` leaves has one complete node without a complete parent for each bit of `size`;
these are the *edge*. Appending a batch hashes only the nodes above its leaves, whose left neighbours are in the
batch or on the edge, and a last node without a right sibling moves up unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from quotary_verifier.tlog.merkle import EMPTY_ROOT
from quotary_verifier.tlog.tiles import TILE_HEIGHT

_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"

NodeReader = Callable[[int, int], bytes]
"""Returns the 32-byte hash of the complete node at (height, number)."""


def entry_hashes(entries: Iterable[bytes]) -> list[bytes]:
    """Return the leaf hash SHA-256(0x00 ‖ entry) of each entry."""
    sha = sha256
    return [sha(_LEAF + entry).digest() for entry in entries]


def parents(nodes: Sequence[bytes]) -> list[bytes]:
    """Return the hashes over each pair of nodes; a last node without a partner is left out."""
    sha = sha256
    return [sha(_NODE + left + right).digest() for left, right in zip(nodes[::2], nodes[1::2], strict=False)]


@dataclass(frozen=True, slots=True)
class _Level:
    """Consecutive nodes of one height: `base` is the number of the first, always even."""

    base: int
    nodes: list[bytes]


@dataclass(frozen=True, slots=True)
class RightEdge:
    """A tree by its size and its edge: `nodes[h]` is the edge's node of height h where bit h of size is set."""

    size: int = 0
    nodes: tuple[bytes, ...] = ()

    @classmethod
    def load(cls, size: int, node: NodeReader) -> RightEdge:
        """Return the edge of the tree of `size` leaves, reading one node for each bit that is set."""
        heights = range(size.bit_length())
        return cls(size, tuple([node(h, (size >> h) - 1) if size >> h & 1 else b"" for h in heights]))

    @property
    def root(self) -> bytes:
        """The root of the tree."""
        root = b""
        for node in self.nodes:
            if node:
                root = sha256(_NODE + node + root).digest() if root else node
        return root or EMPTY_ROOT

    def extended(self, leaves: Sequence[bytes]) -> Growth:
        """Return the tree with these leaf hashes appended; this edge stays as it is. One hash for each leaf."""
        levels = []
        size = self.size + len(leaves)
        base, nodes = self.size, list(leaves)
        for height in range((size - 1).bit_length() + 1 if leaves else 0):
            if base & 1:
                nodes.insert(0, self.nodes[height])
                base -= 1
            levels.append(_Level(base, nodes))
            last = nodes[-1:] if len(nodes) & 1 else []
            nodes = parents(nodes) + last
            base >>= 1
        return Growth(self, size, levels)


class Growth:
    """A tree with a batch appended: its root, its edge, the inclusion path of each new leaf, the new tile nodes.

    It holds about two hashes for each leaf of the batch and is dropped with it.
    """

    __slots__ = ("_levels", "_old", "size")

    def __init__(self, old: RightEdge, size: int, levels: list[_Level]) -> None:
        """Take the levels from `RightEdge.extended`; the last level has one node, the root."""
        self._old = old
        self._levels = levels
        self.size = size

    @property
    def start(self) -> int:
        """The index of the first new leaf: the size before."""
        return self._old.size

    @property
    def root(self) -> bytes:
        """The root of the grown tree."""
        return self._levels[-1].nodes[0] if self._levels else self._old.root

    @property
    def edge(self) -> RightEdge:
        """The right edge of the grown tree."""
        if not self._levels:
            return self._old
        return RightEdge.load(self.size, self._node)

    def _node(self, height: int, number: int) -> bytes:
        level = self._levels[height]
        return level.nodes[number - level.base]

    def paths(self) -> list[bytes]:
        """Return the inclusion path of each new leaf in the grown tree, 32·k bytes each, leaf's sibling first.

        Computed from the root down: a node's path is its sibling and then the path of its parent.
        """
        paths = [b""]
        for level, above in zip(self._levels[-2::-1], self._levels[:0:-1], strict=True):
            paths = _step_down(level, above.base, paths)
        return paths[self.start - self._levels[0].base :] if self._levels else []

    def tile_nodes(self, level: int) -> tuple[int, list[bytes]]:
        """Return (number of the first, hashes) of the nodes of tile level `level` >= 1 that became complete."""
        height = level * TILE_HEIGHT
        first, end = self.start >> height, self.size >> height
        if first == end:
            return first, []
        nodes = self._levels[height]
        return first, nodes.nodes[first - nodes.base : end - nodes.base]


def _step_down(level: _Level, base_above: int, paths: list[bytes]) -> list[bytes]:
    """Return the paths of a level's nodes from those of the level above, whose first node is `base_above`."""
    nodes = level.nodes
    below: list[bytes] = []
    append = below.append
    inherited = iter(paths[(level.base >> 1) - base_above :])
    for left, right, path in zip(nodes[::2], nodes[1::2], inherited, strict=False):
        append(right + path)
        append(left + path)
    if len(nodes) & 1:  # without a sibling it moved up, and its path with it
        append(paths[-1])
    return below


def inclusion_path(node: NodeReader, index: int, size: int) -> bytes:
    """Return the path of leaf `index` in the tree of `size` > index leaves (RFC 9162 section 2.1.3.1)."""
    return b"".join(_siblings(node, 0, index, size))


def consistency_proof(node: NodeReader, size1: int, size2: int) -> bytes:
    """Return the proof between trees of 0 < size1 <= size2 leaves (RFC 9162 section 2.1.4.1)."""
    if size1 == size2:
        return b""
    height = (size1 & -size1).bit_length() - 1
    number = (size1 - 1) >> height
    # the verifier has the old root, so the proof begins with a node only where that is not the old root
    head = [] if size1 == 1 << height else [node(height, number)]
    return b"".join(head + _siblings(node, height, number, size2))


def tree_root(node: NodeReader, size: int) -> bytes:
    """Return the root of the tree of the first `size` leaves."""
    return _subtree(node, (size - 1).bit_length(), 0, size) if size else EMPTY_ROOT


def _siblings(node: NodeReader, height: int, number: int, size: int) -> list[bytes]:
    """Return the siblings on the way from a node to the root of the tree of `size` leaves."""
    found = []
    last = (size - 1) >> height
    while last:
        sibling = number ^ 1
        if sibling <= last:
            found.append(_subtree(node, height, sibling, size))
        number >>= 1
        last >>= 1
        height += 1
    return found


def _subtree(node: NodeReader, height: int, number: int, size: int) -> bytes:
    """Return the root over the leaves below a node that exist in the tree of `size` leaves: at least one."""
    if (number + 1) << height <= size:
        return node(height, number)
    left = number << 1
    if (left + 1) << (height - 1) >= size:
        return _subtree(node, height - 1, left, size)
    right = _subtree(node, height - 1, left + 1, size)
    return sha256(_NODE + node(height - 1, left) + right).digest()
