# SPDX-License-Identifier: Apache-2.0
"""The middleware inside a real server: what it hands out verifies, and what must not be attested is not."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from agents import judge, running
from asgi_servers import CHAT, served, uvicorn_on
from memory_attester import GONE, MemoryAttester
from proxies import id_of, read_cut_off, sha
from scripted_engine import DONE, chunk_event, completion, delta_event
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from tpms import Tpm
from yarl import URL

from quotary_attest.agent import Agent
from quotary_attest.engine.errors import Busy
from quotary_attest.serving.asgi import Attest, Settings
from quotary_attest.serving.link.door import LinkConfig, LinkDoor
from quotary_attest.serving.workers import bind_shared
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.records import Link, Output, Source, State

BODY = delta_event("Hel") + delta_event("lo", finish="stop") + DONE
STREAM = b'{"model":"m","stream":true,"messages":[]}'


@pytest.fixture
async def agent(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Agent]:
    async with running(tpm, tmp_path / "state") as agent:
        yield agent


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
        await asyncio.sleep(0)


def events(*parts: bytes, status: int = 200) -> Response:
    return StreamingResponse(pieces(*parts), status, media_type="text/event-stream")


def whole(body: bytes, status: int = 200, **headers: str) -> Response:
    return Response(body, status, headers, media_type="application/json")


async def script(request: Request) -> Response:
    """Stream, or answer whole, as asked."""
    if b'"stream":true' in await request.body():
        return events(BODY[:30], BODY[30:90], BODY[90:])
    return whole(completion("Hello"))


async def test_plain_and_streamed_answers_verify_and_say_that_middleware_reported_them(
    agent: Agent, tmp_path: Path
) -> None:
    async with served(agent, script, tmp_path, model="llama", engine="uvicorn") as server:
        for request, expected in ((STREAM, BODY), (b"{}", completion("Hello"))):
            async with server.post(request, headers={"Quotary-Nonce": "5a" * 16}) as answer:
                got = await answer.read()
            assert "Quotary-Attested" not in answer.headers
            body, attestation = strip(got)
            assert body == expected
            assert attestation is not None
            for held in (body, b"Hello"):
                judge(attestation, held, agent.origin, request=request, nonce=b"Z" * 16)
            record = Output.decode(Attestation.decode(attestation).record)
            assert format_output_id(record.output_id) == answer.headers["Quotary-Output"]
            assert record.source is Source.MIDDLEWARE
            assert record.model is not None
            assert (record.model.name, record.model.link) == ("llama", Link.CONFIGURED)
            assert record.context["engine"] == "uvicorn"
            assert record.context["endpoint"] == CHAT
            length = answer.headers.get("Content-Length")
            assert length == (None if expected is BODY else str(len(got)))


async def test_the_official_client_reads_what_carries_an_attestation(agent: Agent, tmp_path: Path) -> None:
    async with (
        served(agent, script, tmp_path, model="llama") as server,
        openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="k") as client,
    ):
        messages: Any = [{"role": "user", "content": "hi"}]
        answer = await client.chat.completions.create(model="m", messages=messages)
        assert answer.choices[0].message.content == "Hello"
        assert answer.model_extra is not None
        judge(base64.b64decode(answer.model_extra["attestation"]), b"Hello", agent.origin)
        stream = await client.chat.completions.create(
            model="m", messages=messages, stream=True, extra_body={"x": '"stream":true'}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].model_extra is not None
        judge(base64.b64decode(chunks[-1].model_extra["attestation"]), b"Hello", agent.origin)


async def test_its_own_paths_are_answered_before_any_guard_of_the_application(
    agent: Agent, tmp_path: Path
) -> None:
    async def guarded(request: Request) -> Response:
        if request.headers.get("authorization") != "Bearer right":
            return JSONResponse({"error": "who are you"}, 401)
        return await script(request)

    async with served(agent, guarded, tmp_path) as server:
        async with server.post(headers={"Authorization": "Bearer right"}) as answer:
            attestation = strip(await answer.read())[1]
        seen = len(server.requests)
        async with server.get(f"/quotary/v1/attestations/{answer.headers['Quotary-Output']}") as got:
            assert await got.read() == attestation
            assert got.headers["Cache-Control"] == "no-store"
        alias = "/quotary/v1/attestations/chatcmpl-1"
        async with server.get(alias, headers={"Authorization": "Bearer right"}) as got:
            assert await got.read() == attestation
        async with server.get("/quotary/v1/checkpoint") as got:
            assert (await got.read()).startswith(agent.origin.encode())
        for path, status, code in (
            (alias, 404, "unknown_output"),
            ("/quotary/v1/attestations/out_" + "0" * 48, 404, "unknown_output"),
            ("/quotary/v1/attestations/out_0/", 400, "bad_output_id"),
            ("/quotary/v1/attestations/", 400, "bad_output_id"),
            ("/quotary", 404, "not_found"),
            ("/quotary/v1/tile/0/999", 404, "not_found"),
            ("/quotary/v1/../docs", 404, "not_found"),
        ):
            async with server.client.get(URL(server.url + path, encoded=True)) as got:
                assert (got.status, (await got.json())["error"]["code"]) == (status, code)
                assert got.headers["Quotary-Attested"] == "no"
        async with server.client.post(server.url + "/quotary/v1/checkpoint") as got:
            assert got.status == 405
        async with server.client.head(server.url + "/quotary/v1/checkpoint") as got:
            assert got.status == 200
            assert int(got.headers["Content-Length"]) > 0
        assert len(server.requests) == seen


@pytest.mark.parametrize("status", [401, 403])
async def test_an_answer_that_says_who_may_not_ask_is_never_attested(status: int, tmp_path: Path) -> None:
    attester = MemoryAttester()

    async def refuse(request: Request) -> Response:
        await request.body()
        return whole(b'{"error":{}}', status)

    async with served(attester, refuse, tmp_path) as server, server.post() as answer:
        assert answer.status == status
        assert await answer.read() == b'{"error":{}}'
        assert answer.headers["Quotary-Attested"] == "no"
        assert "Quotary-Output" not in answer.headers
        assert not attester.submitted


async def test_requests_that_leave_no_record_use_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quotary_attest.serving.link.connection.STOCK", 8)

    async def guarded(request: Request) -> Response:
        return whole(b"{}", 401) if request.headers.get("x") else await script(request)

    attester = MemoryAttester()
    async with served(attester, guarded, tmp_path) as server:
        for headers in ({"x": "1"}, {"Quotary-Nonce": "nonsense"}):
            for _ in range(20):
                async with server.post(headers=headers) as answer:
                    assert answer.headers["Quotary-Attested"] == "no"
        attester.failure = GONE
        refused = 0
        while refused < 20:
            async with server.post() as answer:
                refused += answer.status == 503
        attester.failure = None
        while answer.status != 200:
            answer = await server.post()  # the outage's end is told within moments
            await answer.read()
        async with server.post() as answer:
            assert strip(await answer.read())[1] is not None


@pytest.mark.parametrize(
    ("answer_with", "state"),
    [
        (lambda: whole(b'{"error":{"message":"x"}}', 400), State.ENGINE_ERROR),
        (lambda: whole(b'{"error":{"message":"x"}}', HTTPStatus.NOT_FOUND), State.ENGINE_ERROR),
        (lambda: whole(b'{"error":{"message":"x"}}'), State.ENGINE_ERROR),
        (lambda: events(chunk_event(error={"code": 500}), DONE), State.ENGINE_ERROR),
        (lambda: events(delta_event("x")), State.ENGINE_TRUNCATED),
        (events, State.ENGINE_TRUNCATED),
        (lambda: events(delta_event("x", finish="stop")), State.COMPLETE),
        (lambda: events(BODY), State.COMPLETE),
        (lambda: whole(b"{"), State.ENGINE_TRUNCATED),
        (lambda: PlainTextResponse("Internal Server Error", 500), State.ENGINE_ERROR),
    ],
)
async def test_the_record_says_how_an_answer_ended(answer_with: Any, state: State, tmp_path: Path) -> None:
    attester = MemoryAttester()

    async def run(request: Request) -> Response:
        await request.body()
        return answer_with()  # type: ignore[no-any-return]

    async with served(attester, run, tmp_path) as server, server.post() as answer:
        body, _ = strip(await answer.read())
        record = await attester.recorded(id_of(answer))
        assert record.state is state
        assert record.digests["body"] == sha(body)
        assert record.context["status"] == answer.status


async def test_an_application_that_breaks_off_leaves_an_answer_without_its_end(tmp_path: Path) -> None:
    attester = MemoryAttester()

    async def breaking() -> AsyncIterator[bytes]:
        yield delta_event("Hel")
        raise ConnectionAbortedError("the engine died")

    async def run(request: Request) -> Response:
        await request.body()
        return StreamingResponse(breaking(), media_type="text/event-stream")

    async with served(attester, run, tmp_path) as server:
        answer = await server.post()
        assert await read_cut_off(answer) == delta_event("Hel")
        answer.close()
        record = await attester.recorded(id_of(answer))
        assert (record.state, record.digests["body"]) == (State.ENGINE_TRUNCATED, sha(delta_event("Hel")))


async def test_a_client_that_goes_away_is_recorded_with_what_it_was_sent(tmp_path: Path) -> None:
    attester, stopped = MemoryAttester(), asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield delta_event("Hel")
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async def run(request: Request) -> Response:
        await request.body()
        return StreamingResponse(endless(), media_type="text/event-stream")

    async with served(attester, run, tmp_path) as server:
        answer = await server.post(STREAM)
        assert await answer.content.readany() == delta_event("Hel")
        answer.close()
        record = await attester.recorded(id_of(answer))
        assert (record.state, record.digests["body"]) == (State.CLIENT_GONE, sha(delta_event("Hel")))
        async with asyncio.timeout(10):
            await stopped.wait()


async def test_an_application_that_looks_at_nothing_is_stopped_by_its_next_send(tmp_path: Path) -> None:
    attester, more, met = MemoryAttester(), asyncio.Event(), asyncio.get_running_loop().create_future()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await receive()
        kind = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        await send({"type": "http.response.body", "body": delta_event("Hel"), "more_body": True})
        await more.wait()
        try:
            await send({"type": "http.response.body", "body": DONE, "more_body": False})
        except OSError as error:
            met.set_result(error)
            raise

    path = tmp_path / "link.sock"
    async with (
        LinkDoor(attester, LinkConfig(path)),
        uvicorn_on(Attest(app, Settings(path))) as url,
        aiohttp.ClientSession() as client,
    ):
        answer = await client.post(url + CHAT, data=STREAM)
        assert await answer.content.readany() == delta_event("Hel")
        answer.close()
        record = await attester.recorded(id_of(answer))
        more.set()
        assert isinstance(await met, OSError)
        assert (record.state, record.digests["body"]) == (State.CLIENT_GONE, sha(delta_event("Hel")))


async def test_nothing_reaches_the_application_while_the_agent_is_gone(tmp_path: Path) -> None:
    async with served(MemoryAttester(), script, tmp_path, agent=False) as server:
        async with server.post() as answer:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "attestation_unavailable"
            assert answer.headers["Quotary-Attested"] == "no"
            assert answer.headers["Retry-After"] == "10"
        async with server.post(path="/v1/messages") as answer:
            assert (await answer.json())["type"] == "error"
        assert not server.requests
        async with server.get("/health") as answer:
            assert answer.headers["Quotary-Attested"] == "no"
            assert answer.status == 200


async def test_answers_pass_unattested_and_marked_where_the_operator_lets_them(tmp_path: Path) -> None:
    async with served(MemoryAttester(), script, tmp_path, agent=False, when_unavailable="pass") as server:
        for request, expected in ((STREAM, BODY), (b"{}", completion("Hello"))):
            async with server.post(request) as answer:
                assert await answer.read() == expected
                assert answer.headers["Quotary-Attested"] == "no"


async def test_a_stream_that_cannot_be_attested_any_more_ends_in_an_error_and_no_done(tmp_path: Path) -> None:
    attester, more, stopped = MemoryAttester(), asyncio.Event(), asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield delta_event("Hel")
            await more.wait()
            while True:
                yield delta_event("lo")
                await asyncio.sleep(0.005)
        finally:
            stopped.set()

    async def run(request: Request) -> Response:
        await request.body()
        return StreamingResponse(parts(), media_type="text/event-stream")

    async with served(attester, run, tmp_path) as server:
        answer = await server.post(STREAM)
        assert await answer.content.readany() == delta_event("Hel")
        attester.failure = GONE
        more.set()
        rest = await read_cut_off(answer)
        answer.close()
        assert b"[DONE]" not in rest
        assert b'"code": "attestation_unavailable"' in rest.split(b"\n\n")[-2]
        async with asyncio.timeout(10):
            await stopped.wait()


@pytest.mark.parametrize("request_body", [STREAM, b"{}"], ids=["streamed", "whole"])
async def test_a_commit_that_fails_at_the_end_is_never_passed_over(
    request_body: bytes, tmp_path: Path
) -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    async with served(attester, script, tmp_path) as server:
        sending = asyncio.create_task(server.client.post(server.url + CHAT, data=request_body))
        await attester.until_submitted(1)
        attester.failure = GONE
        attester.gate.set()
        answer = await sending
        if request_body == STREAM:
            assert b"[DONE]" not in await read_cut_off(answer)
        else:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "attestation_unavailable"
        answer.close()


async def test_a_full_queue_is_told_before_the_answer_begins(tmp_path: Path) -> None:
    attester = MemoryAttester()

    async def busy(_: Any) -> Any:
        raise Busy("too many")

    attester.submit = busy  # type: ignore[method-assign]
    async with served(attester, script, tmp_path) as server, server.post() as answer:
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == "overloaded"


async def test_what_the_client_asks_for_is_what_it_gets(tmp_path: Path) -> None:
    attester = MemoryAttester()
    async with served(attester, script, tmp_path) as server:
        async with server.post(headers={"Quotary-Deliver": "header"}) as answer:
            assert await answer.read() == completion("Hello")
            given = base64.b64decode(answer.headers["Quotary-Attestation"])
            assert given == attester.attestations[id_of(answer)]
        attester.gate.clear()
        async with server.post(STREAM, headers={"Quotary-Deliver": "deferred"}) as answer:
            assert await answer.read() == BODY  # although no commit ends
        attester.gate.set()
        await attester.recorded(id_of(answer))
        for name in ("Quotary-Deliver", "Quotary-Nonce"):
            async with server.post(headers={name: "nonsense"}) as answer:
                assert answer.status == 400
                assert answer.headers["Quotary-Attested"] == "no"


async def test_an_answer_begun_before_its_request_was_read_passes_unattested(tmp_path: Path) -> None:
    attester = MemoryAttester()

    async def run(request: Request) -> Response:
        return whole(b"{}")

    async with served(attester, run, tmp_path) as server, server.post(b"x") as answer:
        assert await answer.read() == b"{}"
        assert answer.headers["Quotary-Attested"] == "no"
    assert not attester.submitted


@pytest.mark.parametrize("when_unavailable", ["refuse", "pass"])
async def test_a_coded_answer_is_refused_or_passes_unattested(tmp_path: Path, when_unavailable: str) -> None:
    attester, asked = MemoryAttester(), {"Accept-Encoding": "gzip"}

    async def run(request: Request) -> Response:
        assert request.headers["accept-encoding"] == "identity"
        await request.body()
        return whole(b"\x1f\x8b", **{"Content-Encoding": "x-own"})

    async with (
        served(attester, run, tmp_path, when_unavailable=when_unavailable) as server,
        server.post(b"x", headers=asked) as answer,
    ):
        assert answer.headers["Quotary-Attested"] == "no"
        if when_unavailable == "refuse":
            assert answer.status == 502
            assert (await answer.json())["error"]["code"] == "upstream_coding"
        else:
            assert await answer.read() == b"\x1f\x8b"
    assert not attester.submitted


async def test_a_long_answer_streams_and_is_fetched_by_id(tmp_path: Path) -> None:
    attester, body = MemoryAttester(), completion("x" * 5000)

    async def run(request: Request) -> Response:
        await request.body()
        return StreamingResponse(
            pieces(body[:1000], body[1000:3000], body[3000:]), media_type="application/json"
        )

    async with served(attester, run, tmp_path, max_held=2000) as server, server.post() as answer:
        assert await answer.read() == body
        assert (await attester.recorded(id_of(answer))).digests["body"] == sha(body)


async def test_fields_that_the_application_forges_or_that_a_span_makes_wrong_are_dropped(
    tmp_path: Path,
) -> None:
    async def run(request: Request) -> Response:
        await request.body()
        forged = {"Quotary-Output": "out_" + "0" * 48, "Quotary-Attested": "yes", "Content-Digest": "x"}
        return whole(completion("Hello"), **forged)

    async with served(MemoryAttester(), run, tmp_path) as server:
        async with server.post() as answer:
            assert answer.headers.getall("Quotary-Output") != ["out_" + "0" * 48]
            assert "Quotary-Attested" not in answer.headers
            assert "Content-Digest" not in answer.headers
        async with server.get("/anything") as answer:
            assert answer.headers.getall("Quotary-Attested") == ["no"]
            assert "Quotary-Output" not in answer.headers


async def test_the_request_is_committed_to_as_it_arrived_in_pieces(agent: Agent, tmp_path: Path) -> None:
    request = json.dumps({"messages": [], "padding": "x" * 300_000}).encode()

    async def sent() -> AsyncIterator[bytes]:
        for at in range(0, len(request), 70_000):
            yield request[at : at + 70_000]

    async with served(agent, script, tmp_path) as server:
        async with server.client.post(server.url + CHAT, data=sent()) as answer:
            body, attestation = strip(await answer.read())
        assert attestation is not None
        judge(attestation, body, agent.origin, request=request)


async def test_a_new_agent_is_found_without_a_restart_of_the_server(tmp_path: Path) -> None:
    async with served(MemoryAttester(), script, tmp_path, agent=False) as server:
        async with server.post() as answer:
            assert answer.status == 503
        async with LinkDoor(MemoryAttester(), LinkConfig(server.socket)), asyncio.timeout(10):
            while True:
                async with server.post() as answer:
                    if answer.status == 200:
                        assert strip(await answer.read())[1] is not None
                        break


APP = """
import os
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from quotary_attest.serving.asgi import Attest

async def answer(request):
    await request.body()
    return JSONResponse({"id": "x", "process": os.getpid(), "choices": []})

app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
app.add_middleware(Attest)
"""


async def test_each_process_of_a_server_has_its_own_link_and_all_attest_into_one_log(
    agent: Agent, tmp_path: Path
) -> None:
    (tmp_path / "two_processes.py").write_text(APP)
    path = tmp_path / "link.sock"
    (listener,) = bind_shared("127.0.0.1", 0, 1)
    async with LinkDoor(agent, LinkConfig(path)) as door:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "two_processes:app", "--workers", "2"),
            *("--fd", str(listener.fileno()), "--log-level", "critical"),
            cwd=tmp_path,
            env={**os.environ, "QUOTARY_SOCKET": str(path), "PYTHONPATH": str(tmp_path)},
            pass_fds=(listener.fileno(),),
        )
        try:
            async with asyncio.timeout(60):
                while len(door._connections) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            seen: set[int] = set()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}{CHAT}"
            async with asyncio.timeout(60):
                while len(seen) < 2:
                    connector = aiohttp.TCPConnector(force_close=True)
                    async with aiohttp.ClientSession(connector=connector) as client:
                        posts = [client.post(url, data=b"{}") for _ in range(8)]
                        for answer in await asyncio.gather(*posts):
                            body, attestation = strip(await answer.read())
                            assert attestation is not None
                            judge(attestation, body, agent.origin, request=b"{}")
                            seen.add(json.loads(body)["process"])
        finally:
            listener.close()
            process.terminate()
            await process.wait()
