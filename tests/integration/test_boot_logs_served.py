# SPDX-License-Identifier: Apache-2.0
"""What serving says of boot logs: digests by themselves, logs in full for whoever asks for an attestation by id."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from agents import judge, running
from measured_host import MeasuredHost
from proxies import Setup
from proxies import running as proxied
from scripted_engine import Call, completion
from tpms import Tpm

from quotary_attest.agent import Agent
from quotary_attest.serving.asgi.routes import serve
from quotary_attest.serving.fulllogs import with_logs
from quotary_attest.serving.local import LocalConfig, LocalInterface
from quotary_verifier.recipe.steps import Step
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.names import format_output_id


async def engine(call: Call) -> None:
    await call.answer(completion("Hello"))


@pytest.fixture
def host(tpm: Tpm, tmp_path: Path) -> MeasuredHost:
    return MeasuredHost(tpm, tmp_path / "logs").start()


@pytest.fixture
async def agent(host: MeasuredHost, tmp_path: Path) -> AsyncIterator[Agent]:
    async with running(host.tpm, tmp_path / "state", boot_logs=host.settings) as agent:
        yield agent


def digests(host: MeasuredHost) -> dict[str, bytes]:
    return {name: hashlib.sha256(log).digest() for name, log in (("tcg", host.tcg), ("ima", host.ima))}


def logs_in(attestation: bytes) -> dict[str, bytes]:
    return dict(Attestation.decode(attestation).boot_logs)


async def get(client: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    async with client.get(url) as answer:
        return answer.status, await answer.read()


async def asked(setup: Setup, **headers: str) -> tuple[str, bytes, Any]:
    """Ask the engine; the id, the attestation that came, and the body."""
    async with setup.post(b"{}", headers=headers) as answer:
        body, attestation = strip(await answer.read())
        field = answer.headers.get("Quotary-Attestation")
        return answer.headers["Quotary-Output"], attestation or base64.b64decode(field or ""), body


@pytest.mark.parametrize("delivery", ["inline", "header"])
async def test_what_comes_with_an_answer_has_digests_and_what_is_fetched_has_what_is_asked_for(
    agent: Agent, host: MeasuredHost, delivery: str
) -> None:
    async with proxied(engine, agent, model="llama") as setup:
        output_id, attestation, body = await asked(setup, **{"Quotary-Deliver": delivery})
        assert logs_in(attestation) == digests(host)
        url = f"{setup.url}/quotary/v1/attestations/{output_id}"
        for query, expected in (
            ("", digests(host)),
            ("?logs=digest", digests(host)),
            ("?logs=full", {"tcg": host.tcg, "ima": host.ima}),
        ):
            status, fetched = await get(setup.client, url + query)
            assert (status, logs_in(fetched)) == (200, expected)
            checks = {check.step: check for check in judge(fetched, body, agent.origin).report.checks}
            assert str(checks[Step.BOOT_LOGS].state) == ("passed" if "full" in query else "not-checked")
        for wrong in ("?logs=", "?logs=all", "?logs=full&logs=full"):
            status, said = await get(setup.client, url + wrong)
            assert (status, b"bad_logs" in said) == (400, True)
        blob = f"{setup.url}/quotary/v1/blob/{digests(host)['ima'].hex()}"
        assert await get(setup.client, blob) == (200, host.ima)


async def test_the_signature_door_hands_out_full_logs_too(agent: Agent, host: MeasuredHost) -> None:
    async with proxied(engine, agent, model="llama") as setup:
        output_id, _, _ = await asked(setup)
        for query, expected in (("", digests(host)), ("?logs=full", {"tcg": host.tcg, "ima": host.ima})):
            async with setup.client.get(f"{setup.url}/v1/signature/{output_id}{query}") as answer:
                found = base64.b64decode((await answer.json())["attestation"])
            assert logs_in(found) == expected


async def test_the_local_interface_and_the_middleware_do_likewise(
    agent: Agent, host: MeasuredHost, tmp_path: Path
) -> None:
    delivered = await agent.attest(b"output")
    path, full = tmp_path / "agent.sock", {"tcg": host.tcg, "ima": host.ima}
    route = f"/v1/attestations/{format_output_id(delivered.output_id)}"
    async with (
        LocalInterface(agent, LocalConfig(path)),
        aiohttp.ClientSession(base_url="http://agent", connector=aiohttp.UnixConnector(str(path))) as client,
    ):
        assert logs_in((await get(client, route))[1]) == digests(host)
        assert logs_in((await get(client, route + "?logs=full"))[1]) == full
        assert (await get(client, route + "?logs=some"))[0] == 400
    for query, expected in (
        (b"", (200, digests(host))),
        (b"logs=full", (200, full)),
        (b"logs=x", (400, None)),
    ):
        sent: list[Any] = []

        async def send(event: Any, sent: list[Any] = sent) -> None:
            sent.append(event)

        scope = {"method": "GET", "headers": [], "query_string": query}
        await serve("/quotary" + route, scope, send, agent, 5.0)
        body = b"".join(event.get("body", b"") for event in sent[1:])
        found = logs_in(body) if sent[0]["status"] == 200 else None
        assert (sent[0]["status"], found) == expected


async def test_a_log_that_is_gone_or_too_long_stays_a_digest(agent: Agent, host: MeasuredHost) -> None:
    delivered = await agent.attest(b"output")

    class Elsewhere:
        def serve(self, path: str) -> bytes:
            return bytes(17 << 20) if host_digest in path else agent.store.serve(path)

    host_digest = digests(host)["tcg"].hex()
    full = await asyncio.to_thread(with_logs, delivered.encoded, Elsewhere())
    assert logs_in(full) == {"tcg": digests(host)["tcg"], "ima": host.ima}
    (stored,) = (agent.store.folder / "boot").iterdir()
    stored.unlink()
    gone = await asyncio.to_thread(with_logs, delivered.encoded, agent.store)
    assert logs_in(gone) == {"tcg": host.tcg, "ima": digests(host)["ima"]}
