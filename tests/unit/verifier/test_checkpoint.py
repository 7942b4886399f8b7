# SPDX-License-Identifier: Apache-2.0
"""Checkpoint texts (verifier rule 62)."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.tlog.checkpoint import Checkpoint, parse_checkpoint
from quotary_verifier.tlog.merkle import EMPTY_ROOT

ORIGIN = "host.example/abcdefgh"
ROOT = bytes(range(32))
ROOT_LINE = base64.b64encode(ROOT)


def text(size: bytes = b"5", root: bytes = ROOT_LINE, origin: bytes = ORIGIN.encode()) -> bytes:
    return b"%b\n%b\n%b\n" % (origin, size, root)


@given(st.integers(1, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_a_checkpoint_is_parsed_back_as_it_was_written(size: int, root: bytes) -> None:
    checkpoint = Checkpoint(ORIGIN, size, root)
    assert parse_checkpoint(checkpoint.text) == checkpoint
    assert checkpoint.text == text(str(size).encode(), base64.b64encode(root))


@given(st.binary(max_size=120) | st.text(max_size=80).map(str.encode))
def test_no_bytes_make_the_parser_fail_otherwise_than_by_its_own_error(data: bytes) -> None:
    for candidate in (data, text(size=data), text(root=data), text(origin=data), text() + data):
        try:
            checkpoint = parse_checkpoint(candidate, allow_extensions=True)
        except (MalformedError, EvidenceError):
            continue
        assert checkpoint.text == candidate


@pytest.mark.parametrize(
    "size",
    [
        *(b"", b"01", b"00", b"-1", b"+1", b"1 ", b" 1", b"1_0", b"0x1", b"1e3", b"1.0", b"5\r", b"9" * 5000),
        *("\u0661".encode(), b"9223372036854775808", b"18446744073709551615"),
    ],
)
def test_a_size_is_a_canonical_decimal_of_at_most_63_bits(size: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_checkpoint(text(size=size))


def test_the_largest_size_is_accepted() -> None:
    assert parse_checkpoint(text(size=b"9223372036854775807")).size == 2**63 - 1


@pytest.mark.parametrize(
    "root",
    [
        base64.b64encode(bytes(31)),
        base64.b64encode(bytes(33)),
        ROOT_LINE[:-1],
        ROOT_LINE + b"=",
        b"A" * 43,
        b"A" * 42 + b"B=",
        ROOT.hex().encode(),
        base64.urlsafe_b64encode(b"\xff" * 32),
    ],
)
def test_a_root_is_the_canonical_base64_of_32_bytes(root: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_checkpoint(text(root=root))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"a\n5\n",
        text()[:-1],
        b"\n" + text(),
        text() + b"\n",
        text(origin=b""),
        text(origin=b"\xff"),
    ],
)
def test_a_checkpoint_has_three_lines_none_of_them_empty(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_checkpoint(data)
    with pytest.raises(MalformedError):
        parse_checkpoint(data, allow_extensions=True)


def test_extension_lines_are_refused_unless_asked_for() -> None:
    extended = text() + b"one\ntwo words\n"
    with pytest.raises(MalformedError, match="extension lines"):
        parse_checkpoint(extended)
    assert parse_checkpoint(extended, allow_extensions=True).extensions == ("one", "two words")
    for empty in (text() + b"\n", text() + b"one\n\ntwo\n"):
        with pytest.raises(MalformedError):
            parse_checkpoint(empty, allow_extensions=True)


def test_a_checkpoint_of_another_origin_is_refused() -> None:
    assert parse_checkpoint(text(), origin=ORIGIN).origin == ORIGIN
    for other in (ORIGIN + "x", ORIGIN.upper(), ""):
        with pytest.raises(EvidenceError, match="not of"):
            parse_checkpoint(text(), origin=other)


def test_an_empty_tree_has_the_empty_root() -> None:
    assert parse_checkpoint(text(b"0", base64.b64encode(EMPTY_ROOT))).size == 0
    with pytest.raises(EvidenceError, match="empty tree"):
        parse_checkpoint(text(b"0"))


@pytest.mark.parametrize(
    "checkpoint",
    [
        Checkpoint("", 5, ROOT),
        Checkpoint("two\nlines", 5, ROOT),
        Checkpoint(ORIGIN, -1, ROOT),
        Checkpoint(ORIGIN, 2**63, ROOT),
        Checkpoint(ORIGIN, 5, ROOT[:-1]),
        Checkpoint(ORIGIN, 5, ROOT, ("",)),
    ],
)
def test_nothing_is_written_that_would_not_be_parsed(checkpoint: Checkpoint) -> None:
    with pytest.raises(MalformedError):
        _ = checkpoint.text
