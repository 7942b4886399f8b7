# SPDX-License-Identifier: Apache-2.0
"""The tree of an audit, put together from jobs cut anywhere, against the definition of RFC 6962."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rfc6962 import root_of
from tile_log import entry_bundles, hash_tiles

from quotary_verifier.audit.findings import Code, Severity
from quotary_verifier.audit.reading import Absent, Read
from quotary_verifier.audit.subtrees import SubtreeJob, hash_subtree, hashes_of, leaves_of, tile_root
from quotary_verifier.audit.tree import TreeFold
from quotary_verifier.errors import MalformedError
from quotary_verifier.tlog.compact import CompactRange, leaf_hashes

ENTRIES = [hashlib.sha256(b"entry %d" % number).digest() for number in range(3 * 256 + 77)]
LEAVES = [hashlib.sha256(b"\0" + entry).digest() for entry in ENTRIES]


def files_of(size: int) -> dict[str, bytes]:
    return {**hash_tiles(b"".join(LEAVES[:size])), **entry_bundles(ENTRIES[:size])}


def reader(files: Mapping[str, bytes]) -> Read:
    def read(path: str, most: int) -> bytes:
        if path not in files:
            raise Absent(path)
        if len(files[path]) > most:
            raise MalformedError(f"{path} is too long")
        return files[path]

    return read


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, len(ENTRIES)), min_size=1, max_size=12, unique=True).map(sorted),
    st.integers(1, 4),
    st.sets(st.integers(0, len(ENTRIES) - 1), max_size=5),
)
def test_checkpoints_anywhere_hold_whatever_the_jobs_are_and_wherever_the_fold_is_taken_up(
    sizes: list[int], tiles: int, wanted: set[int]
) -> None:
    end = sizes[-1]
    read = reader(files_of(end))
    tree, at, found = TreeFold(read), 0, dict[int, bytes]()
    wanted = {leaf for leaf in wanted if leaf < end}
    looked_for = frozenset(ENTRIES[leaf] for leaf in wanted)
    for start in range(0, end, tiles * 256):
        stop = min(end, start + tiles * 256)
        cuts = tuple(size for size in sizes if at < size <= stop)
        asked = tuple(sorted(leaf for leaf in wanted if start <= leaf < stop))
        subtree = hash_subtree(read, SubtreeJob(start // 256, stop, cuts, asked), looked_for)
        assert subtree.entries == {leaf: ENTRIES[leaf] for leaf in asked}
        found |= subtree.found
        tree.take(subtree)
        for size in cuts:
            assert list(tree.check(0, size, root_of(LEAVES[:size]))) == []
            at = size
        assert tree.tiles == at // 256
    assert list(tree.finish()) == []
    assert found == {leaf: ENTRIES[leaf] for leaf in wanted}
    again = TreeFold(read, tree.tiles, tree.rows)
    job = SubtreeJob(tree.tiles, end, (end,) if end % 256 else ())
    again.take(hash_subtree(read, job))
    assert again.root_at(end) == root_of(LEAVES[:end])


def test_whole_tiles_are_hashed_as_the_rfc_says() -> None:
    bundle = files_of(256)["tile/entries/000"]
    hashes = hashes_of(leaves_of(bundle, 256))
    assert hashes == b"".join(LEAVES[:256])
    assert tile_root(hashes) == root_of(LEAVES[:256])


@pytest.mark.parametrize(
    "bundle",
    [b"", b"\0\x20" + bytes(31), b"\0\x21" + bytes(33), b"\0\x20" + bytes(33), b"\1\x20" + bytes(32)],
)
def test_a_bundle_of_anything_but_entries_of_32_bytes_is_malformed(bundle: bytes) -> None:
    with pytest.raises(MalformedError):
        leaves_of(bundle, 1)


def test_subtrees_are_appended_only_where_they_can_begin() -> None:
    tree = CompactRange()
    tree.append(tile_root(leaf_hashes(ENTRIES[:256])), 8)
    tree.append(leaf_hashes(ENTRIES[256:259]))
    assert (tree.size, tree.root()) == (259, root_of(LEAVES[:259]))
    with pytest.raises(MalformedError, match="no subtree of 2"):
        tree.append(bytes(32), 8)


def test_a_bundle_and_a_tile_that_are_both_missing_end_the_hashing_before_them() -> None:
    files = files_of(600)
    del files["tile/entries/001"], files["tile/0/001"]
    subtree = hash_subtree(reader(files), SubtreeJob(0, 600, (200, 600)))
    assert (subtree.end, len(subtree.roots)) == (256, 32)
    assert subtree.stopped is not None
    assert (subtree.stopped.code, subtree.stopped.severity) == (Code.BUNDLE, Severity.COULD_NOT)


@pytest.mark.parametrize(("gone", "code"), [("tile/entries/001", Code.BUNDLE), ("tile/0/001", Code.TILE)])
def test_of_a_bundle_and_its_tile_one_is_enough_for_the_tree_and_the_other_is_reported(
    gone: str, code: Code
) -> None:
    files = files_of(600)
    del files[gone]
    read = reader(files)
    tree = TreeFold(read)
    tree.take(hash_subtree(read, SubtreeJob(0, 600, (300, 600))))
    found = [f for size in (300, 600) for f in tree.check(0, size, root_of(LEAVES[:size]))]
    assert [(f.code, f.severity, f.where.path) for f in found] == [(code, Severity.COULD_NOT, gone)]


def test_the_form_that_a_checkpoint_bears_out_is_the_true_one_and_only_the_other_is_named() -> None:
    for path, at, code in (
        ("tile/0/001", 32 * 99, Code.TILE),
        ("tile/entries/001", 34 * 99 + 2, Code.BUNDLE),
    ):
        files = files_of(600)
        data = bytearray(files[path])
        data[at] ^= 1
        files[path] = bytes(data)
        read = reader(files)
        tree = TreeFold(read)
        tree.take(hash_subtree(read, SubtreeJob(0, 600, (300, 400, 500, 600))))
        told = {size: list(tree.check(0, size, root_of(LEAVES[:size]))) for size in (300, 400, 500, 600)}
        assert {size: [f.code for f in found] for size, found in told.items()} == {
            300: [],
            400: [code],
            500: [],
            600: [],
        }
        assert told[400][0].where.leaf == 355
