# SPDX-License-Identifier: Apache-2.0
"""Responses and messages of a real model server: what is attested by id verifies, and so does the text alone.

llama.cpp's server with SmolLM2-135M writes the events; agent, proxy and verifier are the real ones.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agents import judge, running
from llama import llama_server
from proxies import Setup
from proxies import running as proxied
from scripted_engine import Call
from tpms import Tpm

from quotary_attest.agent import Agent
from quotary_attest.serving.aliases import is_upstream_id
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.records import Output, State

pytestmark = pytest.mark.timeout(300)

QUESTION = "Say hello."
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": QUESTION, "max_output_tokens": 12},
    "/v1/messages": {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12},
}


@pytest.fixture
async def agent(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Agent]:
    async with running(tpm, tmp_path / "state") as agent:
        yield agent


async def nobody(call: Call) -> None:
    raise AssertionError("the real server answers")


def shown(body: bytes, streamed: bool) -> tuple[str, str]:
    """Return the id and the text of an answer, as a client of the API reads them."""
    if not streamed:
        value = json.loads(body)
        parts = value["content"] if "content" in value else value["output"][-1]["content"]
        return value["id"], "".join(part["text"] for part in parts)
    events = [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: {")]
    first = events[0].get("response") or events[0]["message"]
    text = ""
    for event in events:
        if event["type"] == "response.output_text.delta":
            text += event["delta"]
        elif event["type"] == "content_block_delta":
            text += event["delta"]["text"]
    return first["id"], text


@pytest.mark.slow
async def test_answers_of_other_apis_and_their_texts_verify(agent: Agent) -> None:
    async with llama_server() as url, proxied(nobody, agent, model="llama", upstream=url) as setup:
        for path, members in REQUESTS.items():
            for streamed in (False, True):
                await ask(setup, agent, path, {"model": "smollm2", "stream": streamed, **members})


async def ask(setup: Setup, agent: Agent, path: str, members: dict[str, Any]) -> None:
    """Ask once and hold the answer, its text, and what is fetched by either id to the whole recipe."""
    request = json.dumps(members).encode()
    async with setup.post(request, path=path, headers={"Quotary-Nonce": "5a" * 16}) as answer:
        body, carried = strip(await answer.read())
    name, text = shown(body, members["stream"])
    assert is_upstream_id(name)
    assert text
    attestations = setup.url + "/quotary/v1/attestations/"
    for each in (answer.headers["Quotary-Output"], name):
        async with setup.client.get(attestations + each) as got:
            assert got.status == 200
            attestation = await got.read()
    async with setup.client.get(attestations + name, headers={"Authorization": "Bearer other"}) as refused:
        assert refused.status == 404
    assert carried in (None, attestation)
    assert (carried is None) == (members["stream"] or path == "/v1/messages")
    for held in (body, text.encode()):
        judge(attestation, held, agent.origin, request=request, nonce=b"Z" * 16)
    output = Output.decode(Attestation.decode(attestation).record)
    assert output.state is State.COMPLETE
    assert output.context["completion_tokens"] in range(1, 13)
