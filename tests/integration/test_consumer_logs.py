# SPDX-License-Identifier: Apache-2.0
"""The consumer's library fetches boot logs from the host by their digests, once, and verifies answers with them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
from agents import running
from consumers import Answer, Host, engine, middle
from measured_host import MeasuredHost
from proxies import CHAT
from proxies import running as proxied
from tpms import Tpm

from quotary import Checks, verdict
from quotary.aiohttp import VerifyingMiddleware
from quotary.bootlogs import HostLogs
from quotary.httpx2 import AsyncVerifyingTransport, VerifyingTransport
from quotary.judge import Judge
from quotary_verifier import Step, Verdict
from quotary_verifier.logs.ima import ImaLog, ReplayedIma
from quotary_verifier.wire.attestation import Attestation

PLAIN = b'{"model":"m","messages":[]}'
Ask = Callable[[str, Judge], Awaitable[Verdict]]


@pytest.fixture
def measured(tpm: Tpm, tmp_path: Path) -> MeasuredHost:
    return MeasuredHost(tpm, tmp_path / "logs").start()


@pytest.fixture
async def host(measured: MeasuredHost, tmp_path: Path) -> AsyncIterator[Host]:
    async with (
        running(measured.tpm, tmp_path / "state", boot_logs=measured.settings) as agent,
        proxied(engine, agent, model="llama") as setup,
        middle(setup.url) as between,
    ):
        yield Host(agent, setup.url, between, setup.engine)


async def by_httpx2(url: str, judge: Judge) -> Verdict:
    def ask() -> Verdict:
        with httpx2.Client(transport=VerifyingTransport(judge)) as client:
            return verdict(client.post(url + CHAT, content=PLAIN))

    return await asyncio.to_thread(ask)


async def by_async_httpx2(url: str, judge: Judge) -> Verdict:
    async with httpx2.AsyncClient(transport=AsyncVerifyingTransport(judge)) as client:
        return verdict(await client.post(url + CHAT, content=PLAIN))


async def by_aiohttp(url: str, judge: Judge) -> Verdict:
    async with (
        aiohttp.ClientSession(middlewares=(VerifyingMiddleware(judge),)) as client,
        client.post(url + CHAT, data=PLAIN) as answer,
    ):
        await answer.read()
        return verdict(answer)


def state_of(found: Verdict) -> str:
    (check,) = [check for check in found.report.checks if check.step is Step.BOOT_LOGS]
    return str(check.state)


@pytest.mark.parametrize("ask", [by_httpx2, by_async_httpx2, by_aiohttp])
async def test_logs_are_fetched_once_and_an_ima_log_anew_when_it_has_grown(
    host: Host, measured: MeasuredHost, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays: list[object] = []

    def counted(self: ImaLog, *args: Any) -> ReplayedIma:
        replays.append(self)
        return replay(self, *args)

    replay = ImaLog.replay
    monkeypatch.setattr(ImaLog, "replay", counted)
    moments = iter(range(1_800_000_000, 1_900_000_000))
    judge = Judge(host.checks(logs=True, clock=lambda: next(moments)))
    for expected in (2, 2, 2):  # both logs once, however many commits
        assert state_of(await ask(host.middle.url, judge)) == "passed"
        assert host.middle.fetches == expected
    assert len(replays) == 1
    await asyncio.to_thread(measured.run_files, 2)
    for _ in range(2):
        assert state_of(await ask(host.middle.url, judge)) == "passed"
        assert host.middle.fetches == 3
    assert len(replays) == 2
    assert state_of(await ask(host.middle.url, Judge(host.checks()))) == "not-checked"
    assert host.middle.fetches == 3


@pytest.mark.parametrize("ask", [by_httpx2, by_async_httpx2, by_aiohttp])
@pytest.mark.parametrize("how", ["absent", "other", "too long", "broken"])
async def test_a_log_that_is_not_to_be_had_is_not_checked_and_asked_for_again_later(
    host: Host, ask: Ask, how: str
) -> None:
    def spoil(answer: Answer) -> Answer | None:
        altered = {
            "absent": replace(answer, status=404, body=b""),
            "other": replace(answer, body=answer.body + b"\0"),
            "too long": answer,
        }
        return altered.get(how)

    host.middle.fetched = spoil
    now = [1_800_000_000.0]
    checks = host.checks(logs=True, clock=lambda: now[0])
    if how == "too long":
        checks = replace(checks, limits=replace(checks.limits, log=100))
    judge = Judge(checks)
    assert state_of(await ask(host.middle.url, judge)) == "not-checked"
    asked = host.middle.fetches
    assert asked >= 4 if how == "broken" else asked == 2  # aiohttp tries again by itself, too
    assert state_of(await ask(host.middle.url, judge)) == "not-checked"
    assert host.middle.fetches == asked
    now[0] += 61
    host.middle.fetched = lambda answer: answer
    assert state_of(await ask(host.middle.url, judge)) == ("not-checked" if how == "too long" else "passed")


def test_what_a_longer_log_begins_with_need_not_be_fetched(measured: MeasuredHost) -> None:
    logs, before = HostLogs(lambda: 0.0), measured.ima
    measured.run_files(3)

    def naming(log: bytes) -> bytes:
        attestation = Attestation(
            b"r", b"g", 1, b"", b"n", (), boot_logs={"ima": hashlib.sha256(log).digest()}
        )
        return attestation.encode()

    whole = hashlib.sha256(measured.ima).digest()
    assert logs.missing(naming(measured.ima)) == [whole]
    logs.take(whole, measured.ima)
    assert logs.missing(naming(before)) == []
    assert dict(logs.given(naming(before))) == {hashlib.sha256(before).digest(): before}
    assert logs.given(naming(before)) is logs.given(naming(before))
    assert logs.missing(naming(before[:-1])) == [hashlib.sha256(before[:-1]).digest()]
    assert logs.missing(b"no attestation") == []


def test_only_so_many_logs_are_kept() -> None:
    logs = HostLogs(lambda: 0.0)
    for number in range(20):
        log = b"log %d" % number
        logs.take(hashlib.sha256(log).digest(), log)
    assert len(logs._logs) == 8
    assert Checks("x").logs is False
