# SPDX-License-Identifier: Apache-2.0
"""The pattern of a stream's chunks: it saves parsing, and never changes what is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotary_attest.serving import pattern as module
from quotary_attest.serving.formats.openai import Chat, Completion
from quotary_attest.serving.pattern import Pattern
from quotary_attest.serving.sse import StreamReader


def event(content: Any, **members: Any) -> str:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return "data: " + json.dumps({"id": "c", "choices": [choice], **members})


def meaning(*, chat: bool = True) -> Chat | Completion:
    return (Chat if chat else Completion)(bytes(32))


def learned(text: str, *, chat: bool = True) -> Pattern:
    pattern = Pattern()
    pattern.learn(text, json.loads(text[6:]), meaning(chat=chat).text_place)
    return pattern


def test_a_chunk_with_another_text_fits_and_one_that_differs_elsewhere_does_not() -> None:
    pattern = learned(event("one"))
    assert pattern.piece(event("two")) == "two"
    assert pattern.piece(event("two", created=1)) is None
    assert pattern.piece(event("two").replace('"index": 0', '"index": 1')) is None
    assert pattern.piece(event("two").replace('"finish_reason": null', '"finish_reason": "stop"')) is None


@pytest.mark.parametrize("text", ["", 'a"', "a\\", "a\n", "é", 'x"}}],"choices":[{"delta":{"content":"y'])
def test_a_text_that_is_not_written_as_it_reads_does_not_fit(text: str) -> None:
    assert learned(event("one")).piece(event(text)) is None


def test_an_overlap_of_both_ends_does_not_fit() -> None:
    pattern = learned('data: {"choices":[{"delta":{"content":"x"}}]}')
    assert pattern.piece('data: {"choices":[{"delta":{"content":"}}]}') is None


@pytest.mark.parametrize(
    "text",
    [
        'data: {"choices":[{"delta":{"content":"a","x":{"content":"a"}}}]}',
        'data: {"x":{"content":"a"},"choices":[{"delta":{"con\\u0074ent":"a"}}]}',
        'data: {"choices":[{"delta":{"content":"a","content":"b"}}],"y":{"content":"b"}}',
        'data: {"choices":[{"delta":{"content" :"a"}}]}',
        'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}',
        'data: {"choices":[{"delta":{"content":"a"}},{"delta":{"content":"b"}}]}',
        'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"completion_tokens":1}}',
        'data: {"choices":[{"delta":{"content":"a","reasoning":"b"}}]}',
        'data: {"choices":[{"delta":{"content":"a","tool_calls":[]}}]}',
        'data: {"choices":[{"delta":{"content":""}}]}',
        'data: {"choices":[{"delta":{"content":null}}]}',
        'data: {"choices":[{"delta":null}]}',
        'data: {"choices":[{"delta":{"content":"a"},"token_ids":[7]}]}',
        'data: {"choices":[{"delta":{"content":"a"}}],"prompt_token_ids":[7]}',
        'data: {"choices":[1]}',
        'data: {"choices":{}}',
    ],
)
def test_no_pattern_is_taken_from_a_chunk_where_the_place_of_the_text_is_not_certain(text: str) -> None:
    assert learned(text)._before == ""


def test_a_stream_whose_chunks_never_fit_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0
    original = Pattern._try

    def counted(self: Pattern, *arguments: Any) -> None:
        nonlocal tries
        tries += 1
        original(self, *arguments)

    monkeypatch.setattr(Pattern, "_try", counted)
    pattern = Pattern()
    for number in range(10 * module._REST):
        text = event("x", created=number)
        assert pattern.piece(text) is None
        pattern.learn(text, json.loads(text[6:]), meaning().text_place)
    assert tries < 15


contents = st.one_of(st.sampled_from(["a", "b", "word ", "content", ""]), st.text(max_size=5), st.none())
keys = st.sampled_from(
    [{}, {"created": 1}, {"usage": None}, {"error": None}, {"content": "a"}, {"prompt_token_ids": [1]}]
)


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    delta: dict[str, Any] = {"content": draw(contents)}
    if draw(st.booleans()):
        delta |= draw(st.sampled_from([{"role": "assistant"}, {"reasoning": "r"}, {"tool_calls": None}]))
    choice = {"index": draw(st.sampled_from([0, 0, 0, 1])), "delta": delta, "text": draw(contents)}
    if draw(st.booleans()):
        choice["finish_reason"] = draw(st.sampled_from([None, None, "stop"]))
    if draw(st.booleans()):
        choice["token_ids"] = draw(st.sampled_from([None, [1], [1, 2]]))
    members = {"choices": [choice] * draw(st.sampled_from([1, 1, 1, 2])), **draw(keys)}
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (",", " : ")]))
    text = json.dumps(members, separators=separators, ensure_ascii=draw(st.booleans()))
    return b"data: " + text.encode(errors="replace") + b"\n\n"


@given(sequence=st.lists(st.tuples(chunks(), st.integers(1, 3)), max_size=8), chat=st.booleans())
def test_reading_by_pattern_gives_what_parsing_each_chunk_gives(
    sequence: list[tuple[bytes, int]], chat: bool
) -> None:
    read, expected = meaning(chat=chat), meaning(chat=chat)
    reader = StreamReader(read)
    for chunk, times in sequence:
        for _ in range(times):
            reader.feed(chunk)
            expected.event(json.loads(chunk[6:]), "")
    reader.finish()
    assert read.texts.digests() == expected.texts.digests()
    assert (read.choices, read.finished, read.facts()) == (
        expected.choices,
        expected.finished,
        expected.facts(),
    )
