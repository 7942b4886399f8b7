# SPDX-License-Identifier: Apache-2.0
"""Streams through the attesting proxy, from engines that behave on the wire as real ones do."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
import pytest
from memory_attester import GONE, MemoryAttester
from proxies import CHAT, REQUEST, id_of, read_cut_off, running, sha
from scripted_engine import DONE, Call, Script, chunk_event, delta_event

from quotary_verifier.wire.bindings import request_commitment
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.records import Source, State

EVENTS = [
    delta_event("", role="assistant") + delta_event("Hel"),
    delta_event("lo"),
    delta_event(None, finish="stop")
    + chunk_event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2}),
]
BODY = b"".join(EVENTS)


def streaming(*pieces: bytes) -> Script:
    async def script(call: Call) -> None:
        await call.stream(*pieces)

    return script


async def test_a_stream_is_unchanged_but_for_its_attestation_before_done() -> None:
    async with running(streaming(*EVENTS, DONE), model="weights", engine="scripted") as setup:
        async with setup.post(headers={"Quotary-Nonce": "00" * 8}) as answer:
            body = await answer.read()
        output_id = id_of(answer)
        assert strip(body) == (BODY + DONE, setup.attester.attestations[output_id])
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert "Quotary-Attested" not in answer.headers
    output = setup.attester.outputs[output_id]
    assert output.digests == {"body": sha(BODY + DONE), "text/0": sha(b"Hello")}
    assert output.state is State.COMPLETE
    assert output.request_key is not None
    assert output.request == request_commitment(output.request_key, REQUEST)
    assert output.nonce == bytes(8)
    assert output.model == "weights"
    assert output.source is Source.RELAYED
    assert output.context == {
        "endpoint": CHAT,
        "engine": "scripted",
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "status": 200,
    }


async def test_every_piece_reaches_the_client_before_the_engine_sends_the_next() -> None:
    arrived = asyncio.Semaphore(0)

    async def script(call: Call) -> None:
        await call.begin_stream()
        for event in EVENTS:
            await call.chunk(event)
            await arrived.acquire()
        await call.chunk(DONE)
        await call.end()

    async with running(script) as setup, setup.post() as answer:
        for event in EVENTS:
            assert await answer.content.readexactly(len(event)) == event
            arrived.release()
        assert (await answer.content.read()).endswith(DONE)


async def test_the_header_with_the_id_comes_before_the_first_token() -> None:
    first = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await first.wait()
        await call.end()

    async with running(script) as setup, setup.post() as answer:
        assert id_of(answer) in setup.attester.reserved
        first.set()
        await answer.read()


async def test_done_waits_for_the_commit_and_nothing_else_does() -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    async with running(streaming(BODY, DONE), attester) as setup, setup.post() as answer:
        assert await answer.content.readexactly(len(BODY)) == BODY
        rest = asyncio.create_task(answer.content.read())
        await attester.until_submitted(1)
        assert not rest.done()
        attester.gate.set()
        assert (await rest).endswith(DONE)


async def test_engines_that_close_the_connection_after_each_stream_lose_no_request() -> None:
    async def script(call: Call) -> None:
        await call.begin_stream(b"Keep-Alive: timeout=5, max=100")
        await call.chunk(BODY)
        await call.chunk(DONE)
        await call.end()
        call.close = True

    async with running(script) as setup:
        for _ in range(20):
            async with setup.post() as answer:
                assert answer.status == 200
                assert strip(await answer.read())[0] == BODY + DONE
        assert setup.engine.connections == 20


async def test_a_stream_without_done_carries_its_attestation_at_the_end() -> None:
    async with running(streaming(*EVENTS)) as setup, setup.post() as answer:
        body = await answer.read()
        assert strip(body) == (BODY, setup.attester.attestations[id_of(answer)])
        assert setup.attester.outputs[id_of(answer)].state is State.COMPLETE


async def test_crlf_streams_keep_their_bytes() -> None:
    body = delta_event("Hi", finish="stop", end=b"\r\n") + b"data: [DONE]\r\n\r\n"
    async with running(streaming(body)) as setup, setup.post() as answer:
        carried = await answer.read()
        assert strip(carried) == (body, setup.attester.attestations[id_of(answer)])
        assert setup.attester.outputs[id_of(answer)].digests["text/0"] == sha(b"Hi")


@pytest.mark.parametrize("done", [b"", DONE])
async def test_an_error_inside_a_stream_is_recorded_as_the_engines(done: bytes) -> None:
    body = delta_event("a") + b'data: {"error":{"message":"engine died","code":500}}\n\n' + done
    async with running(streaming(body)) as setup, setup.post() as answer:
        assert strip(await answer.read())[0] == body
        assert setup.attester.outputs[id_of(answer)].state is State.ENGINE_ERROR


async def test_an_empty_stream_is_recorded_as_truncated_and_stays_empty() -> None:
    async with running(streaming()) as setup, setup.post() as answer:
        assert await answer.read() == b""
        output = setup.attester.outputs[id_of(answer)]
        assert (output.state, output.digests) == (State.ENGINE_TRUNCATED, {"body": sha(b"")})


async def test_an_engine_killed_in_a_stream_cuts_the_client_off_and_the_prefix_is_recorded() -> None:
    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(EVENTS[0] + b"data: [DO")
        call.writer.transport.abort()

    async with running(script) as setup, setup.post() as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
        output = await setup.attester.recorded(id_of(answer))
        assert output.state is State.ENGINE_TRUNCATED
        assert output.digests == {"body": sha(EVENTS[0] + b"data: [DO"), "text/0": sha(b"Hel")}


async def test_an_engine_killed_after_done_still_delivers_done_with_its_attestation() -> None:
    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(BODY + DONE)
        call.writer.close()

    async with running(script) as setup, setup.post() as answer:
        body = await read_cut_off(answer)
        assert strip(body) == (BODY + DONE, setup.attester.attestations[id_of(answer)])
        assert setup.attester.outputs[id_of(answer)].state is State.ENGINE_TRUNCATED


async def test_a_client_that_goes_away_stops_the_engine_and_the_sent_prefix_is_recorded() -> None:
    stopped = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(EVENTS[0])
        await call.until_gone()
        stopped.set()

    async with running(script) as setup:
        answer = await setup.post()
        assert await answer.content.readexactly(len(EVENTS[0])) == EVENTS[0]
        answer.close()
        await asyncio.wait_for(stopped.wait(), 10)
        output = await setup.attester.recorded(id_of(answer))
        assert output.state is State.CLIENT_GONE
        assert output.digests == {"body": sha(EVENTS[0]), "text/0": sha(b"Hel")}


async def test_a_client_that_goes_away_while_done_waits_changes_nothing_in_the_record() -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    async with running(streaming(BODY, DONE), attester) as setup:
        answer = await setup.post()
        await answer.content.readexactly(len(BODY))
        answer.close()
        attester.gate.set()
        output = await attester.recorded(id_of(answer))
        assert output.digests["body"] in (sha(BODY), sha(BODY + DONE))
        assert output.state is (
            State.COMPLETE if output.digests["body"] == sha(BODY + DONE) else State.CLIENT_GONE
        )
        assert await attester.fetch(id_of(answer), 1)


async def test_a_slow_client_holds_the_engine_back() -> None:
    ended = asyncio.Event()
    pieces = 0

    async def script(call: Call) -> None:
        nonlocal pieces
        await call.begin_stream()
        for _ in range(2000):
            await call.chunk(delta_event("x" * 60_000))
            pieces += 1
        ended.set()

    async with running(script) as setup:
        answer = await setup.post()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ended.wait(), 1.0)
        assert 0 < pieces < 1000
        answer.close()


async def test_when_the_tpm_goes_a_running_stream_ends_in_an_error_event_and_is_cut_off() -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    async with running(streaming(BODY, DONE), attester) as setup, setup.post() as answer:
        body = await answer.content.readexactly(len(BODY))
        attester.failure = GONE
        attester.gate.set()
        body += await read_cut_off(answer)
    assert body.removeprefix(BODY).startswith(b'data: {"error": {"message": ')
    assert b'"code": "attestation_unavailable"' in body
    assert b"[DONE]" not in body


async def test_a_fault_of_our_own_never_ends_a_stream_properly(caplog: pytest.LogCaptureFixture) -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    async with running(streaming(BODY, DONE), attester) as setup, setup.post() as answer:
        await answer.content.readexactly(len(BODY))
        attester.failure = KeyError("a secret")
        attester.gate.set()
        assert await read_cut_off(answer) == b""
    assert "unexpected KeyError" in caplog.text
    assert "secret" not in caplog.text


async def test_an_outage_ends_the_other_running_streams_as_well() -> None:
    going_on = asyncio.Event()
    attester = MemoryAttester()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(EVENTS[0])
        if b"first" in call.body:
            await going_on.wait()
            for _ in range(1000):
                await call.chunk(EVENTS[1])
        await call.end()

    async with running(script, attester) as setup, setup.post(b'{"first":1}') as first:
        await first.content.readexactly(len(EVENTS[0]))
        attester.gate.clear()
        second = await setup.post()
        attester.failure = GONE
        attester.gate.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await second.read()
        going_on.set()
        body = await read_cut_off(first)
        assert body.startswith(b'data: {"error": {')
        assert b"attestation_unavailable" in body
        attester.failure = None
        async with setup.post() as third:
            await third.read()
            assert third.status == 200


async def test_an_attestation_too_long_for_the_stream_is_fetched_by_id() -> None:
    attester = MemoryAttester(size=2000)
    async with running(streaming(BODY, DONE), attester, max_inband=1999) as setup, setup.post() as answer:
        assert await answer.read() == BODY + DONE
        async with setup.client.get(
            f"{setup.url}/quotary/v1/attestations/{answer.headers['Quotary-Output']}"
        ) as got:
            assert got.status == 200
            assert await got.read() == attester.attestations[id_of(answer)]
            assert got.headers["Content-Type"] == "application/vnd.quotary.attestation+cbor"
            assert got.headers["Cache-Control"] == "no-store"


async def test_a_fetch_waits_for_an_output_that_is_still_streaming() -> None:
    ending = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(EVENTS[0])
        await ending.wait()
        await call.chunk(DONE)
        await call.end()

    async with running(script) as setup, setup.post() as answer:
        url = f"{setup.url}/quotary/v1/attestations/{answer.headers['Quotary-Output']}"
        fetch = asyncio.create_task(setup.client.get(url).__aenter__())
        await answer.content.readexactly(len(EVENTS[0]))
        assert not fetch.done()
        ending.set()
        await answer.read()
        async with await fetch as got:
            assert await got.read() == setup.attester.attestations[id_of(answer)]


async def test_an_http_1_0_client_gets_the_same_body() -> None:
    async with running(streaming(BODY, DONE)) as setup:
        request = b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(REQUEST), REQUEST)
        head, _, body = (await setup.raw(request)).partition(b"\r\n\r\n")
        assert b"Transfer-Encoding" not in head
        assert strip(body)[0] == BODY + DONE


async def test_an_http_1_0_client_sees_that_an_answer_was_cut_off() -> None:
    """There the end of the connection is the end of the answer, unless it is a reset."""

    async def script(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
        await call.chunk(b"hello")
        await call.end()

    attester = MemoryAttester()
    attester.gate.clear()
    async with running(script, attester) as setup:
        request = b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(REQUEST), REQUEST)
        answer = asyncio.create_task(setup.raw(request))
        await attester.until_submitted(1)
        attester.failure = GONE
        attester.gate.set()
        with pytest.raises(ConnectionResetError):
            await answer


async def test_nothing_of_requests_and_outputs_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def script(call: Call) -> None:
        if b"cut" in call.body:
            await call.begin_stream()
            await call.chunk(delta_event("a secret answer"))
            call.writer.transport.abort()
        else:
            await call.stream(delta_event("a secret answer", finish="stop"), DONE)

    async with running(script) as setup:
        async with setup.post() as answer:
            await answer.read()
        async with setup.post(b'{"cut":1}') as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
            await setup.attester.recorded(id_of(answer))
        async with setup.post(headers={"Quotary-Nonce": "secret"}) as answer:
            assert answer.status == 400
        await setup.raw(b"POST /secret HTTP/1.1\r\nContent-Length: secret\r\n\r\n")
    assert any("ends in state complete" in record.getMessage() for record in caplog.records)
    for record in caplog.records:
        if record.name.startswith("quotary"):
            assert "secret" not in caplog.handler.format(record)
