# SPDX-License-Identifier: Apache-2.0
"""What is done with the bytes of an answer, whatever carries them: what goes out, and what the record says of it."""

from __future__ import annotations

import hashlib
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotary_attest.serving.delivery import Delivery, Terms
from quotary_attest.serving.paths import Api
from quotary_attest.serving.tap import StreamTap, whole_account
from quotary_verifier.wire.inband import insert, strip
from quotary_verifier.wire.records import State

A = b"attestation"
KEY = bytes(32)
SSE, LINES, JSON = "text/event-stream", "application/x-ndjson", "application/json"
CHAT = Terms(Api.CHAT)
DONE = b"data: [DONE]\n\n"
CHUNK = {"id": "c", "object": "o", "created": 1, "model": "m"}


def delta(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({**CHUNK, "choices": [choice]}).encode() + b"\n\n"


def cut(body: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(body) + 1) for place in places} | {0, len(body)})
    return [body[start:end] for start, end in itertools.pairwise(ends)]


def passed(tap: StreamTap, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """Do what the proxy does: return the body as the engine sent it, and as the client gets it."""
    out = b""
    for piece in pieces:
        going = piece if tap.holder is None else tap.holder.feed(piece)
        if going:
            out += going
            tap.sent(going)
    before, tail, place = tap.finish()
    out += before
    if before:
        tap.sent(before)
    tap.close(tail)
    return out + tail, out + (tap.span(A) if place else b"") + tail


FRAGMENTS = [
    delta("a"),
    delta("é", "stop"),
    DONE,
    b"data: {",
    b"\n",
    b"\r\n",
    b": ping\n\n",
    b"event: x\n",
    b"\xff",
]


@given(
    body=st.lists(st.sampled_from(FRAGMENTS), max_size=10).map(b"".join),
    places=st.lists(st.integers(0, 999), max_size=8),
)
def test_a_client_gets_what_insert_makes_and_the_digest_is_of_what_strip_gives(
    body: bytes, places: list[int]
) -> None:
    tap = StreamTap(CHAT, SSE, 200, KEY)
    plain, carried = passed(tap, cut(body, places))
    assert plain == body
    inserted = insert(body, A)
    assert carried == (body if inserted is None else inserted)
    if inserted is not None:
        assert strip(carried) == (body, A)
    assert tap.account(clean=True).digests["body"] == hashlib.sha256(body).digest()


@given(
    body=st.binary(max_size=200),
    places=st.lists(st.integers(0, 999), max_size=8),
    kind=st.sampled_from([SSE, LINES, "text/plain", JSON]),
    api=st.sampled_from(list(Api)),
)
def test_the_body_of_any_stream_of_any_api_is_hashed_as_it_went_out(
    body: bytes, places: list[int], kind: str, api: Api
) -> None:
    tap = StreamTap(Terms(api, Delivery.DEFERRED), kind, 200, KEY)
    plain, carried = passed(tap, cut(body, places))
    assert plain == carried == body
    assert tap.account(clean=True).digests["body"] == hashlib.sha256(body).digest()


ERROR = b'data: {"error":{"code":500}}\n\n'
STATES = [
    (Api.CHAT, SSE, delta("a", "stop"), True, 200, State.COMPLETE),
    (Api.CHAT, SSE, delta("a") + DONE, True, 200, State.COMPLETE),
    (Api.CHAT, SSE, delta("a"), True, 200, State.ENGINE_TRUNCATED),
    (Api.CHAT, SSE, delta("a", "stop") + DONE, False, 200, State.ENGINE_TRUNCATED),
    (Api.CHAT, SSE, delta("a") + ERROR + DONE, True, 200, State.ENGINE_ERROR),
    (Api.CHAT, SSE, delta("a") + ERROR, False, 200, State.ENGINE_ERROR),
    (Api.CHAT, SSE, delta("a", "stop"), True, 500, State.ENGINE_ERROR),
    (Api.CHAT, SSE, b"", True, 200, State.ENGINE_TRUNCATED),
    (Api.CHAT, "text/plain", b"x", True, 200, State.COMPLETE),
    (Api.CHAT, "text/plain", b"", True, 200, State.ENGINE_TRUNCATED),
    (Api.OPAQUE, SSE, b"", True, 200, State.COMPLETE),
    (Api.OPAQUE, SSE, ERROR, True, 200, State.COMPLETE),
    (Api.OPAQUE, SSE, b"x", False, 200, State.ENGINE_TRUNCATED),
    (Api.RESPONSES, SSE, b'data: {"type":"response.completed"}\n\n', True, 200, State.COMPLETE),
    (Api.RESPONSES, SSE, b'data: {"type":"response.created"}\n\n', True, 200, State.ENGINE_TRUNCATED),
    (Api.MESSAGES, SSE, b'data: {"type":"message_stop"}\n\n', True, 200, State.COMPLETE),
    (Api.OLLAMA_CHAT, LINES, b'{"done":true}', True, 200, State.COMPLETE),
    (Api.OLLAMA_CHAT, LINES, b'{"done":"true"}\n', True, 200, State.ENGINE_TRUNCATED),
]


@pytest.mark.parametrize(("api", "kind", "body", "clean", "status", "state"), STATES)
def test_a_streams_state_is_what_its_bytes_and_its_end_say(
    api: Api, kind: str, body: bytes, clean: bool, status: int, state: State
) -> None:
    tap = StreamTap(Terms(api), kind, status, KEY)
    passed(tap, [body])
    assert tap.account(clean=clean).state is state
    assert tap.account(clean=clean, client_gone=True).state is State.CLIENT_GONE


@pytest.mark.parametrize(
    ("api", "kind", "body", "status", "state"),
    [
        (Api.CHAT, JSON, b'{"id":"x","choices":[]}', 200, State.COMPLETE),
        (Api.CHAT, JSON, b'{"error":null}', 200, State.COMPLETE),
        (Api.CHAT, JSON, b'{"error":{}}', 200, State.ENGINE_ERROR),
        (Api.CHAT, JSON, b"[]", 200, State.COMPLETE),
        (Api.CHAT, JSON, b"{", 200, State.ENGINE_TRUNCATED),
        (Api.CHAT, JSON, b"{", 500, State.ENGINE_ERROR),
        (Api.CHAT, JSON, b"[" * 100_000, 200, State.ENGINE_TRUNCATED),
        (Api.CHAT, JSON, b"", 200, State.ENGINE_TRUNCATED),
        (Api.CHAT, "text/html", b"<p>", 200, State.COMPLETE),
        (Api.CHAT, "text/html", b"", 200, State.ENGINE_TRUNCATED),
        (Api.CHAT, "text/html", b"", 502, State.ENGINE_ERROR),
        (Api.OPAQUE, JSON, b'{"error":{}}', 200, State.COMPLETE),
        (Api.OPAQUE, JSON, b"", 200, State.COMPLETE),
        (Api.RESPONSES, JSON, b'{"status":"failed"}', 200, State.ENGINE_ERROR),
        (Api.MESSAGES, JSON, b'{"type":"error","error":{}}', 200, State.ENGINE_ERROR),
    ],
)
def test_a_whole_answers_state_is_what_its_bytes_and_its_status_say(
    api: Api, kind: str, body: bytes, status: int, state: State
) -> None:
    account = whole_account(Terms(api), kind, status, KEY, body)
    assert (account.state, account.status) == (state, status)
    assert account.digests["body"] == hashlib.sha256(body).digest()


@pytest.mark.parametrize("api", list(Api))
def test_a_span_stands_only_where_the_apis_clients_were_run_with_one(api: Api) -> None:
    body = delta("a", "stop") + DONE
    for delivery in Delivery:
        terms = Terms(api, delivery)
        _, carried = passed(StreamTap(terms, SSE, 200, KEY), [body])
        wanted = delivery is Delivery.INLINE and api in (Api.CHAT, Api.COMPLETIONS)
        assert (carried != body) == wanted == terms.in_stream
        assert terms.in_object == (
            delivery is Delivery.INLINE and api in (Api.CHAT, Api.COMPLETIONS, Api.EMBEDDINGS, Api.RESPONSES)
        )


def test_an_attestation_longer_than_goes_into_a_body_stays_out() -> None:
    body = delta("a", "stop") + DONE
    assert passed(StreamTap(Terms(Api.CHAT, max_inband=len(A)), SSE, 200, KEY), [body])[1] != body
    assert passed(StreamTap(Terms(Api.CHAT, max_inband=len(A) - 1), SSE, 200, KEY), [body])[1] == body
