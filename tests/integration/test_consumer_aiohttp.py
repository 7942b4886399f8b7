# SPDX-License-Identifier: Apache-2.0
"""`quotary.aiohttp`: a session whose every answer is verified."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from consumers import Answer, Host, attesting_host, middle
from proxies import CHAT
from scripted_engine import DONE, Call, completion, delta_event
from tampering import GOOD, PLAIN, PLAIN_TAMPERS, STREAM, STREAM_TAMPERS, without_span
from tpms import Tpm

from quotary import AttestationError, AttestationMissing, AttestationNotChecked, Checks, exchange, verdict
from quotary.aiohttp import VerifyingMiddleware
from quotary.checks import DOOR


@pytest.fixture
async def host(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Host]:
    async with attesting_host(tpm, tmp_path) as host:
        yield host


def session(checks: Checks) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(middlewares=(VerifyingMiddleware(checks),))


@pytest.mark.parametrize(("content", "tampers"), [(PLAIN, PLAIN_TAMPERS), (STREAM, STREAM_TAMPERS)])
async def test_every_alteration_of_an_answer_is_found(host: Host, content: bytes, tampers: Any) -> None:
    ends = {}
    async with session(host.checks()) as client:
        for name, (tamper, expected) in tampers.items():
            host.middle.tamper = tamper
            try:
                async with client.post(host.middle.url + CHAT, data=content) as answer:
                    await answer.read()
                    verdict(answer)
                end = GOOD
            except AttestationError as error:
                end = f"{type(error).__name__}: {error}"
            ends[name] = end if not end.startswith(expected) else expected
    assert ends == {name: expected for name, (_, expected) in tampers.items()}


async def test_json_and_every_way_of_reading_a_stream_give_the_engines_bytes(host: Host) -> None:
    async with session(host.checks()) as client:
        async with client.post(host.proxy + CHAT, json={"model": "m", "messages": []}) as answer:
            assert await answer.json() == json.loads(completion("Hello"))
            assert exchange(answer).output == completion("Hello")
        bodies = []
        for way in ("read", "lines", "any", "chunked", "chunks", "exactly"):
            async with client.post(host.proxy + CHAT, data=io.BytesIO(STREAM)) as answer:
                content = answer.content
                if way == "read":
                    body = await answer.read()
                elif way == "lines":
                    body = b"".join([line async for line in content])
                elif way == "any":
                    body = b"".join([piece async for piece in content.iter_any()])
                elif way == "chunked":
                    body = b"".join([piece async for piece in content.iter_chunked(7)])
                elif way == "chunks":
                    body = b"".join([piece async for piece, _ in content.iter_chunks()])
                else:
                    body = await content.readexactly(len(bodies[0]))
                    assert await content.read() == b""
                verdict(answer)
            bodies.append(body)
    assert len(set(bodies)) == 1
    assert bodies[0].endswith(DONE)
    assert b"attestation" not in bodies[0]


async def test_pieces_of_a_stream_come_through_before_the_answer_ends(tpm: Tpm, tmp_path: Path) -> None:
    seen = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("Hel"))
        await seen.wait()
        await call.chunk(delta_event("lo", finish="stop") + DONE)
        await call.end()

    async with (
        attesting_host(tpm, tmp_path, script) as host,
        session(host.checks()) as client,
        client.post(host.proxy + CHAT, data=STREAM) as answer,
    ):
        assert await answer.content.readany() == delta_event("Hel")
        with pytest.raises(AttestationNotChecked, match="not been read"):
            verdict(answer)
        seen.set()
        assert await answer.content.read() == delta_event("lo", finish="stop") + DONE
        verdict(answer)


async def test_a_stream_that_is_closed_early_has_no_verdict(host: Host) -> None:
    async with session(host.checks()) as client:
        async with client.post(host.proxy + CHAT, data=STREAM) as answer:
            await answer.content.readany()
        with pytest.raises(AttestationNotChecked, match="not read to its end"):
            verdict(answer)


async def test_what_is_not_in_band_is_fetched_without_the_sessions_middlewares(host: Host) -> None:
    host.middle.tamper = lambda answer: replace(answer, body=without_span(answer.body))
    headers = {"Authorization": "Bearer x"}
    async with session(host.checks()) as client:
        async with client.post(host.middle.url + CHAT, data=STREAM, headers=headers) as answer:
            await answer.read()
            verdict(answer)
        assert host.middle.authorizations == ["Bearer x", "Bearer x"]
        assert host.middle.codings == {"identity"}
        for fetched, error in (
            (lambda answer: replace(answer, status=404), AttestationMissing),
            (lambda answer: replace(answer, body=b"x" * (1 << 21)), AttestationNotChecked),
            (lambda _: None, AttestationNotChecked),
        ):
            host.middle.fetched = fetched
            with pytest.raises(error):
                async with client.post(host.middle.url + CHAT, data=PLAIN):
                    pass


async def test_credentials_are_not_sent_to_another_host(host: Host) -> None:
    host.middle.tamper = lambda answer: replace(answer, body=without_span(answer.body))
    async with (
        middle(host.proxy) as elsewhere,
        session(host.checks(door=elsewhere.url + DOOR)) as client,
        client.post(host.middle.url + CHAT, data=PLAIN, headers={"Authorization": "Bearer x"}) as answer,
    ):
        verdict(answer)
    assert (host.middle.authorizations, elsewhere.authorizations) == (["Bearer x"], [None])


async def test_failures_can_be_attached(host: Host) -> None:
    def altered(answer: Answer) -> Answer:
        return replace(answer, body=answer.body.replace(b"Hello", b"Hullo"))

    host.middle.tamper = altered
    async with (
        session(host.checks(on_failure="attach")) as client,
        client.post(host.middle.url + CHAT, data=PLAIN) as answer,
    ):
        assert b"Hullo" in await answer.read()
        with pytest.raises(AttestationError, match="output"):
            verdict(answer)


async def test_a_redirect_by_either_field_that_aiohttp_follows_is_refused(host: Host) -> None:
    for field in ("Location", "URI"):
        for how in ({}, {"on_failure": "attach"}, {"unattested": ("*",)}):
            async with middle(host.proxy) as elsewhere:
                away = {field: elsewhere.url + CHAT}
                host.middle.tamper = lambda answer, away=away: replace(answer, status=307, headers=away)  # type: ignore[misc]
                async with session(host.checks(**how)) as client:
                    with pytest.raises(AttestationError, match="redirect to another host"):
                        await client.post(host.middle.url + CHAT, data=PLAIN)
                assert elsewhere.nonces == []


async def test_a_request_that_is_sent_again_has_another_nonce(host: Host) -> None:
    async def twice(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        (await handler(request)).release()
        return await handler(request)

    checking = VerifyingMiddleware(host.checks())
    async with aiohttp.ClientSession(middlewares=(twice, checking)) as client:
        async with client.post(host.middle.url + CHAT, data=PLAIN) as answer:
            verdict(answer)
        assert len(set(host.middle.nonces)) == 2
        headers = {"Quotary-Nonce": "5a" * 16}
        async with client.post(host.middle.url + CHAT, data=PLAIN, headers=headers) as answer:
            verdict(answer)
    assert host.middle.nonces[2:] == ["5a" * 16] * 2
