# SPDX-License-Identifier: Apache-2.0
"""The official OpenAI client in front of the proxy: everything it does works, and it can see the attestation."""

from __future__ import annotations

import base64
from typing import Any

import httpx2
import openai
import pytest
from memory_attester import GONE, MemoryAttester
from proxies import Setup, running
from scripted_engine import DONE, Call, chunk_event, completion, delta_event

from quotary_verifier.wire.names import parse_output_id

MESSAGES: Any = [{"role": "user", "content": "hi"}]


async def engine(call: Call) -> None:
    """Answer as a chat server does, streamed if asked to."""
    if b'"stream":true' in call.body.replace(b" ", b""):
        usage = chunk_event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3})
        last = [] if b"no-done" in call.body else [DONE]
        words = delta_event("Hel") + delta_event("lo")
        await call.stream(
            delta_event("", role="assistant"), words, delta_event(None, finish="stop") + usage, *last
        )
    elif b"broken" in call.body:
        await call.answer(
            b'{"error":{"message":"no such thing","type":"invalid","code":404}}', status=b"404 Not Found"
        )
    else:
        await call.answer(completion("Hello"))


def client(setup: Setup) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=setup.url + "/v1",
        api_key="k",
        max_retries=0,
        http_client=httpx2.AsyncClient(trust_env=False),
    )


async def test_a_plain_completion_carries_the_attestation_as_an_extra_field() -> None:
    async with running(engine) as setup, client(setup) as api:
        raw = await api.chat.completions.with_raw_response.create(model="m", messages=MESSAGES)
        answer = raw.parse()
        assert answer.choices[0].message.content == "Hello"
        output_id = parse_output_id(raw.headers["quotary-output"])
        assert answer.model_extra is not None
        assert base64.b64decode(answer.model_extra["attestation"]) == setup.attester.attestations[output_id]


@pytest.mark.parametrize("model", ["m", "no-done"])
async def test_a_stream_ends_with_a_chunk_that_carries_the_attestation(model: str) -> None:
    async with running(engine) as setup, client(setup) as api:
        stream = await api.chat.completions.create(model=model, messages=MESSAGES, stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello"
        extra = chunks[-1].model_extra
        assert extra is not None
        output_id = parse_output_id(stream.response.headers["quotary-output"])
        assert base64.b64decode(extra["attestation"]) == setup.attester.attestations[output_id]


async def test_the_stream_helper_works() -> None:
    async with running(engine) as setup, client(setup) as api:
        async with api.chat.completions.stream(model="m", messages=MESSAGES) as stream:
            kinds = {event.type async for event in stream}
            final = await stream.get_final_completion()
        assert final.choices[0].message.content == "Hello"
        assert "content.done" in kinds


async def test_errors_of_the_engine_and_of_the_proxy_are_the_clients_typed_errors() -> None:
    attester = MemoryAttester()
    async with running(engine, attester) as setup, client(setup) as api:
        with pytest.raises(openai.NotFoundError, match="no such thing"):
            await api.chat.completions.create(model="broken", messages=MESSAGES)
        attester.failure = GONE
        with pytest.raises(openai.InternalServerError, match="cannot attest") as caught:
            await api.chat.completions.create(model="m", messages=MESSAGES)
        assert caught.value.status_code == 503
        assert caught.value.code == "attestation_unavailable"


async def test_an_outage_at_the_end_of_a_stream_is_an_error_to_the_client() -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    async with running(engine, attester) as setup, client(setup) as api:
        stream = await api.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        await attester.until_submitted(1)
        attester.failure = GONE
        attester.gate.set()
        with pytest.raises(openai.APIError, match="cannot attest"):
            async for _ in stream:
                pass


async def test_other_paths_work_as_without_the_proxy() -> None:
    async def models(call: Call) -> None:
        await call.answer(
            b'{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"x"}]}'
        )

    async with running(models) as setup, client(setup) as api:
        assert [model.id async for model in api.models.list()] == ["m"]
