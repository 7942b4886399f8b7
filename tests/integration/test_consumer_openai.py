# SPDX-License-Identifier: Apache-2.0
"""`quotary.openai` against an agent on a software TPM: answers are verified, altered ones not handed out."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from consumers import MESSAGES, TOOLS, Host, attesting_host
from tpms import Tpm

import quotary
from quotary import AttestationMissing, AttestationNotChecked, AttestationRejected, verdict
from quotary.openai import AsyncOpenAI, OpenAI


@pytest.fixture
async def host(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Host]:
    async with attesting_host(tpm, tmp_path) as host:
        yield host


def client(host: Host, **how: Any) -> AsyncOpenAI:
    options: Any = {"base_url": f"{host.middle.url}/v1", "api_key": "k", "max_retries": 0}
    checks = {name: how.pop(name) for name in list(how) if name in quotary.Checks.__slots__}
    return AsyncOpenAI(policy=host.checks(**checks), **(options | how))


def claims(answer: object) -> dict[str, object]:
    return {claim.name: claim.value for claim in verdict(answer).claims}


async def test_a_plain_answer_is_verified_and_shows_nothing_of_its_attestation(host: Host) -> None:
    async with client(host) as api:
        answer = await api.chat.completions.create(model="m", messages=MESSAGES)
        assert answer.choices[0].message.content == "Hello"
        assert not answer.model_extra
        found = claims(answer)
        exchange = quotary.exchange(answer)
    assert (found["origin"], found["model"], found["state"]) == (host.agent.origin, "llama", "complete")
    assert found["output_id"] == exchange.output_id
    assert host.middle.nonces == [exchange.nonce.hex()]
    assert exchange.request == host.engine.calls[0].body


@pytest.mark.parametrize("model", ["m", "no-done"])
async def test_a_stream_is_verified_at_its_end(host: Host, model: str) -> None:
    async with client(host) as api:
        stream = await api.chat.completions.create(model=model, messages=MESSAGES, stream=True)
        with pytest.raises(AttestationNotChecked, match="not been read to its end"):
            verdict(stream)
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello"
    assert not any(chunk.model_extra for chunk in chunks)
    assert claims(stream)["state"] == "complete"


def test_the_synchronous_client_does_the_same(tpm: Tpm, tmp_path: Path) -> None:
    def ask(host: Host) -> None:
        checks = host.checks(unattested=("/v1/models",))
        with OpenAI(base_url=f"{host.proxy}/v1", api_key="k", policy=checks) as api:
            answer = api.chat.completions.create(model="m", messages=MESSAGES)
            assert claims(answer)["state"] == "complete"
            with api.chat.completions.create(model="m", messages=MESSAGES, stream=True) as stream:
                words = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
            assert "".join(words) == "Hello"
            assert claims(stream)["state"] == "complete"
            assert [model.id for model in api.models.list()] == ["m"]
            with pytest.raises(openai.NotFoundError, match="no such model"):
                api.chat.completions.create(model="refused", messages=MESSAGES)

    async def main() -> None:
        async with attesting_host(tpm, tmp_path) as host:
            await asyncio.to_thread(ask, host)

    asyncio.run(main())


async def test_tools_and_the_stream_helper_work(host: Host) -> None:
    async with client(host) as api:
        answer = await api.chat.completions.create(model="m", messages=MESSAGES, tools=TOOLS)
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert call.function.arguments == '{"a":1}'
        verdict(answer)
        async with api.chat.completions.stream(model="m", messages=MESSAGES, tools=TOOLS) as stream:
            final = await stream.get_final_completion()
        (call,) = final.choices[0].message.tool_calls or []
        assert call.function.arguments == '{"a":1}'
        verdict(stream)
        parsed = await api.chat.completions.parse(model="m", messages=MESSAGES)
        verdict(parsed)
        raw = await api.chat.completions.with_raw_response.create(model="m", messages=MESSAGES)
        verdict(raw)
        async with api.chat.completions.with_streaming_response.create(
            model="m", messages=MESSAGES
        ) as unread:
            assert (await unread.parse()).choices[0].message.content == "Hello"
            verdict(unread)


async def test_errors_are_the_clients_typed_errors_and_carry_what_was_found(host: Host) -> None:
    async with client(host) as api:
        with pytest.raises(openai.NotFoundError, match="no such model") as caught:
            await api.chat.completions.create(model="refused", messages=MESSAGES)
        with pytest.raises(AttestationRejected, match="engine-error"):
            verdict(caught.value)
        stream = await api.chat.completions.create(model="fails", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="broke"):
            [chunk async for chunk in stream]


async def test_an_answer_without_an_attestation_is_refused_unless_its_path_may_lack_one(host: Host) -> None:
    async with client(host) as api:
        with pytest.raises(AttestationMissing, match="/v1/models has no attestation"):
            await api.models.list()
    async with client(host, unattested=("/v1/mod*",)) as api:
        assert [model.id async for model in api.models.list()] == ["m"]
    async with client(host, on_failure="attach") as api:
        page = await api.models.list()
        with pytest.raises(AttestationMissing):
            verdict(page)


async def test_a_stream_that_is_closed_early_has_no_verdict(host: Host) -> None:
    async with client(host) as api:
        stream = await api.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        async for _ in stream:
            break
        await stream.close()
        with pytest.raises(AttestationNotChecked, match="not read to its end"):
            verdict(stream)
        assert quotary.exchange(stream).done


async def test_every_attempt_has_a_nonce_of_its_own(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = iter([None, 503])

    def unreliable(answer: Any) -> Any:
        status = next(attempts, 200)
        return None if status is None else replace(answer, status=status)

    host.middle.tamper = unreliable
    monkeypatch.setattr("openai._base_client.AsyncAPIClient._sleep_for_retry", no_sleep)
    async with client(host, max_retries=2) as api:
        answer = await api.chat.completions.create(model="m", messages=MESSAGES)
        assert quotary.exchange(answer).nonce.hex() == host.middle.nonces[-1]
    assert len(set(host.middle.nonces)) == 3


async def test_what_was_rejected_is_raised_as_it_is_and_not_asked_for_again(host: Host) -> None:
    host.middle.tamper = lambda answer: replace(answer, body=answer.body.replace(b"Hel", b"Hal"))
    async with client(host, max_retries=2) as api:
        with pytest.raises(AttestationRejected, match="output") as caught:
            await api.chat.completions.create(model="m", messages=MESSAGES)
        assert caught.value.report is not None
        assert caught.value.exchange is not None
        stream = await api.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        with pytest.raises(AttestationRejected, match="output"):
            [chunk async for chunk in stream]
        with pytest.raises(AttestationRejected, match="output"):
            verdict(stream)
    assert len(host.middle.nonces) == 2


async def no_sleep(*_: object, **__: object) -> None:
    """Retry at once."""


async def test_copies_of_a_client_verify_as_well_and_cannot_lose_the_policy(host: Host) -> None:
    async with client(host) as api:
        other = api.with_options(timeout=5, base_url=f"{host.proxy}/v1")
        verdict(await other.chat.completions.create(model="m", messages=MESSAGES))
        async with httpx2.AsyncClient() as plain:
            with pytest.raises(TypeError, match="a policy must be given"):
                api.with_options(http_client=plain)
    with pytest.raises(TypeError, match="a policy must be given"):
        AsyncOpenAI(base_url=host.proxy, api_key="k")


def test_a_policy_that_cannot_be_used_is_an_error_of_the_constructor(tmp_path: Path) -> None:
    for kind in (OpenAI, AsyncOpenAI):
        with pytest.raises(quotary.PolicyError, match="no such file"):
            kind(policy=tmp_path / "none.toml", api_key="k")
    gc.collect()


async def test_a_client_that_is_forgotten_closes_its_connections(host: Host) -> None:
    api = client(host)
    verdict(await api.chat.completions.create(model="m", messages=MESSAGES))
    transport = api._client._transport
    del api
    gc.collect()
    await asyncio.sleep(0)
    assert transport.inner.is_closed

    def ask() -> Any:
        other = OpenAI(base_url=f"{host.proxy}/v1", api_key="k", policy=host.policy)
        verdict(other.chat.completions.create(model="m", messages=MESSAGES))
        return other._client._transport

    transport = await asyncio.to_thread(ask)
    gc.collect()
    assert transport.inner.is_closed
    with httpx2.Client() as own:
        OpenAI(api_key="k", policy=host.policy, http_client=own)
        gc.collect()
        assert not own.is_closed


async def test_a_client_of_the_callers_is_used_below_the_verification(host: Host) -> None:
    seen = []

    async def hook(request: httpx2.Request) -> None:
        seen.append(request.headers["Quotary-Nonce"])

    below = httpx2.AsyncClient(event_hooks={"request": [hook]}, headers={"X-Own": "1"}, trust_env=False)
    async with client(host, http_client=below) as api:
        verdict(await api.chat.completions.create(model="m", messages=MESSAGES))
    assert seen == host.middle.nonces
    assert host.engine.calls[0].header("X-Own") == "1"
    assert below.is_closed


async def test_many_streams_at_once_are_each_verified(host: Host) -> None:
    async with client(host, base_url=f"{host.proxy}/v1") as api:

        async def one(number: int) -> str:
            stream = await api.chat.completions.create(
                model="m", messages=[{"role": "user", "content": f"{number}"}], stream=True
            )
            async for _ in stream:
                pass
            return str(claims(stream)["output_id"])

        ids = await asyncio.gather(*(one(number) for number in range(24)))
    assert len(set(ids)) == 24


async def test_a_verdict_lives_as_long_as_its_answer(host: Host) -> None:
    from quotary import answers

    async with client(host) as api:
        answer = await api.chat.completions.create(model="m", messages=MESSAGES)
        key = id(answer)
        assert key in answers._known
        del answer
        gc.collect()
        assert key not in answers._known
    with pytest.raises(TypeError, match="no answer that came through quotary"):
        verdict("text")
