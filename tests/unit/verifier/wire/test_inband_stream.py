# SPDX-License-Identifier: Apache-2.0
"""`Stripper` is `strip`, however a body is cut into pieces, and lets whole events through at once."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quotary_verifier.errors import MalformedError
from quotary_verifier.wire.inband import insert, strip
from quotary_verifier.wire.inband_stream import Stripper

A = b"attestation bytes"
CHUNK = b'data: {"id":"c-1","object":"chat.completion.chunk","created":17,"model":"m","choices":[]}\n\n'
OTHER = b'data: {"id":"c-2","object":"o","created":1,"model":"m"}\r\n\r\n'
NAMING = b'data: {"id":"c","object":"o","created":1,"model":"m","choices":[],"attestation":"QQ=="}\n\n'
DONE = b"data: [DONE]\n\n"
PARTS = [
    CHUNK, OTHER, NAMING, DONE, b"\n", b"\r\n", b"\r", b"data: [DONE]", b"data: [DONE]\r\n", b": note\n\n",
    b"data: x\n",
    b"event: e\ndata: {}\n\n", b'data: {"attest\\u0061tion":1}\n\n', b'data: {"attestation":', b'{"id":1}', b" ",
    b'{"id":1,"attestation":"QQ=="}', b'{"attestation":1}', b"\xef\xbb\xbf", b"data: {\n\n", b"plain",
]  # fmt: skip


def outcome(body: bytes) -> object:
    try:
        return strip(body)
    except MalformedError as error:
        return str(error)


def in_pieces(body: bytes, cuts: list[int]) -> object:
    stripper = Stripper()
    ends = sorted({min(cut, len(body)) for cut in cuts} | {len(body)})
    out, start = b"", 0
    try:
        for end in ends:
            out += stripper.feed(body[start:end])
            start = end
        return out + stripper.finish(), stripper.attestation
    except MalformedError as error:
        return str(error)


bodies = st.lists(st.sampled_from(PARTS), max_size=8).map(b"".join)


@settings(max_examples=600)
@given(bodies, st.lists(st.integers(0, 400), max_size=12), st.booleans())
@example(CHUNK + DONE, [len(CHUNK) + 5], True)
@example(b"\n" + CHUNK + DONE, [1, 2, 3], True)
@example(b"\n\n\n" + CHUNK, [2], True)
@example(CHUNK + NAMING + b"\n", [], False)
def test_any_body_in_any_pieces_is_stripped_as_a_whole_one(
    body: bytes, cuts: list[int], put_in: bool
) -> None:
    body = (insert(body, A) or body) if put_in else body
    assert in_pieces(body, cuts) == outcome(body)


@given(bodies)
@settings(max_examples=150)
def test_a_body_that_comes_byte_by_byte_is_stripped_as_a_whole_one(body: bytes) -> None:
    body = insert(body, A) or body
    assert in_pieces(body, list(range(len(body)))) == outcome(body)


def test_a_head_is_found_far_behind_the_end() -> None:
    bare = b'data: {"choices":[]}\n\n'
    body = CHUNK + bare * 3000
    whole = insert(body + DONE, A)
    assert whole is not None
    assert in_pieces(whole, list(range(0, len(whole), 331))) == (body + DONE, A)
    assert in_pieces(whole, list(range(len(CHUNK), len(whole), len(bare)))) == (body + DONE, A)


def test_whole_events_go_out_at_once_and_open_ones_do_not() -> None:
    stripper = Stripper()
    assert stripper.feed(CHUNK) == CHUNK
    assert stripper.feed(CHUNK + b"data: {") == CHUNK
    assert stripper.held == 7
    assert stripper.feed(b'"x":1}\n\n') == b'data: {"x":1}\n\n'
    assert stripper.feed(OTHER) == OTHER
    assert stripper.held == 0


def test_nothing_from_done_on_goes_out_before_the_end() -> None:
    stripper = Stripper()
    assert stripper.feed(CHUNK + DONE) == CHUNK
    assert stripper.feed(CHUNK) == b""
    assert stripper.finish() == DONE + CHUNK


def test_an_event_that_may_be_the_span_goes_out_with_the_next() -> None:
    stripper = Stripper()
    assert stripper.feed(CHUNK + NAMING) == CHUNK
    assert stripper.feed(CHUNK) == NAMING + CHUNK
    assert stripper.feed(NAMING) == b""
    assert stripper.feed(b'data: {"x":1}\n') == b""
    assert stripper.feed(b"\n") == NAMING + b'data: {"x":1}\n\n'


def test_empty_lines_after_an_event_that_may_be_the_span_cost_no_second_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stripper = Stripper()
    stripper.feed(CHUNK + NAMING)
    monkeypatch.setattr(
        "quotary_verifier.wire.inband_stream.last_event", lambda *_: pytest.fail("looked again")
    )
    for _ in range(10):
        assert stripper.feed(b"\n") == b""
    monkeypatch.undo()
    assert stripper.feed(CHUNK) == NAMING + 10 * b"\n" + CHUNK


def test_no_more_is_held_than_the_limit() -> None:
    stripper = Stripper(most=1000)
    with pytest.raises(MalformedError, match="more than 1000 bytes"):
        stripper.feed(b"data: " + b"x" * 1000)
    stripper = Stripper(most=1000)
    for _ in range(100):
        stripper.feed(CHUNK)
    with pytest.raises(MalformedError, match="more than 1000 bytes"):
        stripper.feed(DONE + b"x" * 1000)
    with pytest.raises(MalformedError, match="more than 1000 bytes"):
        Stripper(most=1000).feed(b'{"a":"' + b"x" * 1000)
