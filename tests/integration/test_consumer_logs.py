# SPDX-License-Identifier: Apache-2.0
"""The consumer's library fetches boot logs from the host by their digests, once, and verifies answers with them."""

from __future__ import annotations

import asyncio
import contextlib
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
from ima_logs import ima_entry
from measured_host import MeasuredHost
from proxies import CHAT
from proxies import running as proxied
from tcg_logs import good_boot
from tpms import Tpm

from quotary import Checks, verdict
from quotary.aiohttp import VerifyingMiddleware
from quotary.bootlogs import HostLogs, Wanted
from quotary.httpx2 import AsyncVerifyingTransport, VerifyingTransport
from quotary.judge import Judge
from quotary_attest.agent import Unavailable
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
    passed: list[Answer] = []
    host.middle.fetched = lambda answer: passed.append(answer) or answer  # type: ignore[func-returns-value]
    for _ in range(2):
        assert state_of(await ask(host.middle.url, judge)) == "passed"
        assert host.middle.fetches == 3
    grown = sum(len(ima_entry(data)) for data in measured.records[-2:])
    assert [(answer.status, len(answer.body)) for answer in passed] == [(206, grown)]
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

    (whole,) = logs.missing(naming(measured.ima))
    assert (whole.digest, whole.known) == (hashlib.sha256(measured.ima).digest(), 0)
    logs.take(whole, measured.ima)
    assert logs.missing(naming(before)) == []
    assert dict(logs.given(naming(before))) == {hashlib.sha256(before).digest(): before}
    assert logs.given(naming(before)) is logs.given(naming(before))
    assert [each.digest for each in logs.missing(naming(before[:-1]))] == [
        hashlib.sha256(before[:-1]).digest()
    ]
    assert logs.missing(b"no attestation") == []


def test_only_so_many_logs_are_kept() -> None:
    logs = HostLogs(lambda: 0.0)
    for number in range(20):
        log = b"log %d" % number
        logs.take(Wanted(hashlib.sha256(log).digest(), (b"", str(number)), 0), log)
    assert len(logs._logs) == 8
    assert Checks("x").logs is False


@pytest.mark.parametrize(("ask", "files"), [(by_httpx2, 1), (by_async_httpx2, 9), (by_aiohttp, 1)])
async def test_after_a_reboot_of_the_host_the_new_log_is_fetched_whole(
    host: Host, measured: MeasuredHost, ask: Ask, files: int
) -> None:
    moments = iter(range(1_800_000_000, 1_900_000_000))
    judge = Judge(host.checks(logs=True, clock=lambda: next(moments)))
    assert state_of(await ask(host.middle.url, judge)) == "passed"
    other = good_boot(banks=(0x0B,)).add(1, 0x0D, b"another setting")
    await asyncio.to_thread(measured.reboot, other, files)
    with contextlib.suppress(Unavailable):
        await host.agent.attest(b"it finds out that it was reset")
    async with asyncio.timeout(10):
        while host.agent.outage is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.002)  # it starts anew by itself
    assert state_of(await ask(host.middle.url, judge)) == "passed"


async def test_a_blob_is_served_from_any_byte_on(host: Host, measured: MeasuredHost) -> None:
    url = f"{host.proxy}/quotary/v1/blob/{hashlib.sha256(measured.ima).hexdigest()}"
    size = len(measured.ima)
    async with aiohttp.ClientSession() as client:
        for first, status, body in (
            (0, 206, measured.ima),
            (size - 3, 206, measured.ima[-3:]),
            (size, 416, b""),
        ):
            async with client.get(url, headers={"Range": f"bytes={first}-"}) as answer:
                assert (answer.status, await answer.read()) == (status, body)
                last = f"{first}-{size - 1}" if status == 206 else "*"
                assert answer.headers["Content-Range"] == f"bytes {last}/{size}"
        for other in ("bytes=0-1", "bytes=-5", "lines=1-", "bytes=1-,2-"):
            async with client.get(url, headers={"Range": other}) as answer:
                assert (answer.status, await answer.read()) == (200, measured.ima)
        async with client.get(f"{host.proxy}/quotary/v1/checkpoint", headers={"Range": "bytes=1-"}) as answer:
            assert answer.status == 200
