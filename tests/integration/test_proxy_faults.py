# SPDX-License-Identifier: Apache-2.0
"""What breaks while a real agent serves: the engine, the TPM, the disk, the agent itself. Each has its outcome."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from agents import Naps, audit, judge, make_state, release, running, settled
from full_disk import full
from proxies import CHAT, REQUEST, Setup, id_of, read_cut_off, sha
from proxies import running as proxied
from scripted_engine import DONE, Call, completion, delta_event, scripted_engine
from tpms import CC_QUOTE, Tpm

from quotary_attest.agent import World
from quotary_attest.tpm.root import TpmOptions
from quotary_verifier.errors import Rejected
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.records import Output, State

FIRST = delta_event("Hel")
BODY = FIRST + delta_event("lo", finish="stop")
SUPPORT = Path(__file__).parents[1] / "support"


async def engine(call: Call) -> None:
    """Stream, or answer whole, as asked."""
    if b'"stream":true' in call.body:
        await call.stream(BODY, DONE)
    else:
        await call.answer(completion("Hello"))


@asynccontextmanager
async def child(script: str, *arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run a program of the tests; yields it and the first line that it printed."""
    paths = os.pathsep.join((str(SUPPORT), str(SUPPORT.parents[1] / "scripts" / "benchmarks")))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SUPPORT / script),
        *arguments,
        env={**os.environ, "PYTHONPATH": paths},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        yield process, line.decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def fetched(setup: Setup, answer: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
    """Ask for the attestation of an answer by its id."""
    url = f"{setup.url}/quotary/v1/attestations/{answer.headers['Quotary-Output']}"
    got = await setup.client.get(url)
    await got.read()
    return got


async def test_an_engine_killed_in_a_stream_leaves_an_attested_prefix(tpm: Tpm, tmp_path: Path) -> None:
    async with (
        running(tpm, tmp_path / "state") as agent,
        child("stream_engine.py") as (process, url),
        proxied(engine, agent, model="llama", upstream=url) as setup,
        setup.post() as answer,
    ):
        begun = await answer.content.readexactly(20 * len(delta_event("word ")))
        process.send_signal(signal.SIGKILL)
        body = begun + await read_cut_off(answer)
        attestation = await (await fetched(setup, answer)).read()
    output = Output.decode(Attestation.decode(attestation).record)
    assert (output.state, output.digests["body"]) == (State.ENGINE_TRUNCATED, sha(body))
    with pytest.raises(Rejected, match="truncated"):
        judge(attestation, body, agent.origin, request=REQUEST)


@pytest.mark.parametrize("seconds", [0.0, pytest.param(30.0, marks=pytest.mark.slow)])
async def test_a_stalled_tpm_holds_ends_back_and_nothing_else(
    tpm: Tpm, tmp_path: Path, seconds: float
) -> None:
    async with (
        running(tpm, tmp_path / "state", deadline=TpmOptions().deadline) as agent,
        proxied(engine, agent, model="llama", fetch_seconds=0.05) as setup,
    ):
        with tpm.stall(CC_QUOTE):
            streams = [await setup.post() for _ in range(4)]
            for stream in streams:
                assert await stream.content.readexactly(len(BODY)) == BODY
            assert await asyncio.to_thread(tpm.stalled.wait, 20)
            ends = [asyncio.create_task(stream.content.read()) for stream in streams]
            await asyncio.sleep(seconds)
            async with setup.post(headers={"Quotary-Deliver": "deferred"}) as deferred:
                assert await deferred.read() == BODY + DONE
            assert (await fetched(setup, streams[0])).status == 504
            assert agent.outage is None
            assert not any(end.done() for end in ends)
        for stream, end in zip(streams, ends, strict=True):
            body, attestation = strip(BODY + await end)
            assert (body, attestation) == (BODY + DONE, await agent.fetch(id_of(stream)))
            judge(attestation or b"", body, agent.origin, request=REQUEST)
        judge(await agent.fetch(id_of(deferred)), BODY + DONE, agent.origin, request=REQUEST)
    assert not audit(tmp_path / "state").gaps


async def test_a_tpm_that_stays_away_beyond_the_deadline_fails_closed_until_it_is_back(
    tpm: Tpm, tmp_path: Path
) -> None:
    naps = Naps()
    async with (
        running(tpm, tmp_path / "state", deadline=0.3, world=World(sleep=naps)) as agent,
        proxied(engine, agent, model="llama") as setup,
    ):
        with tpm.stall(CC_QUOTE):
            async with setup.post() as stream:
                assert await stream.content.readexactly(len(BODY)) == BODY
                rest = await read_cut_off(stream)
                assert b'"code": "attestation_unavailable"' in rest
                assert b"[DONE]" not in rest
            async with setup.post() as refused:
                assert refused.status == 503
        async with asyncio.timeout(20):
            while agent.outage is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        async with setup.post() as answer:
            body, attestation = strip(await answer.read())
            judge(attestation or b"", body, agent.origin, request=REQUEST)


async def test_a_full_disk_refuses_requests_and_cuts_streams_until_there_is_room(
    tpm: Tpm, tmp_path: Path
) -> None:
    ending = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(BODY)
        await ending.wait()
        await call.chunk(DONE)
        await call.end()

    naps = Naps()
    async with (
        running(tpm, tmp_path / "state", world=World(sleep=naps)) as agent,
        proxied(script, agent, model="llama") as setup,
    ):
        async with setup.post() as running_stream:
            await running_stream.content.readexactly(len(BODY))
            await settled(agent.store)  # what an idle agent writes later is another matter
            with full():
                ending.set()
                rest = await read_cut_off(running_stream)
                assert b'"code": "attestation_unavailable"' in rest
                assert b"[DONE]" not in rest
                await naps.next()
                async with setup.post() as refused:
                    assert refused.status == 503
        assert (await fetched(setup, running_stream)).status == 404
        async with asyncio.timeout(20):
            while agent.outage is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        async with setup.post() as answer:
            body, attestation = strip(await answer.read())
            judge(attestation or b"", body, agent.origin, request=REQUEST)
    assert not audit(tmp_path / "state").gaps


async def test_what_a_killed_agent_had_handed_out_is_there_afterwards(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    acknowledged: dict[bytes, tuple[bytes, bytes]] = {}
    enough = asyncio.Event()

    async def ask(client: aiohttp.ClientSession, url: str, request: bytes) -> None:
        while True:
            async with client.post(url + CHAT, data=request) as answer:
                body, attestation = strip(await answer.read())
            assert attestation is not None
            acknowledged[id_of(answer)] = (body, attestation)
            if len(acknowledged) >= 150:
                enough.set()

    async with (
        scripted_engine(engine) as upstream,
        child("proxy_child.py", tpm.tcti, str(folder), upstream.url) as (process, port),
        aiohttp.ClientSession() as client,
    ):
        url = f"http://127.0.0.1:{port}"
        asking: list[asyncio.Task[Any]] = [
            asyncio.create_task(ask(client, url, (REQUEST, b"{}")[number % 2])) for number in range(16)
        ]
        await asyncio.wait_for(enough.wait(), 60)
        process.send_signal(signal.SIGKILL)
        ended = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(error, aiohttp.ClientError) for error in ended), ended
    release(tpm)
    async with running(tpm, folder) as agent:
        for output_id, (body, attestation) in acknowledged.items():
            kept = Attestation.decode(await agent.fetch(output_id))
            given = Attestation.decode(attestation)
            assert (kept.record, kept.index, kept.note) == (given.record, given.index, given.note)
            judge(attestation, body, agent.origin)
    assert not audit(folder).gaps
    assert len(acknowledged) >= 150


async def test_a_client_that_leaves_in_a_stream_is_told_of_by_the_record(tpm: Tpm, tmp_path: Path) -> None:
    stopped = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(FIRST)
        await call.until_gone()
        stopped.set()

    async with running(tpm, tmp_path / "state") as agent, proxied(script, agent, model="llama") as setup:
        answer = await setup.post()
        await answer.content.readexactly(len(FIRST))
        answer.close()
        await asyncio.wait_for(stopped.wait(), 10)
        got = await fetched(setup, answer)
    output = Output.decode(Attestation.decode(await got.read()).record)
    assert (output.state, output.digests["body"]) == (State.CLIENT_GONE, sha(FIRST))
