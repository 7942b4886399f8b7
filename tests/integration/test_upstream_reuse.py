# SPDX-License-Identifier: Apache-2.0
"""Which requests may follow others on a connection to the engine, and which get one of their own (ADR 0044)."""

from __future__ import annotations

import asyncio

import pytest
from proxies import Setup, running
from scripted_engine import DONE, Call, completion, delta_event

from quotary_attest.serving import upstream

SHORT = b'{"model":"m","messages":[]}'
STREAM = b'{"model":"m","stream":true,"messages":[]}'
BODY = delta_event("Hello", finish="stop")


async def engine(call: Call) -> None:
    if b"stream" in call.body or b"unasked" in call.body:
        await call.stream(BODY + DONE)
    else:
        await call.answer(completion("Hello"))


async def ask(setup: Setup, body: bytes) -> None:
    async with setup.post(body) as answer:
        assert answer.status == 200
        await answer.read()


async def test_short_answers_follow_each_other_on_one_connection() -> None:
    async with running(engine) as setup:
        for _ in range(5):
            await ask(setup, SHORT)
        assert (len(setup.engine.calls), setup.engine.connections) == (5, 1)


async def test_a_stream_gets_a_connection_that_nothing_else_had_or_will_have() -> None:
    async with running(engine) as setup:
        for body in (SHORT, STREAM, STREAM, SHORT):
            await ask(setup, body)
        assert (len(setup.engine.calls), setup.engine.connections) == (4, 3)


async def test_nothing_follows_a_stream_that_nobody_asked_for() -> None:
    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(BODY)
        await go.wait()  # its end comes by itself, after its head
        await call.chunk(DONE)
        await call.end()

    go = asyncio.Event()
    async with running(script) as setup:
        for _ in range(2):
            go.clear()
            async with setup.post(SHORT) as answer:
                assert await answer.content.readexactly(len(BODY)) == BODY
                go.set()
                await answer.read()
        assert (len(setup.engine.calls), setup.engine.connections) == (2, 2)


async def test_a_connection_that_an_engine_closed_is_not_used() -> None:
    async def closing(call: Call) -> None:
        await call.answer(completion("Hello"))
        call.close = True

    async with running(closing) as setup:
        for number in range(1, 6):
            await ask(setup, SHORT)
            await asyncio.sleep(0.02)  # what a peer closed, the kernel says by itself
            assert (len(setup.engine.calls), setup.engine.connections) == (number, number)


async def test_a_connection_is_kept_for_a_short_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "_KEPT_SECONDS", 0.01)
    async with running(engine) as setup:
        for _ in range(2):
            await ask(setup, SHORT)
            await asyncio.sleep(0.05)  # longer than it is kept
        assert setup.engine.connections == 2


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
async def test_other_methods_that_change_something_have_connections_of_their_own(method: str) -> None:
    async with running(engine) as setup:
        for _ in range(2):
            async with setup.client.request(method, setup.url + "/v1/files", data=SHORT) as answer:
                await answer.read()
        assert setup.engine.connections == 2
