# SPDX-License-Identifier: Apache-2.0
"""Growing trees by their compact range."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rfc6962 import root_of, tree

from quotary_verifier.errors import MalformedError
from quotary_verifier.tlog.compact import CompactRange, leaf_hashes, parent_hashes
from quotary_verifier.tlog.merkle import EMPTY_ROOT, leaf_hash, node_hash

LEAVES = tree(300)


@given(st.lists(st.integers(0, 60), max_size=5))
def test_a_tree_grown_in_any_steps_has_the_root_of_its_leaves(steps: list[int]) -> None:
    grown = CompactRange()
    for step in steps:
        grown.append(b"".join(LEAVES[grown.size : grown.size + step]))
        assert grown.root() == root_of(LEAVES[: grown.size])
    assert grown.size == sum(steps)


@given(st.integers(0, 150), st.integers(0, 150))
def test_a_tree_goes_on_from_its_peaks(first: int, more: int) -> None:
    before = CompactRange()
    before.append(b"".join(LEAVES[:first]))
    after = CompactRange(before.size, before.peaks)
    after.append(b"".join(LEAVES[first : first + more]))
    assert after.root() == root_of(LEAVES[: first + more])
    assert before.root() == root_of(LEAVES[:first])


def test_the_empty_tree_has_the_empty_root() -> None:
    assert CompactRange().root() == EMPTY_ROOT
    assert CompactRange().peaks == ()


def test_hashing_in_bulk_is_hashing_one_by_one() -> None:
    entries = [b"one", b"", b"three"]
    assert leaf_hashes(entries) == b"".join(map(leaf_hash, entries))
    assert parent_hashes(b"".join(LEAVES[:5])) == node_hash(*LEAVES[:2]) + node_hash(*LEAVES[2:4])
    assert parent_hashes(LEAVES[0]) == parent_hashes(b"") == b""


@pytest.mark.parametrize(
    ("size", "peaks"), [(-1, []), (2**63, [bytes(32)]), (3, [bytes(32)]), (0, [bytes(32)]), (1, [bytes(31)])]
)
def test_peaks_that_fit_no_tree_are_refused(size: int, peaks: list[bytes]) -> None:
    with pytest.raises(MalformedError):
        CompactRange(size, peaks)


def test_a_broken_hash_or_a_leaf_too_many_changes_nothing() -> None:
    full = CompactRange(2**63 - 1, [bytes(32)] * 63)
    root = full.root()
    for bad in (bytes(31), bytes(33), bytes(32)):
        with pytest.raises(MalformedError, match="leaves are appended"):
            full.append(bad)
    assert (full.size, full.root()) == (2**63 - 1, root)
