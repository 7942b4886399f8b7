# SPDX-License-Identifier: Apache-2.0
"""Merkle tree hashing and proofs of RFC 6962 section 2.1 and RFC 9162 section 2.1, with SHA-256.

Every hash is 32 bytes. A path or proof is one byte string of 32·k bytes, in the order of the RFCs: the
sibling nearest to the leaf first. Both proofs are checked in one pass over the path. A node of the tree is
either on the way from the leaf to the root through *complete* subtrees, where the bit of the index says on
which side the sibling stands, or on the right border, where a sibling is always on the left; `_split` says
how many hashes each part has, so a path that is one hash too long or too short never gets as far as hashing.
"""

from __future__ import annotations

from hashlib import sha256
from hmac import compare_digest
from struct import unpack
from typing import Final

from quotary_verifier.errors import EvidenceError, MalformedError

HASH_SIZE: Final = 32
"""Bytes of a SHA-256 hash."""

MAX_TREE_SIZE: Final = 2**63 - 1
"""The largest tree: sizes travel as signed 64-bit integers in tlog clients (Go's sumdb/tlog, Sigstore)."""

EMPTY_ROOT: Final = sha256(b"").digest()
"""The root of the tree without leaves (RFC 6962 section 2.1)."""


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of the leaf that holds `entry`: SHA-256(0x00 ‖ entry), RFC 6962 section 2.1."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of the inner node over two 32-byte hashes: SHA-256(0x01 ‖ left ‖ right)."""
    return sha256(b"\x01" + left + right).digest()


def path_length(index: int, size: int) -> int:
    """Return how many hashes the inclusion path of leaf `index` has in a tree of `size` leaves.

    Raises EvidenceError where the leaf is not in the tree, MalformedError for a size that no tree has.
    """
    _check_leaf(index, size)
    inner, border = _split(index, size - 1)
    return inner + border


def root_from_inclusion(leaf: bytes, index: int, size: int, path: bytes) -> bytes:
    """Return the root of the tree of `size` leaves in which `path` leads from leaf hash `leaf` at `index`.

    `path` has 32·path_length(index, size) bytes (RFC 9162 section 2.1.3.2). The leaf hash must come from
    `leaf_hash`: taken from elsewhere, an inner node could stand in for a leaf. Raises MalformedError where
    a length is wrong, EvidenceError where the leaf is not in the tree.
    """
    if not 0 <= index < size <= MAX_TREE_SIZE:
        _check_leaf(index, size)
    inner = (index ^ (size - 1)).bit_length()
    count = inner + (index >> inner).bit_count()
    if len(path) != HASH_SIZE * count or len(leaf) != HASH_SIZE:
        raise _wrong_length(leaf, index, size, path, count)
    # On the right border every sibling stands on the left, as if all those bits of the index were set.
    sides = index | -1 << inner
    sha = sha256
    node = leaf
    for sibling in unpack("32s" * count, path):
        node = sha(b"\x01" + sibling + node if sides & 1 else b"\x01" + node + sibling).digest()
        sides >>= 1
    return node


def verify_inclusion(leaf: bytes, index: int, size: int, path: bytes, root: bytes) -> None:
    """Check that leaf hash `leaf` stands at `index` of the tree of `size` leaves with this `root`.

    Arguments and errors are those of `root_from_inclusion`; EvidenceError also where the path leads to
    another root, MalformedError also where the root is not 32 bytes.
    """
    if len(root) != HASH_SIZE:
        raise MalformedError(f"a root hash has 32 bytes, this one has {len(root)}")
    if not compare_digest(root_from_inclusion(leaf, index, size, path), root):
        raise EvidenceError(f"the inclusion path of leaf {index} does not lead to the root of size {size}")


def consistency_length(size1: int, size2: int) -> int:
    """Return how many hashes the consistency proof between trees of `size1` <= `size2` leaves has.

    Raises as `verify_consistency` does for these sizes.
    """
    _check_sizes(size1, size2)
    if size1 == size2:
        return 0
    shift = _trailing_zeros(size1)
    inner, border = _split((size1 - 1) >> shift, (size2 - 1) >> shift)
    return inner + border + (size1 != 1 << shift)


def verify_consistency(size1: int, root1: bytes, size2: int, root2: bytes, proof: bytes) -> None:
    """Check that the tree (`size2`, `root2`) is the tree (`size1`, `root1`) with leaves appended.

    `proof` has 32·consistency_length(size1, size2) bytes (RFC 9162 section 2.1.4.2). Trees of equal size
    need equal roots and an empty proof. No proof starts from the empty tree: everything is consistent with
    it, so `size1` = 0 < `size2` is refused rather than accepted without a check. Raises MalformedError
    where a length is wrong, EvidenceError where the sizes run back or a root does not follow.
    """
    if len(root1) != HASH_SIZE or len(root2) != HASH_SIZE:
        raise MalformedError("a root hash has 32 bytes")
    count = consistency_length(size1, size2)
    if len(proof) != HASH_SIZE * count:
        raise MalformedError(
            f"a proof from {size1} to {size2} has {count} hashes of 32 bytes, not {len(proof)} bytes"
        )
    if (size1 == 0 and not compare_digest(root1, EMPTY_ROOT)) or (
        size1 == size2 and not compare_digest(root1, root2)
    ):
        raise EvidenceError(f"two different roots are given for one tree of size {size1}")
    if size1 != size2:
        old, new = _roots_from_consistency(size1, root1, size2, proof)
        # Both are compared before either is judged, so that time tells nothing about which one failed.
        if not compare_digest(old, root1) & compare_digest(new, root2):
            raise EvidenceError(f"the tree of size {size2} does not continue the tree of size {size1}")


def _roots_from_consistency(size1: int, root1: bytes, size2: int, proof: bytes) -> tuple[bytes, bytes]:
    """Return the old and the new root that `proof` leads to; sizes and length are checked by the caller."""
    shift = _trailing_zeros(size1)
    inner, _ = _split((size1 - 1) >> shift, (size2 - 1) >> shift)
    hashes = list(unpack("32s" * (len(proof) // HASH_SIZE), proof))
    # Where the old tree is one complete subtree the proof leaves out its hash, which the verifier has.
    old = new = root1 if size1 == 1 << shift else hashes.pop(0)
    sides = (size1 - 1) >> shift | -1 << inner
    for sibling in hashes:
        if sides & 1:
            old = node_hash(sibling, old)
            new = node_hash(sibling, new)
        else:
            new = node_hash(new, sibling)
        sides >>= 1
    return old, new


def _split(index: int, last: int) -> tuple[int, int]:
    """Count the siblings of node `index` below and on the right border; `last` is the level's last node."""
    inner = (index ^ last).bit_length()
    return inner, (index >> inner).bit_count()


def _trailing_zeros(number: int) -> int:
    """Return the number of zero bits below the lowest bit that is set; `number` is positive."""
    return (number & -number).bit_length() - 1


def _check_leaf(index: int, size: int) -> None:
    """Raise unless a tree of `size` leaves exists and has a leaf `index`."""
    if not 0 <= size <= MAX_TREE_SIZE or index < 0:
        raise MalformedError("a tree size lies between 0 and 2^63-1, and no index is negative")
    if index >= size:
        raise EvidenceError(f"leaf {index} is not in a tree of size {size}")


def _check_sizes(size1: int, size2: int) -> None:
    """Raise unless a consistency proof between these sizes can exist."""
    if not (0 <= size1 <= MAX_TREE_SIZE and 0 <= size2 <= MAX_TREE_SIZE):
        raise MalformedError("a tree size lies between 0 and 2^63-1")
    if size1 > size2:
        raise EvidenceError(f"the tree shrinks from size {size1} to size {size2}")
    if size1 == 0 < size2:
        raise EvidenceError("no consistency proof starts from the empty tree")


def _wrong_length(leaf: bytes, index: int, size: int, path: bytes, count: int) -> MalformedError:
    """Say which length of an inclusion proof is wrong."""
    if len(leaf) != HASH_SIZE:
        return MalformedError(f"a leaf hash has 32 bytes, this one has {len(leaf)}")
    return MalformedError(
        f"the inclusion path of leaf {index} of {size} has {count} hashes of 32 bytes, not {len(path)} bytes"
    )
