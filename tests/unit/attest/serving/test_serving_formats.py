# SPDX-License-Identifier: Apache-2.0
"""What is read of answers of each API: texts, the engine's id, token counts and ids, errors and the end."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from quotary_attest.serving.formats import Meaning, meaning_of
from quotary_attest.serving.ndjson import LineHolder, LineReader
from quotary_attest.serving.paths import Api
from quotary_attest.serving.sse import BATCH_BYTES, MAX_EVENT, StreamReader
from quotary_attest.serving.tokens import MAX_COMMITMENTS, TokenIds
from quotary_verifier.wire.bindings import token_ids_commitment

KEY = bytes(range(32))


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def new(api: Api) -> Meaning:
    meaning = meaning_of(api, KEY)
    assert meaning is not None
    return meaning


def events(api: Api, *payloads: dict[str, Any]) -> Meaning:
    """Read typed events, as they stand in a stream."""
    reader = StreamReader(new(api))
    for payload in payloads:
        reader.feed(f"event: {payload['type']}\ndata: {json.dumps(payload)}\n\n".encode())
    reader.finish()
    return reader.meaning


def lines(api: Api, *payloads: dict[str, Any]) -> Meaning:
    """Read lines of JSON."""
    reader = LineReader(new(api))
    reader.feed(b"".join(json.dumps(payload).encode() + b"\n" for payload in payloads))
    reader.finish()
    return reader.meaning


def whole(api: Api, payload: dict[str, Any]) -> Meaning:
    meaning = new(api)
    meaning.whole(payload)
    return meaning


def test_bytes_of_no_known_api_have_no_meaning() -> None:
    assert meaning_of(Api.OPAQUE, KEY) is None
    assert meaning_of(Api.NONE, KEY) is None


# -- responses

CREATED = {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}}
USAGE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
COMPLETED = {
    "type": "response.completed",
    "response": {"id": "resp_1", "status": "completed", "usage": USAGE},
}


def added(kind: str, **item: Any) -> dict[str, Any]:
    return {"type": "response.output_item.added", "item": {"type": kind, **item}}


def delta(kind: str, text: Any, **members: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}.delta", "delta": text, **members}


def test_a_response_streams_its_texts_in_the_order_in_which_they_were_sent() -> None:
    part = {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}}
    meaning = events(
        Api.RESPONSES,
        CREATED,
        added("reasoning", id="rs", content=[]),
        delta("reasoning_text", "think"),
        added("message", id="m1", content=[]),
        part,
        delta("output_text", "Hel"),
        delta("output_text", "lo"),
        {"type": "response.output_text.done", "text": "Hello"},
        added("message", id="m2", content=[]),
        delta("output_text", " again"),
        COMPLETED,
    )
    assert meaning.texts.digests() == {"text/0": sha("Hello again"), "reasoning/0": sha("think")}
    assert meaning.upstream_id == "resp_1"
    assert meaning.facts() == {"prompt_tokens": 7, "completion_tokens": 3}
    assert meaning.complete
    assert not meaning.error


def test_the_arguments_of_a_responses_tool_call_are_named_by_the_place_of_its_item() -> None:
    meaning = events(
        Api.RESPONSES,
        added("message", id="m", content=[]),
        added("function_call", id="a", arguments=""),
        delta("function_call_arguments", '{"x"', item_id="a"),
        added("function_call", call_id="b", arguments="["),
        delta("function_call_arguments", "]", item_id="b"),
        delta("function_call_arguments", ":1}", output_index=1),
        delta("function_call_arguments", "lost", item_id="unknown"),
        delta("function_call_arguments", "lost"),
    )
    assert meaning.texts.digests() == {"tool/0/1": sha('{"x":1}'), "tool/0/2": sha("[]")}


def test_a_whole_response_has_the_keys_of_a_streamed_one() -> None:
    output = [
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "think"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Hello"}, {"type": "refusal"}]},
        {"type": "function_call", "arguments": "{}"},
        {"type": "message", "content": [{"type": "output_text", "text": " again"}]},
    ]
    meaning = whole(Api.RESPONSES, {"id": "resp_1", "status": "completed", "output": output, "usage": USAGE})
    assert meaning.texts.digests() == {
        "text/0": sha("Hello again"),
        "reasoning/0": sha("think"),
        "tool/0/2": sha("{}"),
    }
    assert meaning.upstream_id == "resp_1"
    assert meaning.facts() == {"prompt_tokens": 7, "completion_tokens": 3}
    assert not meaning.error


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.failed", "response": {"status": "failed", "error": None}},
        {"type": "response.failed", "response": {"status": "in_progress", "error": {"code": "x"}}},
        {"type": "error", "message": "x"},
    ],
)
def test_a_response_that_failed_is_the_engines_error(event: dict[str, Any]) -> None:
    assert events(Api.RESPONSES, CREATED, event).error


def test_a_response_that_ran_out_of_tokens_is_complete_and_one_without_an_end_is_not() -> None:
    incomplete = {"type": "response.incomplete", "response": {"status": "incomplete"}}
    assert events(Api.RESPONSES, CREATED, incomplete).complete
    assert not events(Api.RESPONSES, CREATED, delta("output_text", "x")).complete


# -- messages


def block(kind: str, index: int, **members: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **members}}


def grown(kind: str, index: int, **members: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **members}}


START = {
    "type": "message_start",
    "message": {"id": "msg_1", "content": [], "usage": {"input_tokens": 7, "output_tokens": 1}},
}
STOP = {"type": "message_stop"}


def test_a_message_streams_text_thinking_and_the_input_of_tools() -> None:
    meaning = events(
        Api.MESSAGES,
        START,
        block("thinking", 0, thinking="", signature=""),
        grown("thinking_delta", 0, thinking="think"),
        grown("signature_delta", 0, signature="c2ln"),
        block("text", 1, text=""),
        {"type": "ping"},
        grown("text_delta", 1, text="Hel"),
        grown("text_delta", 1, text="lo"),
        block("tool_use", 2, id="t", name="f", input={}),
        grown("input_json_delta", 2, partial_json='{"x"'),
        grown("input_json_delta", 2, partial_json=":1}"),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}},
        STOP,
    )
    assert meaning.texts.digests() == {
        "text/0": sha("Hello"),
        "reasoning/0": sha("think"),
        "tool/0/2": sha('{"x":1}'),
    }
    assert meaning.upstream_id == "msg_1"
    assert meaning.facts() == {"prompt_tokens": 7, "completion_tokens": 3}
    assert meaning.complete
    assert not meaning.error


def test_a_whole_message_has_its_texts_and_no_digest_of_an_input_that_is_no_string() -> None:
    content = [
        {"type": "thinking", "thinking": "think"},
        {"type": "text", "text": "Hello"},
        {"type": "tool_use", "input": {"x": 1}},
        {"type": "text", "text": " again"},
    ]
    meaning = whole(Api.MESSAGES, {"type": "message", "id": "msg_1", "content": content})
    assert meaning.texts.digests() == {"text/0": sha("Hello again"), "reasoning/0": sha("think")}
    assert meaning.upstream_id == "msg_1"
    assert not meaning.error


def test_errors_of_messages_are_seen_and_a_message_without_its_stop_is_not_complete() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}
    assert events(Api.MESSAGES, START, error).error
    assert whole(Api.MESSAGES, error).error
    assert not events(Api.MESSAGES, START, grown("text_delta", 0, text="x")).complete


@pytest.mark.parametrize("width", [1, 7, 100])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_where_typed_events_are_cut_does_not_change_what_is_read(width: int, end: str) -> None:
    payloads = [
        START,
        block("text", 0, text=""),
        *[grown("text_delta", 0, text=f"é{n} ") for n in range(20)],
        STOP,
    ]
    lines = (f"event: {each['type']}{end}data: {json.dumps(each)}{end}{end}" for each in payloads)
    body = "".join(lines).encode()
    reader = StreamReader(new(Api.MESSAGES))
    for at in range(0, len(body), width):
        reader.feed(body[at : at + width])
    reader.finish()
    assert reader.meaning.texts.digests() == {"text/0": sha("".join(f"é{n} " for n in range(20)))}
    assert reader.meaning.complete
    assert reader.meaning.upstream_id == "msg_1"


# -- ollama


def test_lines_of_a_chat_carry_text_thinking_and_counts() -> None:
    meaning = lines(
        Api.OLLAMA_CHAT,
        {"message": {"role": "assistant", "content": "", "thinking": "th"}, "done": False},
        {"message": {"role": "assistant", "content": "", "thinking": "ink"}, "done": False},
        {"message": {"role": "assistant", "content": "Hel"}, "done": False},
        {"message": {"content": "lo", "tool_calls": [{"function": {"arguments": {"x": 1}}}]}, "done": False},
        {"message": {"content": ""}, "done": True, "prompt_eval_count": 7, "eval_count": 3},
    )
    assert meaning.texts.digests() == {"text/0": sha("Hello"), "reasoning/0": sha("think")}
    assert meaning.facts() == {"prompt_tokens": 7, "completion_tokens": 3}
    assert meaning.complete
    assert meaning.upstream_id is None


def test_lines_of_a_generation_and_a_whole_one_are_read_alike() -> None:
    streamed = lines(
        Api.OLLAMA_GENERATE, {"response": "Hel", "done": False}, {"response": "lo", "done": True}
    )
    at_once = whole(Api.OLLAMA_GENERATE, {"response": "Hello", "done": True})
    assert streamed.texts.digests() == at_once.texts.digests() == {"text/0": sha("Hello")}
    assert streamed.complete
    assert at_once.complete


def test_an_error_line_is_the_engines_error_and_lines_without_done_are_not_complete() -> None:
    assert lines(Api.OLLAMA_CHAT, {"error": "out of memory"}).error
    assert not lines(Api.OLLAMA_CHAT, {"message": {"content": "x"}, "done": False}).complete


def test_where_lines_are_cut_does_not_change_what_is_read() -> None:
    body = b"".join(b'{"response":"word %d "}\n' % number for number in range(2000)) + b'{"done":true}'
    assert len(body) > 2 * BATCH_BYTES
    expected = sha("".join(f"word {number} " for number in range(2000)))
    for width in (1, 7, 1000, len(body)):
        reader, holder = LineReader(new(Api.OLLAMA_GENERATE)), LineHolder()
        for start in range(0, len(body), width):
            piece = body[start : start + width]
            assert holder.feed(piece) == piece
            reader.feed(piece)
        reader.finish()
        assert reader.meaning.texts.digests() == {"text/0": expected}
        assert reader.meaning.complete
        assert not holder.between_events


def test_the_rest_of_a_line_that_has_begun_ends_with_it() -> None:
    holder = LineHolder()
    assert holder.rest_of_event(b'{"a":1}\n') == b""
    holder.feed(b'{"a"')
    assert holder.rest_of_event(b":1}\n{") == b":1}\n"
    assert holder.rest_of_event(b":1") == b":1"
    holder.feed(b":1}\n")
    assert holder.between_events
    assert holder.finish() == (b"", b"", True)


@pytest.mark.parametrize("width", [50_000, MAX_EVENT + 1])
def test_a_line_too_long_to_be_read_leaves_the_body_digest_only(width: int) -> None:
    reader = LineReader(new(Api.OLLAMA_GENERATE))
    long = b'{"response":"' + b"x" * MAX_EVENT + b'"}\n{"response":"y"}\n'
    for start in range(0, len(long), width):
        reader.feed(long[start : start + width])
    reader.finish()
    assert not reader.readable


def test_lines_that_are_no_objects_are_left_out() -> None:
    reader = LineReader(new(Api.OLLAMA_GENERATE))
    reader.feed(b"\n[1]\nx\n\xff\n" + b"[" * 10_000 + b'\r\n{"response":"a"}\r\n{"response":"b"')
    reader.finish()
    assert reader.meaning.texts.digests() == {"text/0": sha("a")}


# -- what engines send that is of no form

NOTHINGS: list[Any] = [None, 1, "x", [], {}, [None, 1, "x", {}], {"type": 1, "text": 1}]


@pytest.mark.parametrize("api", [api for api in Api if meaning_of(api, KEY) is not None])
@pytest.mark.parametrize("value", NOTHINGS)
def test_what_is_not_of_the_apis_form_is_left_out(api: Api, value: Any) -> None:
    names = ("choices", "output", "content", "item", "part", "delta", "message", "response", "usage", "id")
    kinds = ("response.output_item.added", "response.content_part.added", "response.output_text.delta")
    kinds += ("response.function_call_arguments.delta", "response.completed", "content_block_start")
    kinds += ("content_block_delta", "message_start", "message_delta", "", "x")
    for members in ({name: value} for name in (*names, "content_block", "data", "prompt_token_ids", "type")):
        meaning = new(api)
        meaning.whole(dict(members))
        for kind in kinds:
            meaning.event({"type": kind, **members}, kind)
            meaning.event(dict(members), kind)
        for number in (-1, True, "0", 65536):
            meaning.event({"type": "content_block_delta", "index": number, **members}, "")
            meaning.event(
                {"type": "response.function_call_arguments.delta", "delta": "x", "output_index": number}, ""
            )
        assert set(meaning.texts.digests()) <= {"text/0", "reasoning/0"}


@pytest.mark.parametrize("name", [None, 1, "", "a/b", "x" * 257, "é", "a\nb"])
def test_an_engines_id_that_is_no_name_is_none(name: Any) -> None:
    assert whole(Api.CHAT, {"id": name}).upstream_id is None


def test_an_engines_id_is_announced_once_and_as_soon_as_its_first_event_is_whole() -> None:
    heard: list[str] = []
    meaning = meaning_of(Api.CHAT, KEY, heard.append)
    assert meaning is not None
    reader = StreamReader(meaning)
    reader.feed(b': ping\n\ndata: {"id":"chatcmpl-1",')
    assert heard == []
    reader.feed(b'"choices":[]}\n\n')
    assert heard == ["chatcmpl-1"]
    reader.feed(b'data: {"id":"chatcmpl-2","choices":[]}\n\n')
    reader.finish()
    assert heard == ["chatcmpl-1"]


def test_embeddings_have_an_id_and_counts() -> None:
    meaning = whole(
        Api.EMBEDDINGS, {"id": "embd-1", "data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 2}}
    )
    assert meaning.upstream_id == "embd-1"
    assert meaning.facts() == {"prompt_tokens": 2}
    assert meaning.texts.digests() == {}


# -- token ids


def test_token_ids_of_a_stream_are_committed_to_as_one_list() -> None:
    reader = StreamReader(new(Api.CHAT))
    chunks: list[dict[str, Any]] = [
        {
            "prompt_token_ids": [1, 2, 3],
            "choices": [{"index": 0, "delta": {"content": "a"}, "token_ids": None}],
        },
        {"prompt_token_ids": None, "choices": [{"index": 0, "delta": {"content": "b"}, "token_ids": [4]}]},
        *[{"choices": [{"index": 0, "delta": {"content": "b"}, "token_ids": [5]}]}] * 3,
        {"choices": [{"index": 0, "delta": {}, "token_ids": [], "finish_reason": "stop"}]},
    ]
    for chunk in chunks:
        reader.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    reader.finish()
    assert reader.meaning.facts() == {
        "prompt_token_ids": token_ids_commitment(KEY, "prompt_token_ids", [1, 2, 3]),
        "token_ids/0": token_ids_commitment(KEY, "token_ids/0", [4, 5, 5, 5]),
    }


def test_token_ids_of_whole_completions_belong_to_their_choice() -> None:
    choices = [{"index": n, "text": "", "token_ids": [n], "prompt_token_ids": [8, n]} for n in range(2)]
    assert whole(Api.COMPLETIONS, {"choices": choices}).facts() == {
        name: token_ids_commitment(KEY, name, ids)
        for name, ids in {
            "token_ids/0": [0],
            "token_ids/1": [1],
            "prompt_token_ids/0": [8, 0],
            "prompt_token_ids/1": [8, 1],
        }.items()
    }


@pytest.mark.parametrize("ids", [[-1], [1 << 32], [True], ["1"], [1.0], {}, 7, [[1]]])
def test_what_is_no_token_id_leaves_the_whole_list_out(ids: Any) -> None:
    tokens = TokenIds(KEY)
    tokens.add("token_ids/0", [1])
    tokens.add("token_ids/0", ids)
    tokens.add("token_ids/1", [1])
    assert set(tokens.commitments()) == {"token_ids/1"}


def test_more_lists_of_token_ids_than_a_record_takes_leave_none() -> None:
    tokens = TokenIds(KEY)
    for number in range(MAX_COMMITMENTS):
        tokens.add(f"token_ids/{number}", [1])
    assert len(tokens.commitments()) == MAX_COMMITMENTS
    tokens.add("prompt_token_ids", [1])
    assert tokens.commitments() == {}
