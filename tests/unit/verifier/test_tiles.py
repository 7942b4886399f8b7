# SPDX-License-Identifier: Apache-2.0
"""Tile paths, the tiles of a tree, and entry bundles (verifier rule 66)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotary_verifier.errors import MalformedError
from quotary_verifier.tlog import tiles
from quotary_verifier.tlog.tiles import ENTRIES, Tile

tiles_of_any_kind = st.builds(Tile, st.integers(ENTRIES, 63), st.integers(0, 2**63 - 1), st.integers(1, 256))


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 0, 1), "tile/0/000.p/1"),
        (Tile(0, 273, 112), "tile/0/273.p/112"),
        (Tile(5, 999), "tile/5/999"),
        (Tile(5, 1000), "tile/5/x001/000"),
        (Tile(63, 1234067), "tile/63/x001/x234/067"),
        (Tile(1, 2**63 - 1, 255), "tile/1/x009/x223/x372/x036/x854/x775/807.p/255"),
        (Tile(ENTRIES, 1234067, 5), "tile/entries/x001/x234/067.p/5"),
    ],
)
def test_a_tile_has_one_path(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert tiles.parse_tile_path(path) == tile


@given(tiles_of_any_kind)
def test_a_path_is_parsed_back_as_it_was_written(tile: Tile) -> None:
    assert tiles.parse_tile_path(tile.path) == tile


@given(st.text(st.sampled_from("tile/0123456789x.pentrs- "), max_size=30))
def test_a_text_is_a_path_only_in_its_one_form(text: str) -> None:
    for candidate in (text, f"tile/0/{text}", f"tile/{text}/000", f"tile/0/000{text}"):
        try:
            tile = tiles.parse_tile_path(candidate)
        except MalformedError:
            continue
        assert tile.path == candidate


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile/0",
        "tile/0/",
        "tile/00/000",
        "tile/01/000",
        "tile/-1/000",
        "tile/64/000",
        "tile/100/000",
        "tile/data/000",
        "/tile/0/000",
        "tile/0/000/",
        "tile/0/0",
        "tile/0/00",
        "tile/0/0000",
        "tile/0/001/000",
        "tile/0/x000/000",
        "tile/0/x001",
        "tile/0/X001/000",
        "tile/0/000.p",
        "tile/0/000.p/",
        "tile/0/000.p/0",
        "tile/0/000.p/01",
        "tile/0/000.p/256",
        "tile/0/000.p/999",
        "tile/0/000.p/1/2",
        "tile/0/00\u0660",
        "tile/0/000\n",
        "tile/0/x009/x223/x372/x036/x854/x775/808",
        "tile/0/x001/x009/x223/x372/x036/x854/x775/807",
    ],
)
def test_any_other_text_is_no_path(path: str) -> None:
    with pytest.raises(MalformedError):
        tiles.parse_tile_path(path)


@pytest.mark.parametrize(
    "tile", [Tile(-2, 0), Tile(64, 0), Tile(0, -1), Tile(0, 2**63), Tile(0, 0, 0), Tile(0, 0, 257)]
)
def test_no_tile_has_coordinates_out_of_range(tile: Tile) -> None:
    with pytest.raises(MalformedError):
        _ = tile.path


def test_history_files_are_numbered_by_the_same_rule() -> None:
    assert tiles.numbered_path(1234067) == "x001/x234/067"
    assert tiles.numbered_path(7, 12) == "007.p/12"
    assert tiles.parse_numbered_path("x001/x234/067.p/3") == (1234067, 3)


def test_a_tree_of_70000_leaves_has_the_tiles_of_the_specifications_example() -> None:
    found = list(tiles.grown_tiles(0, 70_000))
    level0 = [tile for tile in found if tile.level == 0]
    assert level0 == [*(Tile(0, number) for number in range(273)), Tile(0, 273, 112)]
    assert found[274:] == [Tile(1, 0), Tile(1, 1, 17), Tile(2, 0, 1)]


def test_a_tree_of_256_leaves_has_a_full_tile_and_a_partial_one_above() -> None:
    assert list(tiles.grown_tiles(0, 256)) == [Tile(0, 0), Tile(1, 0, 1)]
    assert list(tiles.grown_tiles(0, 0)) == []


@given(st.integers(0, 300_000))
def test_the_widths_of_partial_tiles_are_those_of_the_specification(size: int) -> None:
    found = list(tiles.grown_tiles(0, size))
    for level in range(4):
        partial = [tile.width for tile in found if tile.level == level and tile.width < 256]
        width = size // 256**level % 256
        assert partial == ([width] if width else [])
        full = [tile.number for tile in found if tile.level == level and tile.width == 256]
        assert full == list(range(size // 256 ** (level + 1)))


@given(st.integers(0, 200_000), st.integers(0, 3_000))
def test_growth_adds_exactly_the_tiles_that_were_not_there(old: int, more: int) -> None:
    before = {tile.path for tile in tiles.grown_tiles(0, old)}
    after = {tile.path for tile in tiles.grown_tiles(0, old + more)}
    grown = [tile.path for tile in tiles.grown_tiles(old, old + more)]
    assert len(set(grown)) == len(grown)
    assert set(grown) == after - before
    bundles = {tile.path.replace("entries", "0") for tile in tiles.grown_bundles(old, old + more)}
    assert bundles == {path for path in grown if path.startswith("tile/0/")}


@pytest.mark.parametrize(("old", "new"), [(-1, 5), (5, 4), (0, 2**63)])
def test_no_tree_grows_between_such_sizes(old: int, new: int) -> None:
    with pytest.raises(MalformedError, match="a tree grows"):
        list(tiles.grown_tiles(old, new))
    with pytest.raises(MalformedError, match="a tree grows"):
        list(tiles.grown_bundles(old, new))


def test_the_largest_tree_has_tiles_on_eight_levels() -> None:
    top = 2**63 - 1
    assert {tile.level for tile in tiles.grown_tiles(top - 300, top)} == {0, 1}
    assert next(iter(tiles.grown_tiles(top - 1, top))) == Tile(0, top // 256, 255)


def test_a_tile_splits_into_as_many_hashes_as_its_width() -> None:
    hashes = tuple(bytes([number]) * 32 for number in range(3))
    assert Tile(0, 0, 3).split(b"".join(hashes)) == hashes
    for wrong in (hashes[:2], (*hashes, hashes[0]), (*hashes[:2], hashes[2][:-1])):
        with pytest.raises(MalformedError, match="3 hashes of 32 bytes"):
            Tile(0, 0, 3).split(b"".join(wrong))


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_a_bundle_is_decoded_as_it_was_encoded(entries: list[bytes]) -> None:
    data = tiles.encode_bundle(entries)
    assert tiles.decode_bundle(data, len(entries)) == tuple(entries)


def test_a_bundle_gives_each_length_as_two_bytes() -> None:
    assert tiles.encode_bundle([b"one", b""]) == b"\0\3one\0\0"
    longest = bytes(65535)
    assert tiles.decode_bundle(tiles.encode_bundle([longest]), 1) == (longest,)
    with pytest.raises(MalformedError, match="at most 65535 bytes"):
        tiles.encode_bundle([bytes(65536)])


@pytest.mark.parametrize("width", [0, 1, 3])
def test_a_bundle_has_as_many_entries_as_its_width(width: int) -> None:
    with pytest.raises(MalformedError, match="has 2 entries"):
        tiles.decode_bundle(tiles.encode_bundle([b"one", b"two"]), width)


def test_a_bundle_cut_anywhere_is_malformed() -> None:
    data = tiles.encode_bundle([b"one", b"two"])
    for cut in range(len(data)):
        with pytest.raises(MalformedError):
            tiles.decode_bundle(data[:cut], 2)
