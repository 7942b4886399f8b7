# SPDX-License-Identifier: Apache-2.0
"""An exchange without a network: what it hands on and when, and what becomes of attestations of every kind."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import httpx2
import pytest
from forge import NOW, Forge
from hypothesis import given, settings
from hypothesis import strategies as st

from quotary import (
    AttestationMissing,
    AttestationNotChecked,
    AttestationRejected,
    Checks,
    Limits,
    exchange,
    verdict,
)
from quotary.answers import attach
from quotary.exchanges import Exchange, Form
from quotary.httpx2 import AsyncVerifyingTransport, VerifyingTransport
from quotary.judge import Judge
from quotary_verifier.wire.inband import insert

URL = "https://gpu-07.example.net/v1/chat/completions"
CHUNK = b'data: {"id":"c-1","object":"chat.completion.chunk","created":17,"model":"m","choices":[]}\n\n'
STREAM = CHUNK * 3 + b"data: [DONE]\n\n"
TYPED = b'event: response.created\ndata: {}\n\nevent: response.completed\ndata: {"x":1}\n\n'
EVENTS = ("Content-Type", "text/event-stream; charset=utf-8")
JSON = ("Content-Type", "application/json")
ID = ("Quotary-Output", "out_" + bytes(range(24)).hex())
HOST = Forge(body=STREAM)
TYPED_HOST = replace(HOST, body=TYPED)
PLAIN_HOST = Forge()


def judge(host: Forge = HOST, **how: Any) -> Judge:
    checks = Checks(host.policy(), clock=lambda: NOW, randomness=lambda size: b"n" * size)
    return Judge(replace(checks, **how))


def begin(of: Judge, *fields: tuple[str, str], status: int = 200) -> Exchange:
    made = Exchange(of, "POST", URL, HOST.request)
    made.answered(status, fields)
    return made


@cache
def attestation(host: str = "host") -> bytes:
    """The attestation of a host's answer: made once, as its signatures differ each time."""
    return {"host": HOST, "typed": TYPED_HOST, "plain": PLAIN_HOST}[host].attestation().encode()


def read(made: Exchange, body: bytes, fetched: bytes | None = None) -> bytes:
    """Read a whole body and return what was handed on."""
    out = made.feed(body)
    if made.end() is not None:
        made.fetched(200, fetched or b"")
    return out + made.conclude()


@settings(max_examples=60)
@given(st.lists(st.integers(0, len(STREAM) + 5000), max_size=8))
def test_a_stream_in_any_pieces_is_handed_on_and_its_end_waits_for_the_verdict(cuts: list[int]) -> None:
    body = insert(STREAM, attestation())
    assert body is not None
    made = begin(judge(), EVENTS, ID)
    ends = sorted({min(cut, len(body)) for cut in cuts} | {len(body)})
    out, start = b"", 0
    for end in ends:
        out += made.feed(body[start:end])
        start = end
    assert out == CHUNK * 3
    assert made.end() is None
    with pytest.raises(AttestationNotChecked):
        verdict(made)
    assert made.conclude() == b"data: [DONE]\n\n"
    assert verdict(made).claim("matched") is not None
    assert (made.output, made.attestation) == (STREAM, attestation())


def test_the_last_event_of_a_typed_stream_waits_for_the_verdict() -> None:
    for size in (1, 7, len(TYPED)):
        made = begin(judge(TYPED_HOST), EVENTS, ID)
        out = b"".join(made.feed(TYPED[at : at + size]) for at in range(0, len(TYPED), size))
        assert out == b"event: response.created\ndata: {}\n\n"
        assert made.end() == f"https://gpu-07.example.net/quotary/v1/attestations/{ID[1]}"
        made.fetched(200, attestation("typed"))
        assert out + made.conclude() == TYPED


def test_what_follows_the_last_event_is_limited() -> None:
    made = begin(judge(TYPED_HOST, limits=Limits(held=100)), EVENTS, ID)
    with pytest.raises(AttestationNotChecked, match="more than 100 bytes"):
        made.feed(TYPED + b": x\n\n" * 30)
    made = begin(judge(TYPED_HOST, limits=Limits(held=100), on_failure="attach"), EVENTS, ID)
    body = TYPED + b": x\n\n" * 30
    assert made.feed(body) == body
    assert made.feed(b": y\n\n") == b": y\n\n"
    assert made.end() is None
    assert made.conclude() == b""
    with pytest.raises(AttestationNotChecked, match="more than 100 bytes"):
        verdict(made)


def test_nothing_of_an_answer_that_is_no_stream_is_handed_on_before_its_verdict() -> None:
    for kind in (JSON, ("Content-Type", "application/problem+json"), ("X", "y")):
        made = begin(judge(PLAIN_HOST), kind, ID)
        assert made.form is Form.WHOLE
        assert made.feed(PLAIN_HOST.body) == b""
        assert made.end() is not None
        made.fetched(200, attestation("plain"))
        assert made.conclude() == PLAIN_HOST.body


@pytest.mark.parametrize("value", ["", "x", base64.b64encode(b"x").decode() + "\n="])
def test_a_field_that_holds_no_attestation_is_rejected(value: str) -> None:
    made = begin(judge(), EVENTS, ID, ("Quotary-Attestation", value))
    made.feed(STREAM)
    assert made.end() is None
    with pytest.raises(AttestationRejected):
        made.conclude()


def test_an_attestation_in_a_field_is_taken_once() -> None:
    field = ("Quotary-Attestation", base64.b64encode(attestation()).decode())
    assert read(begin(judge(), EVENTS, ID, field), STREAM) == STREAM
    with pytest.raises(AttestationRejected, match="is no base64"):
        read(begin(judge(), EVENTS, ID, field, field), STREAM)


def test_what_cannot_be_checked_is_told_from_what_is_false() -> None:
    dropped = replace(HOST.attestation(), request_key=None).encode()
    with pytest.raises(AttestationNotChecked, match="request key was dropped") as unchecked:
        read(begin(judge(), EVENTS, ID), STREAM, dropped)
    assert unchecked.value.report is not None
    with pytest.raises(AttestationRejected, match="decode"):
        read(begin(judge(), EVENTS, ID), STREAM, b"x")
    with pytest.raises(AttestationRejected, match="not of other") as other:
        read(begin(judge(origin="other.example/" + "a" * 32), EVENTS, ID), STREAM, attestation())
    assert other.value.report is not None


@pytest.mark.parametrize("value", ["out_x", "OUT_" + "0" * 48, f"{ID[1]}, {ID[1]}", "../../x"])
def test_an_id_that_is_none_is_never_fetched(value: str) -> None:
    made = begin(judge(), EVENTS, ("Quotary-Output", value))
    made.feed(STREAM)
    assert made.end() is None
    with pytest.raises(AttestationMissing):
        made.conclude()
    twice = begin(judge(), EVENTS, ID, ID)
    twice.feed(STREAM)
    assert twice.end() is None


def test_an_error_passes_and_what_it_carries_is_attached() -> None:
    plain = begin(judge(), JSON, status=404)
    assert plain.feed(b"{}") == b"{}"
    assert plain.end() is None
    assert plain.conclude() == b""
    with pytest.raises(AttestationMissing):
        verdict(plain)
    attested = begin(judge(), EVENTS, ID, status=404)
    assert read(attested, STREAM, attestation()) == STREAM
    verdict(attested)
    altered = begin(judge(), EVENTS, ID, status=404)
    assert read(altered, STREAM[1:], attestation()) == STREAM[1:]
    with pytest.raises(AttestationRejected):
        verdict(altered)


def test_one_judge_serves_many_threads() -> None:
    shared = judge()

    def one(_: int) -> object:
        made = begin(shared, EVENTS, ID)
        read(made, STREAM, attestation())
        return verdict(made).claim("origin")

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(one, range(40)))) == 1


def test_commits_are_remembered_for_their_second_and_not_without_end() -> None:
    moments = iter(range(NOW, NOW + 40))
    moving = judge(clock=lambda: next(moments))
    for number in range(40):
        made = begin(moving, EVENTS, ID)
        read(made, STREAM, attestation())
        assert verdict(made).report.at == NOW + number
        assert len(moving._commits) == min(number + 1, 16)


class Endless(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body without end, of which no more than a limit may be read."""

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 60_000
        pytest.fail("read on past the limit")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


def endless_host(request: httpx2.Request) -> httpx2.Response:
    """Answer, and hand out an attestation without end."""
    if request.method == "POST":
        return httpx2.Response(200, headers=[JSON, ID], stream=httpx2.ByteStream(PLAIN_HOST.body))
    return httpx2.Response(200, stream=Endless())


async def test_no_more_of_an_attestation_is_fetched_than_may_be_one() -> None:
    over = httpx2.MockTransport(endless_host)
    with (
        httpx2.Client(transport=VerifyingTransport(judge(PLAIN_HOST), over)) as client,
        pytest.raises(AttestationNotChecked, match="longer than 1048576 bytes"),
    ):
        client.post(URL)
    async with httpx2.AsyncClient(transport=AsyncVerifyingTransport(judge(PLAIN_HOST), over)) as other:
        with pytest.raises(AttestationNotChecked, match="longer than 1048576 bytes"):
            await other.post(URL)


def test_an_abandoned_answer_has_no_verdict_and_a_judged_one_keeps_its_own() -> None:
    left = begin(judge(), EVENTS, ID)
    left.feed(CHUNK)
    left.abandon()
    with pytest.raises(AttestationNotChecked, match="not read to its end"):
        verdict(left)
    kept = begin(judge(), EVENTS, ID)
    read(kept, STREAM, attestation())
    kept.abandon()
    verdict(kept)


def test_only_answers_that_passed_have_an_exchange() -> None:
    made = begin(judge(), EVENTS, ID)
    holder = type("Holder", (), {})()
    attach(holder, made)
    assert exchange(holder) is made
    attach("text", made)
    attach(holder, object())
    for stranger in ("text", object(), None, 3):
        with pytest.raises(TypeError, match="no answer that came through quotary"):
            exchange(stranger)


CHARSETS = {
    "application/json": True,
    "text/plain; charset=UTF-8": True,
    'text/plain; charset="utf8"; x=y': True,
    "text/plain;charset = us-ascii": True,
    "text/plain; charset=utf-7": False,
    "text/plain; charset=utf-8; charset=utf-7": False,
    "text/plain; charset*=utf-7''x": False,
    "application/json; charset=utf-16": False,
    "text/event-stream; charset=utf-8x": False,
}


@pytest.mark.parametrize("kind", CHARSETS)
def test_no_field_makes_another_text_of_the_bytes_that_are_verified(kind: str) -> None:
    if CHARSETS[kind]:
        begin(judge(), ("Content-Type", kind), ID)
        return
    with pytest.raises(AttestationNotChecked, match="character set"):
        begin(judge(), ("Content-Type", kind), ID)
    attached = begin(judge(on_failure="attach"), ("Content-Type", "text/plain"), ("Content-Type", kind), ID)
    with pytest.raises(AttestationNotChecked, match="character set"):
        _ = attached.verdict


def test_an_answer_is_kept_back_as_not_checked_once_the_policy_has_ended() -> None:
    body = insert(STREAM, attestation())
    assert body is not None
    ending = HOST.policy(head="expires = 2026-11-23T12:00:01Z")
    for seconds, ends in ((0, False), (1, True)):
        made = begin(judge(policy=ending, clock=lambda at=seconds: NOW + at), EVENTS, ID)
        assert made.feed(body) == CHUNK * 3
        assert made.end() is None
        if ends:
            with pytest.raises(AttestationNotChecked, match="the policy ended at 2026-11-23T12:00:01Z"):
                made.conclude()
        else:
            assert made.conclude() == b"data: [DONE]\n\n"
