# SPDX-License-Identifier: Apache-2.0
"""Engines that the agent starts itself: from what it measured or not at all, watched, and said of no other process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from agents import judge, running
from small_engine import PROGRAM, PYTHON, any_port, small_engine
from tpms import Tpm

from quotary_attest.enginelink import ProcessPeer, TcpPeer
from quotary_attest.inventory import EngineFile, Inventory, measure_inventory
from quotary_attest.linking.checked import CheckedLink
from quotary_attest.linking.processes import Process
from quotary_attest.linking.started import (
    EngineFailed,
    EnginePlan,
    StartedEngine,
    StartedLink,
    engine_environment,
    fill,
    free_port,
)
from quotary_attest.measure import ModelFile
from quotary_attest.serving.proxy import Proxy, ProxyConfig
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.records import Link

ARGUMENTS = ("-I", str(PROGRAM), "--model", "{model}", "--port", "{port}")


class Host:
    """A measured model folder, and how its engine is started."""

    def __init__(self, folder: Path, *options: str) -> None:
        model = folder / "model"
        model.mkdir()
        self.weights = model / "model.safetensors"
        self.weights.write_bytes(b"first weights   " + bytes(4096))
        (model / "tokenizer.json").write_bytes(b"{}")
        self.inventory: Inventory = measure_inventory(
            [ModelFile("m", (model,))], EngineFile("small", PYTHON, ARGUMENTS)
        )
        self.port = any_port()
        self.url = f"http://127.0.0.1:{self.port}"
        assert self.inventory.engine is not None
        self.key = self.inventory.workload.models[0].key
        self.plan = EnginePlan(
            self.inventory.engine,
            (*fill(ARGUMENTS, model, self.port), *options),
            {},
            self.url + "/health",
            self.inventory.files["m"],
            ready_seconds=20.0,
        )
        self.now = 0.0
        self.checked = CheckedLink(self.inventory.engine, self.inventory.files, clock=lambda: self.now)

    def link(self, engine: StartedEngine) -> StartedLink:
        return StartedLink(engine, self.checked, frozenset(("m", self.key)))

    def connected(self) -> TcpPeer:
        """A connection to the engine, closed again."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            return TcpPeer(connection.getsockname(), connection.getpeername())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


class Naps:
    """Sleeping without time passing, noted."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that only another process can bring about."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_verdict_says_started_though_the_weights_were_closed_after_loading(
    tpm: Tpm, tmp_path: Path
) -> None:
    host = Host(tmp_path, "--read")
    body = b'{"messages":[]}'
    async with (
        running(tpm, tmp_path / "state", workload=host.inventory.workload) as agent,
        StartedEngine(host.plan) as engine,
        Proxy(agent, ProxyConfig(host.url, model=host.key), link=host.link(engine)) as proxy,
        aiohttp.ClientSession() as client,
    ):
        url = f"http://127.0.0.1:{await proxy.listen('127.0.0.1', 0)}/v1/chat/completions"
        async with client.post(url, data=body) as answer:
            plain, attestation = strip(await answer.read())
        assert attestation is not None
        verdict = judge(attestation, plain, agent.origin, request=body)
        claims: dict[str, Any] = {claim.name: claim.value for claim in verdict.claims}
        assert claims["model_link"] == "started"
        assert b"first weights" in plain


async def test_only_the_agents_own_engine_is_started(host: Host, tmp_path: Path) -> None:
    async with StartedEngine(host.plan) as engine:
        link = host.link(engine)
        assert link.link("m", host.connected()) is Link.STARTED
        assert link.link("another model", host.connected()) is Link.CONFIGURED
        assert link.link("m") is Link.CONFIGURED
        with small_engine(host.weights) as foreign:
            host.now += 10
            assert link.link("m", ProcessPeer(foreign.process.pid)) is Link.CHECKED
            with socket.create_connection(("127.0.0.1", foreign.port)) as connection:
                peer = TcpPeer(connection.getsockname(), connection.getpeername())
            host.now += 10
            assert link.link("m", peer) is Link.CHECKED


async def test_a_file_that_changes_ends_what_is_said_of_a_started_engine(host: Host) -> None:
    async with StartedEngine(host.plan) as engine:
        link = host.link(engine)
        assert link.link(host.key, host.connected()) is Link.STARTED
        assert link.holds(host.key)
        (host.weights.parent / "tokenizer.json").write_bytes(b"[]")
        host.now += 10
        assert link.link(host.key, host.connected()) is Link.CONFIGURED
        assert not link.holds(host.key)


async def test_a_file_that_is_added_to_the_folder_ends_it_too(host: Host) -> None:
    async with StartedEngine(host.plan) as engine:
        link = host.link(engine)
        assert link.link(host.key, host.connected()) is Link.STARTED
        (host.weights.parent / "chat_template.jinja").write_bytes(b"{{ other }}")
        host.now += 10
        assert link.link(host.key, host.connected()) is Link.CONFIGURED


async def test_an_engine_that_dies_is_started_again_and_is_the_engine_then(host: Host) -> None:
    naps = Naps()
    async with StartedEngine(host.plan, sleep=naps) as engine:
        first = engine.process
        assert first is not None
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: engine.process not in (None, first) and _listens(host.port))
        host.now += 10
        assert host.link(engine).link("m", host.connected()) is Link.STARTED
        assert naps.taken == [1.0]
        assert not engine.ended.is_set()


async def test_an_engine_is_not_started_again_from_files_that_were_swapped(host: Host) -> None:
    naps = Naps()
    async with StartedEngine(host.plan, sleep=naps) as engine:
        assert engine.process is not None
        host.weights.write_bytes(b"other weights   " + bytes(4096))
        os.kill(engine.process.pid, signal.SIGKILL)
        await until(lambda: len(naps.taken) > 3)
        assert engine.process is None
        assert not _listens(host.port)
        assert naps.taken[:4] == [1.0, 2.0, 4.0, 8.0]


async def test_an_operator_may_have_the_agent_stop_with_its_engine(host: Host) -> None:
    async with StartedEngine(replace(host.plan, on_exit="stop")) as engine:
        assert engine.process is not None
        os.kill(engine.process.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            await engine.ended.wait()
        assert engine.process is None


async def test_nothing_is_started_from_files_that_are_not_as_they_were_measured(host: Host) -> None:
    host.weights.write_bytes(b"other weights   " + bytes(4096))
    with pytest.raises(EngineFailed, match=r"model\.safetensors is not as it was measured") as failed:
        await StartedEngine(host.plan).__aenter__()
    assert failed.value.hint
    assert not _listens(host.port)


async def test_nothing_is_started_where_the_binary_was_swapped(host: Host, tmp_path: Path) -> None:
    binary = tmp_path / "engine"
    binary.symlink_to("/bin/true")
    plan = replace(host.plan, engine=replace(host.plan.engine, path=binary))
    with pytest.raises(EngineFailed, match="engine is not as it was measured"):
        await StartedEngine(plan).__aenter__()


async def test_an_engine_that_ends_or_never_serves_is_a_failure_that_leaves_no_process(
    tmp_path: Path, host: Host
) -> None:
    with pytest.raises(EngineFailed, match="ended with status 3 before it was ready"):
        await StartedEngine(replace(host.plan, arguments=(*host.plan.arguments, "--fail"))).__aenter__()
    deaf = replace(host.plan, ready_url=f"http://127.0.0.1:{any_port()}/", ready_seconds=0.5)
    engine = StartedEngine(deaf)
    with pytest.raises(EngineFailed, match="not ready within"):
        await engine.__aenter__()
    assert engine.process is None
    assert not _listens(host.port)


STUBBORN = """
import os, signal, sys, time
if not os.fork():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(sys.argv[1], "w") as note:
        note.write(str(os.getpid()))
    time.sleep(60)
else:
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


async def test_what_the_engine_has_started_ends_with_it_though_it_would_not(
    host: Host, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    plan = replace(host.plan, arguments=("-I", "-c", STUBBORN, str(note), *host.plan.arguments))
    async with StartedEngine(plan) as engine:
        await until(lambda: note.exists() and bool(note.read_text()))
        below = Process.of(int(note.read_text()))
        assert below is not None
        assert engine.process is not None
        assert below.descends_from(engine.process)
    await until(lambda: not below.alive)
    assert not _listens(host.port)


def test_the_engine_gets_what_matters_to_engines_and_none_of_the_agents_secrets() -> None:
    environ = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "VLLM_USE_V1": "1",
        "NOTIFY_SOCKET": "/x",
        "AWS_SECRET": "s",
    }
    found = engine_environment(environ, {"MY_SWITCH": "on", "PATH": "/opt/bin"})
    assert found == {"PATH": "/opt/bin", "CUDA_VISIBLE_DEVICES": "1", "VLLM_USE_V1": "1", "MY_SWITCH": "on"}


def test_a_command_line_without_a_place_for_the_model_is_refused() -> None:
    assert fill(("--model={model}", "{port}", "x"), Path("/m"), 7) == ("--model=/m", "7", "x")
    with pytest.raises(ValueError, match="would not load what was measured"):
        fill(("--model", "/m"), Path("/m"), 7)
    assert free_port() > 0


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
