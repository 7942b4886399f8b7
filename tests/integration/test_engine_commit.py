# SPDX-License-Identifier: Apache-2.0
"""The agent on a real software TPM: group commit, attestations, epochs, reading back."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from agents import (
    AT,
    LLAMA,
    QWEN,
    WORKLOAD,
    audit,
    audit_store,
    judge,
    make_state,
    policy_of,
    running,
    settled,
    start,
)
from tpms import CC_PCR_EXTEND, CC_QUOTE, Tpm

from quotary_attest.agent import Agent, Busy, Delivered, NewOutput, NotServed, UnknownOutput, World
from quotary_attest.state import StateError
from quotary_attest.workload import Workload
from quotary_verifier.errors import Rejected
from quotary_verifier.evidence.tpm_keys import attestation_key
from quotary_verifier.evidence.tpm_quote import verify_quote
from quotary_verifier.logs.workload import read_log
from quotary_verifier.recipe.fresh import verify_fresh
from quotary_verifier.recipe.verify import Question, verify
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.bindings import ZERO, fresh_digest
from quotary_verifier.wire.fresh import FreshQuote
from quotary_verifier.wire.records import Genesis, Output, Source
from quotary_verifier.wire.tpm import parse_public


@pytest.fixture
async def agent(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Agent]:
    async with running(tpm, tmp_path / "state") as agent:
        yield agent
    report = audit(tmp_path / "state")
    assert not report.gaps


def relayed(agent: Agent, body: bytes, **fields: object) -> NewOutput:
    """An output as the proxy hands it in."""
    return NewOutput(agent.new_output_id(), {"body": hashlib.sha256(body).digest()}, **fields)  # type: ignore[arg-type]


async def test_an_output_is_attested_and_verifies_by_the_whole_recipe(agent: Agent) -> None:
    delivered = await agent.attest(b"the answer", request=b"the question", nonce=b"n" * 16)
    judge(delivered.encoded, b"the answer", agent.origin, request=b"the question", nonce=b"n" * 16)
    with pytest.raises(Rejected):
        judge(delivered.encoded, b"another answer", agent.origin)


async def test_the_bytes_are_those_that_the_verifier_would_encode(agent: Agent) -> None:
    plain = await agent.attest(b"plain")
    full = await agent.submit(relayed(agent, b"x", model="llama", request=bytes(32), request_key=bytes(32)))
    for delivered in (plain, full):
        assert Attestation.decode(delivered.encoded).encode() == delivered.encoded


async def test_what_arrives_while_the_tpm_works_shares_one_quote(tpm: Tpm, agent: Agent) -> None:
    with tpm.counted() as codes:
        first = asyncio.ensure_future(agent.attest(b"first"))
        rest = [asyncio.ensure_future(agent.attest(b"%d" % number)) for number in range(500)]
        done = await asyncio.gather(first, *rest)
    assert codes.count(CC_QUOTE) == codes.count(CC_PCR_EXTEND) <= 2
    assert len({Attestation.decode(item.encoded).note for item in done}) == codes.count(CC_QUOTE)
    for number, item in enumerate(done[1:]):
        judge(item.encoded, b"%d" % number, agent.origin)


async def test_what_nobody_waits_for_is_done_while_the_tpm_quotes(tpm: Tpm, tmp_path: Path) -> None:
    """Each commit once, after its batch is on disk and before its quote is answered: a chip takes longer than this."""
    tpm.board.delays[CC_QUOTE] = 0.1
    seen: list[tuple[int, bool]] = []
    agents: list[Agent] = []

    def spare() -> None:
        store = agents[0].store
        seen.append((store.commits, store.staged() is not None))

    async with running(tpm, tmp_path / "state", world=World(spare=spare)) as agent:
        agents.append(agent)
        before = agent.store.commits
        for number in range(3):
            await agent.attest(b"%d" % number)
    assert seen == [(before + number, True) for number in range(3)]


async def test_the_record_cites_the_model_and_shows_it_with_its_engine_and_nothing_else(agent: Agent) -> None:
    delivered = await agent.submit(relayed(agent, b"x", model="qwen"))
    attestation = Attestation.decode(delivered.encoded)
    claim = Output.decode(attestation.record).model
    assert claim is not None
    assert (claim.name, claim.weights, claim.link) == ("qwen", QWEN.weights, QWEN.link)
    log = read_log(attestation.supports[0].workload_log)
    shown = {event.event.name: event for event in log.current if event.event is not None}
    assert set(shown) == {"quotary-attest", "vllm", "qwen"}  # the agent says that its TPM is a software one
    assert (shown["qwen"].number, shown["qwen"].digest) == (claim.event, claim.event_digest)
    verdict = judge(delivered.encoded, b"x", agent.origin)
    assert "secret-value" not in str(verdict.report.as_json())
    assert b"secret-value" not in delivered.encoded


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"nonce": b"short"}, "a nonce has 8 to 64 bytes"),
        ({"request": b"x"}, "have 32 bytes each"),
        ({"request_key": b"x"}, "have 32 bytes each"),
        ({"digests": {}}, "has 1 to 256 digests"),
        ({"digests": {"body": b"x"}}, "an output digest has 32 bytes"),
        ({"output_id": b"x"}, "an output id has 24 bytes"),
        ({"context": {str(number): 1 for number in range(33)}}, "more than 32 entries"),
        ({"context": {"long": "x" * 4097}}, "at most 4096"),
        ({"context": {"float": 0.5}}, "a number, a boolean"),
        ({"context": {"large": 1 << 64}}, "at most 64 bits"),
        ({"context": {"small": -(1 << 64) - 1}}, "at most 64 bits"),
        ({"context": {str(number): "x" * 4096 for number in range(5)}}, "16384 are allowed"),
        ({"model": "llama", "source": Source.SUBMITTED}, "cannot claim a model"),
    ],
)
async def test_what_no_verifier_would_read_is_refused_before_it_is_logged(
    agent: Agent, wrong: dict[str, object], words: str
) -> None:
    size = agent.status()["size"]
    with pytest.raises(ValueError, match=words):
        await agent.submit(replace(relayed(agent, b"x"), **wrong))  # type: ignore[arg-type]
    assert agent.status()["size"] == size


async def test_records_that_are_expired_are_no_longer_found_and_the_log_stays_whole(agent: Agent) -> None:
    old = await agent.attest(b"old")
    await settled(agent.store)
    assert await agent.expire(1 << 50) == 1
    with pytest.raises(UnknownOutput):
        await agent.fetch(old.output_id)
    judge(old.encoded, b"old", agent.origin)


async def test_an_unmeasured_model_is_refused_and_a_submitted_output_claims_none(agent: Agent) -> None:
    with pytest.raises(NotServed, match="no model 'gpt' is measured"):
        await agent.submit(relayed(agent, b"x", model="gpt"))
    record = Output.decode(Attestation.decode((await agent.attest(b"x")).encoded).record)
    assert (record.model, record.source) == (None, Source.SUBMITTED)


async def test_an_announced_output_that_is_refused_is_waited_for_no_longer(agent: Agent) -> None:
    output = relayed(agent, b"x", model="gpt")
    agent.reserve(output.output_id)
    asking = asyncio.ensure_future(agent.fetch(output.output_id))
    await asyncio.sleep(0)
    with pytest.raises(NotServed):
        await agent.submit(output)
    async with asyncio.timeout(10):
        with pytest.raises(UnknownOutput):
            await asking
    with pytest.raises(UnknownOutput):
        await agent.fetch(output.output_id, 10)
    assert agent.status()["waiting"] == 0


async def test_an_output_that_cannot_be_recorded_under_a_new_epoch_costs_no_other(agent: Agent) -> None:
    epoch = asyncio.ensure_future(agent.begin_epoch(WORKLOAD))
    await asyncio.sleep(0)
    while not agent._engine._holding:  # noqa: ASYNC110
        await asyncio.sleep(0)
    wrong = replace(relayed(agent, b"wrong"), digests={"body": None})  # type: ignore[dict-item]
    results = asyncio.gather(agent.submit(wrong), agent.attest(b"right"), return_exceptions=True)
    await epoch
    async with asyncio.timeout(10):
        refused, delivered = await results
    assert isinstance(refused, TypeError)
    assert isinstance(delivered, Delivered)
    judge(delivered.encoded, b"right", agent.origin)


async def test_secrets_stay_with_the_operator_and_fit_their_commitment(agent: Agent, tmp_path: Path) -> None:
    (secrets,) = (tmp_path / "state" / "workload").glob("*.secrets")
    assert b"--api-key\0secret-value\0" in secrets.read_bytes()
    assert secrets.stat().st_mode & 0o777 == 0o600
    (log,) = (tmp_path / "state" / "workload").glob("*.cel")
    assert b"secret-value" not in log.read_bytes()


async def test_an_attestation_is_found_again_by_id_in_flight_from_memory_and_from_the_log(
    tpm: Tpm, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    async with running(tpm, folder) as agent:
        output = relayed(agent, b"x", model="llama", request_key=b"k" * 32, request=bytes(32))
        handed_in = asyncio.ensure_future(agent.submit(output))
        await asyncio.sleep(0)
        in_flight = await agent.fetch(output.output_id, timeout=10)
        assert in_flight == (await handed_in).encoded == await agent.fetch(output.output_id)
        await agent.begin_epoch(Workload((QWEN,)))
    async with running(tpm, folder) as agent:
        assert await agent.fetch(output.output_id) == in_flight
        with pytest.raises(UnknownOutput):
            await agent.fetch(agent.new_output_id())


async def test_a_reserved_output_is_waited_for_until_it_comes_or_is_abandoned(agent: Agent) -> None:
    coming, never = relayed(agent, b"x"), agent.new_output_id()
    agent.reserve(coming.output_id)
    agent.reserve(never)
    with pytest.raises(TimeoutError):
        await agent.fetch(coming.output_id, timeout=0.01)
    waiting = [
        asyncio.ensure_future(agent.fetch(item)) for item in (coming.output_id, coming.output_id, never)
    ]
    await asyncio.sleep(0)
    delivered = await agent.submit(coming)
    agent.abandon(never)
    assert [await waiting[0], await waiting[1]] == [delivered.encoded] * 2
    with pytest.raises(UnknownOutput, match="abandoned"):
        await waiting[2]


async def test_an_id_is_used_once_at_a_time_and_a_cancelled_caller_harms_nobody(agent: Agent) -> None:
    output = relayed(agent, b"x")
    first = asyncio.ensure_future(agent.submit(output))
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="on its way already"):
        await agent.submit(output)
    asked = asyncio.ensure_future(agent.fetch(output.output_id))
    await asyncio.sleep(0)
    first.cancel()
    judge(await asked, b"x", agent.origin)


async def test_a_model_swap_is_two_epochs_and_each_output_cites_its_own(agent: Agent) -> None:
    before = asyncio.ensure_future(agent.submit(relayed(agent, b"old", model="llama")))
    await agent.begin_epoch(Workload((LLAMA, QWEN), WORKLOAD.engine))
    both = [await agent.submit(relayed(agent, b"b", model=name)) for name in ("llama", "qwen")]
    await agent.begin_epoch(Workload((QWEN,), WORKLOAD.engine))
    assert agent.models == ("qwen",)
    after = await agent.submit(relayed(agent, b"new", model="qwen"))
    with pytest.raises(NotServed):
        await agent.submit(relayed(agent, b"old", model="llama"))
    judge((await before).encoded, b"old", agent.origin)
    for item in both:
        judge(item.encoded, b"b", agent.origin)
    judge(after.encoded, b"new", agent.origin)


async def test_outputs_handed_in_during_an_epoch_wait_and_cite_the_new_one(agent: Agent) -> None:
    changing = asyncio.ensure_future(agent.begin_epoch(Workload((QWEN,))))
    handed_in: list[asyncio.Future[object]] = []
    while not changing.done():
        handed_in.append(asyncio.ensure_future(agent.submit(relayed(agent, b"x", model="qwen"))))
        await asyncio.sleep(0.001)
    await changing
    done = await asyncio.gather(*handed_in)
    assert len(done) > 1
    for item in done:
        judge(item.encoded, b"x", agent.origin)  # type: ignore[attr-defined]


async def test_a_fresh_quote_binds_the_callers_nonce_and_the_platform_now(agent: Agent) -> None:
    await agent.attest(b"x")
    nonce = b"a caller's nonce"
    made = await agent.fresh_quote(nonce, model="llama")
    verify_fresh(made, nonce, AT, policy_of(agent.origin))
    fresh = FreshQuote.decode(made)
    genesis = Genesis.decode(fresh.genesis)
    assert genesis.tpm is not None
    key = attestation_key(parse_public(genesis.tpm.ak), genesis.tpm.ak_parent)
    log = read_log(fresh.support.workload_log)
    named = {event.event.name for event in log.current if event.event is not None}
    assert named == {"quotary-attest", "vllm", "llama"}
    values = dict.fromkeys(range(16), ZERO) | dict(fresh.support.pcrs)
    values |= {genesis.tpm.chain_pcr: fresh.support.chain_before, genesis.tpm.workload_pcr: log.value}
    verify_quote(
        key.public,
        fresh.evidence,
        qualified_signer=key.qualified_name,
        extra_data=fresh_digest(agent.origin, nonce),
        values=values,
    )
    await settled(agent.store)
    assert fresh.support.chain_before == audit_chain(agent)
    with pytest.raises(ValueError, match="8 to 64 bytes"):
        await agent.fresh_quote(b"short")
    with pytest.raises(NotServed):
        await agent.fresh_quote(nonce, model="gpt")


def audit_chain(agent: Agent) -> bytes:
    """The chain PCR after the last commit of a running agent's history."""
    return audit_store(agent.store).chain


async def test_the_queue_is_bounded(tpm: Tpm, tmp_path: Path) -> None:
    from quotary_attest.state import read_identity
    from quotary_attest.tpm.root import open_root

    folder = tmp_path / "state"
    make_state(tpm, folder)
    root = await open_root(read_identity(folder).tpm, tpm.tcti)
    async with await Agent.start(folder, root=root, max_queue=3, world=World()) as agent:
        waiting = [asyncio.ensure_future(agent.attest(b"x")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="3 outputs wait"):
            await agent.attest(b"x")
        await asyncio.gather(*waiting)


async def test_closing_commits_what_was_handed_in(tpm: Tpm, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    make_state(tpm, folder)
    agent = await start(tpm, folder)
    waiting = [asyncio.ensure_future(agent.attest(b"%d" % number)) for number in range(10)]
    await asyncio.sleep(0)
    await agent.close()
    for number, item in enumerate(await asyncio.gather(*waiting)):
        judge(item.encoded, b"%d" % number, agent.origin)


async def test_a_second_agent_on_the_same_folder_is_refused(tpm: Tpm, tmp_path: Path) -> None:
    async with running(tpm, tmp_path / "state") as agent:
        with pytest.raises(StateError, match="another agent uses the state folder"):
            await start(tpm, tmp_path / "state")
        judge((await agent.attest(b"x")).encoded, b"x", agent.origin)


async def test_two_origins_on_one_tpm_cannot_speak_for_each_other(tpm: Tpm, tmp_path: Path) -> None:
    """Neither by a whole attestation, nor by one whose genesis record was exchanged."""
    make_state(tpm, tmp_path / "one", chain_pcr=15, workload_pcr=13)
    make_state(tpm, tmp_path / "two", chain_pcr=9, workload_pcr=8)
    async with running(tpm, tmp_path / "one") as one, running(tpm, tmp_path / "two") as two:
        assert one.origin != two.origin
        from_one, from_two = await one.attest(b"x"), await two.attest(b"x")
        judge(from_one.encoded, b"x", one.origin)
        judge(from_two.encoded, b"x", two.origin)
        with pytest.raises(Rejected):
            judge(from_two.encoded, b"x", one.origin)
        mixed = Attestation.decode(from_two.encoded)
        forged = Attestation(
            mixed.record, one.genesis_record, mixed.index, mixed.path, mixed.note, mixed.supports
        )
        with pytest.raises(Rejected):
            verify(forged.encode(), Question(b"x", AT), policy_of(one.origin))
    assert audit(tmp_path / "one").gaps == audit(tmp_path / "two").gaps == []


async def test_a_fresh_quote_shows_the_model_of_the_epoch_that_it_quotes(agent: Agent) -> None:
    """What is in force changes between the call and the quote: the events shown are those of the quote's epoch."""
    nonce = b"n" * 16

    async def after(workload: Workload) -> bytes:
        beginning = asyncio.create_task(agent.begin_epoch(workload))
        quoting = asyncio.create_task(agent.fresh_quote(nonce, model="llama"))
        await beginning
        return await quoting

    made = FreshQuote.decode(await after(Workload((QWEN, LLAMA), WORKLOAD.engine)))
    verify_fresh(made.encode(), nonce, AT, policy_of(agent.origin))
    shown = [event.event for event in read_log(made.support.workload_log).current if event.event is not None]
    assert ("model", "llama") in [(event.type, event.name) for event in shown]
    with pytest.raises(NotServed):
        await after(Workload((QWEN,)))
