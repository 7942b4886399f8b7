# SPDX-License-Identifier: Apache-2.0
"""The right edge and the proofs, against the recursive definitions of RFC 6962."""

from __future__ import annotations

from hashlib import sha256

import rfc6962
from hypothesis import given, settings
from hypothesis import strategies as st

from quotary_attest.log.tree import (
    NodeReader,
    RightEdge,
    consistency_proof,
    entry_hashes,
    inclusion_path,
    tree_root,
)
from quotary_verifier.tlog import merkle

LEAVES = rfc6962.tree(700)


def nodes_of(leaves: list[bytes]) -> NodeReader:
    """Nodes by the recursive definition; only complete ones may be asked for."""

    def node(height: int, number: int) -> bytes:
        start, end = number << height, (number + 1) << height
        assert end <= len(leaves), "an incomplete node was asked for"
        return rfc6962.root_of(leaves[start:end])

    return node


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=9))
def test_batches_of_any_sizes_grow_the_tree_of_the_rfc(sizes: list[int]) -> None:
    edge = RightEdge()
    for size in sizes:
        leaves = LEAVES[edge.size : edge.size + size]
        growth = edge.extended(leaves)
        whole = LEAVES[: growth.size]
        assert growth.root == growth.edge.root == rfc6962.root_of(whole)
        assert growth.edge == RightEdge.load(growth.size, nodes_of(whole))
        assert growth.paths() == [
            rfc6962.inclusion_path(index, whole) for index in range(edge.size, growth.size)
        ]
        edge = growth.edge


def test_a_new_log_has_the_empty_root() -> None:
    assert RightEdge().root == RightEdge().extended([]).root == sha256(b"").digest()
    assert tree_root(nodes_of([]), 0) == sha256(b"").digest()


def test_a_batch_of_no_leaves_changes_nothing() -> None:
    edge = RightEdge().extended(LEAVES[:13]).edge
    growth = edge.extended([])
    assert (growth.edge, growth.root, growth.size, growth.paths()) == (edge, edge.root, 13, [])


def test_extending_leaves_the_old_edge_as_it_was() -> None:
    edge = RightEdge().extended(LEAVES[:5]).edge
    first, second = edge.extended(LEAVES[5:9]), edge.extended(LEAVES[5:9])
    assert first.root == second.root == rfc6962.root_of(LEAVES[:9])
    assert edge.root == rfc6962.root_of(LEAVES[:5])


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 600), st.integers(1, 600))
def test_tile_nodes_are_those_that_the_batch_completed(start: int, count: int) -> None:
    leaves = rfc6962.tree(start + count)
    growth = RightEdge().extended(leaves[:start]).edge.extended(leaves[start:])
    first, nodes = growth.tile_nodes(1)
    complete = [rfc6962.root_of(leaves[at : at + 256]) for at in range(0, len(leaves) - 255, 256)]
    assert first == start // 256
    assert nodes == complete[first:]
    assert growth.tile_nodes(2) == (0, [])


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_paths_and_proofs_are_those_of_the_rfc(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 300))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    leaves = LEAVES[:size]
    # the stored tree may be larger than the one that is proved
    node = nodes_of(LEAVES[: data.draw(st.integers(size, 300))])
    path = inclusion_path(node, index, size)
    proof = consistency_proof(node, old, size)
    assert path == rfc6962.inclusion_path(index, leaves)
    assert proof == rfc6962.consistency_proof(old, leaves)
    merkle.verify_inclusion(leaves[index], index, size, path, tree_root(node, size))
    merkle.verify_consistency(old, tree_root(node, old), size, rfc6962.root_of(leaves), proof)


def test_leaf_hashes_are_separated_from_nodes() -> None:
    assert entry_hashes([b"entry"]) == [merkle.leaf_hash(b"entry")]
