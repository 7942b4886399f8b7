# SPDX-License-Identifier: Apache-2.0
"""Proxy workers as processes, in front of a real agent: what they relay verifies, and one's death is its own."""

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
from agents import judge, make_state, running
from proxies import CHAT, REQUEST, id_of, read_cut_off, sha
from scripted_engine import DONE, Call, completion, delta_event, scripted_engine
from services import service
from tpms import Tpm

from quotary_attest.agent import Agent
from quotary_attest.engine.outputs import NewOutput
from quotary_attest.linking.checked import CheckedLink, MeasuredFiles
from quotary_attest.measuring.files import hash_file
from quotary_attest.metrics import NO_METRICS, Tally
from quotary_attest.serving.link.client import RemoteAttester
from quotary_attest.serving.link.door import LinkDoor
from quotary_attest.serving.proxy import ProxyConfig
from quotary_attest.serving.workers import WorkerFailed, Workers, bind_shared
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.records import Link, Output, Source, State

BODY = delta_event("Hel") + delta_event("lo", finish="stop") + DONE


async def engine(call: Call) -> None:
    if b'"stream":true' in call.body:
        await call.stream(BODY)
    else:
        await call.answer(completion("Hello"))


@pytest.fixture
async def agent(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Agent]:
    async with running(tpm, tmp_path / "state") as agent:
        yield agent


def this_process(weights: Path) -> CheckedLink:
    """A check that finds an engine in this process, where the scripted ones run."""
    found = weights.stat()
    files = MeasuredFiles((), frozenset(((found.st_dev, found.st_ino),)))
    return CheckedLink(hash_file(Path(sys.executable).resolve()), {"qwen": files})


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[None]:
    with path.open():
        yield


class Setup:
    """Workers in front of a scripted engine, and a client that opens a connection for each request."""

    def __init__(self, workers: Workers, client: aiohttp.ClientSession, url: str) -> None:
        self.workers, self.client, self.url = workers, client, url

    def post(self, body: bytes = REQUEST) -> Any:
        return self.client.post(self.url + CHAT, data=body)


@asynccontextmanager
async def working(
    agent: Any, script: Any = engine, count: int = 2, metrics: Any = NO_METRICS
) -> AsyncIterator[Setup]:
    async with scripted_engine(script) as upstream, LinkDoor(agent, metrics=metrics) as door:
        config = ProxyConfig(upstream.url, model="llama")
        listeners = bind_shared("127.0.0.1", 0, count)
        port = listeners[0].getsockname()[1]
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            Workers(door, config, listeners, grace=5) as workers,
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as client,
        ):
            yield Setup(workers, client, f"http://127.0.0.1:{port}")


async def test_workers_relay_attested_answers_in_one_log(agent: Agent) -> None:
    async with working(agent) as setup:
        assert len(set(setup.workers.pids)) == 2

        async def one(streamed: bool) -> None:
            request = REQUEST if streamed else b"{}"
            async with setup.post(request) as answer:
                body, attestation = strip(await answer.read())
            assert attestation is not None
            judge(attestation, body, agent.origin, request=request)
            record = Output.decode(Attestation.decode(attestation).record)
            assert record.source is Source.RELAYED
            assert record.model is not None
            async with setup.client.get(
                f"{setup.url}/quotary/v1/attestations/{format_output_id(record.output_id)}"
            ) as got:
                assert await got.read() == attestation

        await asyncio.gather(*[one(number % 2 == 0) for number in range(24)])
        async with setup.client.get(f"{setup.url}/quotary/v1/checkpoint") as got:
            assert (await got.read()).startswith(agent.origin.encode())


async def test_a_worker_that_dies_loses_its_own_streams_and_is_replaced(agent: Agent) -> None:
    gates = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("Hel"))
        await gates.wait()
        await call.chunk(delta_event("lo", finish="stop") + DONE)
        await call.end()

    async with working(agent, script) as setup:
        answers = []
        victim, survivor = setup.workers.pids
        for _ in range(16):
            answer = await setup.post()
            assert await answer.content.readany()
            answers.append(answer)
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(20):
            while victim in setup.workers.pids or len(setup.workers.pids) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert survivor in setup.workers.pids
        gates.set()

        async def outcome(answer: aiohttp.ClientResponse) -> bool:
            try:
                return strip(delta_event("Hel") + await answer.read())[1] is not None
            except aiohttp.ClientPayloadError:
                return False

        outcomes = await asyncio.gather(*map(outcome, answers))
        for answer in answers:
            answer.close()
        assert True in outcomes
        assert False in outcomes
        # all listeners are served again
        for _ in range(16):
            async with setup.post() as answer:
                assert strip(await answer.read())[1] is not None


async def test_stopping_lets_a_running_answer_end(agent: Agent) -> None:
    gate, begun = asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("Hel"))
        begun.set()
        await gate.wait()
        await call.chunk(delta_event("lo", finish="stop") + DONE)
        await call.end()

    async with scripted_engine(script) as upstream, LinkDoor(agent) as door:
        workers = Workers(door, ProxyConfig(upstream.url), bind_shared("127.0.0.1", 0, 1), grace=20)
        await workers.__aenter__()
        port = workers._listeners[0].getsockname()[1]
        async with aiohttp.ClientSession() as client:
            answer = await client.post(f"http://127.0.0.1:{port}{CHAT}", data=REQUEST)
            await begun.wait()
            stopping = asyncio.create_task(workers.__aexit__(None, None, None))
            async with asyncio.timeout(10):
                while True:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                    except ConnectionRefusedError:
                        break
                    writer.close()
                    if stopping.done() or not workers.pids:
                        break
                    await asyncio.sleep(0.01)
            gate.set()
            body, attestation = strip(await answer.read())
            assert body == BODY
            assert attestation is not None
            await stopping


async def test_stopping_in_a_hurry_ends_answers_with_an_error_that_is_no_end(agent: Agent) -> None:
    more = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("Hel"))
        while not more.is_set():
            await call.chunk(delta_event("lo"))
            await asyncio.sleep(0.01)

    async with working(agent, script, count=1) as setup:
        answer = await setup.post()
        assert await answer.content.readany()
        reading = asyncio.create_task(read_cut_off(answer))
        hurry = asyncio.Event()
        hurry.set()
        await setup.workers.drain(20, hurry)
        assert not setup.workers.pids
        rest = await reading
        answer.close()
        more.set()
        assert b"attestation_unavailable" in rest
        assert b"[DONE]" not in rest


async def test_a_worker_does_not_outlive_its_agent(agent: Agent) -> None:
    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("Hel"))
        await call.until_gone()

    async with working(agent, script, count=1) as setup:
        (pid,) = setup.workers.pids
        answer = await setup.post()
        await answer.content.readany()
        # the agent's ends of the link are closed, as they are when its process dies
        for connection in list(setup.workers._door._connections):
            connection._abort()
        assert b"[DONE]" not in await read_cut_off(answer)
        answer.close()
        async with asyncio.timeout(20):
            while pid in setup.workers.pids:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_workers_that_cannot_come_up_are_an_error(agent: Agent) -> None:
    listeners = bind_shared("127.0.0.1", 0, 2)
    async with LinkDoor(agent) as door:
        with pytest.raises(ValueError, match="upstream"):
            Workers(door, ProxyConfig("not a url"), listeners)
    # a door that is shut takes no worker in
    with pytest.raises(WorkerFailed):
        await Workers(door, ProxyConfig("http://127.0.0.1:1"), listeners).__aenter__()


async def test_workers_switch_to_another_engine_and_answers_end_where_they_began(
    agent: Agent, tmp_path: Path
) -> None:
    gate, weights = asyncio.Event(), tmp_path / "weights"
    weights.write_bytes(b"w")

    async def slow(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("Hel"))
        await gate.wait()
        await call.chunk(delta_event("lo", finish="stop") + DONE)
        await call.end()

    async def other(call: Call) -> None:
        await call.answer(completion("Other"))

    async with scripted_engine(other) as elsewhere, working(agent, slow) as setup, opened(weights):
        begun = await setup.post()
        assert await begun.content.readany()
        before = await setup.workers.switch(elsewhere.url, "qwen", this_process(weights))
        assert setup.workers.route.model == "qwen"
        leaving = asyncio.create_task(setup.workers.leave(before))
        for _ in range(8):
            async with setup.post() as answer:
                body, attestation = strip(await answer.read())
            assert body == completion("Other")
            assert attestation is not None
            model = Output.decode(Attestation.decode(attestation).record).model
            assert model is not None
            assert (model.name, model.link) == ("qwen", Link.CHECKED)
        assert not leaving.done()
        gate.set()
        attestation = strip(delta_event("Hel") + await begun.read())[1]
        assert attestation is not None
        model = Output.decode(Attestation.decode(attestation).record).model
        assert model is not None
        assert (model.name, model.link) == ("llama", Link.CONFIGURED)
        await leaving
        victim = setup.workers.pids[0]
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(20):
            while victim in setup.workers.pids or len(setup.workers.pids) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for _ in range(8):  # its successor goes there, too
            async with setup.post() as answer:
                assert strip(await answer.read())[0] == completion("Other")


async def test_what_workers_counted_is_handed_over(agent: Agent) -> None:
    tally = Tally()
    async with working(agent, metrics=tally) as setup:
        for _ in range(6):
            async with setup.post() as answer:
                await answer.read()
    assert ("delivered", "inband", 6) in tally.take()


async def test_a_client_that_leaves_a_worker_is_recorded_as_gone(agent: Agent) -> None:
    left = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("Hel"))
        await call.until_gone()
        left.set()

    async with working(agent, script, count=1) as setup:
        answer = await setup.post()
        output_id = id_of(answer)
        await answer.content.readany()
        answer.close()
        await left.wait()
        record = Output.decode(Attestation.decode(await agent.fetch(output_id, 10)).record)
        assert record.state is State.CLIENT_GONE


async def test_the_command_runs_workers_and_middlewares_door_from_one_configuration(
    tpm: Tpm, tmp_path: Path
) -> None:
    state, link = tmp_path / "state", tmp_path / "link.sock"
    make_state(tpm, state)
    async with scripted_engine(engine) as upstream:
        file = tmp_path / "agent.toml"
        file.write_text(
            f'[state]\nfolder = "{state}"\n[tpm]\ntcti = "{tpm.tcti}"\n[serving_link]\npath = "{link}"\n'
            f'[metrics]\nlisten = "127.0.0.1:0"\n'
            f'[[proxy]]\nupstream = "{upstream.url}"\nlisten = "127.0.0.1:0"\nworkers = 2\n'
        )
        async with service(tmp_path, "--config", file) as agent, aiohttp.ClientSession() as client:
            origin = agent.ready["origin"]
            for _ in range(6):
                async with client.post(agent.ready["proxy"] + CHAT, data=REQUEST) as answer:
                    body, attestation = strip(await answer.read())
                assert attestation is not None
                judge(attestation, body, origin, request=REQUEST)
            assert agent.ready["serving_link"] == str(link)
            async with RemoteAttester(link) as remote:
                assert await remote.ready(10)
                delivered = await remote.submit(NewOutput(remote.new_output_id(), {"body": sha(b"x")}))
                record = Output.decode(Attestation.decode(delivered.encoded).record)
                assert record.source is Source.MIDDLEWARE
            async with asyncio.timeout(20):  # the workers' counts arrive now and then
                while True:
                    async with client.get(agent.ready["metrics"]) as answer:
                        text = await answer.text()
                    if 'delivery="inband"} 6.0' in text or 'how="inband"} 6.0' in text:
                        break
                    await asyncio.sleep(0.05)
