# SPDX-License-Identifier: Apache-2.0
"""What a host states of its answers: committed where it changed, published, and verified by the whole recipe."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agents import AT, audit, make_state, policy_of, release, running, settled, start
from proxies import running as proxied
from scripted_engine import Call
from tpms import Tpm

import dtpm
from quotary_attest.agent import Agent, StartRefused, UnknownOutput
from quotary_attest.serving.attester import STATEMENT_ID
from quotary_attest.serving.link.client import RemoteAttester
from quotary_attest.serving.link.door import LinkConfig, LinkDoor
from quotary_attest.serving.promise import declaration_of
from quotary_attest.serving.proxy import ProxyConfig
from quotary_verifier import EvidenceError, VerifiedStatement, strip, verify_statement
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.declaration import Declaration, Service

CHILD = Path(__file__).parent.parent / "support" / "engine_child.py"
CHAT = "/v1/chat/completions"
TOLD = Declaration.of([Service((CHAT,))])
MORE = Declaration.of([Service((CHAT, "/v1/embeddings"))])


async def engine(call: Call) -> None:
    await call.answer(b'{"id":"x"}')


@pytest.fixture
async def agent(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Agent]:
    async with running(tpm, tmp_path / "state") as agent:
        yield agent
    assert not audit(tmp_path / "state").gaps


async def stated(agent: Agent) -> VerifiedStatement:
    """The newest statement, verified."""
    return verify_statement(await agent.fetch(STATEMENT_ID), AT, policy_of(agent.origin))


async def test_a_statement_is_committed_when_it_changed_and_only_then(agent: Agent) -> None:
    with pytest.raises(UnknownOutput):
        await agent.fetch(STATEMENT_ID)
    await agent.declare(Declaration(()))  # nothing was promised and nothing is: no record
    size = agent.store.size
    await agent.declare(TOLD)
    await agent.declare(TOLD)
    first = await stated(agent)
    assert (agent.store.size, first.index, first.declaration) == (size + 1, size, TOLD)
    assert first.promised(CHAT) == TOLD.services
    await agent.declare(MORE)
    second = await stated(agent)
    assert (second.index, second.declaration) == (size + 1, MORE)
    await agent.declare(Declaration(()))
    assert (await stated(agent)).promised(CHAT) == ()


async def test_a_statement_stays_over_starts_and_beyond_the_life_of_outputs(tpm: Tpm, tmp_path: Path) -> None:
    make_state(tpm, tmp_path / "state")
    agent = await start(tpm, tmp_path / "state")
    await agent.declare(TOLD)
    told = await stated(agent)
    await agent.close()
    async with running(tpm, tmp_path / "state") as again:
        await again.expire(1 << 45)
        await again.declare(TOLD)
        assert (await stated(again)).index == told.index


async def test_a_statement_that_no_record_can_hold_is_refused_with_a_hint(agent: Agent) -> None:
    many = Declaration.of([Service(tuple(f"/a-path-of-many/{number:03}" for number in range(200)))])
    with pytest.raises(StartRefused, match="4096 are allowed") as refused:
        await agent.declare(many)
    assert refused.value.hint


async def test_a_statement_is_published_by_its_entry(agent: Agent) -> None:
    await agent.declare(TOLD)
    record = Attestation.decode(await agent.fetch(STATEMENT_ID)).record
    assert agent.store.serve(f"blob/{hashlib.sha256(record).hexdigest()}") == record


async def test_clients_find_the_statement_and_are_told_when_there_is_none(agent: Agent) -> None:
    async with proxied(engine, agent) as setup:  # type: ignore[arg-type]
        url = f"{setup.url}/quotary/v1/statement"
        async with setup.client.get(url) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (404, "no_statement")
        await agent.declare(TOLD)
        async with setup.client.get(url) as answer:
            assert answer.headers["Content-Type"] == "application/vnd.quotary.attestation+cbor"
            found = verify_statement(await answer.read(), AT, policy_of(agent.origin))
            tag = answer.headers["ETag"]
        assert found.declaration == TOLD
        async with setup.client.get(url, headers={"If-None-Match": tag}) as answer:
            assert answer.status == 304


async def test_another_process_of_the_host_finds_the_statement_over_the_link(
    agent: Agent, tmp_path: Path
) -> None:
    await agent.declare(TOLD)
    path = tmp_path / "link.sock"
    async with LinkDoor(agent, LinkConfig(path)), RemoteAttester(path) as remote:
        assert await remote.ready(10)
        assert await remote.fetch(STATEMENT_ID, 10) == await agent.fetch(STATEMENT_ID)


async def test_an_attestation_that_was_taken_off_on_the_way_is_missed(agent: Agent) -> None:
    async with proxied(engine, agent, model="llama") as setup:  # type: ignore[arg-type]
        await agent.declare(declaration_of([ProxyConfig(setup.engine.url, model="llama")]))
        found = await stated(agent)
        async with setup.post(b"{}") as answer:
            body, attestation = strip(await answer.read())
        assert attestation is not None
        # what a relay passes on that keeps the attestation to itself looks like an answer of any other server
        with pytest.raises(EvidenceError, match="and this one is not"):
            found.judge_unattested(CHAT)
        async with setup.client.get(setup.url + "/v1/models") as answer:
            assert answer.headers["Quotary-Attested"] == "no"
        found.judge_unattested("/v1/models", unavailable=True)
    assert body == b'{"id":"x"}'


async def test_statements_and_outputs_that_come_together_are_all_found(agent: Agent) -> None:
    async def outputs(count: int) -> list[bytes]:
        return [(await agent.attest(b"%d" % number)).output_id for number in range(count)]

    async with asyncio.timeout(30):
        made, _, others, _ = await asyncio.gather(
            outputs(5), agent.declare(TOLD), outputs(5), agent.declare(MORE)
        )
        await settled(agent.store)
    assert (await stated(agent)).declaration in (TOLD, MORE)
    for output_id in (*made, *others):
        await agent.fetch(output_id)
    assert not len(agent._engine.waiting)


@pytest.mark.parametrize("point", ["staged", "extended", "quoted", "in-history", "applied"])
async def test_a_statement_cut_off_at_any_step_is_there_after_the_next_start(
    tpm: Tpm, tmp_path: Path, point: str
) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(CHILD), tpm.tcti, str(folder), point, "0", "0"),
        env={"PYTHONPATH": f"{CHILD.parent}:{Path(dtpm.__file__).parent}", "TSS2_LOG": "all+none"},
    )
    assert await process.wait() == -signal.SIGKILL
    release(tpm)
    async with running(tpm, folder) as agent:
        size = agent.store.size
        await agent.declare(TOLD)
        assert agent.store.size == size  # the start finished what was staged
        assert (await stated(agent)).declaration == TOLD
    assert not audit(folder).gaps


async def test_a_statement_that_no_quote_speaks_for_is_made_again(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(CHILD), tpm.tcti, str(folder), "staged", "0", "0"),
        env={"PYTHONPATH": f"{CHILD.parent}:{Path(dtpm.__file__).parent}", "TSS2_LOG": "all+none"},
    )
    assert await process.wait() == -signal.SIGKILL
    tpm.reset()
    async with running(tpm, folder) as agent:
        with pytest.raises(UnknownOutput):
            await agent.fetch(STATEMENT_ID)
        await agent.declare(TOLD)
        assert (await stated(agent)).declaration == TOLD
