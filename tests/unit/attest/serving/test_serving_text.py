# SPDX-License-Identifier: Apache-2.0
"""The text digests: which keys stand, and what they cover."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotary_attest.serving.formats.openai import Chat, Completion


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def streamed(*deltas: dict[str, Any]) -> Chat:
    texts = Chat(bytes(32))
    for delta in deltas:
        texts.event({"choices": [{"index": 0, "delta": delta}]}, "")
    return texts


def test_the_pieces_of_each_choice_are_hashed_as_one_text() -> None:
    texts = Chat(bytes(32))
    texts.event(
        {"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]}, ""
    )
    texts.event({"choices": [{"index": 0, "delta": {"content": "é"}}]}, "")
    assert texts.texts.digests() == {"text/0": sha("aé"), "text/1": sha("b")}


def test_a_key_stands_if_an_empty_string_was_sent_and_not_if_only_null_was() -> None:
    assert streamed({"role": "assistant", "content": ""}).texts.digests() == {"text/0": sha("")}
    assert streamed({"role": "assistant", "content": None}, {}).texts.digests() == {}


def test_reasoning_and_tool_arguments_have_their_own_keys() -> None:
    texts = streamed(
        {"reasoning_content": "th", "reasoning": "th"},
        {"reasoning": "ink"},
        {"tool_calls": [{"index": 1, "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": '{"a"'}}]},
        {
            "tool_calls": [
                {"index": 1, "function": {"arguments": ":1}"}},
                {"index": 0, "function": {"arguments": "x"}},
            ]
        },
    )
    assert texts.texts.digests() == {
        "reasoning/0": sha("think"),
        "tool/0/1": sha('{"a":1}'),
        "tool/0/0": sha("x"),
    }


def test_a_whole_answer_has_its_texts_in_messages_and_tool_calls_in_order() -> None:
    texts = Chat(bytes(32))
    calls = [{"function": {"arguments": "{}"}}, {"function": {"arguments": "[]"}}]
    choice = {"message": {"content": "a", "tool_calls": calls}, "finish_reason": "stop"}
    texts.whole({"choices": [choice]})
    assert texts.texts.digests() == {"text/0": sha("a"), "tool/0/0": sha("{}"), "tool/0/1": sha("[]")}
    assert texts.choices == texts.finished == {0}


def test_completions_have_their_text_in_the_choice() -> None:
    texts = Completion(bytes(32))
    texts.event({"choices": [{"index": 2, "text": "a", "delta": {"content": "no"}}]}, "")
    assert texts.texts.digests() == {"text/2": sha("a")}


def test_a_surrogate_pair_cut_in_two_is_one_character() -> None:
    assert streamed({"content": "a\ud83d"}, {"content": "\ude00b"}).texts.digests() == {"text/0": sha("a😀b")}


@pytest.mark.parametrize("pieces", [["\ud83d"], ["a\ud83d", "b"], ["\ude00\ud83d", "x"]])
def test_a_text_with_an_unpaired_surrogate_gets_no_digest(pieces: list[str]) -> None:
    assert streamed(*({"content": piece} for piece in pieces), {"reasoning": "r"}).texts.digests() == {
        "reasoning/0": sha("r")
    }


def test_more_texts_than_a_record_holds_leave_only_the_body() -> None:
    texts = Completion(bytes(32))
    texts.event({"choices": [{"index": n, "text": "x"} for n in range(255)]}, "")
    assert len(texts.texts.digests()) == 255
    texts.event({"choices": [{"index": 255, "text": "x"}]}, "")
    assert texts.texts.digests() == {}


@pytest.mark.parametrize(
    "choices",
    [
        None,
        "x",
        {},
        [None, 1, "x", []],
        [{"index": -1, "delta": {"content": "x"}}],
        [{"index": True, "delta": {"content": "x"}}],
        [{"index": 65536, "delta": {"content": "x"}}],
        [{"index": "0", "delta": {"content": "x"}}],
        [{"index": 0, "delta": None}],
        [{"index": 0, "delta": []}],
        [{"index": 0, "delta": {"content": [{"type": "text", "text": "x"}]}}],
        [{"index": 0, "delta": {"tool_calls": {}}}],
        [
            {
                "index": 0,
                "delta": {"tool_calls": [None, {}, {"function": None}, {"function": {"arguments": 1}}]},
            }
        ],
        [{"index": 0, "delta": {"tool_calls": [{"index": -1, "function": {"arguments": "x"}}]}}],
    ],
)
def test_what_is_not_of_the_apis_form_is_left_out(choices: Any) -> None:
    texts = Chat(bytes(32))
    texts.event({"choices": choices}, "")
    assert texts.texts.digests() == {}


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=4),
)
def test_where_a_text_is_cut_does_not_matter(text: str, cuts: list[int]) -> None:
    units = text.encode("utf-16-le")
    places = sorted({0, len(units), *(2 * cut for cut in cuts if 2 * cut < len(units))})
    pieces = [
        units[start:end].decode("utf-16-le", "surrogatepass") for start, end in itertools.pairwise(places)
    ]
    digests = streamed(*({"content": piece} for piece in pieces)).texts.digests()
    assert digests == ({"text/0": sha(text)} if pieces else {})
