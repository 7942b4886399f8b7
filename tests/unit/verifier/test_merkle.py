# SPDX-License-Identifier: Apache-2.0
"""Inclusion and consistency proofs (verifier rules 56 to 58), compared with the RFC's own definitions."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rfc6962 import consistency_proof, inclusion_path, root_of, tree

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.tlog import merkle

LEAVES = tree(70)
ROOTS = [root_of(LEAVES[:size]) for size in range(len(LEAVES) + 1)]
SIZES = st.integers(1, len(LEAVES))


@st.composite
def leaf_in_tree(draw: st.DrawFn) -> tuple[int, int, bytes]:
    size = draw(SIZES)
    index = draw(st.integers(0, size - 1))
    return index, size, inclusion_path(index, LEAVES[:size])


@st.composite
def grown_tree(draw: st.DrawFn) -> tuple[int, int, bytes]:
    size2 = draw(st.integers(2, len(LEAVES)))
    size1 = draw(st.integers(1, size2 - 1))
    return size1, size2, consistency_proof(size1, LEAVES[:size2])


def flip(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(len(data), "big")


def test_hashes_carry_the_prefixes_of_rfc_6962() -> None:
    assert merkle.leaf_hash(b"entry") == sha256(b"\x00entry").digest()
    assert merkle.node_hash(LEAVES[0], LEAVES[1]) == sha256(b"\x01" + LEAVES[0] + LEAVES[1]).digest()
    assert sha256(b"").digest() == merkle.EMPTY_ROOT


def test_every_path_of_every_small_tree_leads_to_the_root() -> None:
    for size in range(1, 34):
        for index in range(size):
            path = inclusion_path(index, LEAVES[:size])
            assert len(path) == 32 * merkle.path_length(index, size)
            assert merkle.root_from_inclusion(LEAVES[index], index, size, path) == ROOTS[size]
            merkle.verify_inclusion(LEAVES[index], index, size, path, ROOTS[size])


def test_every_consistency_proof_between_small_trees_verifies() -> None:
    for size2 in range(1, 34):
        for size1 in range(1, size2 + 1):
            proof = consistency_proof(size1, LEAVES[:size2])
            assert len(proof) == 32 * merkle.consistency_length(size1, size2)
            merkle.verify_consistency(size1, ROOTS[size1], size2, ROOTS[size2], proof)


@given(leaf_in_tree(), st.data())
def test_a_path_with_any_bit_changed_is_false(case: tuple[int, int, bytes], data: st.DataObject) -> None:
    index, size, path = case
    signed = LEAVES[index] + path + ROOTS[size]
    bad = flip(signed, data.draw(st.integers(0, 8 * len(signed) - 1)))
    with pytest.raises(EvidenceError, match="does not lead to the root"):
        merkle.verify_inclusion(bad[:32], index, size, bad[32:-32], bad[-32:])


@given(leaf_in_tree(), st.data())
def test_a_path_does_not_fit_another_index(case: tuple[int, int, bytes], data: st.DataObject) -> None:
    index, size, path = case
    other = data.draw(st.integers(0, size))
    if other != index:
        with pytest.raises((EvidenceError, MalformedError)):
            merkle.verify_inclusion(LEAVES[index], other, size, path, ROOTS[size])


@given(leaf_in_tree(), st.binary(min_size=1, max_size=96))
def test_a_path_of_any_other_length_is_malformed(case: tuple[int, int, bytes], more: bytes) -> None:
    index, size, path = case
    for wrong in {path + more, path + path[:32] + more, path[:-32], path[:-1], path[1:]} - {path}:
        with pytest.raises(MalformedError, match="hashes of 32 bytes"):
            merkle.verify_inclusion(LEAVES[index], index, size, wrong, ROOTS[size])


@pytest.mark.parametrize("length", [0, 31, 33])
def test_leaf_hash_and_root_have_32_bytes(length: int) -> None:
    path = inclusion_path(3, LEAVES[:5])
    with pytest.raises(MalformedError, match="a leaf hash has 32 bytes"):
        merkle.verify_inclusion(bytes(length), 3, 5, path, ROOTS[5])
    with pytest.raises(MalformedError, match="a root hash has 32 bytes"):
        merkle.verify_inclusion(LEAVES[3], 3, 5, path, bytes(length))
    for roots in ((bytes(length), ROOTS[5]), (ROOTS[3], bytes(length))):
        with pytest.raises(MalformedError, match="a root hash has 32 bytes"):
            merkle.verify_consistency(3, roots[0], 5, roots[1], consistency_proof(3, LEAVES[:5]))


@pytest.mark.parametrize(("index", "size"), [(5, 5), (6, 5), (0, 0), (2**63, 2**63 - 1)])
def test_a_leaf_outside_of_the_tree_is_not_in_it(index: int, size: int) -> None:
    with pytest.raises(EvidenceError, match="is not in a tree of size"):
        merkle.verify_inclusion(LEAVES[0], index, size, b"", LEAVES[0])
    with pytest.raises(EvidenceError, match="is not in a tree of size"):
        merkle.path_length(index, size)


@pytest.mark.parametrize(("index", "size"), [(-1, 5), (0, -1), (0, 2**63), (-(2**63), -1)])
def test_no_tree_has_a_negative_index_or_more_than_2_to_63_leaves(index: int, size: int) -> None:
    with pytest.raises(MalformedError, match="a tree size lies between"):
        merkle.verify_inclusion(LEAVES[0], index, size, b"", LEAVES[0])


def test_an_inner_node_is_not_taken_for_a_leaf() -> None:
    inner = merkle.node_hash(LEAVES[0], LEAVES[1])
    path = inclusion_path(0, LEAVES[:4])
    # The hash of the node itself would lead to the root: with a leaf hash made by the verifier it does not.
    assert merkle.root_from_inclusion(inner, 0, 2, path[32:]) == ROOTS[4]
    with pytest.raises(EvidenceError):
        merkle.verify_inclusion(merkle.leaf_hash(LEAVES[0] + LEAVES[1]), 0, 2, path[32:], ROOTS[4])


def test_the_largest_tree_has_paths_of_63_hashes() -> None:
    size = 2**63 - 1
    assert merkle.path_length(0, size) == 63
    # Leaf size-1 hangs on the right border: its siblings are the complete subtrees to its left.
    assert merkle.path_length(size - 1, size) == 62
    path = b"".join(LEAVES[:62])
    node = LEAVES[62]
    for sibling in LEAVES[:62]:
        node = merkle.node_hash(sibling, node)
    merkle.verify_inclusion(LEAVES[62], size - 1, size, path, node)


@given(grown_tree(), st.data())
def test_a_consistency_proof_with_any_bit_changed_is_false(
    case: tuple[int, int, bytes], data: st.DataObject
) -> None:
    size1, size2, proof = case
    signed = ROOTS[size1] + proof + ROOTS[size2]
    bad = flip(signed, data.draw(st.integers(0, 8 * len(signed) - 1)))
    with pytest.raises(EvidenceError, match="does not continue"):
        merkle.verify_consistency(size1, bad[:32], size2, bad[-32:], bad[32:-32])


@given(grown_tree(), st.binary(min_size=1, max_size=96))
def test_a_consistency_proof_of_any_other_length_is_malformed(
    case: tuple[int, int, bytes], more: bytes
) -> None:
    size1, size2, proof = case
    for wrong in {proof + more, proof[:-32], proof[:-1], proof[1:]}:
        with pytest.raises(MalformedError, match="a proof from"):
            merkle.verify_consistency(size1, ROOTS[size1], size2, ROOTS[size2], wrong)


@settings(max_examples=30)
@given(grown_tree(), st.data())
def test_a_tree_whose_past_was_rewritten_is_no_continuation(
    case: tuple[int, int, bytes], data: st.DataObject
) -> None:
    size1, size2, _ = case
    forged = list(LEAVES[:size2])
    forged[data.draw(st.integers(0, size1 - 1))] = bytes(32)
    with pytest.raises(EvidenceError, match="does not continue"):
        merkle.verify_consistency(
            size1, ROOTS[size1], size2, root_of(forged), consistency_proof(size1, forged)
        )


def test_equal_sizes_need_equal_roots_and_an_empty_proof() -> None:
    merkle.verify_consistency(0, merkle.EMPTY_ROOT, 0, merkle.EMPTY_ROOT, b"")
    merkle.verify_consistency(5, ROOTS[5], 5, ROOTS[5], b"")
    with pytest.raises(EvidenceError, match="two different roots"):
        merkle.verify_consistency(5, ROOTS[5], 5, ROOTS[6], b"")
    with pytest.raises(EvidenceError, match="two different roots"):
        merkle.verify_consistency(0, ROOTS[1], 0, ROOTS[1], b"")
    with pytest.raises(MalformedError, match="0 hashes"):
        merkle.verify_consistency(5, ROOTS[5], 5, ROOTS[5], ROOTS[5])


def test_no_consistency_proof_starts_from_the_empty_tree() -> None:
    with pytest.raises(EvidenceError, match="starts from the empty tree"):
        merkle.verify_consistency(0, merkle.EMPTY_ROOT, 5, ROOTS[5], b"")


def test_a_tree_does_not_shrink() -> None:
    with pytest.raises(EvidenceError, match="shrinks"):
        merkle.verify_consistency(5, ROOTS[5], 3, ROOTS[3], consistency_proof(3, LEAVES[:5]))


@pytest.mark.parametrize(("size1", "size2"), [(-1, 5), (1, 2**63), (-2, -1), (2**63, 1)])
def test_no_consistency_proof_is_between_sizes_that_no_tree_has(size1: int, size2: int) -> None:
    with pytest.raises(MalformedError, match="a tree size lies between"):
        merkle.verify_consistency(size1, ROOTS[1], size2, ROOTS[5], b"")
