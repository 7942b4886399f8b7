# SPDX-License-Identifier: Apache-2.0
"""Proxy and local interface in front of a real agent on a software TPM: what they hand out verifies."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from agents import judge, running
from proxies import CHAT, REQUEST, Setup, read_cut_off, sha
from proxies import running as proxied
from scripted_engine import DONE, Call, completion, delta_event
from tpms import Tpm

from quotary_attest.agent import Agent
from quotary_attest.serving.local import LocalConfig, LocalInterface
from quotary_verifier.errors import Rejected
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.fresh import FreshQuote
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.names import parse_output_id
from quotary_verifier.wire.records import Output, State

BODY = delta_event("Hel") + delta_event("lo", finish="stop") + DONE


async def engine(call: Call) -> None:
    """Stream, or answer whole, as asked."""
    if b'"stream":true' in call.body:
        await call.stream(BODY)
    else:
        await call.answer(completion("Hello"))


@pytest.fixture
async def agent(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Agent]:
    async with running(tpm, tmp_path / "state") as agent:
        yield agent


def through(agent: Agent, **config: Any) -> Any:
    """Run a proxy in front of the agent."""
    return proxied(engine, agent, model="llama", engine="scripted", **config)


async def test_plain_and_streamed_answers_verify_by_the_whole_recipe(agent: Agent) -> None:
    async with through(agent) as setup:
        for request, expected in ((REQUEST, BODY), (b"{}", completion("Hello"))):
            async with setup.post(request, headers={"Quotary-Nonce": "5a" * 16}) as answer:
                body, attestation = strip(await answer.read())
            assert body == expected
            assert attestation is not None
            for held in (body, b"Hello"):
                judge(attestation, held, agent.origin, request=request, nonce=b"Z" * 16)
            output = Output.decode(Attestation.decode(attestation).record)
            assert output.output_id == parse_output_id(answer.headers["Quotary-Output"])
            assert output.model is not None
            assert output.model.name == "llama"
            with pytest.raises(Rejected):
                judge(attestation, body + b" ", agent.origin, request=request)


async def test_what_was_fetched_by_id_is_what_stood_in_band(agent: Agent) -> None:
    async with through(agent) as setup, setup.post() as answer:
        _, attestation = strip(await answer.read())
        url = f"{setup.url}/quotary/v1/attestations/{answer.headers['Quotary-Output']}"
        async with setup.client.get(url) as got:
            assert await got.read() == attestation


async def test_streams_that_end_together_share_a_commit(agent: Agent) -> None:
    async def one(setup: Setup) -> bytes | None:
        async with setup.post() as answer:
            return strip(await answer.read())[1]

    async with through(agent) as setup:
        attestations = await asyncio.gather(*(one(setup) for _ in range(40)))
    commits = {Attestation.decode(attestation or b"").note for attestation in attestations}
    assert len(commits) < 20


async def test_a_client_that_went_away_can_be_told_so_by_the_record(agent: Agent) -> None:
    stopped = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("Hel"))
        await call.until_gone()
        stopped.set()

    async with proxied(script, agent, model="llama") as setup:
        answer = await setup.post()
        await answer.content.readexactly(len(delta_event("Hel")))
        answer.close()
        await asyncio.wait_for(stopped.wait(), 10)
        url = f"{setup.url}/quotary/v1/attestations/{answer.headers['Quotary-Output']}"
        async with setup.client.get(url) as got:
            attestation = await got.read()
    output = Output.decode(Attestation.decode(attestation).record)
    assert output.state is State.CLIENT_GONE
    assert output.digests["body"] == sha(delta_event("Hel"))
    with pytest.raises(Rejected, match="client-gone"):
        judge(attestation, delta_event("Hel"), agent.origin, request=REQUEST)


async def test_when_the_tpm_is_gone_streams_end_in_an_error_and_new_requests_are_refused(
    tpm: Tpm, agent: Agent
) -> None:
    going_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("Hel"))
        await going_on.wait()
        await call.chunk(delta_event("lo", finish="stop") + DONE)
        await call.end()

    async with proxied(script, agent) as setup, setup.post() as answer:
        await answer.content.readexactly(len(delta_event("Hel")))
        tpm.stop()
        going_on.set()
        rest = await read_cut_off(answer)
        assert b"attestation_unavailable" in rest
        assert b"[DONE]" not in rest
        async with setup.post() as refused:
            assert refused.status == 503
        async with setup.client.get(
            f"{setup.url}/quotary/v1/attestations/{answer.headers['Quotary-Output']}"
        ) as got:
            assert got.status == 404
        async with setup.client.get(f"{setup.url}/quotary/v1/checkpoint") as got:
            assert got.status == 200


async def test_the_local_interface_attests_quotes_and_publishes(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with (
        LocalInterface(agent, LocalConfig(path)),
        aiohttp.ClientSession(base_url="http://agent", connector=aiohttp.UnixConnector(str(path))) as client,
    ):
        items = [{"bytes": base64.b64encode(b"%d" % number).decode()} for number in range(20)]
        async with client.post("/v1/attest", data=json.dumps({"items": items, "nonce": "00" * 8})) as got:
            outputs = (await got.json())["outputs"]
        for number, output in enumerate(outputs):
            judge(base64.b64decode(output["attestation"]), b"%d" % number, agent.origin, nonce=bytes(8))
        async with client.get(f"/v1/attestations/{outputs[3]['output_id']}") as got:
            assert await got.read() == base64.b64decode(outputs[3]["attestation"])
        async with client.post("/v1/quote", data='{"nonce":"' + "ab" * 32 + '"}') as got:
            assert FreshQuote.decode(await got.read()).nonce == b"\xab" * 32
        async with client.get("/v1/status") as got:
            assert (await got.json())["state"] == "running"
        async with client.get("/checkpoint") as got:
            assert (await got.read()).startswith(agent.origin.encode() + b"\n")
        for name in (
            "tile/0/000",
            "history/000",
            "blob/" + "00" * 32,
            "blob/..%2Fidentity",
            "tile/0/999",
            "cosigned/7",
        ):
            async with client.get("/" + name) as got:
                assert got.status in (200, 404)
                assert got.status == 200 or (await got.json())["error"]["code"] == "not_found"


async def test_an_attested_path_names_itself_in_the_context(agent: Agent) -> None:
    async with through(agent) as setup, setup.post(path=CHAT) as answer:
        _, attestation = strip(await answer.read())
    output = Output.decode(Attestation.decode(attestation or b"").record)
    assert output.context == {"endpoint": CHAT, "engine": "scripted", "status": 200}
