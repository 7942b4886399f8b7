# SPDX-License-Identifier: Apache-2.0
"""Answers that are not streams, and what passes through, by the attesting proxy."""

from __future__ import annotations

import asyncio
import gzip
import json

import aiohttp
import pytest
from memory_attester import GONE, MemoryAttester
from proxies import CHAT, REQUEST, Setup, id_of, read_cut_off, running, sha
from scripted_engine import Call, Script, completion, scripted_engine
from yarl import URL

from quotary_attest.engine.errors import Busy, NotServed
from quotary_attest.serving.proxy import Proxy, ProxyConfig
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.records import State


def answering(body: bytes, kind: bytes = b"application/json", status: bytes = b"200 OK") -> Script:
    async def script(call: Call) -> None:
        await call.answer(body, kind, status)

    return script


async def error_of(answer: aiohttp.ClientResponse) -> dict[str, str]:
    """Return the typed error of an answer of the proxy's own."""
    assert answer.headers["Content-Type"].startswith("application/json")
    value = json.loads(await answer.read())
    assert set(value) == {"error"}
    assert {"message", "type", "code"} <= set(value["error"])
    error: dict[str, str] = value["error"]
    return error


async def test_a_json_answer_carries_its_attestation_and_the_right_length() -> None:
    body = completion("Hello") + b"\n"
    async with running(answering(body), model="weights") as setup, setup.post() as answer:
        carried = await answer.read()
        assert answer.headers.getall("Content-Length") == [str(len(carried))]
        assert strip(carried) == (body, setup.attester.attestations[id_of(answer)])
        output = setup.attester.outputs[id_of(answer)]
        assert output.digests == {"body": sha(body), "text/0": sha(b"Hello")}
        assert output.state is State.COMPLETE
        assert output.context == {"endpoint": CHAT, "prompt_tokens": 3, "completion_tokens": 2, "status": 200}


async def test_a_chunked_json_answer_is_held_and_carries_its_attestation() -> None:
    body = completion("Hello")

    async def script(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n")
        await call.write(b"Transfer-Encoding: chunked\r\n\r\n")
        await call.chunk(body[:10])
        await call.chunk(body[10:])
        await call.end()

    async with running(script) as setup, setup.post() as answer:
        assert strip(await answer.read()) == (body, setup.attester.attestations[id_of(answer)])


async def test_completions_are_attested_too() -> None:
    body = json.dumps({"id": "1", "choices": [{"index": 0, "text": "abc", "finish_reason": "stop"}]}).encode()
    async with running(answering(body)) as setup, setup.post(path="/v1/completions?x=%2F") as answer:
        assert strip(await answer.read())[0] == body
        assert setup.attester.outputs[id_of(answer)].digests == {"body": sha(body), "text/0": sha(b"abc")}
        assert setup.engine.calls[0].target == "/v1/completions?x=%2F"


async def test_a_long_json_answer_is_read_and_attested_off_the_loop() -> None:
    body = completion("x" * 400_000)
    async with running(answering(body)) as setup, setup.post() as answer:
        assert strip(await answer.read()) == (body, setup.attester.attestations[id_of(answer)])


async def test_a_json_answer_longer_than_is_held_streams_and_is_fetched_by_id() -> None:
    body = completion("x" * 300_000)
    attester = MemoryAttester()
    attester.gate.clear()
    for script in (answering(body), chunked(body)):
        attester.gate.clear()
        async with running(script, attester, max_held=100_000) as setup, setup.post() as answer:
            assert await answer.content.readexactly(len(body)) == body
            end = asyncio.create_task(answer.content.read())
            assert not end.done()
            attester.gate.set()
            assert await end == b""
            assert attester.outputs[id_of(answer)].digests == {"body": sha(body)}
            assert await attester.fetch(id_of(answer), 1)


def chunked(body: bytes) -> Script:
    async def script(call: Call) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        await call.write(head)
        await call.chunk(body)
        await call.end()

    return script


async def test_a_long_answer_that_cannot_be_attested_does_not_end_properly() -> None:
    body = completion("x" * 300_000)
    attester = MemoryAttester()
    attester.gate.clear()
    async with running(answering(body), attester, max_held=100_000) as setup, setup.post() as answer:
        await answer.content.readexactly(len(body))
        attester.failure = GONE
        attester.gate.set()
        assert await read_cut_off(answer) == b""


@pytest.mark.parametrize(
    ("body", "kind", "status", "state"),
    [
        (
            b'{"error":{"message":"bad","code":400}}',
            b"application/json",
            b"400 Bad Request",
            State.ENGINE_ERROR,
        ),
        (b'{"error":{"message":"bad"}}', b"application/json", b"200 OK", State.ENGINE_ERROR),
        (b'{"detail":"Not Found"}', b"application/json", b"404 Not Found", State.ENGINE_ERROR),
        (b'{"choices":', b"application/json", b"200 OK", State.ENGINE_TRUNCATED),
        (b"[" * 200_000, b"application/json", b"200 OK", State.ENGINE_TRUNCATED),
        (b"[1]", b"application/json", b"200 OK", State.COMPLETE),
        (b"{}", b"application/json", b"200 OK", State.COMPLETE),
        (b"", b"application/json", b"500 Oops", State.ENGINE_ERROR),
        (b"Internal Server Error", b"text/plain", b"500 Internal Server Error", State.ENGINE_ERROR),
        (b"some text", b"text/plain", b"200 OK", State.COMPLETE),
        (b'{"a":1}', b"text/plain", b"200 OK", State.COMPLETE),
    ],
)
async def test_every_answer_of_the_engine_is_attested_with_its_state(
    body: bytes, kind: bytes, status: bytes, state: State
) -> None:
    async with running(answering(body, kind, status)) as setup, setup.post() as answer:
        got = await answer.read()
        assert strip(got)[0] == body if kind == b"application/json" else got == body
        output = setup.attester.outputs[id_of(answer)]
        assert (output.state, output.digests["body"]) == (state, sha(body))
        assert answer.status == int(status[:3])
        assert answer.reason == status[4:].decode()


async def test_an_answer_of_unknown_length_and_type_streams_and_is_attested() -> None:
    async def script(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n")
        await call.write(b'{"a":1}\n{"b":2}\n')
        call.writer.close()

    async with running(script) as setup, setup.post() as answer:
        assert await answer.read() == b'{"a":1}\n{"b":2}\n'
        assert setup.attester.outputs[id_of(answer)].digests == {"body": sha(b'{"a":1}\n{"b":2}\n')}


async def test_an_answer_with_a_content_coding_is_refused_or_passes_and_says_that_it_is_not_attested() -> (
    None
):
    body = gzip.compress(completion("Hello"))

    async def script(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n")
        await call.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)

    asked = {"Accept-Encoding": "gzip, br"}
    async with running(script) as setup, setup.post(headers=asked) as answer:
        assert answer.status == 502
        assert (await answer.json())["error"]["code"] == "upstream_coding"
        assert answer.headers["Quotary-Attested"] == "no"
        assert setup.attester.abandoned == {id_of(answer)}
    async with running(script, when_unavailable="pass") as setup, setup.post(headers=asked) as answer:
        assert await answer.read() == body
        assert answer.headers["Quotary-Attested"] == "no"
        assert answer.headers["Content-Encoding"] == "gzip"
        assert setup.attester.abandoned == {id_of(answer)}
        assert setup.attester.outputs == {}
        assert setup.engine.calls[0].header("Accept-Encoding") == "identity"


async def test_an_engine_that_breaks_off_a_held_answer_is_a_bad_gateway() -> None:
    async def script(call: Call) -> None:
        await call.write(
            b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"a"'
        )
        call.writer.close()

    async with running(script) as setup, setup.post() as answer:
        assert answer.status == 502
        assert answer.headers["Quotary-Attested"] == "no"
        assert (await error_of(answer))["code"] == "upstream_failed"
        assert setup.attester.abandoned == {id_of(answer)}


async def test_a_request_is_sent_once_even_if_the_engine_drops_it() -> None:
    async def script(call: Call) -> None:
        call.writer.close()

    async with running(script) as setup, setup.post() as answer:
        assert answer.status == 502
        assert (await error_of(answer))["code"] == "upstream_failed"
        assert len(setup.engine.calls) == 1


async def test_an_engine_that_is_not_there_is_a_bad_gateway() -> None:
    async with scripted_engine(answering(b"{}")) as engine:
        url = engine.url
    async with Proxy(MemoryAttester(), ProxyConfig(url)) as proxy, aiohttp.ClientSession() as client:
        port = await proxy.listen("127.0.0.1", 0)
        for path in (CHAT, "/v1/models"):
            async with client.post(f"http://127.0.0.1:{port}{path}", data=REQUEST) as answer:
                assert answer.status == 502
                assert (await error_of(answer))["code"] == "upstream_unreachable"


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (GONE, 503, "attestation_unavailable"),
        (Busy("full"), 503, "overloaded"),
        (NotServed("none"), 503, "model_not_measured"),
        (KeyError("a secret"), 500, "internal_error"),
    ],
)
async def test_what_cannot_be_attested_is_not_handed_out(failure: Exception, status: int, code: str) -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    async with running(answering(completion("a secret")), attester) as setup:
        request = asyncio.create_task(setup.post().__aenter__())
        await attester.until_submitted(1)
        attester.failure = failure
        attester.gate.set()
        async with await request as answer:
            assert answer.status == status
            assert answer.headers["Quotary-Attested"] == "no"
            assert (await error_of(answer))["code"] == code
            assert b"secret" not in await answer.read()


async def test_while_nothing_can_be_attested_requests_are_refused_and_never_reach_the_engine() -> None:
    attester = MemoryAttester(failure=GONE)
    async with running(answering(b"{}"), attester) as setup, setup.post() as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "10"
        assert "Quotary-Output" in answer.headers
        assert (await error_of(answer))["type"] == "server_error"
        assert setup.engine.calls == []
        async with setup.client.get(setup.url + "/v1/models") as models:
            assert models.status == 200


@pytest.mark.parametrize(
    "nonce", ["", "00", "00" * 7, "00" * 65, "0" * 17, "zz" * 8, "AB" * 8, " " + "00" * 8 + " x"]
)
async def test_a_nonce_of_another_form_is_refused(nonce: str) -> None:
    async with running(answering(b"{}")) as setup, setup.post(headers={"Quotary-Nonce": nonce}) as answer:
        assert answer.status == 400
        assert (await error_of(answer))["code"] == "bad_nonce"
        assert setup.engine.calls == []


@pytest.mark.parametrize("size", [8, 64])
async def test_a_nonce_is_bound_and_not_passed_on(size: int) -> None:
    async with running(answering(b"{}")) as setup:
        async with setup.post(headers={"Quotary-Nonce": "ab" * size}) as answer:
            assert setup.attester.outputs[id_of(answer)].nonce == b"\xab" * size
        assert setup.engine.calls[0].header("Quotary-Nonce") is None


async def test_two_nonces_are_refused() -> None:
    async with running(answering(b"{}")) as setup:
        headers = [("Quotary-Nonce", "00" * 8), ("Quotary-Nonce", "11" * 8)]
        async with setup.post(headers=headers) as answer:
            assert answer.status == 400


async def test_a_request_that_is_too_long_is_refused() -> None:
    async with running(answering(b"{}"), max_request=1000) as setup, setup.post(b"x" * 1001) as answer:
        assert answer.status == 413
        assert (await error_of(answer))["code"] == "request_too_large"
        assert setup.engine.calls == []


async def test_a_long_request_is_committed_to_and_arrives_whole() -> None:
    body = b'{"x":"' + b"y" * 2_000_000 + b'"}'
    async with running(answering(b'{"a":1}')) as setup, setup.post(body) as answer:
        output = setup.attester.outputs[id_of(answer)]
        assert setup.engine.calls[0].body == body
        assert output.request_key is not None
        assert len(output.request_key) == 32
    async with running(answering(b'{"a":1}')) as setup, setup.post(body) as answer:
        assert setup.attester.outputs[id_of(answer)].request_key != output.request_key


async def test_a_client_that_goes_away_before_its_json_answer_is_recorded_with_nothing_sent() -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        begun.set()
        await call.until_gone()
        stopped.set()

    async with running(script) as setup:
        request = asyncio.create_task(setup.post().__aenter__())
        await begun.wait()
        (output_id,) = setup.attester.reserved
        request.cancel()
        await asyncio.wait_for(stopped.wait(), 10)
        output = await setup.attester.recorded(output_id)
        assert (output.state, output.digests) == (State.CLIENT_GONE, {"body": sha(b"")})


async def test_a_client_that_goes_away_before_the_engine_answers_leaves_no_record() -> None:
    stopped = asyncio.Event()

    async def script(call: Call) -> None:
        await call.until_gone()
        stopped.set()

    async with running(script) as setup:
        request = asyncio.create_task(setup.post().__aenter__())
        while not setup.engine.calls:
            await asyncio.wait([request], timeout=0.01)
        request.cancel()
        await asyncio.wait_for(stopped.wait(), 10)
        assert setup.attester.submitted == 0
        assert len(setup.attester.abandoned) == 1


# -- what passes through


async def test_other_paths_pass_through_with_method_query_headers_and_body_and_say_so() -> None:
    async def script(call: Call) -> None:
        head = b"HTTP/1.1 201 Made\r\nContent-Type: text/x\r\nX-A: 1\r\nX-A: 2\r\nSet-Cookie: a=b\r\n"
        head += b"Content-Length: 2\r\n"
        await call.write(
            head + b"Server: engine\r\nQuotary-Attested: yes\r\nQuotary-Output: forged\r\n\r\nok"
        )

    async with running(script) as setup:
        url = URL(f"{setup.url}/v1/models/embed/%41%2F?q=%20a&q=b", encoded=True)
        async with setup.client.put(url, data=b"body", headers={"X-B": "é", "Cookie": "c=d"}) as answer:
            assert (answer.status, answer.reason, await answer.read()) == (201, "Made", b"ok")
            assert answer.headers.getall("X-A") == ["1", "2"]
            assert answer.headers.getall("Set-Cookie") == ["a=b"]
            assert answer.headers["Server"] == "engine"
            assert answer.headers.getall("Quotary-Attested") == ["no"]
            assert "Quotary-Output" not in answer.headers
        async with setup.client.get(setup.url + "/v1/models") as answer:
            await answer.read()
        first, second = setup.engine.calls
        assert (first.method, first.body, first.header("Content-Length")) == ("PUT", b"body", "4")
        assert first.target == "/v1/models/embed/%41%2F?q=%20a&q=b"
        assert first.header("Cookie") == "c=d"
        assert second.header("Cookie") in (None, "a=b")
    assert setup.attester.outputs == {}


async def test_hop_by_hop_fields_stay_on_their_hop_in_both_directions() -> None:
    async def script(call: Call) -> None:
        await call.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: X-Hop\r\nX-Hop: 1\r\n"
        )
        await call.write(b"Keep-Alive: timeout=5\r\nX-Keep: 1\r\nTrailer: X-T\r\nContent-Length: 2\r\n\r\n{}")

    async with running(script) as setup:
        sent = {
            "Connection": "keep-alive, X-Mine",
            "X-Mine": "1",
            "TE": "trailers",
            "Upgrade": "h2c",
            "X-Keep": "1",
        }
        for path in (CHAT, "/v1/models"):
            async with setup.post(path=path, headers=sent) as answer:
                await answer.read()
                assert answer.headers["X-Keep"] == "1"
                for name in ("X-Hop", "Keep-Alive", "Trailer"):
                    assert name not in answer.headers
        for call in setup.engine.calls:
            assert call.header("X-Keep") == "1"
            for name in ("X-Mine", "TE", "Upgrade"):
                assert call.header(name) is None


async def test_digests_of_the_body_that_the_span_would_make_wrong_are_dropped() -> None:
    async def script(call: Call) -> None:
        await call.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Digest: sha-256=:x:\r\n"
        )
        await call.write(b"Content-MD5: y\r\nContent-Length: 7\r\n\r\n" + b'{"a":1}')

    async with running(script) as setup, setup.post() as answer:
        assert "Content-Digest" not in answer.headers
        assert "Content-MD5" not in answer.headers


async def test_a_passing_stream_cut_off_by_the_engine_is_cut_off_for_the_client() -> None:
    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(b"event: response.created\n\n")
        call.writer.transport.abort()

    async with running(script) as setup, setup.post(path="/v1/other") as answer:
        assert answer.headers["Quotary-Attested"] == "no"
        assert await read_cut_off(answer) == b"event: response.created\n\n"


async def test_a_head_request_keeps_the_length_without_a_body() -> None:
    async def script(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1234\r\n\r\n")

    async with running(script) as setup, setup.client.head(setup.url + "/file") as answer:
        assert answer.headers["Content-Length"] == "1234"


async def test_a_streamed_request_passes_through_without_being_held() -> None:
    async def pieces() -> object:
        for _ in range(3):
            yield b"x" * 100_000

    async with running(answering(b"{}"), max_request=1000) as setup:
        async with setup.client.post(setup.url + "/v1/audio/transcriptions", data=pieces()) as answer:
            assert answer.status == 200
        assert setup.engine.calls[0].body == b"x" * 300_000


async def test_another_method_on_an_attested_path_passes_through() -> None:
    async with running(answering(b"{}")) as setup, setup.client.get(setup.url + CHAT) as answer:
        assert answer.headers["Quotary-Attested"] == "no"
        assert setup.engine.calls[0].method == "GET"


@pytest.mark.parametrize(
    ("line", "status", "target"),
    [
        (b"POST http://elsewhere/v1/completions?a=%2F HTTP/1.1", b"200", "/v1/completions?a=%2F"),
        (b"GET //elsewhere/x HTTP/1.1", b"200", "//elsewhere/x"),
        (b"CONNECT elsewhere:443 HTTP/1.1", b"404", None),
    ],
)
async def test_no_request_line_leads_to_another_server(
    line: bytes, status: bytes, target: str | None
) -> None:
    async with running(answering(b'{"a":1}')) as setup:
        answer = await setup.raw(
            line + b"\r\nHost: elsewhere\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        )
        assert answer.split()[1] == status
        assert [call.target for call in setup.engine.calls] == ([] if target is None else [target])
        assert all(
            call.header("Host") == setup.engine.url.removeprefix("http://") for call in setup.engine.calls
        )


# -- the proxy's own paths


async def get(setup: Setup, path: str) -> aiohttp.ClientResponse:
    answer = await setup.client.get(f"{setup.url}/quotary/v1/{path}")
    await answer.read()
    return answer


async def test_an_unknown_or_malformed_output_id_is_an_error_of_its_own() -> None:
    async with running(answering(b"{}"), fetch_seconds=0.05) as setup:
        unknown = await get(setup, "attestations/out_" + "00" * 24)
        assert (unknown.status, (await error_of(unknown))["code"]) == (404, "unknown_output")
        for text in ("out_" + "00" * 23, "out_" + "AB" * 24, "x", "%41"):  # may be an engine's id
            other = await get(setup, "attestations/" + text)
            assert (other.status, await other.read()) == (404, await unknown.read())
        for text in ("out_" + "00" * 2000, "a%2fb", "%00", "caf%C3%A9"):
            bad = await get(setup, "attestations/" + text)
            assert (bad.status, (await error_of(bad))["code"]) == (400, "bad_output_id")
        setup.attester.reserve(bytes(24))
        late = await get(setup, "attestations/out_" + "00" * 24)
        assert (late.status, (await error_of(late))["code"]) == (504, "not_yet")


async def test_the_published_log_is_served_read_only() -> None:
    attester = MemoryAttester()
    attester.store.files = {
        "checkpoint": b"note\n",
        "tile/0/000.p/3": b"t",
        "history/000": b"h",
        "blob/00": b"b",
    }
    async with running(answering(b"engine"), attester) as setup:
        for path, data in attester.store.files.items():
            answer = await get(setup, path)
            assert (answer.status, await answer.read()) == (200, data)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "immutable" in (await get(setup, "tile/0/000.p/3")).headers["Cache-Control"]
        assert (await get(setup, "checkpoint")).headers["Cache-Control"] == "no-cache"
        for path in (
            "tile/0/001",
            "blob/..%2f..%2fsecret",
            "history/x",
            "",
            "../v1/models",
            "checkpoint/x",
            "other",
        ):
            answer = await get(setup, path)
            assert answer.status == 404 or "Quotary-Attested" in answer.headers
        async with setup.client.post(f"{setup.url}/quotary/v1/checkpoint") as answer:
            assert answer.status in (404, 405)
            await error_of(answer)


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://x/", "http:///v1", "http://x/?a=b", "unix:/x"])
def test_an_upstream_that_is_no_http_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http or https"):
        Proxy(MemoryAttester(), ProxyConfig(url))


async def test_every_error_of_the_proxys_own_says_that_it_is_not_attested() -> None:
    async with (
        Proxy(MemoryAttester(), ProxyConfig("http://127.0.0.1:9")) as proxy,
        aiohttp.ClientSession() as client,
    ):
        url = f"http://127.0.0.1:{await proxy.listen('127.0.0.1', 0)}"
        for method, path, status in (
            ("GET", "/v1/models", 502),
            ("POST", CHAT, 502),
            ("GET", "/quotary/nothing", 404),
            ("GET", "/quotary/v1/attestations/none", 404),
        ):
            async with client.request(method, url + path) as answer:
                assert answer.status == status
                assert answer.headers.getall("Quotary-Attested") == ["no"]


async def test_errors_of_the_http_library_itself_are_marked_and_what_is_no_request_goes_nowhere() -> None:
    async with running(answering(completion("Hello"))) as setup:
        request = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" % CHAT.encode()
        got = await setup.raw(request + b"Expect: more\r\nContent-Length: 2\r\n\r\n{}")
        assert got.startswith(b"HTTP/1.1 417 ")
        assert b"Quotary-Attested: no" in got
        for nonsense in (b"HELLO\r\n\r\n", request + b"Content-Length: x\r\n\r\n"):
            assert (await setup.raw(nonsense)).startswith(b"HTTP/1.0 400 ")
        assert setup.engine.calls == []
