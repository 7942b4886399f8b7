# SPDX-License-Identifier: Apache-2.0
"""What the proxy holds stays bounded: many long requests, many long answers, many slow clients."""

from __future__ import annotations

import asyncio
import io
import json
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from proxies import CHAT, id_of, running, sha
from scripted_engine import DONE, Call, completion, delta_event

from quotary_attest.serving.idle import IdleWatch
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.records import State

LONG = b"x" * 600_000
WHOLE = completion("Hello")
SLOW = 8


async def test_requests_beyond_what_is_held_at_a_time_are_refused_until_there_is_room() -> None:
    asked, answering = asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        asked.set()
        await answering.wait()
        await call.answer(WHOLE)

    async with running(script, max_held_total=1_000_000) as setup:
        first = asyncio.create_task(setup.post(LONG).__aenter__())
        await asyncio.wait_for(asked.wait(), 10)
        async with setup.post(LONG) as refused:
            assert refused.status == 503
            assert refused.headers["Retry-After"] == "1"
            assert json.loads(await refused.read())["error"]["code"] == "overloaded"
        passing = asyncio.create_task(setup.post(LONG, path="/v1/other").__aenter__())
        answering.set()
        async with await passing as passed:
            assert passed.status == 200  # what passes through is not held
        async with await first as answer:
            assert strip(await answer.read())[0] == WHOLE
        async with setup.post(LONG) as third:
            assert third.status == 200
        assert len(setup.engine.calls) == 3


async def test_a_request_that_has_no_room_is_refused_before_it_is_sent() -> None:
    asked, answering = asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        asked.set()
        await answering.wait()
        await call.answer(WHOLE)

    async with running(script, max_held_total=1_000_000) as setup:
        first = asyncio.create_task(setup.post(LONG).__aenter__())
        await asyncio.wait_for(asked.wait(), 10)
        host, _, port = setup.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = b"POST %b HTTP/1.1\r\nHost: x\r\n" % CHAT.encode()
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(LONG))
        try:
            async with asyncio.timeout(5):
                assert (await reader.readline()).startswith(b"HTTP/1.1 503")
        finally:
            writer.close()
            answering.set()
        async with await first as answer:
            await answer.read()


async def test_a_request_holds_nothing_once_the_engine_has_it() -> None:
    ending = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("a"))
        await ending.wait()
        await call.chunk(DONE)
        await call.end()

    async with running(script, max_held_total=len(LONG)) as setup:
        streams = [await setup.post(LONG) for _ in range(3)]
        assert [stream.status for stream in streams] == [200, 200, 200]
        ending.set()
        for stream in streams:
            assert strip(await stream.read())[0] == delta_event("a") + DONE


async def test_a_request_of_unknown_length_is_counted_as_it_comes() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(60_000)

    async def script(call: Call) -> None:
        await call.answer(WHOLE)

    async with running(script, max_held_total=1_000_000) as setup:
        async with setup.client.post(setup.url + CHAT, data=endless()) as refused:
            assert refused.status == 503
        async with setup.post(LONG) as answer:
            assert answer.status == 200
        assert [call.body for call in setup.engine.calls] == [LONG]


async def test_requests_that_were_only_announced_hold_nothing() -> None:
    async def script(call: Call) -> None:
        await call.answer(WHOLE)

    async with running(script, max_held_total=len(LONG) + 1000) as setup:
        host, _, port = setup.url.removeprefix("http://").partition(":")
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(LONG))
        waiting = [(await asyncio.open_connection(host, int(port)))[1] for _ in range(5)]
        for writer in waiting:
            writer.write(head + b"x")
            await writer.drain()
        async with setup.post(LONG) as answer:
            assert answer.status == 200
        for writer in waiting:
            writer.close()


async def test_a_request_of_unknown_length_may_not_be_longer_than_one_of_a_known_length() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(60_000)

    async def script(call: Call) -> None:
        await call.answer(WHOLE)

    async with running(script, max_request=500_000) as setup:
        async with setup.client.post(setup.url + CHAT, data=endless()) as refused:
            assert refused.status == 413
        assert setup.engine.calls == []


async def test_a_client_that_leaves_inside_a_long_whole_answer_changes_nothing_in_its_record() -> None:
    body = completion("x" * 15_000_000)

    async def script(call: Call) -> None:
        await call.answer(body)

    async with running(script) as setup:
        async with setup.post() as answer:
            await answer.content.readexactly(1000)
            answer.close()
        output = await setup.attester.recorded(id_of(answer))
        assert (output.state, output.digests["body"]) == (State.COMPLETE, sha(body))


async def test_a_client_that_goes_away_gives_back_what_was_held_for_it() -> None:
    async def script(call: Call) -> None:
        await call.answer(WHOLE)

    async with running(script, max_held_total=len(LONG)) as setup:
        host, _, port = setup.url.removeprefix("http://").partition(":")
        for _ in range(3):
            reader, writer = await asyncio.open_connection(host, int(port))
            head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(LONG))
            writer.write(head + LONG[:1000])
            await writer.drain()
            writer.transport.abort()
            del reader

            async def passes() -> bool:
                async with setup.post(LONG) as answer:
                    return answer.status == 200

            async with asyncio.timeout(10):
                while not await passes():
                    pass


async def test_answers_beyond_what_is_held_at_a_time_stream_and_are_attested_by_id() -> None:
    body = completion("x" * 100_000)

    async def script(call: Call) -> None:
        await call.answer(body)

    async with running(script, max_held_total=50_000) as setup, setup.post() as answer:
        assert await answer.read() == body
        assert "Content-Length" not in answer.headers
        output = setup.attester.outputs[id_of(answer)]
        assert (output.state, output.digests["body"]) == (State.COMPLETE, sha(body))


async def test_what_slow_clients_leave_unread_stays_with_the_engine() -> None:
    piece = delta_event("x" * 60_000)
    written = 0
    moved = asyncio.Event()

    async def script(call: Call) -> None:
        nonlocal written
        await call.begin_stream()
        while True:
            await call.chunk(piece)
            written += len(piece)
            moved.set()

    async def until_all_wait() -> None:
        """Until no engine has written anything for a while: there is no other sign of a wait."""
        while True:
            moved.clear()
            try:
                await asyncio.wait_for(moved.wait(), 0.3)
            except TimeoutError:
                return

    async with running(script) as setup:
        tracemalloc.start()
        try:
            answers = [await setup.post() for _ in range(SLOW)]
            await until_all_wait()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # engine, proxy and client together, each with its buffers for each stream; the kernel has the rest
        assert held < SLOW * 4_000_000
        before = written
        assert await answers[0].content.readexactly(20 * len(piece)) == 20 * piece
        await until_all_wait()
        assert written > before
        for answer in answers:
            answer.close()


async def test_streams_of_a_slow_client_arrive_whole() -> None:
    events = [delta_event(f"{number} " + "x" * 30_000) for number in range(100)]

    async def script(call: Call) -> None:
        await call.stream(*events, delta_event(None, finish="stop") + DONE)

    async with running(script) as setup, setup.post() as answer:
        body = io.BytesIO()
        while piece := await answer.content.read(10_000):
            body.write(piece)
            await asyncio.sleep(0)
        expected = b"".join(events) + delta_event(None, finish="stop") + DONE
        assert strip(body.getvalue()) == (expected, setup.attester.attestations[id_of(answer)])


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_time_of_silence_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        IdleWatch(seconds)


async def test_an_engine_may_be_silent_for_ever_if_so_configured() -> None:
    going_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("a"))
        await going_on.wait()
        await call.chunk(DONE)
        await call.end()

    async with running(script, idle_seconds=None) as setup, setup.post() as answer:
        await answer.content.readexactly(len(delta_event("a")))
        going_on.set()
        assert strip(delta_event("a") + await answer.content.read())[0] == delta_event("a") + DONE
