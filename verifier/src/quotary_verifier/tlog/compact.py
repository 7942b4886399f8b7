# SPDX-License-Identifier: Apache-2.0
"""Growing a tree without keeping it: the compact range of a log's leaves (RFC 6962 section 2.1).

An auditor appends the leaves of one commit after the other and compares each root with the commit's
checkpoint. What it holds are the roots of the largest complete subtrees, one for each bit of the size that
is set: at most 63 hashes for any log. Leaves go in many at a time, so that hashing is nearly all the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from hashlib import sha256

from quotary_verifier.errors import MalformedError
from quotary_verifier.tlog.merkle import EMPTY_ROOT, HASH_SIZE, MAX_TREE_SIZE, node_hash


def leaf_hashes(entries: Iterable[bytes]) -> bytes:
    """Return the leaf hashes of some entries, 32 bytes each, as one byte string."""
    sha = sha256
    return b"".join([sha(b"\x00" + entry).digest() for entry in entries])


def parent_hashes(hashes: bytes) -> bytes:
    """Return the nodes over each pair of 32-byte hashes; a last hash without a partner is left out."""
    sha = sha256
    whole = len(hashes) & -2 * HASH_SIZE
    return b"".join([sha(b"\x01" + hashes[at : at + 64]).digest() for at in range(0, whole, 64)])


class CompactRange:
    """The leaves [0, size) of a log as the roots of their complete subtrees, the largest first."""

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        """Begin with a tree of `size` leaves whose complete subtrees have these roots, the largest first.

        Raises MalformedError for a size that no tree has, or peaks that are not one hash a bit.
        """
        if not 0 <= size <= MAX_TREE_SIZE or len(peaks) != size.bit_count():
            raise MalformedError("a compact range has one hash for each bit of a size of at most 2^63-1")
        if any(len(peak) != HASH_SIZE for peak in peaks):
            raise MalformedError("every hash of a compact range has 32 bytes")
        self.size = size
        self._peaks = list(peaks)

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """The roots of the complete subtrees, the largest first: what the constructor takes."""
        return tuple(self._peaks)

    def append(self, hashes: bytes, height: int = 0) -> None:
        """Append leaves by their hashes, or complete subtrees of 2^`height` leaves each by their roots.

        `hashes` are one byte string of 32·n bytes. Raises MalformedError, and appends nothing, for a broken hash, more
        than 2^63-1 leaves in all, or a size at which no subtree of that height can begin.
        """
        count, rest = divmod(len(hashes), HASH_SIZE)
        if rest or self.size + (count << height) > MAX_TREE_SIZE:
            raise MalformedError("leaves are appended as hashes of 32 bytes, to at most 2^63-1")
        if self.size & (1 << height) - 1:
            raise MalformedError(f"no subtree of 2^{height} leaves begins at leaf {self.size}")
        smaller: list[bytes] = []
        level = height
        # What is appended to a level, with that level's peak before it, gives pairs for the next level and
        # at most one hash that stays as the level's new peak.
        while hashes:
            if self.size >> level & 1:
                hashes = self._peaks.pop() + hashes
            if len(hashes) // HASH_SIZE & 1:
                smaller.append(hashes[-HASH_SIZE:])
            hashes = parent_hashes(hashes)
            level += 1
        self._peaks += reversed(smaller)
        self.size += count << height

    def root(self) -> bytes:
        """Return the root of the tree, 32 bytes."""
        if not self._peaks:
            return EMPTY_ROOT
        return reduce(lambda right, left: node_hash(left, right), reversed(self._peaks))
