# SPDX-License-Identifier: Apache-2.0
"""The agent under a service manager: readiness, watchdog, sockets that listen already, credentials, figures."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from agents import make_state
from prometheus_client.parser import text_string_to_metric_families
from scripted_engine import Call, ScriptedEngine, completion, scripted_engine
from services import Running, service
from tpms import CC_QUOTE, Tpm

from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.tss import lib
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.records import Output

CHAT = "/v1/chat/completions"
REQUEST = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'


@pytest.fixture
def state(tpm: Tpm, tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    return folder


def config_file(folder: Path, tpm: Tpm, state: Path, text: str = "") -> Path:
    """A configuration with these sections besides state and TPM."""
    file = folder / "agent.toml"
    file.write_text(f'[state]\nfolder = "{state}"\n[tpm]\ntcti = "{tpm.tcti}"\n{text}')
    return file


async def answer(call: Call) -> None:
    await call.answer(completion("an answer"))


async def figures(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Every sample of `/metrics`, by name and labels as they are written."""
    async with session.get(url) as response:
        assert response.status == 200
        text = await response.text()
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_the_agent_is_ready_when_its_start_is_committed_and_tells_how_it_is(
    tpm: Tpm, state: Path, tmp_path: Path
) -> None:
    stalled = threading.Event()
    reached = threading.Event()

    def hold(code: int, _command: bytes) -> None:
        if code == CC_QUOTE:
            reached.set()
            stalled.wait()

    tpm.board.answer = hold
    file = config_file(tmp_path, tpm, state, '[metrics]\nsocket = "metrics"\n')
    with socket.create_server(("127.0.0.1", 0)) as metrics:
        base = f"http://127.0.0.1:{metrics.getsockname()[1]}"
        async with service(tmp_path, "--config", file, sockets={"metrics": metrics}, wait=False) as agent:
            try:
                await asyncio.to_thread(reached.wait)
                await agent.report("STATUS=starting")
                assert "READY=1" not in agent.reported, "its first commit is not on disk yet"
                assert await statuses(base) == (200, 503)
            finally:
                stalled.set()
            await agent.report("READY=1")
            assert await statuses(base) == (200, 200)
            report = await agent.report("STATUS=attesting")
            assert report.startswith("STATUS=attesting for inference.example/")
            agent.signal(signal.SIGTERM)
            await agent.report("STOPPING=1")
            assert await agent.ended() == 0


async def statuses(base: str) -> tuple[int, int]:
    """What `/live` and `/ready` answer."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(base + "/live") as live,
        session.get(base + "/ready") as ready,
    ):
        return live.status, ready.status


async def test_the_watchdog_hears_nothing_more_of_an_engine_that_is_stuck(
    tpm: Tpm, state: Path, tmp_path: Path
) -> None:
    release = threading.Event()

    def hold(_code: int, _command: bytes) -> None:
        release.wait()

    file = config_file(tmp_path, tpm, state, "[watchdog]\nstuck_seconds = 1\n")
    async with service(tmp_path, "--config", file, environment={"WATCHDOG_USEC": "400000"}) as agent:
        await agent.report("READY=1")
        for _ in range(3):
            await agent.report("WATCHDOG=1", timeout=2)
        tpm.board.answer = hold
        try:
            sign = asyncio.create_task(attest_something(state))
            await agent.logged("stuck")
            await agent.report("STATUS=stuck")
            with pytest.raises(TimeoutError):
                await agent.report("WATCHDOG=1", timeout=1.0)
        finally:
            release.set()
        assert (await sign)["outputs"]
        await agent.report("WATCHDOG=1", timeout=5)


async def attest_something(state: Path) -> dict[str, object]:
    """Hand an output in at the local interface."""
    connector = aiohttp.UnixConnector(str(state / "agent.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:
        body = {"items": [{"digests": {"body": "00" * 32}}]}
        async with session.post("http://agent/v1/attest", json=body) as response:
            found: dict[str, object] = await response.json()
            return found


async def test_sockets_that_systemd_passes_on_are_served_by_their_names(
    tpm: Tpm, state: Path, tmp_path: Path
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        socket.socket(socket.AF_UNIX) as local,
        socket.create_server(("127.0.0.1", 0)) as metrics,
    ):
        local.bind(str(tmp_path / "passed.sock"))
        local.listen()
        async with scripted_engine(answer) as engine:
            text = (
                f'[[proxy]]\nupstream = "{engine.url}"\nsocket = "door"\n'
                '[local]\nsocket = "local"\n[metrics]\nsocket = "metrics"\n'
            )
            file = config_file(tmp_path, tpm, state, text)
            passed = {"metrics": metrics, "door": door, "local": local}
            async with service(tmp_path, "--config", file, sockets=passed) as agent:
                port = door.getsockname()[1]
                assert agent.ready["proxy"] == f"http://127.0.0.1:{port}"
                assert agent.ready["socket"] == str(tmp_path / "passed.sock")
                async with aiohttp.ClientSession() as session:
                    async with session.post(agent.ready["proxy"] + CHAT, data=REQUEST) as response:
                        assert "attestation" in await response.json()
                    url = f"http://127.0.0.1:{metrics.getsockname()[1]}/metrics"
                    found = await figures(session, url)
                assert found["quotary_outputs_total source=relayed state=complete"] == 1
                connector = aiohttp.UnixConnector(str(tmp_path / "passed.sock"))
                async with (
                    aiohttp.ClientSession(connector=connector) as session,
                    session.get("http://agent/v1/ready") as response,
                ):
                    assert (response.status, await response.json()) == (200, {"ready": True})
        assert (tmp_path / "passed.sock").exists(), "systemd made it, and removes it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[proxy]]\nupstream = "http://127.0.0.1:1"\nsocket = "other"\n', "no socket named other"),
        ('[[proxy]]\nupstream = "http://127.0.0.1:1"\nsocket = "local"\n', "of another kind"),
        ('[tpm]\nendorsement_auth_credential = "hierarchy"\n', "credential hierarchy"),
    ],
)
async def test_what_systemd_does_not_pass_on_stops_the_start(
    tpm: Tpm, state: Path, tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(f'[state]\nfolder = "{state}"\n{text}')
    with socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "passed.sock"))
        local.listen()
        arguments = ("--config", file, "--tpm", tpm.tcti)
        async with service(tmp_path, *arguments, sockets={"local": local}, wait=False) as agent:
            assert await agent.ended() == 4
    assert message in agent.log
    assert "hint:" in agent.log
    assert "Traceback" not in agent.log


@asynccontextmanager
async def proxied(
    engine: ScriptedEngine, tpm: Tpm, state: Path, folder: Path, *extra: object, text: str = ""
) -> AsyncIterator[Running]:
    """An agent with one proxy and a listener for figures."""
    doors = (
        f'[[proxy]]\nupstream = "{engine.url}"\nlisten = "127.0.0.1:0"\n[metrics]\nlisten = "127.0.0.1:0"\n'
    )
    file = config_file(folder, tpm, state, doors + text)
    async with service(folder, "--config", file, *extra) as agent:
        yield agent


async def test_figures_and_readiness_follow_what_happens(tpm: Tpm, state: Path, tmp_path: Path) -> None:
    async with scripted_engine(answer) as engine, proxied(engine, tpm, state, tmp_path) as agent:
        base, url = agent.ready["metrics"].removesuffix("/metrics"), agent.ready["proxy"]
        async with aiohttp.ClientSession() as session:
            for path, headers in (
                (CHAT, {}),
                (CHAT, {"Quotary-Deliver": "deferred"}),
                (CHAT, {"Quotary-Deliver": "header"}),
                (CHAT, {"Quotary-Nonce": "no nonce"}),
                ("/elsewhere", {}),
            ):
                async with session.post(url + path, data=REQUEST, headers=headers) as response:
                    await response.read()
            await attest_something(state)
            found = await figures(session, base + "/metrics")
            assert found["quotary_outputs_total source=relayed state=complete"] == 3
            assert found["quotary_outputs_total source=submitted state=complete"] == 1
            assert found["quotary_deliveries_total delivery=inband"] == 1
            assert found["quotary_deliveries_total delivery=deferred"] == 1
            assert found["quotary_deliveries_total delivery=header"] == 1
            assert found["quotary_refusals_total code=bad_nonce"] == 1
            assert found["quotary_unattested_total reason=path"] == 1
            assert found["quotary_commit_outputs_sum"] == 4
            assert found["quotary_ready"] == found["quotary_state state=running"] == 1
            assert found["quotary_log_leaves"] == 3 + 4, "genesis, boot and statement, and the outputs"
            assert found["quotary_starts"] == 2, "`attest agent init` counts the first"
            async with session.get(base + "/ready") as response:
                assert response.status == 200
            tpm.gone()
            async with session.post(url + CHAT, data=REQUEST) as response:
                assert response.status == 503
            async with session.get(base + "/ready") as response:
                assert response.status == 503
                assert (await response.json())["reason"]
            async with session.get(base + "/live") as response:
                assert (response.status, await response.json()) == (200, {"live": True})
            found = await figures(session, base + "/metrics")
            assert found["quotary_ready"] == 0
            assert found["quotary_state state=unavailable"] == 1
            assert found["quotary_tpm_errors_total kind=gone"] >= 1
            tpm.back()


async def test_logs_are_one_object_a_line_where_asked_for(tpm: Tpm, state: Path, tmp_path: Path) -> None:
    async with (
        scripted_engine(answer) as engine,
        proxied(engine, tpm, state, tmp_path, "--log", "json") as agent,
    ):
        async with (
            aiohttp.ClientSession() as session,
            session.post(agent.ready["proxy"] + CHAT, data=REQUEST) as response,
        ):
            assert response.status == 200
        agent.signal(signal.SIGTERM)
        assert await agent.ended() == 0
    lines = [json.loads(line) for line in agent.log.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert any(line["message"].startswith("output out_") for line in lines)


async def test_a_start_that_fails_is_an_object_of_the_log_too(tpm: Tpm, state: Path, tmp_path: Path) -> None:
    tpm.gone()
    file = config_file(tmp_path, tpm, state, '[log]\nformat = "json"\n')
    async with service(tmp_path, "--config", file, wait=False) as agent:
        assert await agent.ended() == 4
    last = json.loads(agent.log.splitlines()[-1])
    assert last["level"] == "error"
    assert last["hint"]


@pytest.mark.slow
async def test_a_credential_of_systemd_opens_the_endorsement_hierarchy(
    tpm: Tpm, state: Path, tmp_path: Path
) -> None:
    with Connection(tpm.tcti) as connection:
        connection.commands.hierarchy_change_auth(lib.ESYS_TR.ENDORSEMENT, b"operators word")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "auth").write_text("operators word\n")
    file = tmp_path / "agent.toml"
    named = f'[state]\nfolder = "{state}"\n[tpm]\ntcti = "{tpm.tcti}"\n'
    file.write_text(named)
    async with service(tmp_path, "--config", file, wait=False) as agent:
        assert await agent.ended() == 4, "without the word the key cannot be loaded"
    file.write_text(named + 'endorsement_auth_credential = "auth"\n')
    environment = {"CREDENTIALS_DIRECTORY": str(credentials)}
    async with service(tmp_path, "--config", file, environment=environment) as agent:
        assert (await attest_something(state))["outputs"]
    assert "operators word" not in agent.log


async def test_each_proxy_claims_the_model_that_stands_behind_it_and_no_other(
    tpm: Tpm, state: Path, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    async with scripted_engine(answer) as measured, scripted_engine(answer) as other:
        text = f'[[model]]\nname = "m"\nfiles = ["{tmp_path}/weights"]\n'
        for engine, model in ((measured, "m"), (other, "")):
            text += f'[[proxy]]\nupstream = "{engine.url}"\nlisten = "127.0.0.1:0"\nmodel = "{model}"\n'
        file = config_file(tmp_path, tpm, state, text)
        async with service(tmp_path, "--config", file) as agent, aiohttp.ClientSession() as session:
            claimed = []
            for url in agent.ready["proxies"]:
                async with session.post(url + CHAT, data=REQUEST) as response:
                    _, attestation = strip(await response.read())
                assert attestation is not None
                claimed.append(Output.decode(Attestation.decode(attestation).record).model)
        assert len(measured.calls) == len(other.calls) == 1
    assert claimed[0] is not None
    assert (claimed[0].name, claimed[1]) == ("m", None)
