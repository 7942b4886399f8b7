# SPDX-License-Identifier: Apache-2.0
"""Every API that the proxy attests, plain and streamed, from engines that write as real ones do."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import aiohttp
import httpx2
import openai
import pytest
from memory_attester import GONE, MemoryAttester
from proxies import CHAT, Setup, id_of, read_cut_off, running, sha
from scripted_engine import DONE, Call, Script, chunk_event, completion, delta_event

from quotary_attest.serving.aliases import alias_of
from quotary_attest.serving.paths import Api, PathTable
from quotary_verifier.wire.bindings import token_ids_commitment
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.records import State

NDJSON = b"application/x-ndjson"


def typed(*payloads: dict[str, Any]) -> bytes:
    """Return typed events."""
    return b"".join(
        f"event: {payload['type']}\ndata: {json.dumps(payload)}\n\n".encode() for payload in payloads
    )


def json_lines(*payloads: dict[str, Any]) -> bytes:
    """Return lines of JSON."""
    return b"".join(json.dumps(payload).encode() + b"\n" for payload in payloads)


ITEM = {"type": "message", "id": "msg_1", "role": "assistant", "status": "in_progress", "content": []}
PART = {"type": "output_text", "text": "", "annotations": []}
RESPONSE: dict[str, Any] = {
    "id": "resp_1", "object": "response", "created_at": 1764000000, "model": "m", "status": "completed",
    "output": [{**ITEM, "status": "completed", "content": [{**PART, "text": "Hello"}]}],
    "usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9},
    "parallel_tool_calls": False, "tool_choice": "auto", "tools": [],
}  # fmt: skip
PLACE = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
RESPONSE_EVENTS = [
    typed(
        {
            "type": "response.created",
            "sequence_number": 0,
            "response": {**RESPONSE, "output": [], "usage": None},
        },
        {"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": ITEM},
        {"type": "response.content_part.added", "sequence_number": 2, **PLACE, "part": PART},
        {"type": "response.output_text.delta", "sequence_number": 3, **PLACE, "delta": "Hel", "logprobs": []},
    ),
    typed(
        {"type": "response.output_text.delta", "sequence_number": 4, **PLACE, "delta": "lo", "logprobs": []},
        {"type": "response.output_text.done", "sequence_number": 5, **PLACE, "text": "Hello", "logprobs": []},
        {"type": "response.completed", "sequence_number": 6, "response": RESPONSE},
    ),
]

MESSAGE: dict[str, Any] = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
    "content": [{"type": "text", "text": "Hello"}], "usage": {"input_tokens": 7, "output_tokens": 2},
}  # fmt: skip
MESSAGE_EVENTS = [
    typed(
        {
            "type": "message_start",
            "message": {**MESSAGE, "content": [], "usage": {"input_tokens": 7, "output_tokens": 0}},
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
    ),
    typed(
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ),
]

COUNTS = {"prompt_eval_count": 7, "eval_count": 2}
CHAT_LINES = [
    json_lines({"model": "m", "message": {"role": "assistant", "content": "Hel"}, "done": False}),
    json_lines(
        {"model": "m", "message": {"role": "assistant", "content": "lo"}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True, **COUNTS},
    ),
]
GENERATED_LINES = [
    json_lines({"model": "m", "response": "Hel", "done": False}),
    json_lines({"model": "m", "response": "lo", "done": False}, {"response": "", "done": True, **COUNTS}),
]

SSE = b"text/event-stream"
STREAMS = [
    pytest.param("/v1/responses", SSE, RESPONSE_EVENTS, id="responses"),
    pytest.param("/v1/messages", SSE, MESSAGE_EVENTS, id="messages"),
    pytest.param("/api/chat", NDJSON, CHAT_LINES, id="ollama-chat"),
    pytest.param("/api/generate", NDJSON, GENERATED_LINES, id="ollama-generate"),
]
OLLAMA_WHOLE = {"model": "m", "message": {"role": "assistant", "content": "Hello"}, "done": True, **COUNTS}
WHOLES = [
    pytest.param("/v1/messages", MESSAGE, id="messages"),
    pytest.param("/api/chat", OLLAMA_WHOLE, id="ollama-chat"),
    pytest.param("/api/generate", {"response": "Hello", "done": True, **COUNTS}, id="ollama-generate"),
]
TOKENS = {"prompt_tokens": 7, "completion_tokens": 2}


def chunked(kind: bytes, *pieces: bytes, end: bool = True) -> Script:
    """A script that streams pieces under a media type."""

    async def script(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % kind)
        for piece in pieces:
            await call.chunk(piece)
        if end:
            await call.end()

    return script


def answering(body: bytes) -> Script:
    async def script(call: Call) -> None:
        await call.answer(body)

    return script


async def fetched(setup: Setup, answer: aiohttp.ClientResponse) -> bytes:
    """Return the attestation of an answer by its id."""
    url = f"{setup.url}/quotary/v1/attestations/{answer.headers['Quotary-Output']}"
    async with setup.client.get(url) as got:
        assert got.status == 200
        return bytes(await got.read())


@pytest.mark.parametrize(("path", "kind", "pieces"), STREAMS)
async def test_streams_of_other_apis_are_unchanged_and_attested_by_id(
    path: str, kind: bytes, pieces: list[bytes]
) -> None:
    body = b"".join(pieces)
    async with running(chunked(kind, *pieces)) as setup, setup.post(path=path) as answer:
        assert await answer.read() == body
        assert "Quotary-Attested" not in answer.headers
        assert await fetched(setup, answer) == setup.attester.attestations[id_of(answer)]
        output = setup.attester.outputs[id_of(answer)]
    assert output.digests == {"body": sha(body), "text/0": sha(b"Hello")}
    assert output.state is State.COMPLETE
    assert output.context == {"endpoint": path, "status": 200, **TOKENS}


@pytest.mark.parametrize(("path", "payload"), WHOLES)
async def test_whole_answers_of_other_apis_are_unchanged_and_attested_by_id(
    path: str, payload: dict[str, Any]
) -> None:
    body = json.dumps(payload).encode()
    headers = {"Content-Digest": "sha-256=:x:"}

    async def script(call: Call) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Digest: sha-256=:x:\r\n"
        await call.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    async with running(script) as setup, setup.post(path=path) as answer:
        assert await answer.read() == body
        assert answer.headers.items() >= headers.items()
        assert await fetched(setup, answer) == setup.attester.attestations[id_of(answer)]
        output = setup.attester.outputs[id_of(answer)]
    assert output.digests == {"body": sha(body), "text/0": sha(b"Hello")}
    assert output.state is State.COMPLETE
    assert output.context == {"endpoint": path, "status": 200, **TOKENS}


@pytest.mark.parametrize(("path", "kind", "pieces"), STREAMS)
async def test_a_stream_without_the_sign_of_its_end_is_truncated(
    path: str, kind: bytes, pieces: list[bytes]
) -> None:
    async with running(chunked(kind, pieces[0])) as setup, setup.post(path=path) as answer:
        assert await answer.read() == pieces[0]
        output = setup.attester.outputs[id_of(answer)]
    assert output.state is State.ENGINE_TRUNCATED
    assert output.digests == {"body": sha(pieces[0]), "text/0": sha(b"Hel")}


@pytest.mark.parametrize(
    ("path", "kind", "error"),
    [
        ("/v1/responses", SSE, typed({"type": "response.failed", "response": {"status": "failed"}})),
        ("/v1/responses", SSE, typed({"type": "error", "code": "x", "message": "y"})),
        ("/v1/messages", SSE, typed({"type": "error", "error": {"type": "api_error", "message": "y"}})),
        ("/api/chat", NDJSON, b'{"error":"out of memory"}\n'),
    ],
)
async def test_an_error_within_a_stream_of_another_api_is_the_engines(
    path: str, kind: bytes, error: bytes
) -> None:
    async with running(chunked(kind, error)) as setup, setup.post(path=path) as answer:
        assert await answer.read() == error
        assert setup.attester.outputs[id_of(answer)].state is State.ENGINE_ERROR


@pytest.mark.parametrize(("path", "kind", "pieces"), STREAMS)
async def test_the_end_of_a_stream_waits_for_the_commit_and_tells_of_an_outage_in_its_apis_shape(
    path: str, kind: bytes, pieces: list[bytes]
) -> None:
    body = b"".join(pieces)
    attester = MemoryAttester()
    attester.gate.clear()
    async with running(chunked(kind, *pieces), attester) as setup, setup.post(path=path) as answer:
        assert await answer.content.readexactly(len(body)) == body
        await attester.until_submitted(1)
        attester.failure = GONE
        attester.gate.set()
        rest = await read_cut_off(answer)
    assert_error_event(path, rest)


@pytest.mark.parametrize(("path", "kind", "pieces"), STREAMS)
async def test_an_outage_ends_a_running_stream_between_two_of_its_events(
    path: str, kind: bytes, pieces: list[bytes]
) -> None:
    going_on = asyncio.Event()
    attester = MemoryAttester()
    begun = pieces[0][:-3]

    async def script(call: Call) -> None:
        await chunked(kind, begun, end=False)(call)
        await going_on.wait()
        await call.chunk(pieces[0][-3:] + pieces[1])
        await call.until_gone()

    async with running(script, attester) as setup, setup.post(path=path) as answer:
        assert await answer.content.readexactly(len(begun)) == begun
        attester.failure = GONE
        going_on.set()
        rest = await read_cut_off(answer)
    assert rest.startswith(pieces[0][-3:])
    assert_error_event(path, rest[3:])


def assert_error_event(path: str, event: bytes) -> None:
    """Hold the last event of a stream to what its API's clients understand."""
    if path.startswith("/api/"):
        assert set(json.loads(event)) == {"error", "code"}
        assert event.endswith(b"}\n")
        return
    assert event.startswith(b"event: error\ndata: {")
    assert event.endswith(b"}\n\n")
    data = json.loads(event.partition(b"data: ")[2])
    assert data["type"] == "error"
    assert data["error"]["code"] == "attestation_unavailable"
    if path == "/v1/responses":
        assert data["code"] == "attestation_unavailable"
        assert data["sequence_number"] in (4, 7)


@pytest.mark.parametrize(
    ("path", "names"), [("/v1/messages", {"type", "error"}), ("/api/chat", {"error", "code"})]
)
async def test_a_refusal_has_the_shape_of_its_api(path: str, names: set[str]) -> None:
    async with (
        running(answering(b"{}"), MemoryAttester(failure=GONE)) as setup,
        setup.post(path=path) as answer,
    ):
        assert answer.status == 503
        assert answer.headers["Quotary-Attested"] == "no"
        error = json.loads(await answer.read())
    assert set(error) == names
    assert (
        error.get("code", error["error"]["code"] if path == "/v1/messages" else "")
        == "attestation_unavailable"
    )


# -- embeddings, and what operators map


EMBEDDINGS = json.dumps(
    {
        "object": "list", "id": "embd-1", "model": "m", "usage": {"prompt_tokens": 3, "total_tokens": 3},
        "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -1.0]}],
    }
).encode()  # fmt: skip


async def test_embeddings_carry_their_attestation_and_the_official_client_takes_them() -> None:
    async with running(answering(EMBEDDINGS)) as setup, client(setup) as api:
        async with setup.post(path="/v1/embeddings") as answer:
            carried = await answer.read()
            assert strip(carried) == (EMBEDDINGS, setup.attester.attestations[id_of(answer)])
            output = setup.attester.outputs[id_of(answer)]
            assert output.digests == {"body": sha(EMBEDDINGS)}
            assert output.context == {"endpoint": "/v1/embeddings", "status": 200, "prompt_tokens": 3}
        got = await api.embeddings.create(model="m", input="x", encoding_format="float")
        assert got.data[0].embedding == [0.25, -1.0]
        assert got.model_extra is not None
        assert base64.b64decode(got.model_extra["attestation"]) in setup.attester.attestations.values()


async def test_a_whole_response_carries_its_attestation_and_the_official_client_takes_it() -> None:
    body = json.dumps(RESPONSE).encode()
    async with running(answering(body)) as setup, client(setup) as api:
        async with setup.post(path="/v1/responses") as answer:
            assert strip(await answer.read()) == (body, setup.attester.attestations[id_of(answer)])
            output = setup.attester.outputs[id_of(answer)]
            assert output.digests == {"body": sha(body), "text/0": sha(b"Hello")}
            assert output.context == {"endpoint": "/v1/responses", "status": 200, **TOKENS}
        for got in (
            await api.responses.create(model="m", input="x"),
            await api.responses.parse(model="m", input="x"),
        ):
            assert got.output_text == "Hello"
            assert got.model_extra is not None
            assert base64.b64decode(got.model_extra["attestation"]) in setup.attester.attestations.values()


async def test_an_opaque_path_is_attested_as_bytes_and_one_mapped_to_none_passes() -> None:
    body = delta_event("Hello", finish="stop") + DONE
    paths = PathTable({"/rerank": Api.OPAQUE, CHAT: Api.NONE})
    async with running(chunked(SSE, body), paths=paths) as setup:
        async with setup.post(path="/rerank") as answer:
            assert await answer.read() == body
            assert await fetched(setup, answer) == setup.attester.attestations[id_of(answer)]
            output = setup.attester.outputs[id_of(answer)]
            assert output.digests == {"body": sha(body)}
            assert output.state is State.COMPLETE
        async with setup.post() as answer:
            assert await answer.read() == body
            assert answer.headers["Quotary-Attested"] == "no"
            assert "Quotary-Output" not in answer.headers


async def test_an_opaque_stream_is_cut_off_without_a_word_when_the_tpm_goes() -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    paths = PathTable({"/x": Api.OPAQUE})
    async with running(chunked(SSE, DONE), attester, paths=paths) as setup, setup.post(path="/x") as answer:
        assert await answer.content.readexactly(len(DONE)) == DONE
        attester.failure = GONE
        attester.gate.set()
        assert await read_cut_off(answer) == b""


# -- the engine's own id, token ids


@pytest.mark.parametrize(
    ("path", "kind", "pieces", "name"),
    [
        (CHAT, SSE, [delta_event("a"), delta_event("b", finish="stop") + DONE], "chatcmpl-1"),
        ("/v1/responses", SSE, RESPONSE_EVENTS, "resp_1"),
        ("/v1/messages", SSE, MESSAGE_EVENTS, "msg_1"),
    ],
)
async def test_the_engines_id_is_an_alias_from_its_first_event_on(
    path: str, kind: bytes, pieces: list[bytes], name: str
) -> None:
    going_on = asyncio.Event()

    async def script(call: Call) -> None:
        await chunked(kind, pieces[0], end=False)(call)
        await going_on.wait()
        await call.chunk(pieces[1])
        await call.end()

    async with running(script) as setup:
        attester = setup.attester
        alias = alias_of(attester.alias_secret, "Bearer k", name)
        async with setup.post(path=path, headers={"Authorization": "Bearer k"}) as answer:
            await answer.content.readexactly(len(pieces[0]))
            while alias not in attester.aliases:  # noqa: ASYNC110
                await asyncio.sleep(0)  # read after it was sent
            assert attester.aliases == {alias: id_of(answer)}
            going_on.set()
            await answer.read()
        assert attester.outputs[id_of(answer)].alias == alias


async def test_a_whole_answer_is_known_by_the_engines_id_to_its_own_client_only() -> None:
    async with running(answering(completion("Hello"))) as setup, setup.post() as answer:
        await answer.read()
        secret = setup.attester.alias_secret
        assert set(setup.attester.aliases) == {alias_of(secret, "", "chatcmpl-1")}


async def test_token_ids_are_committed_to_under_the_request_key() -> None:
    """As vLLM sends them for `return_token_ids`."""
    pieces = [
        chunk_event(
            prompt_token_ids=[1, 2, 3],
            choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "token_ids": None}],
        ),
        chunk_event(choices=[{"index": 0, "delta": {"content": "a"}, "token_ids": [9]}]),
        chunk_event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop", "token_ids": [10, 11]}]),
        DONE,
    ]
    async with running(chunked(SSE, *pieces)) as setup, setup.post() as answer:
        await answer.read()
        output = setup.attester.outputs[id_of(answer)]
    assert output.request_key is not None
    assert output.context == {
        "endpoint": CHAT,
        "status": 200,
        "prompt_token_ids": token_ids_commitment(output.request_key, "prompt_token_ids", [1, 2, 3]),
        "token_ids/0": token_ids_commitment(output.request_key, "token_ids/0", [9, 10, 11]),
    }


# -- what a client may say


async def test_a_hash_that_a_client_sends_is_never_bound() -> None:
    headers = {"X-Request-Hash": "ab" * 32, "Quotary-Request": "cd" * 32, "Content-Digest": "sha-256=:eA==:"}
    async with running(answering(completion("Hello"))) as setup, setup.post(headers=headers) as answer:
        await answer.read()
        output = setup.attester.outputs[id_of(answer)]
        assert setup.engine.calls[0].header("X-Request-Hash") == "ab" * 32
    written = repr(output)
    for value in ("ab" * 32, "cd" * 32, "eA=="):
        assert value not in written
        assert repr(bytes.fromhex(value) if len(value) == 64 else value) not in written


def client(setup: Setup) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=setup.url + "/v1",
        api_key="k",
        max_retries=0,
        http_client=httpx2.AsyncClient(trust_env=False),
    )


async def test_the_official_client_streams_responses_and_raises_what_the_proxy_tells_it() -> None:
    attester = MemoryAttester()
    async with running(chunked(SSE, *RESPONSE_EVENTS), attester) as setup, client(setup) as api:
        async with api.responses.stream(model="m", input="hi") as stream:
            async for _ in stream:
                pass
            assert (await stream.get_final_response()).output_text == "Hello"
        attester.gate.clear()
        events = await api.responses.create(model="m", input="hi", stream=True)
        await attester.until_submitted(2)
        attester.failure = GONE
        attester.gate.set()
        with pytest.raises(openai.APIError, match="cannot attest"):
            async for _ in events:
                pass
