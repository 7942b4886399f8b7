# SPDX-License-Identifier: Apache-2.0
"""`pymerkle`, a Merkle tree library that is not ours, judges our trees and paths, and we judge its."""

from __future__ import annotations

import pytest
from pymerkle import InclusionProof, InmemoryTree, InvalidProof, verify_inclusion
from rfc6962 import inclusion_path

from quotary_verifier.errors import EvidenceError
from quotary_verifier.tlog import merkle
from quotary_verifier.tlog.compact import CompactRange, leaf_hashes

pytestmark = pytest.mark.judge

ENTRIES = [f"entry {index}".encode() for index in range(41)]
LEAVES = [merkle.leaf_hash(entry) for entry in ENTRIES]


@pytest.fixture(scope="module")
def foreign() -> InmemoryTree:
    """The tree of all entries, built by pymerkle."""
    return InmemoryTree.init_from_entries(ENTRIES, algorithm="sha256")


def our_root(size: int) -> bytes:
    grown = CompactRange()
    grown.append(leaf_hashes(ENTRIES[:size]))
    return grown.root()


def test_every_size_has_the_same_root(foreign: InmemoryTree) -> None:
    for size in range(len(ENTRIES) + 1):
        assert foreign.get_root(size) == our_root(size)


def test_we_accept_its_paths_and_it_has_no_other(foreign: InmemoryTree) -> None:
    for size in range(1, len(ENTRIES) + 1):
        for index in range(size):
            leaf, *siblings = foreign.prove_inclusion(index + 1, size).path
            assert leaf == LEAVES[index]
            path = b"".join(siblings)
            assert path == inclusion_path(index, LEAVES[:size])
            merkle.verify_inclusion(leaf, index, size, path, foreign.get_root(size))


def handed_over(foreign: InmemoryTree, index: int, size: int, path: bytes) -> InclusionProof:
    """A path of ours in its form, which numbers leaves from one and begins with the leaf."""
    siblings = [path[start : start + 32] for start in range(0, len(path), 32)]
    rule = foreign.prove_inclusion(index + 1, size).rule
    return InclusionProof("sha256", True, size, index + 1, rule, [LEAVES[index], *siblings])


def test_it_accepts_our_paths_and_refuses_them_with_a_byte_changed(foreign: InmemoryTree) -> None:
    for size in (2, 3, 7, 16, 41):
        for index in range(size):
            path = inclusion_path(index, LEAVES[:size])
            good = handed_over(foreign, index, size, path)
            verify_inclusion(LEAVES[index], our_root(size), good, index=index + 1, size=size)
            wrong = bytes([path[0] ^ 1]) + path[1:]
            bad = handed_over(foreign, index, size, wrong)
            with pytest.raises(InvalidProof, match="State does not match"):
                verify_inclusion(LEAVES[index], our_root(size), bad, index=index + 1, size=size)
            with pytest.raises(EvidenceError):
                merkle.verify_inclusion(LEAVES[index], index, size, wrong, our_root(size))
