# SPDX-License-Identifier: Apache-2.0
"""Event streams cut anywhere: what goes out at once, what is held, and what is read out of them."""

from __future__ import annotations

import hashlib
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotary_attest.serving import sse
from quotary_attest.serving.formats.openai import Chat
from quotary_attest.serving.sse import MAX_EVENT, MAX_TAIL, StreamReader, TailHolder
from quotary_verifier.wire.inband import insert, stream_span

A = b"attestation"
DONE = b"data: [DONE]\n\n"


def chunk(**members: object) -> bytes:
    return (
        b"data: "
        + json.dumps({"id": "c", "object": "o", "created": 1, "model": "m", **members}).encode()
        + b"\n\n"
    )


def delta(text: str) -> bytes:
    return chunk(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def cut(body: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(body) + 1) for place in places} | {0, len(body)})
    return [body[start:end] for start, end in itertools.pairwise(ends)]


def texts_of(reader: StreamReader) -> dict[str, bytes]:
    return reader.meaning.texts.digests() if reader.readable else {}


def relayed(pieces: list[bytes]) -> tuple[bytes, bytes | None, StreamReader]:
    """Do what the proxy does: return the body that went out, the one with the span, and the reader."""
    holder, reader, out = TailHolder(), StreamReader(Chat(bytes(32))), b""
    for piece in pieces:
        sent = holder.feed(piece)
        out += sent
        reader.feed(sent)
    before, tail, place = holder.finish()
    out += before
    reader.feed(before)
    reader.finish(tail)
    carried = None if reader.head is None or not place else out + stream_span(reader.head, A) + tail
    return out + tail, carried, reader


def test_nothing_is_held_but_the_beginning_of_a_done_line() -> None:
    holder = TailHolder()
    assert holder.feed(delta("a")) == delta("a")
    assert holder.feed(b"data: ") == b""
    assert holder.feed(b"{") == b"data: {"
    assert holder.feed(b'"x":1}\n\ndata: [DONE]') == b'"x":1}\n\n'
    assert not holder.done
    assert holder.feed(b"\r") == b""
    assert holder.feed(b"\n") == b""
    assert holder.done
    assert holder.finish() == (b"", b"data: [DONE]\r\n", True)


def test_a_line_that_only_begins_like_done_goes_out() -> None:
    holder = TailHolder()
    assert holder.feed(b"data: [DONE") == b""
    assert holder.feed(b"]x\n\n") == b"data: [DONE]x\n\n"
    assert holder.feed(b"event: x\ndata: [DONE]\n\n") == b"event: x\ndata: [DONE]\n\n"
    assert holder.finish() == (b"", b"", True)


def test_a_stream_cut_off_inside_an_event_has_no_place() -> None:
    holder = TailHolder()
    holder.feed(delta("a") + b"data: [DO")
    assert holder.finish() == (b"data: [DO", b"", False)


def test_a_done_line_that_ends_with_the_body_is_one() -> None:
    holder = TailHolder()
    holder.feed(delta("a") + b"data: [DONE]")
    assert holder.finish() == (b"", b"data: [DONE]", True)


def test_a_tail_longer_than_allowed_goes_out_and_has_no_place() -> None:
    holder = TailHolder()
    assert holder.feed(DONE) == b""
    assert holder.feed(b"x" * MAX_TAIL) == DONE + b"x" * MAX_TAIL
    assert holder.feed(b"y") == b"y"
    assert holder.finish() == (b"", b"", False)
    assert not holder.between_events
    at_once = TailHolder()
    assert at_once.feed(delta("a") + DONE + b"x" * MAX_TAIL) == delta("a") + DONE + b"x" * MAX_TAIL


def test_an_error_event_may_stand_between_events_only() -> None:
    holder = TailHolder()
    assert holder.between_events
    holder.feed(delta("a"))
    assert holder.between_events
    holder.feed(b"data: {")
    assert not holder.between_events


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_the_rest_of_an_event_that_has_begun_ends_with_it(end: bytes) -> None:
    event = delta("a").replace(b"\n\n", end)
    assert TailHolder().rest_of_event(event) == b""
    for cut_at in range(len(b"data: ") + 1, len(event)):
        holder = TailHolder()
        holder.feed(delta("b") + event[:cut_at])
        rest = holder.rest_of_event(event[cut_at:] + event)
        assert rest == event[cut_at:]
        assert holder.feed(rest).endswith(end[-1:])
        assert holder.between_events
        assert holder.rest_of_event(event) == b""
    holder.feed(b"data: {")
    assert holder.rest_of_event(b"no end") == b"no end"


def test_texts_usage_and_the_end_are_read_from_the_events() -> None:
    final = chunk(
        choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage={"completion_tokens": 2}
    )
    _, _, reader = relayed([delta("a") + delta("é") + final])
    assert texts_of(reader) == {"text/0": sha("aé")}
    assert reader.meaning.facts() == {"completion_tokens": 2}
    assert reader.meaning.complete
    assert not reader.meaning.error
    assert not reader.done


def test_a_stream_without_done_or_finish_reasons_is_not_complete() -> None:
    assert not relayed([delta("a")])[2].meaning.complete
    assert not relayed([])[2].meaning.complete
    half = chunk(
        choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}, {"index": 1, "delta": {"content": "x"}}]
    )
    assert not relayed([half])[2].meaning.complete
    assert relayed([delta("a") + DONE])[2].meaning.complete


@pytest.mark.parametrize("event", [b'data: {"error":{"code":500}}\n\n', b"event: error\ndata: x\n\n"])
def test_an_error_event_is_seen_and_one_after_done_is_not(event: bytes) -> None:
    assert relayed([delta("a") + event])[2].meaning.error
    assert not relayed([delta("a") + DONE + event])[2].meaning.error
    assert not relayed([chunk(error=None)])[2].meaning.error


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_may_end_in_any_way_and_data_may_stand_without_space_or_in_several_lines(end: bytes) -> None:
    events = (
        delta("a")
        + b': comment\nevent: x\nid: 1\ndata:{"choices":\ndata: [{"delta":{"content":"b"}}]}\n\n'
        + DONE
    )
    _, _, reader = relayed([events.replace(b"\n", end)])
    assert texts_of(reader) == {"text/0": sha("ab")}
    assert reader.done
    assert (reader.head is None) == (end == b"\r")


def test_an_event_still_open_is_not_read() -> None:
    _, carried, reader = relayed([delta("a") + delta("b")[:-1]])
    assert texts_of(reader) == {"text/0": sha("a")}
    assert carried is None


def test_what_is_no_json_object_is_left_out() -> None:
    body = b"data: x\n\ndata: [1]\n\ndata: {\n\ndata: \xff\n\ndata: " + b"[" * 100_000 + b"\n\n" + delta("a")
    assert texts_of(relayed([body])[2]) == {"text/0": sha("a")}


def test_a_byte_order_mark_does_not_hide_the_first_event() -> None:
    body = b"\xef\xbb\xbf" + delta("a")
    _, carried, reader = relayed([body])
    assert texts_of(reader) == {"text/0": sha("a")}
    assert carried is None
    assert insert(body, A) is None


def test_an_event_too_long_to_be_read_leaves_the_body_digest_only() -> None:
    long = b"data: " + b"x" * MAX_EVENT + b"\n\n"
    out, carried, reader = relayed([delta("a"), *cut(long, list(range(0, len(long), 60_000))), delta("b")])
    assert out == delta("a") + long + delta("b")
    assert texts_of(reader) == {}
    assert carried is None


CRLF_CHUNK = delta("é").replace(b"\n", b"\r\n")
BARE_CHUNK = b'data: {"id":1,"object":2,"created":3,"model":4}'
LINES = [b"\n", b"\r\n", b"\n\n", b"data: ", b"data:", b"event: x\n", b"{", b": ping\n\n", b"\xff", b" "]
EVENTS = [delta("a"), CRLF_CHUNK, BARE_CHUNK, DONE, DONE[:-1], b"data: [DONE]"]
fragments = st.sampled_from(LINES + EVENTS)


@given(body=st.lists(fragments, max_size=10).map(b"".join), places=st.lists(st.integers(0, 999), max_size=6))
def test_the_span_goes_where_insert_puts_it_however_the_stream_is_cut(body: bytes, places: list[int]) -> None:
    out, carried, _ = relayed(cut(body, places))
    assert out == body
    assert carried == insert(body, A)


@given(
    body=st.lists(fragments | st.just(b"\r"), max_size=10).map(b"".join), places=st.lists(st.integers(0, 999))
)
def test_with_lone_carriage_returns_a_span_is_in_its_place_or_left_out(
    body: bytes, places: list[int]
) -> None:
    out, carried, _ = relayed(cut(body, places))
    assert out == body
    assert carried in (None, insert(body, A))


@given(places=st.lists(st.integers(0, 9999), max_size=20))
def test_where_a_long_stream_is_cut_does_not_change_what_is_read(places: list[int]) -> None:
    body = b"".join(delta(f"word {n} ") for n in range(200)) + DONE
    _, carried, reader = relayed(cut(body, places))
    assert len(body) > sse.BATCH_BYTES
    assert texts_of(reader) == {"text/0": sha("".join(f"word {n} " for n in range(200)))}
    assert carried == insert(body, A)
