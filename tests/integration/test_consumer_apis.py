# SPDX-License-Identifier: Apache-2.0
"""The consumer's library with APIs whose answers carry no attestation, and with every way of delivery."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from consumers import MESSAGES, Host, attesting_host
from proxies import CHAT
from scripted_engine import Call, completion
from tampering import PLAIN, STREAM
from tpms import Tpm

from quotary import AttestationNotChecked, exchange, verdict
from quotary.httpx2 import AsyncVerifyingTransport
from quotary.openai import AsyncOpenAI

MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
    "content": [{"type": "output_text", "text": "Hello", "annotations": []}],
}  # fmt: skip
RESPONSE = {
    "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed", "output": [MESSAGE],
    "parallel_tool_calls": False, "tool_choice": "auto", "tools": [], "error": None,
}  # fmt: skip
VECTORS = {
    "object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
    "usage": {"prompt_tokens": 1, "total_tokens": 1},
}  # fmt: skip


def event(kind: str, **members: Any) -> bytes:
    payload = {"type": kind, "sequence_number": 0, **members}
    return f"event: {kind}\ndata: {json.dumps(payload)}\n\n".encode()


PART = {"type": "output_text", "text": "", "annotations": []}
DELTA = {"output_index": 0, "content_index": 0, "item_id": "msg_1", "delta": "Hello", "logprobs": []}
EVENTS = [
    event("response.created", response={**RESPONSE, "status": "in_progress", "output": []}),
    event(
        "response.output_item.added", output_index=0, item={**MESSAGE, "content": [], "status": "in_progress"}
    ),
    event("response.content_part.added", output_index=0, content_index=0, item_id="msg_1", part=PART),
    event("response.output_text.delta", **DELTA),
    event("response.completed", response=RESPONSE),
]
LINES = [
    b'{"model":"m","message":{"role":"assistant","content":"Hello"},"done":false}\n',
    b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}\n',
]


async def engine(call: Call) -> None:
    """Answer each API in its shape."""
    if call.target == "/v1/responses" and b'"stream":true' in call.body.replace(b" ", b""):
        await call.stream(*EVENTS)
    elif call.target == "/v1/responses":
        await call.answer(json.dumps(RESPONSE).encode())
    elif call.target == "/v1/embeddings":
        await call.answer(json.dumps(VECTORS).encode())
    elif call.target == "/api/chat":
        await call.answer(b"".join(LINES), kind=b"application/x-ndjson")
    else:
        await call.answer(completion("Hello"))


@pytest.fixture
async def host(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Host]:
    async with attesting_host(tpm, tmp_path, engine) as host:
        yield host


def client(host: Host) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{host.middle.url}/v1", api_key="k", policy=host.policy, max_retries=0)


async def test_responses_and_embeddings_are_verified_in_band_or_by_id(host: Host) -> None:
    async with client(host) as api:
        answer = await api.responses.create(model="m", input="hi")
        assert answer.output_text == "Hello"
        verdict(answer)
        vectors = await api.embeddings.create(model="m", input="hi", encoding_format="float")
        assert vectors.data[0].embedding == [0.5, 0.25]
        verdict(vectors)


async def test_a_typed_stream_is_verified_before_the_event_after_which_clients_stop(host: Host) -> None:
    async with client(host) as api:
        stream = await api.responses.create(model="m", input="hi", stream=True)
        kinds = []
        async for item in stream:
            kinds.append(item.type)
            if item.type == "response.completed":
                break
            with pytest.raises(AttestationNotChecked):
                verdict(stream)
        verdict(stream)
        assert (kinds[0], len(kinds)) == ("response.created", len(EVENTS))
        assert exchange(stream).output == b"".join(EVENTS)
        async with api.responses.stream(model="m", input="hi") as helper:
            final = await helper.get_final_response()
        assert final.output_text == "Hello"
        verdict(helper)


async def test_lines_of_json_are_handed_through_and_verified_at_their_end(host: Host) -> None:
    async with (
        httpx2.AsyncClient(transport=AsyncVerifyingTransport(host.policy)) as http,
        http.stream(
            "POST", f"{host.middle.url}/api/chat", json={"model": "m", "messages": MESSAGES}
        ) as answer,
    ):
        lines = [line async for line in answer.aiter_lines()]
        verdict(answer)
    assert [json.loads(line)["done"] for line in lines] == [False, True]


@pytest.mark.parametrize(("delivery", "fetches"), [("inline", 0), ("header", 0), ("deferred", 1)])
async def test_every_way_of_delivery_is_taken(host: Host, delivery: str, fetches: int) -> None:
    async with httpx2.AsyncClient(transport=AsyncVerifyingTransport(host.policy)) as http:
        answer = await http.post(host.middle.url + CHAT, content=PLAIN, headers={"Quotary-Deliver": delivery})
        assert answer.content == completion("Hello")
        verdict(answer)
        streamed = await http.post(
            host.middle.url + CHAT, content=STREAM, headers={"Quotary-Deliver": delivery}
        )
        verdict(streamed)
    assert host.middle.fetches >= fetches
    assert ("quotary-attestation" in answer.headers) is (delivery == "header")


async def test_answers_of_one_commit_are_verified_from_one_verified_commit(host: Host) -> None:
    transport = AsyncVerifyingTransport(host.checks(clock=lambda: 1_800_000_000.0))
    async with httpx2.AsyncClient(transport=transport) as http:
        answers = await asyncio.gather(*(http.post(host.proxy + CHAT, content=PLAIN) for _ in range(30)))
        commits = {_commit(answer) for answer in answers}
    assert {verdict(answer).report.at for answer in answers} == {1_800_000_000}
    assert len(transport.judge._commits) == len(commits) < 30


def _commit(answer: Any) -> object:
    claim = verdict(answer).claim("commit")
    assert claim is not None
    return claim.value
