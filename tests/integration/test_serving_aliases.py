# SPDX-License-Identifier: Apache-2.0
"""Outputs found by the id that their engine gave them, for the same credential only, from the first byte on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import aiohttp
import pytest
from agents import judge, make_state, running, settled, start
from proxies import Setup
from proxies import running as proxied
from scripted_engine import Call
from tpms import Tpm

from quotary_attest.agent import Agent, NewOutput, UnknownOutput
from quotary_attest.serving.aliases import alias_of, credential_of, is_upstream_id
from quotary_verifier.wire.names import format_output_id

BODY = b"an answer"
KEY = "Bearer sk-one"
NAME = "chatcmpl-7"
OTHERS = (
    {},
    {"Authorization": "Bearer sk-two"},
    {"X-Api-Key": KEY},
    {"Authorization": KEY, "X-Api-Key": "k"},
    [("Authorization", KEY), ("Authorization", KEY)],
)


async def engine(call: Call) -> None:
    await call.answer(b"{}")


@pytest.fixture
async def agent(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Agent]:
    async with running(tpm, tmp_path / "state") as agent:
        yield agent


def alias(agent: Agent, name: str = NAME, headers: dict[str, str] | None = None) -> bytes:
    """The alias of an engine's id, by default for the key above."""
    carried = {"Authorization": KEY} if headers is None else headers
    return alias_of(agent.alias_secret, credential_of(carried), name)


def output(agent: Agent, body: bytes = BODY, **fields: object) -> NewOutput:
    return NewOutput(agent.new_output_id(), {"body": sha256(body).digest()}, **fields)  # type: ignore[arg-type]


async def get(setup: Setup, name: str, headers: object = None) -> aiohttp.ClientResponse:
    carried = {"Authorization": KEY} if headers is None else headers
    url = f"{setup.url}/quotary/v1/attestations/{name}"
    answer = await setup.client.get(url, headers=carried)  # type: ignore[arg-type]
    await answer.read()
    return answer


async def test_the_engines_id_finds_the_attestation_for_the_same_credential_alone(agent: Agent) -> None:
    async with proxied(engine, agent) as setup:  # type: ignore[arg-type]
        made = await agent.submit(output(agent, alias=alias(agent)))
        found = await get(setup, NAME)
        assert found.headers["Quotary-Output"] == format_output_id(made.output_id)
        assert found.headers["Cache-Control"] == "no-store"
        judge(await found.read(), BODY, agent.origin)
        never = await get(setup, "chatcmpl-8")
        for headers in OTHERS:
            other = await get(setup, NAME, headers)
            # byte for byte what is said of an id that nobody has: nothing leaks that one exists
            assert (other.status, await other.read()) == (404, await never.read())
            assert set(other.headers) == set(never.headers)


async def test_without_a_credential_the_engines_id_is_enough(agent: Agent) -> None:
    async with proxied(engine, agent) as setup:  # type: ignore[arg-type]
        await agent.submit(output(agent, alias=alias(agent, headers={})))
        assert (await get(setup, NAME, {})).status == 200
        assert (await get(setup, NAME)).status == 404


async def test_asking_by_the_engines_id_waits_for_an_output_that_is_on_its_way(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, fetch = asyncio.Event(), agent.fetch

    async def told(output_id: bytes, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        asked.set()
        return await fetch(output_id, timeout)

    monkeypatch.setattr(agent, "fetch", told)
    async with proxied(engine, agent) as setup:  # type: ignore[arg-type]
        new = output(agent)
        agent.reserve(new.output_id)
        agent.announce_alias(alias(agent), new.output_id)
        asking = asyncio.create_task(get(setup, NAME))
        await asked.wait()
        made = await agent.submit(new)  # the announced alias stays with it, though it names none
        found = await asking
        assert (found.status, await found.read()) == (200, made.encoded)
        await settled(agent.store)
        assert await agent.resolve(alias(agent)) == new.output_id
        assert not agent._engine.waiting._aliases  # what the log can tell is not kept in memory


async def test_an_output_that_does_not_come_is_not_found_by_its_alias(agent: Agent) -> None:
    new = output(agent)
    agent.reserve(new.output_id)
    agent.announce_alias(alias(agent), new.output_id)
    assert await agent.resolve(alias(agent)) == new.output_id
    agent.abandon(new.output_id)
    assert await agent.resolve(alias(agent)) is None
    agent.announce_alias(alias(agent), agent.new_output_id())  # of an output that nobody announced
    assert await agent.resolve(alias(agent)) is None


async def test_an_id_that_an_engine_gives_twice_means_the_newest_output(agent: Agent) -> None:
    first = await agent.submit(output(agent, b"first", alias=alias(agent)))
    await settled(agent.store)
    assert await agent.resolve(alias(agent)) == first.output_id
    second = await agent.submit(output(agent, b"second", alias=alias(agent)))
    assert await agent.resolve(alias(agent)) == second.output_id
    await settled(agent.store)
    assert await agent.resolve(alias(agent)) == second.output_id
    third = agent.new_output_id()
    agent.reserve(third)
    agent.announce_alias(alias(agent), third)
    assert await agent.resolve(alias(agent)) == third
    agent.abandon(third)
    assert await agent.resolve(alias(agent)) == second.output_id


async def test_an_alias_goes_with_its_record_and_outlives_a_start(tpm: Tpm, tmp_path: Path) -> None:
    make_state(tpm, tmp_path / "state")
    agent = await start(tpm, tmp_path / "state")
    made = await agent.submit(output(agent, alias=alias(agent)))
    known = alias(agent)
    await agent.close()
    async with running(tpm, tmp_path / "state") as again:
        assert alias(again) == known
        assert await again.resolve(known) == made.output_id
        await again.expire(time.time_ns() // 1_000_000 + 60_000)
        assert await again.resolve(known) is None
        with pytest.raises(UnknownOutput):
            await again.fetch(made.output_id)


async def test_an_output_that_cannot_be_queued_leaves_no_alias_behind(agent: Agent) -> None:
    for wrong in (output(agent, alias=b"short"), output(agent, model="unmeasured", alias=alias(agent))):
        agent.reserve(wrong.output_id)
        agent.announce_alias(alias(agent), wrong.output_id)
        with pytest.raises(Exception, match=r"32 bytes|no model"):
            await agent.submit(wrong)
        assert await agent.resolve(alias(agent)) is None


def test_credentials_and_ids_are_told_apart_wherever_one_ends_and_the_other_begins() -> None:
    secret = bytes(32)
    seen = {alias_of(secret, a, b) for a, b in (("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", ""))}
    assert len(seen) == 4
    assert alias_of(b"\1" * 32, "ab", "c") not in seen
    texts = {
        credential_of(headers)
        for headers in (
            {},
            {"authorization": "x"},
            {"x-api-key": "x"},
            {"api-key": "x"},
            {"authorization": "x", "api-key": "y"},
            {"authorization": "x", "x-api-key": "y"},
        )
    }
    assert len(texts) == 6
    assert credential_of({"AUTHORIZATION": "Bearer x", "Host": "h"}) == "Bearer x"


@pytest.mark.parametrize("value", ["", "x" * 257, "a/b", "a\n", "é", 7, None, True, ["x"]])
def test_what_cannot_stand_in_a_path_is_no_engines_id(value: object) -> None:
    assert not is_upstream_id(value)
    assert is_upstream_id("chatcmpl-0")
