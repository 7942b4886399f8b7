# SPDX-License-Identifier: Apache-2.0
"""Whoever stands between host and client alters answers: each alteration is found, whatever the HTTP library."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest
from consumers import Answer, Host, Tamper, attesting_host, honest, middle
from proxies import CHAT
from tampering import GOOD, PLAIN, PLAIN_TAMPERS, STREAM, STREAM_TAMPERS, body, both, fields, without_span
from tpms import Tpm

import quotary.httpx
import quotary.httpx2
from quotary import (
    AttestationError,
    AttestationMissing,
    AttestationNotChecked,
    AttestationRejected,
    Checks,
    Limits,
    PolicyError,
    exchange,
    verdict,
)
from quotary.checks import DOOR

LIBRARIES = {"httpx": (httpx, quotary.httpx), "httpx2": (httpx2, quotary.httpx2)}


@pytest.fixture
async def host(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Host]:
    async with attesting_host(tpm, tmp_path) as host:
        yield host


@pytest.fixture
def library(request: pytest.FixtureRequest) -> tuple[ModuleType, Any]:
    return LIBRARIES[getattr(request, "param", "httpx2")]


both_libraries = pytest.mark.parametrize("library", LIBRARIES, indirect=True)


async def ask(host: Host, library: tuple[ModuleType, Any], content: bytes, **how: Any) -> Any:
    """Ask once, through the middle; return the answer."""
    plain, ours = library
    headers = {"Content-Type": "application/json"} | how.pop("headers", {})
    transport = ours.AsyncVerifyingTransport(host.checks(**how), plain.AsyncHTTPTransport(verify=False))
    async with plain.AsyncClient(transport=transport, follow_redirects=True) as client:
        return await client.post(host.middle.url + CHAT, content=content, headers=headers)


async def outcome(host: Host, library: tuple[ModuleType, Any], content: bytes, **how: Any) -> str:
    """Ask once and say how it ended: `verified`, or the error and the beginning of its reason."""
    try:
        answer = await ask(host, library, content, **how)
        verdict(answer)
    except AttestationError as error:
        return f"{type(error).__name__}: {error}"
    return GOOD


@both_libraries
@pytest.mark.parametrize(("request_body", "tampers"), [(PLAIN, PLAIN_TAMPERS), (STREAM, STREAM_TAMPERS)])
async def test_every_alteration_of_an_answer_is_found(
    host: Host, library: Any, request_body: bytes, tampers: dict[str, tuple[Tamper, str]]
) -> None:
    ends = {}
    for name, (tamper, expected) in tampers.items():
        host.middle.tamper = tamper
        end = await outcome(host, library, request_body)
        ends[name] = end if not end.startswith(expected) else expected
    assert ends == {name: expected for name, (_, expected) in tampers.items()}


@both_libraries
async def test_an_old_answer_is_rejected_by_its_nonce(host: Host, library: Any) -> None:
    for request in (PLAIN, STREAM):
        kept: list[Answer] = []

        def replay(answer: Answer, kept: list[Answer] = kept) -> Answer:
            kept.append(answer)
            return kept[0]

        host.middle.tamper = replay
        assert await outcome(host, library, request) == GOOD
        assert (await outcome(host, library, request)).startswith("AttestationRejected: nonce")


async def test_an_answer_to_another_request_is_rejected(host: Host, library: Any) -> None:
    host.middle.requests = lambda data: data.replace(b"hi", b"ho")
    assert (await outcome(host, library, PLAIN)).startswith("AttestationRejected: request")
    assert await outcome(host, library, PLAIN, request=False) == GOOD


async def test_the_length_that_an_answer_states_is_that_of_what_is_handed_out(
    host: Host, library: Any
) -> None:
    plain = await ask(host, library, PLAIN)
    assert plain.headers.get_list("Content-Length") == [str(len(plain.content))]
    stream = await ask(host, library, STREAM)
    assert stream.headers.get_list("Content-Length") == []
    error = await ask(host, library, PLAIN.replace(b'"m"', b'"refused"'))
    assert error.headers.get_list("Content-Length") == [str(len(error.content))]


async def test_a_nonce_of_the_callers_is_kept(host: Host, library: Any) -> None:
    answer = await ask(host, library, PLAIN, headers={"Quotary-Nonce": "5a" * 16})
    assert exchange(answer).nonce == b"Z" * 16
    with pytest.raises(ValueError, match="lower-case hexadecimal"):
        await ask(host, library, PLAIN, headers={"Quotary-Nonce": "5A" * 16})


@both_libraries
async def test_a_request_that_is_sent_again_has_another_nonce(host: Host, library: Any) -> None:
    plain, ours = library
    transport = ours.AsyncVerifyingTransport(host.checks(), plain.AsyncHTTPTransport(verify=False))
    async with plain.AsyncClient(transport=transport) as client:
        request = client.build_request("POST", host.middle.url + CHAT, content=PLAIN)
        host.middle.tamper = lambda _: None
        with pytest.raises(plain.TransportError):
            await client.send(request)
        host.middle.tamper = honest
        for _ in range(2):
            verdict(await client.send(request))
    assert len(set(host.middle.nonces)) == len(host.middle.nonces) == 3


FETCHED: dict[str, tuple[Tamper, str]] = {
    "nothing": (honest, GOOD),
    "not there": (lambda answer: replace(answer, status=404), "AttestationMissing: the host has no"),
    "not now": (lambda answer: replace(answer, status=503), "AttestationNotChecked: the attestation of out_"),
    "broken off": (lambda _: None, "AttestationNotChecked: the attestation of out_"),
    "too long": (body(lambda _: b"x" * 1_000_001), "AttestationNotChecked: the attestation of out_"),
    "cut": (body(lambda data: data[:-1]), "AttestationRejected: decode"),
}  # fmt: skip


@both_libraries
async def test_what_is_fetched_is_verified_like_the_rest(host: Host, library: Any) -> None:
    host.middle.tamper = body(without_span)
    for name, (fetched, expected) in FETCHED.items():
        host.middle.fetched = fetched
        for content in (PLAIN, STREAM):
            end = await outcome(host, library, content, limits=Limits(attestation=1_000_000))
            assert end.startswith(expected), name


async def test_credentials_go_to_the_host_of_the_request_and_nowhere_else(host: Host, library: Any) -> None:
    host.middle.tamper = body(without_span)
    headers = {"Authorization": "Bearer secret"}
    async with middle(host.proxy) as elsewhere:
        for door in (DOOR, elsewhere.url + DOOR):
            verdict(await ask(host, library, PLAIN, headers=headers, door=door))
    assert host.middle.authorizations == ["Bearer secret"] * 3
    assert host.middle.codings == elsewhere.codings == {"identity"}
    assert elsewhere.authorizations == [None]


async def test_a_redirect_to_another_host_is_refused_even_where_failures_are_attached(
    host: Host, library: Any
) -> None:
    away = fields(Location="http://other.example/v1/chat/completions")
    host.middle.tamper = lambda answer: replace(away(answer), status=307)
    for how in ({}, {"on_failure": "attach"}, {"unattested": ("*",)}):
        found = await outcome(host, library, PLAIN, **how)
        assert found == "AttestationRejected: the answer is a redirect to another host"


async def test_an_attestation_that_a_path_may_lack_is_checked_where_it_is(host: Host, library: Any) -> None:
    assert await outcome(host, library, PLAIN, unattested=("/v1/*",)) == GOOD
    host.middle.tamper = PLAIN_TAMPERS["a word"][0]
    assert (await outcome(host, library, PLAIN, unattested=("/v1/*",))).startswith(
        "AttestationRejected: output"
    )
    host.middle.tamper = both(body(without_span), fields(Quotary_Output=None))
    answer = await ask(host, library, PLAIN, unattested=("/v1/*",))
    assert answer.status_code == 200
    with pytest.raises(AttestationMissing):
        verdict(answer)
    with pytest.raises(AttestationMissing):
        await ask(host, library, PLAIN, unattested=("/v1/", "/v1/chat"))


async def test_failures_that_are_attached_leave_the_answer_as_it_came(host: Host, library: Any) -> None:
    for request, tampers in ((PLAIN, PLAIN_TAMPERS), (STREAM, STREAM_TAMPERS)):
        for name, (tamper, expected) in tampers.items():
            came: list[bytes] = []

            def note(answer: Answer, tamper: Tamper = tamper, came: list[bytes] = came) -> Answer:
                altered = tamper(answer)
                assert altered is not None
                came.append(altered.body)
                return altered

            host.middle.tamper = note
            answer = await ask(host, library, request, on_failure="attach")
            if name in ("a content coding", "marked unattested"):
                assert answer.content == (gzip.decompress(came[0]) if "coding" in name else came[0])
            elif "span" in expected or "JSON" in expected or "last event" in expected:
                assert answer.content == came[0]
            else:
                assert answer.content == without_span(came[0]) or "media type" in name
            if expected != GOOD:
                with pytest.raises(AttestationError):
                    verdict(answer)


async def test_the_log_can_be_pinned_besides_the_policy(host: Host, library: Any) -> None:
    assert await outcome(host, library, PLAIN, origin=host.agent.origin) == GOOD
    other = "other.example/" + "a" * 32
    found = await outcome(host, library, PLAIN, origin=other)
    assert found == f"AttestationRejected: the answer is of the log {host.agent.origin}, not of {other}"


@pytest.mark.parametrize("request_body", [PLAIN, STREAM])
async def test_no_more_is_held_than_the_limit_allows(host: Host, library: Any, request_body: bytes) -> None:
    filler = b'data: {"x":"' if request_body is STREAM else b'{"x":"'
    host.middle.tamper = body(lambda _: filler + b"x" * 200_000)
    limits = Limits(held=100_000)
    found = await outcome(host, library, request_body, limits=limits)
    assert found.startswith("AttestationNotChecked: more than 100000 bytes")
    answer = await ask(host, library, request_body, limits=limits, on_failure="attach")
    assert answer.content == filler + b"x" * 200_000


async def test_a_long_answer_is_not_kept_but_verified(host: Host, library: Any) -> None:
    answer = await ask(host, library, STREAM, limits=Limits(kept=100))
    verdict(answer)
    assert exchange(answer).output is None
    with pytest.raises(AttestationNotChecked, match="not kept"):
        exchange(answer).save("never")


async def test_what_was_kept_verifies_again(host: Host, library: Any, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from quotary_cli.main import cli

    answer = await ask(host, library, STREAM)
    exchange(answer).save(tmp_path / "answer")
    (tmp_path / "policy.toml").write_text(host.policy)
    given = ["--request", f"{tmp_path}/answer.request", "--nonce", (tmp_path / "answer.nonce").read_text()]
    words = ["verify", f"{tmp_path}/answer.body", "-p", f"{tmp_path}/policy.toml", *given]
    assert (await asyncio.to_thread(CliRunner().invoke, cli, words)).exit_code == 0


def test_a_policy_is_a_path_a_text_or_a_loaded_one(tmp_path: Path) -> None:
    text = f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "h.example/{"a" * 32}"\n'
    path = tmp_path / "policy.toml"
    path.write_text(text)
    digests = {
        quotary.httpx2.VerifyingTransport(source).judge.policy.digest
        for source in (path, str(path), text, text.encode(), Checks(path), quotary.judge.read_policy(text))
    }
    assert len(digests) == 1
    with pytest.raises(PolicyError, match="no such file"):
        quotary.httpx2.VerifyingTransport(tmp_path / "none.toml")
    with pytest.raises(PolicyError, match="/dev/zero: more than 1052672 bytes"):
        quotary.httpx2.VerifyingTransport("/dev/zero")
    with pytest.raises(PolicyError, match="accept nothing"):
        quotary.httpx2.VerifyingTransport('schema = "quotary-policy/v1"\n')


@both_libraries
def test_synchronous_transports_do_the_same(tpm: Tpm, tmp_path: Path, library: Any) -> None:
    plain, ours = library

    def main(host: Host) -> list[str]:
        ends = []
        transport = ours.VerifyingTransport(host.checks(), plain.HTTPTransport(verify=False))
        with plain.Client(transport=transport) as client:
            for request, tampers in ((PLAIN, PLAIN_TAMPERS), (STREAM, STREAM_TAMPERS)):
                for tamper, expected in tampers.values():
                    host.middle.tamper = tamper
                    try:
                        answer = client.post(host.middle.url + CHAT, content=request)
                        verdict(answer)
                        ends.append((GOOD, expected))
                    except AttestationError as error:
                        ends.append((f"{type(error).__name__}: {error}", expected))
            host.middle.tamper = honest
            with client.stream("POST", host.middle.url + CHAT, content=STREAM) as answer:
                next(answer.iter_bytes())
            with pytest.raises(AttestationNotChecked, match="not read to its end"):
                verdict(answer)
        return [found for found, expected in ends if not found.startswith(expected)]

    async def run() -> list[str]:
        async with attesting_host(tpm, tmp_path) as host:
            return await asyncio.to_thread(main, host)

    assert asyncio.run(run()) == []


def test_errors_say_which_exchange_they_are_of() -> None:
    for kind in (AttestationMissing, AttestationRejected, AttestationNotChecked):
        error = kind("why")
        assert (str(error), error.exchange, error.report) == ("why", None, None)
