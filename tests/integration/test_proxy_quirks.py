# SPDX-License-Identifier: Apache-2.0
"""How engines behave on the wire, as measured, and what the proxy makes of it (docs/reference/upstream-behaviour.md).

Every engine here is a socket that writes these bytes; each test is a row of that page.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from memory_attester import MemoryAttester
from proxies import CHAT, REQUEST, Setup, id_of, read_cut_off, running, sha
from scripted_engine import DONE, Call, Script, chunk_event, completion, delta_event

from quotary_attest.serving.sse import MAX_EVENT, MAX_TAIL
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.records import State

FIRST = delta_event("", role="assistant") + delta_event("Hel")
LAST = delta_event("lo") + delta_event(None, finish="stop")
BODY = FIRST + LAST
STREAM = b"Content-Type: text/event-stream\r\n"
JSON = b"Content-Type: application/json\r\n"
ERROR_EVENT = b'data: {"error":{"message":"EngineCore died","type":"InternalServerError","code":500}}\n\n'
ERROR = json.dumps({"error": {"message": "no", "type": "server_error", "code": 500}}).encode()
IDLE = 0.2


def streaming(*pieces: bytes) -> Script:
    async def script(call: Call) -> None:
        await call.stream(*pieces)

    return script


def raw(*pieces: bytes, end: str = "close") -> Script:
    """Write bytes as they are, then close the connection, reset it, or fall silent."""

    async def script(call: Call) -> None:
        for piece in pieces:
            await call.write(piece)
        if end == "silence":
            await call.until_gone()
        elif end == "reset":
            call.writer.transport.abort()
        call.close = True

    return script


def head(*lines: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + b"".join(lines) + b"\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED = head(STREAM, b"Transfer-Encoding: chunked\r\n")


async def in_band(setup: Setup, body: bytes, state: State) -> None:
    """Ask once: the body comes unchanged, carries its attestation, and was recorded in that state."""
    async with setup.post() as answer:
        assert strip(await answer.read()) == (body, setup.attester.attestations[id_of(answer)])
        output = setup.attester.outputs[id_of(answer)]
        assert (output.state, output.digests["body"]) == (state, sha(body))


async def by_id(setup: Setup, body: bytes, state: State, status: int = 200) -> None:
    """Ask once: the body comes unchanged and carries nothing, and was recorded in that state."""
    async with setup.post() as answer:
        assert (answer.status, await answer.read()) == (status, body)
        assert "Quotary-Attested" not in answer.headers
        output = setup.attester.outputs[id_of(answer)]
        assert (output.state, output.digests["body"]) == (state, sha(body))
        assert output.context["status"] == status


async def cut_off(setup: Setup, body: bytes, state: State = State.ENGINE_TRUNCATED) -> None:
    """Ask once: the body breaks off, and what was sent of it was recorded in that state."""
    async with setup.post() as answer:
        assert await read_cut_off(answer) == body
        output = await setup.attester.recorded(id_of(answer))
        assert (output.state, output.digests["body"]) == (state, sha(body))


async def refused(setup: Setup, code: str, status: int = 502) -> None:
    """Ask once: an error of the proxy's own comes, and nothing is recorded."""
    async with setup.post() as answer:
        assert answer.status == status
        assert json.loads(await answer.read())["error"]["code"] == code
        assert answer.headers["Quotary-Attested"] == "no"
        assert setup.attester.abandoned == {id_of(answer)}
    assert setup.attester.outputs == {}
    assert len(setup.engine.calls) <= 1


# -- ends of streams


async def test_a_server_that_closes_after_each_stream_gets_each_request_once() -> None:
    closing = raw(
        head(STREAM, b"Transfer-Encoding: chunked\r\n", b"Keep-Alive: timeout=5, max=100\r\n"),
        chunk(BODY) + chunk(DONE) + b"0\r\n\r\n",
    )
    async with running(closing) as setup:
        for _ in range(5):
            await in_band(setup, BODY + DONE, State.COMPLETE)
        assert len(setup.engine.calls) == setup.engine.connections == 5


async def test_a_stream_without_done_is_complete_when_every_choice_has_finished() -> None:
    async with running(streaming(FIRST, LAST)) as setup:
        await in_band(setup, BODY, State.COMPLETE)


async def test_a_stream_without_done_or_finish_reason_is_truncated() -> None:
    async with running(streaming(FIRST)) as setup:
        await in_band(setup, FIRST, State.ENGINE_TRUNCATED)


async def test_an_error_event_then_done_is_the_engines_error() -> None:
    async with running(streaming(FIRST, ERROR_EVENT, DONE)) as setup:
        await in_band(setup, FIRST + ERROR_EVENT + DONE, State.ENGINE_ERROR)


async def test_an_error_event_without_done_is_the_engines_error() -> None:
    async with running(streaming(FIRST, ERROR_EVENT)) as setup:
        await in_band(setup, FIRST + ERROR_EVENT, State.ENGINE_ERROR)


async def test_an_error_event_alone_has_no_chunk_to_copy_from() -> None:
    async with running(streaming(ERROR_EVENT, DONE)) as setup:
        await by_id(setup, ERROR_EVENT + DONE, State.ENGINE_ERROR)


async def test_an_empty_stream_is_truncated() -> None:
    async with running(streaming()) as setup:
        await by_id(setup, b"", State.ENGINE_TRUNCATED)


async def test_a_stream_killed_between_events_is_cut_off_for_the_client() -> None:
    async with running(raw(CHUNKED, chunk(FIRST), end="reset")) as setup:
        await cut_off(setup, FIRST)


async def test_a_stream_that_ends_without_its_last_chunk_is_cut_off_for_the_client() -> None:
    async with running(raw(CHUNKED, chunk(FIRST))) as setup:
        await cut_off(setup, FIRST)


async def test_a_stream_killed_inside_an_event_is_cut_off_there() -> None:
    async with running(raw(CHUNKED, chunk(FIRST + LAST[:20]), end="reset")) as setup:
        await cut_off(setup, FIRST + LAST[:20])


async def test_a_stream_killed_after_done_carries_its_attestation_and_is_cut_off() -> None:
    async with running(raw(CHUNKED, chunk(BODY + DONE))) as setup, setup.post() as answer:
        body = await read_cut_off(answer)
        assert strip(body) == (BODY + DONE, setup.attester.attestations[id_of(answer)])
        assert setup.attester.outputs[id_of(answer)].state is State.ENGINE_TRUNCATED


async def test_a_stream_that_ends_with_its_connection_is_judged_by_its_own_signs() -> None:
    async with running(raw(head(STREAM), BODY + DONE)) as setup:
        await in_band(setup, BODY + DONE, State.COMPLETE)
    async with running(raw(head(STREAM), FIRST)) as setup:
        await in_band(setup, FIRST, State.ENGINE_TRUNCATED)


async def test_a_stream_of_known_length_is_streamed_and_may_be_short() -> None:
    length = b"Content-Length: %d\r\n" % len(BODY + DONE)
    async with running(raw(head(STREAM, length), BODY, DONE)) as setup:
        await in_band(setup, BODY + DONE, State.COMPLETE)
    async with running(raw(head(STREAM, length), FIRST)) as setup:
        await cut_off(setup, FIRST)


async def test_what_follows_done_is_body_and_a_long_tail_has_no_place() -> None:
    async with running(streaming(BODY, DONE, b": bye\n\n")) as setup:
        await in_band(setup, BODY + DONE + b": bye\n\n", State.COMPLETE)
    tail = b": " + b"x" * MAX_TAIL + b"\n\n"
    async with running(streaming(BODY, DONE + tail)) as setup:
        await by_id(setup, BODY + DONE + tail, State.COMPLETE)


async def test_trailer_fields_are_not_passed_on() -> None:
    body = chunk(BODY + DONE) + b"0\r\nX-Checksum: 1\r\n\r\n"
    async with running(raw(CHUNKED, body)) as setup:
        await in_band(setup, BODY + DONE, State.COMPLETE)
        request = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" % CHAT.encode()
        got = await setup.raw(request + b"Content-Length: %d\r\n\r\n%b" % (len(REQUEST), REQUEST))
        assert got.endswith(b"0\r\n\r\n")
        assert b"X-Checksum" not in got


# -- silence


async def test_an_engine_that_falls_silent_in_a_stream_is_given_up() -> None:
    gone = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(FIRST)
        await call.until_gone()
        gone.set()

    async with running(script, idle_seconds=IDLE) as setup:
        await cut_off(setup, FIRST)
        await asyncio.wait_for(gone.wait(), 10)


async def test_an_engine_that_falls_silent_in_a_whole_answer_is_an_error() -> None:
    silent = raw(head(JSON, b"Content-Length: 100\r\n"), b'{"choices"', end="silence")
    async with running(silent, idle_seconds=IDLE) as setup:
        await refused(setup, "upstream_failed")


async def test_an_engine_may_think_for_as_long_as_the_client_waits() -> None:
    thought = asyncio.Event()

    async def script(call: Call) -> None:
        await thought.wait()
        await call.stream(BODY, DONE)

    async with running(script, idle_seconds=IDLE) as setup:
        request = asyncio.create_task(setup.post().__aenter__())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(request), 3 * IDLE)
        thought.set()
        async with await request as answer:
            assert strip(await answer.read())[0] == BODY + DONE


async def test_a_client_that_leaves_before_the_engine_answers_leaves_no_record() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        asked.set()
        await call.until_gone()
        gone.set()

    async with running(script) as setup:
        request = asyncio.create_task(setup.post().__aenter__())
        await asyncio.wait_for(asked.wait(), 10)
        request.cancel()
        await asyncio.wait_for(gone.wait(), 10)
        async with asyncio.timeout(10):
            while not setup.attester.abandoned:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert setup.attester.outputs == {}


async def test_a_slow_client_is_not_taken_for_a_silent_engine() -> None:
    """The engine has more to send, but nobody reads it for longer than an engine may be silent."""
    piece = delta_event("x" * 60_000)

    async def script(call: Call) -> None:
        await call.stream(*[piece] * 300, delta_event(None, finish="stop") + DONE)

    async with running(script, idle_seconds=IDLE) as setup, setup.post() as answer:
        await asyncio.sleep(4 * IDLE)  # nothing happens that could be waited for
        body = await answer.read()
        assert strip(body)[1] == setup.attester.attestations[id_of(answer)]
        assert setup.attester.outputs[id_of(answer)].state is State.COMPLETE


# -- whole answers


async def test_an_error_inside_a_200_is_the_engines_error() -> None:
    async with running(raw(head(JSON, b"Content-Length: %d\r\n" % len(ERROR)), ERROR)) as setup:
        await in_band(setup, ERROR, State.ENGINE_ERROR)


async def test_an_empty_200_is_truncated() -> None:
    for kind in (JSON, b"Content-Type: text/plain\r\n", b""):
        async with running(raw(head(kind, b"Content-Length: 0\r\n"))) as setup:
            await by_id(setup, b"", State.ENGINE_TRUNCATED)
    async with running(raw(head(b"Content-Type: text/plain\r\n"))) as setup:
        await by_id(setup, b"", State.ENGINE_TRUNCATED)


async def test_a_whole_answer_that_breaks_off_is_an_error_and_not_recorded() -> None:
    body = completion("Hello")
    short = raw(head(JSON, b"Content-Length: %d\r\n" % len(body)), body[:-5])
    async with running(short) as setup:
        await refused(setup, "upstream_failed")


async def test_json_that_ends_with_its_connection_too_early_is_truncated() -> None:
    async with running(raw(head(JSON), completion("Hello")[:-5])) as setup:
        await by_id(setup, completion("Hello")[:-5], State.ENGINE_TRUNCATED)


async def test_an_error_that_is_no_json_passes_as_it_is() -> None:
    text = b"Internal Server Error"
    kind = b"Content-Type: text/plain; charset=utf-8\r\n"
    async with running(
        raw(head(kind, b"Content-Length: 21\r\n", status=b"500 Internal Server Error"), text)
    ) as setup:
        await by_id(setup, text, State.ENGINE_ERROR, status=500)


async def test_an_error_status_is_recorded_with_its_attestation() -> None:
    head_lines = head(JSON, b"Content-Length: %d\r\n" % len(ERROR), status=b"500 Oops")
    async with running(raw(head_lines, ERROR)) as setup, setup.post() as answer:
        assert (answer.status, answer.reason) == (500, "Oops")
        assert strip(await answer.read()) == (ERROR, setup.attester.attestations[id_of(answer)])
        assert setup.attester.outputs[id_of(answer)].state is State.ENGINE_ERROR


async def test_an_error_in_json_answers_a_request_for_a_stream() -> None:
    lines = head(JSON, b"Content-Length: %d\r\n" % len(ERROR), status=b"400 No")
    async with running(raw(lines, ERROR)) as setup, setup.post(REQUEST) as answer:
        assert (answer.status, strip(await answer.read())[0]) == (400, ERROR)


async def test_an_answer_that_comes_before_the_request_was_read_passes() -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        length = b"Content-Length: %d\r\nConnection: close\r\n" % len(ERROR)
        writer.write(head(JSON, length, status=b"413 Too Large") + ERROR)
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(early, "127.0.0.1", 0)
    long = b"x" * 4_000_000
    async with server, running(streaming(), upstream=_url(server)) as setup, setup.post(long) as answer:
        assert (answer.status, strip(await answer.read())[0]) == (413, ERROR)
        assert setup.attester.outputs[id_of(answer)].state is State.ENGINE_ERROR


def _url(server: asyncio.Server) -> str:
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


# -- bytes of streams


async def test_several_events_in_a_write_and_events_cut_anywhere_are_the_same_stream() -> None:
    body = BODY + chunk_event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2}) + DONE
    for pieces in ([body], [bytes((byte,)) for byte in body], [body[:7], body[7:-9], body[-9:]]):
        async with running(streaming(*pieces)) as setup, setup.post() as answer:
            assert strip(await answer.read()) == (body, setup.attester.attestations[id_of(answer)])
            output = setup.attester.outputs[id_of(answer)]
            assert output.digests == {"body": sha(body), "text/0": sha(b"Hello")}
            assert output.context["prompt_tokens"] == 7


async def test_crlf_events_keep_their_bytes_wherever_they_are_cut() -> None:
    body = (BODY + DONE).replace(b"\n", b"\r\n")
    for pieces in ([body], [bytes((byte,)) for byte in body]):
        async with running(streaming(*pieces)) as setup:
            await in_band(setup, body, State.COMPLETE)


async def test_events_with_lone_carriage_returns_are_attested_by_id() -> None:
    body = (BODY + DONE).replace(b"\n", b"\r")
    async with running(streaming(body)) as setup:
        await by_id(setup, body, State.COMPLETE)


async def test_data_without_a_space_is_read_and_has_no_place() -> None:
    body = (BODY + DONE).replace(b"data: ", b"data:")
    async with running(streaming(body)) as setup, setup.post() as answer:
        assert await answer.read() == body
        output = setup.attester.outputs[id_of(answer)]
        assert (output.state, output.digests["text/0"]) == (State.COMPLETE, sha(b"Hello"))


async def test_comments_that_keep_a_stream_alive_pass_at_once() -> None:
    arrived = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(b": ping\n\n")
        await arrived.wait()
        await call.chunk(BODY + DONE)
        await call.end()

    async with running(script) as setup, setup.post() as answer:
        assert await answer.content.readexactly(8) == b": ping\n\n"
        arrived.set()
        body = b": ping\n\n" + await answer.content.read()
        assert strip(body) == (b": ping\n\n" + BODY + DONE, setup.attester.attestations[id_of(answer)])


async def test_an_event_too_long_to_be_read_is_attested_by_its_body_alone() -> None:
    body = FIRST + b"data: " + b"x" * MAX_EVENT + b"\n\n" + DONE
    async with running(streaming(body)) as setup, setup.post() as answer:
        assert await answer.read() == body
        assert set(setup.attester.outputs[id_of(answer)].digests) == {"body"}


# -- what is no answer


async def test_an_engine_that_hangs_up_without_an_answer_is_an_error_and_asked_once() -> None:
    async with running(raw(end="reset")) as setup:
        await refused(setup, "upstream_failed")
        assert len(setup.engine.calls) == 1


async def test_an_answer_that_is_no_http_is_an_error() -> None:
    for garbage in (
        b"hello\r\n\r\n",
        head(JSON, b"Content-Length: 2\r\nContent-Length: 3\r\n") + b"{}",
        b"HTTP/1.1 200 OK\r\nContent-Ty",
        head(JSON, b"X-Long: " + b"x" * 70_000 + b"\r\n", b"Content-Length: 2\r\n") + b"{}",
    ):
        async with running(raw(garbage)) as setup:
            await refused(setup, "upstream_failed")


async def test_a_header_field_that_is_not_utf_8_is_an_error() -> None:
    async with running(raw(head(JSON, b"X-Name: caf\xe9\r\n", b"Content-Length: 2\r\n"), b"{}")) as setup:
        await refused(setup, "upstream_failed")
    utf8 = head(JSON, "X-Name: café\r\n".encode(), b"Content-Length: %d\r\n" % len(ERROR))
    async with running(raw(utf8, ERROR)) as setup, setup.post() as answer:
        assert answer.headers["X-Name"] == "café"


async def test_a_request_field_that_is_not_utf_8_is_refused() -> None:
    async with running(streaming(BODY, DONE)) as setup:
        request = (
            b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: caf\xe9\r\nConnection: close\r\n" % CHAT.encode()
        )
        got = await setup.raw(request + b"Content-Length: %d\r\n\r\n%b" % (len(REQUEST), REQUEST))
        assert got.startswith(b"HTTP/1.1 400")
        assert b"bad_header" in got
        assert setup.engine.calls == []


async def test_an_engine_that_is_not_there_is_an_error() -> None:
    async with running(streaming()) as nobody:
        url = nobody.engine.url
    async with running(streaming(), upstream=url) as setup:
        await refused(setup, "upstream_unreachable")


CODED = head(JSON, b"Content-Length: 4\r\nContent-Encoding: gzip\r\n")


async def test_an_answer_with_a_content_coding_is_an_error() -> None:
    async with running(raw(CODED, b"gzip")) as setup:
        await refused(setup, "upstream_coding")


async def test_where_outages_pass_an_answer_with_a_content_coding_passes_marked() -> None:
    async with running(raw(CODED, b"gzip"), when_unavailable="pass") as setup, setup.post() as answer:
        assert await answer.read() == b"gzip"
        assert answer.headers["Quotary-Attested"] == "no"
        assert setup.attester.outputs == {}


async def test_an_engine_killed_while_the_attester_is_slow_changes_nothing() -> None:
    """The answer is whole: what becomes of the engine after it is no concern of the record."""
    attester = MemoryAttester()
    attester.gate.clear()
    async with running(raw(CHUNKED, chunk(BODY + DONE) + b"0\r\n\r\n"), attester) as setup:
        request = await setup.post()
        await attester.until_submitted(1)
        attester.gate.set()
        assert strip(await request.read())[0] == BODY + DONE
        assert attester.outputs[id_of(request)].state is State.COMPLETE
        request.close()
