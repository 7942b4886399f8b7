# SPDX-License-Identifier: Apache-2.0
"""How the attestation comes: as the client asks, and what becomes of answers where none can be made."""

from __future__ import annotations

import asyncio
import base64
import logging

import pytest
from memory_attester import GONE, MemoryAttester
from proxies import id_of, read_cut_off, running, sha
from scripted_engine import DONE, Call, Script, completion, delta_event

from quotary_attest.engine.errors import Busy, NotServed
from quotary_attest.serving.delivery import MAX_HEADER
from quotary_attest.serving.tap import NOT_ATTESTED_EVENT
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.records import State

BODY = delta_event("Hel") + delta_event("lo", finish="stop")
WHOLE = completion("Hello")
DEFERRED = {"Quotary-Deliver": "deferred"}
HEADER = {"Quotary-Deliver": "header"}
LINE = b'{"message":{"content":"Hello"},"done":true}\n'


def script_of(*pieces: bytes) -> Script:
    async def script(call: Call) -> None:
        await call.stream(*pieces)

    return script


async def whole(call: Call) -> None:
    await call.answer(WHOLE)


async def by_lines(call: Call) -> None:
    await call.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    await call.chunk(LINE)
    await call.end()


async def test_a_deferred_stream_ends_without_its_commit_and_carries_nothing() -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    async with running(script_of(BODY, DONE), attester) as setup, setup.post(headers=DEFERRED) as answer:
        assert await answer.read() == BODY + DONE
        assert "Quotary-Attested" not in answer.headers
        assert attester.outputs == {}
        attester.gate.set()
        output = await attester.recorded(id_of(answer))
        assert output.digests == {"body": sha(BODY + DONE), "text/0": sha(b"Hello")}
        assert output.state is State.COMPLETE
        assert setup.engine.calls[0].header("Quotary-Deliver") is None


async def test_a_deferred_whole_answer_goes_out_without_its_commit_and_carries_nothing() -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    async with running(whole, attester) as setup, setup.post(headers=DEFERRED) as answer:
        assert await answer.read() == WHOLE
        attester.gate.set()
        assert (await attester.recorded(id_of(answer))).digests["body"] == sha(WHOLE)


@pytest.mark.parametrize("script", [script_of(BODY, DONE), whole])
async def test_what_is_deferred_still_fails_closed_where_the_agent_refuses_at_once(script: Script) -> None:
    class Refusing(MemoryAttester):
        async def submit(self, output: object) -> object:  # type: ignore[override]
            raise Busy("full", hint="wait")

    async with running(script, Refusing()) as setup, setup.post(headers=DEFERRED) as answer:
        if script is whole:
            assert answer.status == 503
        else:
            assert b'"code": "overloaded"' in await read_cut_off(answer)


async def test_a_deferred_stream_that_ends_in_an_outage_fails_closed() -> None:
    attester = MemoryAttester()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(BODY)
        attester.failure = GONE
        await call.end()

    async with running(script, attester) as setup, setup.post(headers=DEFERRED) as answer:
        assert b"attestation_unavailable" in await read_cut_off(answer)


async def test_the_attestation_comes_in_a_header_field_if_asked_for() -> None:
    async with running(whole) as setup, setup.post(headers=HEADER) as answer:
        assert await answer.read() == WHOLE
        attestation = base64.b64decode(answer.headers["Quotary-Attestation"], validate=True)
        assert attestation == setup.attester.attestations[id_of(answer)]


@pytest.mark.parametrize("script", [script_of(BODY, DONE), whole])
async def test_an_attestation_that_fits_no_header_field_is_fetched_by_id(script: Script) -> None:
    attester = MemoryAttester(size=48 if script is not whole else MAX_HEADER * 3 // 4 + 1)
    async with running(script, attester) as setup, setup.post(headers=HEADER) as answer:
        assert await answer.read() == (WHOLE if script is whole else BODY + DONE)
        assert "Quotary-Attestation" not in answer.headers
        url = f"{setup.url}/quotary/v1/attestations/{answer.headers['Quotary-Output']}"
        async with setup.client.get(url) as got:
            assert await got.read() == attester.attestations[id_of(answer)]


async def test_the_longest_header_field_is_taken_by_clients_in_wide_use() -> None:
    attester = MemoryAttester(size=MAX_HEADER * 3 // 4)
    async with running(whole, attester) as setup, setup.post(headers=HEADER) as answer:
        assert len(answer.headers["Quotary-Attestation"]) == MAX_HEADER


async def test_a_header_field_of_the_engine_is_not_taken_for_ours() -> None:
    async def script(call: Call) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nQuotary-Attestation: AAAA\r\n"
        await call.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(WHOLE), WHOLE))

    async with running(script) as setup, setup.post() as answer:
        assert strip(await answer.read())[0] == WHOLE
        assert "Quotary-Attestation" not in answer.headers


@pytest.mark.parametrize("value", [["later"], ["inline", "deferred"], [""], ["Inline"], ["inline, deferred"]])
async def test_another_delivery_is_refused_and_reaches_no_engine(value: list[str]) -> None:
    headers = [("Quotary-Deliver", each) for each in value]
    async with running(whole) as setup, setup.post(headers=headers) as answer:
        assert answer.status == 400
        assert b"bad_delivery" in await answer.read()
        assert setup.engine.calls == []


# -- where nothing can be attested


@pytest.mark.parametrize(("script", "body"), [(script_of(BODY, DONE), BODY + DONE), (whole, WHOLE)])
async def test_answers_pass_marked_while_nothing_can_be_attested_if_so_configured(
    script: Script, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    attester = MemoryAttester(failure=GONE)
    async with running(script, attester, when_unavailable="pass") as setup, setup.post() as answer:
        assert answer.headers["Quotary-Attested"] == "no"
        assert await answer.read() == body
        assert attester.outputs == {}
        assert attester.reserved == set()
    assert f"output {answer.headers['Quotary-Output']} goes out unattested: Unavailable" in caplog.text


async def test_a_running_stream_that_cannot_be_attested_passes_with_a_mark_before_done() -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    script = script_of(BODY, DONE)
    async with running(script, attester, when_unavailable="pass") as setup, setup.post() as answer:
        assert await answer.content.readexactly(len(BODY)) == BODY
        attester.failure = GONE
        attester.gate.set()
        assert await answer.content.read() == NOT_ATTESTED_EVENT + DONE


async def test_a_stream_runs_on_through_an_outage_and_is_attested_if_it_is_over_at_the_end() -> None:
    attester = MemoryAttester()
    going_on, ending = asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("Hel"))
        await going_on.wait()
        await call.chunk(delta_event("lo", finish="stop"))
        await ending.wait()
        await call.chunk(DONE)
        await call.end()

    async with running(script, attester, when_unavailable="pass") as setup, setup.post() as answer:
        await answer.content.readexactly(len(delta_event("Hel")))
        attester.failure = GONE
        going_on.set()
        await answer.content.readexactly(len(delta_event("lo", finish="stop")))
        attester.failure = None
        ending.set()
        attestation = strip(BODY + await answer.content.read())[1]
        assert attestation == attester.attestations[id_of(answer)]


@pytest.mark.parametrize("failure", [GONE, Busy("full", hint="wait"), NotServed("unknown")])
async def test_a_whole_answer_that_cannot_be_attested_passes_marked(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    caplog.set_level(logging.WARNING)
    async with running(whole, attester, when_unavailable="pass") as setup:
        request = asyncio.create_task(setup.post().__aenter__())
        await attester.until_submitted(1)
        attester.failure = failure
        attester.gate.set()
        async with await request as answer:
            assert await answer.read() == WHOLE
            assert answer.headers["Quotary-Attested"] == "no"
    assert f"goes out unattested: {type(failure).__name__}" in caplog.text


async def test_lines_that_cannot_be_attested_have_no_place_for_a_mark_and_are_cut_off() -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    path = "/api/chat"
    async with running(by_lines, attester, when_unavailable="pass") as setup, setup.post(path=path) as answer:
        assert await answer.content.readexactly(len(LINE)) == LINE
        attester.failure = GONE
        attester.gate.set()
        assert b'"code": "attestation_unavailable"' in await read_cut_off(answer)


async def test_by_default_nothing_goes_out_unattested() -> None:
    async with running(whole, MemoryAttester(failure=GONE)) as setup, setup.post() as answer:
        assert answer.status == 503
        assert setup.engine.calls == []
