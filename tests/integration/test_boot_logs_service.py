# SPDX-License-Identifier: Apache-2.0
"""`attest agent run` on a measured host whose logs are mounted elsewhere, and `attest verify --with-logs`."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from agents import make_state, running
from click.testing import CliRunner
from measured_host import MeasuredHost
from services import service
from tpms import Tpm

from quotary_attest.bootlogs import BootLogSettings
from quotary_attest.config import load_config
from quotary_attest.log.export import export
from quotary_attest.log.store import Store
from quotary_attest.state import read_identity
from quotary_cli.verify import verify
from quotary_verifier.wire.attestation import Attestation


async def attested(socket: Path, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The agent's status, and the attestation of some bytes, from its local interface."""
    items = [{"bytes": base64.b64encode(body).decode()}]
    connector = aiohttp.UnixConnector(str(socket))
    async with (
        aiohttp.ClientSession(base_url="http://agent", connector=connector) as client,
        client.post("/v1/attest", data=json.dumps({"items": items}).encode()) as answer,
        client.get("/v1/status") as status,
    ):
        (output,) = (await answer.json())["outputs"]
        return await status.json(), base64.b64decode(output["attestation"])


@pytest.mark.parametrize("switched_off", [False, True])
async def test_the_service_names_logs_that_are_mounted_elsewhere_and_a_static_copy_verifies(
    tpm: Tpm, tmp_path: Path, switched_off: bool
) -> None:
    state = tmp_path / "state"
    make_state(tpm, state)
    host = MeasuredHost(tpm, tmp_path / "host").start()
    file = tmp_path / "agent.toml"
    file.write_text(
        f'[state]\nfolder = "{state}"\n[tpm]\ntcti = "{tpm.tcti}"\n'
        f'[boot_logs]\ntcg = "{host.folder}/tcg"\nima = "{host.folder}/ima"\n'
    )
    options = ["--no-boot-logs"] if switched_off else []
    async with service(tmp_path, "--config", file, *options) as agent:
        status, attestation = await attested(state / "agent.sock", b"an output")
        agent.signal(signal.SIGTERM)
        assert await agent.ended() == 0
    words = {name: log["state"] for name, log in status["boot_logs"].items()}
    assert words == dict.fromkeys(("tcg", "ima"), "off" if switched_off else "named")
    assert bool(Attestation.decode(attestation).boot_logs) is not switched_off
    if switched_off:
        return
    host.run_files(3)  # the host goes on, and its static files hold the longest part only
    async with running(tpm, state, boot_logs=host.settings) as later:
        await later.attest(b"another")
    store = Store.open(state / "log")
    export(store, tmp_path / "static")
    store.close()
    (tmp_path / "out").write_bytes(b"an output")
    (tmp_path / "out.attestation").write_bytes(attestation)
    (tmp_path / "policy").write_text(
        f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{read_identity(state).origin}"\n[tpm]\nsoftware = true\n'
    )
    arguments = [str(tmp_path / "out"), "--policy", str(tmp_path / "policy"), "--json"]
    for logs, expected in (([], "not-checked"), (["--with-logs", str(tmp_path / "static")], "passed")):
        done = await asyncio.to_thread(CliRunner().invoke, verify, [*arguments, *logs], standalone_mode=False)
        checks = {
            check["code"]: check for check in json.loads(done.output)["results"][0]["verdict"]["checks"]
        }
        assert checks["boot-logs"]["state"] == expected


def test_the_configuration_says_which_logs_are_read_and_what_attestations_carry() -> None:
    state = '[state]\nfolder = "/s"\n'
    assert load_config(state).boot_logs.settings == BootLogSettings()
    off = load_config(state + "[boot_logs]\nread = false\n").boot_logs
    assert (off.settings.tcg, off.settings.ima) == (None, None)
    assert off.ima == BootLogSettings().ima, "it still says through which values PCR 10 went"
    other = load_config(state + '[boot_logs]\ntcg = "/a"\nima = "/b"\nattestations = "none"\n').boot_logs
    assert other.settings == BootLogSettings(Path("/a"), Path("/b"), carried=False)
