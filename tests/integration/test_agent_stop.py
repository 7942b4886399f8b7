# SPDX-License-Identifier: Apache-2.0
"""How the agent stops: nobody new comes in, running answers may end, and what was acknowledged is in the log."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from agents import judge, make_state, start
from proxies import read_cut_off
from scripted_engine import DONE, Call, Script, completion, delta_event, scripted_engine
from services import Running, service
from tpms import CC_QUOTE, Tpm
from yarl import URL

from quotary_attest.engine.errors import UnknownOutput
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.names import parse_output_id

CHAT = "/v1/chat/completions"
REQUEST = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'


@pytest.fixture
def state(tpm: Tpm, tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    return folder


@asynccontextmanager
async def proxied(
    script: Script, tpm: Tpm, state: Path, folder: Path, grace: float
) -> AsyncIterator[Running]:
    """An agent with one proxy in front of a scripted engine, which stops with that grace."""
    async with scripted_engine(script) as engine:
        file = folder / "agent.toml"
        file.write_text(
            f'[state]\nfolder = "{state}"\n[tpm]\ntcti = "{tpm.tcti}"\n[stop]\ngrace_seconds = {grace}\n'
            f'[[proxy]]\nupstream = "{engine.url}"\nlisten = "127.0.0.1:0"\n'
        )
        async with service(folder, "--config", file) as agent:
            yield agent


class Gate:
    """A stream that stands still after its first event until the test lets it go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("one"))
        self.begun.set()
        await self.go_on.wait()
        await call.chunk(delta_event(" two", finish="stop"))
        await call.chunk(DONE)
        await call.end()


async def test_what_was_acknowledged_under_load_is_in_the_log_when_the_agent_has_stopped(
    tpm: Tpm, state: Path, tmp_path: Path
) -> None:
    async def script(call: Call) -> None:
        await call.answer(completion(f"answer {len(call.body)}"))

    answers: list[tuple[str, bytes]] = []
    enough = asyncio.Event()

    async def client(session: aiohttp.ClientSession, url: str, deliver: str) -> None:
        while True:
            try:
                async with session.post(url, data=REQUEST, headers={"Quotary-Deliver": deliver}) as response:
                    body = await response.read()
            except aiohttp.ClientError:
                return
            if response.status == 200:
                answers.append((response.headers["Quotary-Output"], body))
                if len(answers) >= 100:
                    enough.set()

    tpm.board.delays[CC_QUOTE] = 0.1
    async with proxied(script, tpm, state, tmp_path, 30) as agent, aiohttp.ClientSession() as session:
        url = agent.ready["proxy"] + CHAT
        clients = [asyncio.create_task(client(session, url, word)) for word in ["inline", "deferred"] * 8]
        await enough.wait()
        agent.signal(signal.SIGTERM)
        assert await agent.ended() == 0
        await asyncio.gather(*clients)
        origin = agent.ready["origin"]
    tpm.board.delays.clear()
    carried = 0
    reader = await start(tpm, state)
    for output, body in answers:
        kept = await reader.fetch(parse_output_id(output), 0)
        content, inband = strip(body)
        carried += inband is not None
        judge(inband or kept, content, origin)
    await reader.close()
    assert 0 < carried < len(answers)


async def test_a_running_stream_may_end_while_nobody_new_comes_in(
    tpm: Tpm, state: Path, tmp_path: Path
) -> None:
    gate = Gate()
    async with proxied(gate, tpm, state, tmp_path, 60) as agent, aiohttp.ClientSession() as session:
        url = agent.ready["proxy"] + CHAT
        async with session.post(url, data=REQUEST) as response:
            await gate.begun.wait()
            agent.signal(signal.SIGTERM)
            await agent.report("STOPPING=1")
            await agent.logged("stopping")
            with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
                await keep_connecting(url)
            gate.go_on.set()
            body = await response.read()
        assert await agent.ended() == 0
    content, attestation = strip(body)
    assert attestation is not None
    assert content.endswith(DONE)
    judge(attestation, content, agent.ready["origin"])


async def keep_connecting(url: str) -> None:
    """Connect until that is refused."""
    async with asyncio.timeout(10):
        while True:
            _, writer = await asyncio.open_connection("127.0.0.1", URL(url).port)
            writer.close()


async def is_kept(tpm: Tpm, state: Path, output: str) -> bool:
    """Tell whether the stopped agent's log has a record of an output."""
    reader = await start(tpm, state)
    try:
        await reader.fetch(parse_output_id(output), 0)
    except UnknownOutput:
        return False
    finally:
        await reader.close()
    return True


@pytest.mark.parametrize(
    ("grace", "signals"), [(0.2, 1), (3600, 2)], ids=["the grace is over", "a second signal hurries it"]
)
async def test_a_stream_that_does_not_end_in_time_ends_in_an_error_and_is_not_recorded_as_left_by_its_client(
    tpm: Tpm, state: Path, tmp_path: Path, grace: float, signals: int
) -> None:
    gate = Gate()
    async with proxied(gate, tpm, state, tmp_path, grace) as agent, aiohttp.ClientSession() as session:
        async with session.post(agent.ready["proxy"] + CHAT, data=REQUEST) as response:
            await gate.begun.wait()
            for _ in range(signals):
                agent.signal(signal.SIGTERM)
                await agent.logged("stopping")
            await agent.logged("broken off")
            gate.go_on.set()
            body = await read_cut_off(response)
        assert await agent.ended() == 0
    assert b'"error"' in body
    assert b"[DONE]" not in body
    assert not await is_kept(tpm, state, response.headers["Quotary-Output"])


async def test_an_engine_that_is_silent_does_not_keep_the_agent_from_stopping(
    tpm: Tpm, state: Path, tmp_path: Path
) -> None:
    gate = Gate()
    async with proxied(gate, tpm, state, tmp_path, 0) as agent, aiohttp.ClientSession() as session:
        async with session.post(agent.ready["proxy"] + CHAT, data=REQUEST) as response:
            await gate.begun.wait()
            agent.signal(signal.SIGTERM)
            assert b"[DONE]" not in await read_cut_off(response)
        assert await agent.ended() == 0
        gate.go_on.set()
    assert "Traceback" not in agent.log
    assert not await is_kept(tpm, state, response.headers["Quotary-Output"]), "its client did not leave"
