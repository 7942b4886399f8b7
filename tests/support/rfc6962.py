# SPDX-License-Identifier: Apache-2.0
"""The recursive definitions of RFC 6962 section 2.1, word for word and slow: what our code is compared with.

Leaves are given by their hashes. Paths and proofs are one byte string of 32·k bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256


def tree(size: int, salt: str = "") -> list[bytes]:
    """The leaf hashes of a tree of `size` different entries."""
    return [sha256(b"\x00" + f"{salt}entry {index}".encode()).digest() for index in range(size)]


def root_of(leaves: Sequence[bytes]) -> bytes:
    """MTH of section 2.1."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = _split(len(leaves))
    return sha256(b"\x01" + root_of(leaves[:k]) + root_of(leaves[k:])).digest()


def inclusion_path(index: int, leaves: Sequence[bytes]) -> bytes:
    """PATH of section 2.1.1."""
    if len(leaves) == 1:
        return b""
    k = _split(len(leaves))
    if index < k:
        return inclusion_path(index, leaves[:k]) + root_of(leaves[k:])
    return inclusion_path(index - k, leaves[k:]) + root_of(leaves[:k])


def consistency_proof(size1: int, leaves: Sequence[bytes]) -> bytes:
    """PROOF of section 2.1.2, for 0 < size1 <= the number of leaves."""
    return _subproof(size1, leaves, complete=True)


def _subproof(size1: int, leaves: Sequence[bytes], *, complete: bool) -> bytes:
    if size1 == len(leaves):
        return b"" if complete else root_of(leaves)
    k = _split(len(leaves))
    if size1 <= k:
        return _subproof(size1, leaves[:k], complete=complete) + root_of(leaves[k:])
    return _subproof(size1 - k, leaves[k:], complete=False) + root_of(leaves[:k])


def _split(count: int) -> int:
    """The largest power of two smaller than `count`."""
    return 1 << (count - 1).bit_length() - 1
