# SPDX-License-Identifier: Apache-2.0
"""Origins without a TPM, on a synthetic SEV-SNP processor: starts, commits, failures, what is found staged."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64decode
from hashlib import sha256
from pathlib import Path

import pytest
from agents import HOST, LLAMA, WORKLOAD, Naps, settled
from aiohttp import ClientSession
from soft_snp import SoftSnp, gone, in_its_time
from tee_origins import audit_tee, make_tee_state, running_tee, start_tee

from quotary_attest.agent import Agent, NewOutput, NotQuotable, NotServed, Unavailable, UnknownOutput
from quotary_attest.engine.further import FurtherRoot
from quotary_attest.log.errors import StorageFull
from quotary_attest.log.store import Store
from quotary_attest.origin import init_tee_state
from quotary_attest.roots import RequiredRootFailed, TeeEvidence
from quotary_attest.serving.attester import STATEMENT_ID
from quotary_attest.serving.proxy import Proxy, ProxyConfig
from quotary_attest.state import HostIdentity, StateError, read_identity
from quotary_attest.workload import ServedModel, Workload
from quotary_verifier.tlog.hardware import IDENTIFIER_NVIDIA, IDENTIFIER_SEV_SNP
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.declaration import Declaration, Service
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.records import Genesis, Link, Output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tee_state(tmp_path / "state")
    return tmp_path / "state"


def relayed(agent: Agent, body: bytes, **fields: object) -> NewOutput:
    """An output as the proxy hands it in."""
    return NewOutput(agent.new_output_id(), {"body": sha256(body).digest()}, **fields)  # type: ignore[arg-type]


async def until(agent: Agent, state: str) -> None:
    """Wait until the agent is in a state."""
    async with asyncio.timeout(20):
        while agent.status()["state"] != state:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def test_a_new_origin_has_a_note_key_and_nothing_of_a_tpm(folder: Path) -> None:
    identity = read_identity(folder)
    genesis = Genesis.decode(identity.genesis_record)
    assert (genesis.host, genesis.tpm, identity.tpm) == (HOST, None, None)
    assert HostIdentity.decode(identity.encode()) == identity
    assert not (folder / "starts").exists()
    with pytest.raises(StateError, match="has no tpm"):
        _ = identity.tpm_keys


def test_an_identity_whose_keys_and_genesis_record_are_of_two_origins_is_damaged(folder: Path) -> None:
    identity = read_identity(folder)
    genesis = Genesis.decode(identity.genesis_record)
    assert genesis.tpm is None
    with pytest.raises(StateError, match="damaged"):
        HostIdentity.decode(identity.encode().replace(b"genesis", b"genesys"))
    with pytest.raises(StateError, match="not empty"):
        init_tee_state(folder, HOST)


async def test_every_commit_carries_the_required_roots_line_and_no_other(folder: Path) -> None:
    snp = SoftSnp()
    async with running_tee(folder, snp) as agent:
        found = [await agent.attest(b"%d" % number) for number in range(3)]
        (shown,) = agent.status()["roots"]
    attestation = Attestation.decode(found[-1].encoded)
    assert attestation.supports == ()
    assert [tee.identifier for tee in attestation.tees] == [IDENTIFIER_SEV_SNP]
    assert (shown["bound"], shown["failed"]) == (4, 0)
    report = audit_tee(folder, snp)
    assert report.ranges == [(0, 1, 2), (2, 2, 3), (3, 3, 4), (4, 4, 5)]
    assert report.boots == [1]


async def test_what_waits_while_the_processor_works_is_one_commit(folder: Path) -> None:
    snp = SoftSnp()
    async with running_tee(folder, snp) as agent:
        snp.gate = asyncio.Event()
        first = asyncio.ensure_future(agent.attest(b"first"))
        async with asyncio.timeout(20):
            while len(snp.asked) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        others = [asyncio.ensure_future(agent.attest(b"%d" % number)) for number in range(200)]
        await asyncio.sleep(0)
        snp.gate.set()
        await asyncio.gather(first, *others)
    assert audit_tee(folder, snp).ranges == [(0, 1, 2), (2, 2, 3), (3, 3, 203)]


async def test_commits_follow_at_once_where_binding_is_slow_and_in_turn_where_it_is_fast(
    folder: Path,
) -> None:
    moment, step = 0.0, 0.2
    snp = SoftSnp()

    def clock() -> float:
        return moment

    def slow(data: bytes) -> bytes:
        nonlocal moment
        moment += step
        return data

    snp.twist = slow
    world = in_its_time(sleep=Naps(), monotonic=clock)
    async with running_tee(folder, snp, world=world) as agent:
        status = agent.status()
        assert status["commit_seconds"] == pytest.approx(0.2)
        assert status["commit_interval"] == 0.0
        step = 0.001
        for _ in range(20):
            await agent.attest(b"x")
            moment += 1.0
        assert agent.status()["commit_interval"] == 0.05


async def test_an_output_of_a_model_names_its_weights_and_cites_no_event(folder: Path) -> None:
    async with running_tee(folder) as agent:
        delivered = await agent.submit(relayed(agent, b"x", model="llama"))
        record = Output.decode(Attestation.decode(delivered.encoded).record)
        assert record.model is not None
        assert (record.model.name, record.model.weights) == (LLAMA.name, LLAMA.weights)
        assert (record.model.event, record.model.event_digest, record.model.link) == (
            None,
            None,
            Link.CHECKED,
        )
        with pytest.raises(NotServed):
            await agent.submit(relayed(agent, b"x", model="another"))
        assert agent.models == ("llama", "qwen")


async def test_a_new_epoch_takes_the_place_of_the_old_one_between_two_commits(folder: Path) -> None:
    other = ServedModel("llama", bytes(32))
    async with running_tee(folder) as agent:
        before = agent.status()["epochs"]
        await agent.begin_epoch(Workload((LLAMA, other)))
        by_key = [await agent.submit(relayed(agent, b"x", model=model.key)) for model in (LLAMA, other)]
        await agent.begin_epoch(Workload((other,)))
        with pytest.raises(NotServed):
            await agent.submit(relayed(agent, b"x", model=LLAMA.key))
        assert agent.status()["epochs"] == before + 2
    claims = [Output.decode(Attestation.decode(each.encoded).record).model for each in by_key]
    assert [claim.weights for claim in claims if claim is not None] == [LLAMA.weights, other.weights]


async def test_an_old_output_and_the_statement_are_read_back_as_they_were_delivered(folder: Path) -> None:
    async with running_tee(folder) as agent:
        delivered = await agent.submit(relayed(agent, b"x", model="llama", alias=bytes(32)))
        await agent.declare(Declaration.of([Service(("/v1/chat/completions",))]))
        await settled(agent.store)
        assert await agent.fetch(delivered.output_id) == delivered.encoded
        assert await agent.resolve(bytes(32)) == delivered.output_id
        statement = Attestation.decode(await agent.fetch(STATEMENT_ID))
        assert (statement.supports, len(statement.tees)) == ((), 1)
    async with running_tee(folder) as agent:
        assert await agent.fetch(delivered.output_id) == delivered.encoded


async def test_a_root_that_fails_is_as_a_tpm_that_is_gone_until_it_binds_the_same_batch(
    folder: Path,
) -> None:
    snp, naps = SoftSnp(), Naps()
    async with running_tee(folder, snp, world=in_its_time(sleep=naps)) as agent:
        snp.error = gone()
        output = relayed(agent, b"lost to its caller")
        with pytest.raises(Unavailable, match="/dev/sev-guest does not answer"):
            await agent.submit(output)
        await until(agent, "unavailable")
        assert agent.outage is not None
        assert agent.outage.hint == "look at the hypervisor"
        with pytest.raises(Unavailable):
            await agent.attest(b"refused")
        await naps.next()
        assert (agent.store.commits, len(set(snp.asked[1:]))) == (1, 1)
        snp.error = None
        await until(agent, "running")
        await agent.attest(b"after")
        assert Attestation.decode(await agent.fetch(output.output_id)).tees
    assert audit_tee(folder, snp).ranges == [(0, 1, 2), (2, 2, 3), (3, 3, 4)]


async def test_a_root_that_breaks_its_own_call_off_fails_and_the_engine_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snp = SoftSnp()
    async with running_tee(folder, snp) as agent:

        async def broken_off(_: bytes) -> TeeEvidence:
            raise asyncio.CancelledError

        with monkeypatch.context() as patch:
            patch.setattr(snp, "bind", broken_off)
            with pytest.raises(Unavailable, match="broke its own call off"):
                await asyncio.wait_for(agent.attest(b"x"), 20)
        await until(agent, "running")
        await agent.attest(b"y")
    audit_tee(folder, snp)


async def test_evidence_that_would_not_verify_stops_attesting_and_never_gets_on_a_note(folder: Path) -> None:
    snp = SoftSnp()
    async with running_tee(folder, snp) as agent:
        snp.twist = lambda data: data[:32] + bytes(32)
        with pytest.raises(Unavailable, match="would not verify"):
            await agent.attest(b"x")
        snp.twist = bytes
        await until(agent, "running")
    audit_tee(folder, snp)


async def test_a_batch_that_is_not_bound_when_the_agent_ends_is_history_at_the_next_start(
    folder: Path,
) -> None:
    snp = SoftSnp()
    async with running_tee(folder, snp) as agent:
        snp.error = gone()
        output = relayed(agent, b"never answered", alias=bytes(32))
        with pytest.raises(Unavailable):
            await agent.submit(output)
    snp.error = None
    async with running_tee(folder, snp) as agent:
        await agent.attest(b"after")
        with pytest.raises(UnknownOutput, match="before it could commit"):
            await agent.fetch(output.output_id)
        assert await agent.resolve(bytes(32)) is None
    report = audit_tee(folder, snp)
    assert report.ranges == [(0, 1, 2), (2, 3, 4), (4, 4, 5)]
    assert report.boots == [1, 3]


async def test_a_full_disk_is_waited_for_and_the_staged_batch_bound_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snp, full = SoftSnp(), True
    async with running_tee(folder, snp) as agent:
        append = Store.commit

        def fail(self: Store, *arguments: object) -> object:
            if full:
                raise StorageFull("no space", hint="free some")
            return append(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Store, "commit", fail)
        with pytest.raises(Unavailable, match="no space"):
            await agent.attest(b"x")
        full = False
        await until(agent, "running")
    assert audit_tee(folder, snp).ranges == [(0, 1, 2), (2, 2, 3)]


async def test_an_optional_root_leaves_out_its_line_and_the_required_one_stands_alone(folder: Path) -> None:
    snp, other = SoftSnp(), SoftSnp(identifier=IDENTIFIER_NVIDIA)
    roots = [FurtherRoot(snp, required=True), FurtherRoot(other)]
    async with running_tee(folder, snp, roots=roots) as agent:
        delivered = await agent.attest(b"x")
        assert [each["failed"] for each in agent.status()["roots"]] == [0, 2]
    assert [tee.identifier for tee in Attestation.decode(delivered.encoded).tees] == [IDENTIFIER_SEV_SNP]


@pytest.mark.parametrize("roots", ["none", "optional", "a device alone"])
async def test_an_agent_does_not_open_without_a_required_root_of_a_whole_machine(
    folder: Path, roots: str
) -> None:
    snp = SoftSnp(identifier=IDENTIFIER_NVIDIA if roots == "a device alone" else IDENTIFIER_SEV_SNP)
    given = [] if roots == "none" else [FurtherRoot(snp, required=roots != "optional")]
    with pytest.raises(StateError, match="no root of a whole machine") as raised:
        await start_tee(folder, snp, roots=given)
    assert "required = true" in raised.value.hint
    assert snp.closed == len(given)


async def test_an_agent_does_not_start_on_a_root_that_fails(folder: Path) -> None:
    snp = SoftSnp(error=gone())
    with pytest.raises(RequiredRootFailed, match=IDENTIFIER_SEV_SNP):
        await start_tee(folder, snp)
    assert snp.closed == 1
    snp.error = None
    async with running_tee(folder, snp):
        pass
    assert audit_tee(folder, snp).ranges == [(0, 2, 3)]


async def test_status_says_what_is_weaker_and_a_start_does_too(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quotary.agent")
    async with running_tee(folder) as agent:
        status = agent.status()
    assert (status["tpm"], status["chain"], status["starts"], status["boot"]) == ("none", None, None, None)
    assert "only witnesses tell a second history" in status["weaker"]
    assert any("only witnesses" in record.message for record in caplog.records)


async def test_a_fresh_quote_is_refused_with_what_to_do_instead(folder: Path) -> None:
    async with running_tee(folder) as agent:
        with pytest.raises(NotQuotable, match="no tpm") as raised:
            await agent.fresh_quote(bytes(16))
        assert "nonce" in raised.value.hint
        await agent.reload_certificates()  # there is none to take up


async def test_one_state_folder_is_one_agents(folder: Path) -> None:
    async with running_tee(folder):
        with pytest.raises(StateError, match="another agent"):
            await start_tee(folder, SoftSnp())


async def test_the_epoch_in_force_lists_what_the_agent_was_given(folder: Path) -> None:
    async with running_tee(folder) as agent:
        assert agent.workload == WORKLOAD


async def test_the_doors_refuse_a_report_and_answer_everything_else(folder: Path) -> None:
    async with (
        running_tee(folder) as agent,
        Proxy(agent, ProxyConfig("http://127.0.0.1:9", model="llama")) as door,
    ):
        url = f"http://127.0.0.1:{await door.listen('127.0.0.1', 0)}"
        delivered = await agent.submit(relayed(agent, b"x", model="llama"))
        named = format_output_id(delivered.output_id)
        async with ClientSession() as client:
            async with client.get(f"{url}/v1/attestation/report") as answer:
                assert answer.status == 501
                assert "send a nonce with a request" in (await answer.json())["error"]["message"]
            async with client.get(f"{url}/v1/signature/{named}") as answer:
                assert b64decode((await answer.json())["attestation"]) == delivered.encoded
            async with client.get(f"{url}/quotary/v1/attestations/{named}") as answer:
                assert await answer.read() == delivered.encoded
            async with client.get(f"{url}/quotary/v1/attestations/{named}?logs=full") as answer:
                assert await answer.read() == delivered.encoded
