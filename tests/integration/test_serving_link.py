# SPDX-License-Identifier: Apache-2.0
"""The serving link between a real agent and its clients: what crosses it verifies, and what breaks it ends there."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from agents import judge, running
from memory_attester import GONE, MemoryAttester
from tpms import Tpm

from quotary_attest.agent import Agent
from quotary_attest.engine.errors import Busy, NotServed, Unavailable, UnknownOutput
from quotary_attest.engine.outputs import NewOutput
from quotary_attest.log.errors import NotFound
from quotary_attest.metrics import Tally
from quotary_attest.serving.link.client import RemoteAttester
from quotary_attest.serving.link.door import LinkConfig, LinkDoor
from quotary_attest.serving.link.frames import frame
from quotary_attest.serving.link.messages import STOCK, Ask, Tell
from quotary_attest.serving.peers import Allowed
from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.records import Link, Output, Source

BODY = b"an output"
DIGEST = hashlib.sha256(BODY).digest()


@pytest.fixture
async def agent(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Agent]:
    async with running(tpm, tmp_path / "state") as agent:
        yield agent


@asynccontextmanager
async def linked(attester: Any, path: Path, **options: Any) -> AsyncIterator[tuple[LinkDoor, RemoteAttester]]:
    """A door at a path, and a client of it that is connected."""
    async with LinkDoor(attester, LinkConfig(path), **options) as door, RemoteAttester(path) as remote:
        assert await remote.ready(10)
        yield door, remote


def an_output(remote: RemoteAttester, **fields: Any) -> NewOutput:
    return NewOutput(remote.new_output_id(), {"body": DIGEST}, **fields)


def record_of(encoded: bytes) -> Output:
    return Output.decode(Attestation.decode(encoded).record)


async def test_an_output_over_the_link_verifies_and_says_that_middleware_reported_it(
    agent: Agent, tmp_path: Path
) -> None:
    async with linked(agent, tmp_path / "link.sock") as (_, remote):
        output = an_output(
            remote,
            model="llama",
            nonce=b"n" * 16,
            request_key=b"k" * 32,
            request=b"r" * 32,
            context={"status": 200, "endpoint": "/v1/chat/completions", "a": b"b"},
            source=Source.RELAYED,  # what a client says of itself counts for nothing
            link=Link.STARTED,
        )
        remote.reserve(output.output_id)
        delivered = await remote.submit(output)
        judge(delivered.encoded, BODY, agent.origin, nonce=b"n" * 16)
        record = record_of(delivered.encoded)
        assert record.source is Source.MIDDLEWARE
        assert record.model is not None
        assert record.model.link is Link.CONFIGURED
        assert (record.nonce, record.request) == (b"n" * 16, b"r" * 32)
        assert record.context == {"a": b"b", "status": 200, "endpoint": "/v1/chat/completions"}
        assert await remote.fetch(output.output_id, 5) == delivered.encoded
        assert len(await remote.fresh_quote(b"q" * 8)) > 100


async def test_what_a_worker_counts_is_counted_and_what_another_peer_counts_ends_its_connection(
    tmp_path: Path,
) -> None:
    sums = [("delivered", "inband", 3), ("refused", "overloaded", 2), ("unattested", "path", 1)]
    metrics, (ours, theirs) = Tally(), socket.socketpair()
    async with LinkDoor(MemoryAttester(), metrics=metrics) as door, RemoteAttester(theirs) as worker:
        await door.adopt(ours)
        assert await worker.ready(10)
        worker.count(sums)
        await worker.submit(an_output(worker))
        assert metrics.take() == sums
        worker.count([("unheard of", "", 1)])
        async with asyncio.timeout(10):
            await worker.gone.wait()
    async with linked(MemoryAttester(), tmp_path / "link.sock", metrics=metrics) as (_, remote):
        remote.count(sums)
        with pytest.raises(Unavailable):
            await remote.fetch(bytes(24), 10)
    assert metrics.take() == []


async def test_only_a_worker_says_itself_what_ties_its_outputs_to_an_engine(
    agent: Agent, tmp_path: Path
) -> None:
    ours, theirs = socket.socketpair()
    async with LinkDoor(agent) as door, RemoteAttester(theirs) as worker:
        await door.adopt(ours)
        assert await worker.ready(10)
        for said in (Link.CONFIGURED, Link.CHECKED):
            delivered = await worker.submit(an_output(worker, model="llama", link=said))
            model = record_of(delivered.encoded).model
            assert model is not None
            assert model.link is said


async def test_what_a_check_says_of_the_peer_stands_in_the_record(agent: Agent, tmp_path: Path) -> None:
    asked = []

    def check(peer: Any) -> Callable[[str], Link]:
        def link(model: str) -> Link:
            asked.append((peer.uid, model))
            return Link.CHECKED

        return link

    async with linked(agent, tmp_path / "link.sock", check=check) as (_, remote):
        delivered = await remote.submit(an_output(remote, model="llama"))
        model = record_of(delivered.encoded).model
        assert model is not None
        assert model.link is Link.CHECKED
        assert asked == [(os.geteuid(), "llama")]


async def test_a_worker_of_the_agents_own_relays(agent: Agent) -> None:
    ours, theirs = socket.socketpair()
    async with LinkDoor(agent) as door, RemoteAttester(theirs) as remote:
        await door.adopt(ours)
        assert await remote.ready(10)
        record = record_of((await remote.submit(an_output(remote))).encoded)
        assert record.source is Source.RELAYED


async def test_the_log_is_read_over_the_link(agent: Agent, tmp_path: Path) -> None:
    async with linked(agent, tmp_path / "link.sock") as (_, remote):
        await remote.submit(an_output(remote))
        note = await asyncio.to_thread(remote.store.serve, "checkpoint")
        assert note.startswith(agent.origin.encode())
        with pytest.raises(NotFound):
            await asyncio.to_thread(remote.store.serve, "tile/nothing")


async def test_errors_cross_the_link_as_what_they_are(agent: Agent, tmp_path: Path) -> None:
    async with linked(agent, tmp_path / "link.sock") as (_, remote):
        with pytest.raises(NotServed):
            await remote.submit(an_output(remote, model="unheard of"))
        with pytest.raises(UnknownOutput):
            await remote.fetch(bytes(24), 1)
        with pytest.raises(ValueError, match="a nonce"):
            await remote.submit(an_output(remote, nonce=b"short"))


async def test_a_fetch_waits_for_an_output_that_is_announced_and_ends_with_its_abandonment(
    tmp_path: Path,
) -> None:
    attester = MemoryAttester()
    async with linked(attester, tmp_path / "link.sock") as (_, remote):
        first, second = an_output(remote), remote.new_output_id()
        for output_id in (first.output_id, second):
            remote.reserve(output_id)
        fetch = asyncio.create_task(remote.fetch(first.output_id, 10))
        delivered = await remote.submit(first)
        assert await fetch == delivered.encoded
        with pytest.raises(TimeoutError):
            await remote.fetch(second, 0.01)
        remote.abandon(second)
        with pytest.raises(UnknownOutput):
            await remote.fetch(second, 10)


async def test_an_alias_is_announced_and_resolved_over_the_link(agent: Agent, tmp_path: Path) -> None:
    async with linked(agent, tmp_path / "link.sock") as (_, remote):
        assert remote.alias_secret == agent.alias_secret
        output = an_output(remote)
        remote.reserve(output.output_id)
        remote.announce_alias(b"a" * 32, output.output_id)
        assert await remote.resolve(b"a" * 32) == output.output_id
        assert await remote.resolve(b"b" * 32) is None


async def test_an_outage_is_told_as_it_begins_and_as_it_ends(tmp_path: Path) -> None:
    attester = MemoryAttester()
    async with linked(attester, tmp_path / "link.sock") as (_, remote):
        assert remote.outage is None
        attester.failure = GONE
        async with asyncio.timeout(5):
            while remote.outage is None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert isinstance(remote.outage, Unavailable)
        assert str(remote.outage) == str(GONE)
        assert remote.status()["state"] == "unavailable"
        attester.failure = None
        async with asyncio.timeout(5):
            while remote.outage is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def test_what_is_in_flight_when_the_agent_goes_fails_and_a_new_agent_is_found(tmp_path: Path) -> None:
    path = tmp_path / "link.sock"
    attester = MemoryAttester()
    async with RemoteAttester(path) as remote:
        async with LinkDoor(attester, LinkConfig(path)) as door:
            assert await remote.ready(10)
            begun = an_output(remote)
            remote.reserve(begun.output_id)
            attester.gate.clear()
            waiting = asyncio.create_task(remote.submit(an_output(remote)))
            await attester.until_submitted(1)
            for connection in list(door._connections):
                connection._abort()  # as when the process dies
            with pytest.raises(Unavailable):
                await waiting
            assert isinstance(remote.outage, Unavailable)
            with pytest.raises(Unavailable):
                await remote.submit(begun)
            attester.gate.set()
        async with LinkDoor(attester, LinkConfig(path)):
            assert await remote.ready(10)
            assert remote.outage is None
            with pytest.raises(Unavailable, match="anew"):
                await remote.submit(begun)
            await remote.submit(an_output(remote))
            assert begun.output_id in attester.abandoned


async def test_a_client_without_an_agent_says_so_at_once(tmp_path: Path) -> None:
    async with RemoteAttester(tmp_path / "nothing.sock") as remote:
        assert isinstance(remote.outage, Unavailable)
        output = an_output(remote)
        with pytest.raises(Unavailable):
            remote.reserve(output.output_id)
        with pytest.raises(Unavailable):
            await remote.submit(output)
        assert not await remote.ready(0.01)


async def test_the_door_answers_what_was_handed_in_before_it_closes(tmp_path: Path) -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    path = tmp_path / "link.sock"
    async with RemoteAttester(path) as remote:
        door = LinkDoor(attester, LinkConfig(path))
        await door.__aenter__()
        assert await remote.ready(10)
        waiting = asyncio.create_task(remote.submit(an_output(remote)))
        await attester.until_submitted(1)
        closing = asyncio.create_task(door.__aexit__(None, None, None))
        await asyncio.sleep(0)
        attester.gate.set()
        assert (await waiting).encoded
        await closing
        assert not path.exists()


async def test_many_outputs_at_once_never_run_out_of_ids_and_each_gets_its_own(tmp_path: Path) -> None:
    async with linked(MemoryAttester(), tmp_path / "link.sock") as (_, remote):

        async def one() -> bytes:
            output = an_output(remote)
            remote.reserve(output.output_id)
            await remote.submit(output)
            return output.output_id

        ids = [
            output_id for _ in range(8) for output_id in await asyncio.gather(*[one() for _ in range(900)])
        ]
        assert len(set(ids)) == 7200


async def test_ids_of_outputs_that_never_begin_are_used_up_and_replaced(tmp_path: Path) -> None:
    attester = MemoryAttester()
    async with linked(attester, tmp_path / "link.sock") as (door, remote):
        seen = set()
        for _ in range(3):
            for _ in range(STOCK // 2):
                output_id = remote.new_output_id()
                seen.add(output_id)
                remote.abandon(output_id)
            await remote.submit(an_output(remote))  # the agent has read all that by then
        assert len(seen) == 3 * STOCK // 2
        (connection,) = door._connections
        assert len(connection._issued) <= STOCK
        assert not attester.abandoned


async def test_more_outputs_than_the_agent_issued_ids_for_are_refused(tmp_path: Path) -> None:
    async with linked(MemoryAttester(), tmp_path / "link.sock") as (_, remote):
        for _ in range(STOCK):
            remote.reserve(remote.new_output_id())
        with pytest.raises(Busy):
            remote.reserve(remote.new_output_id())


# -- hostile peers


async def greeted(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """Connect as anybody may, and return an id that was issued."""
    reader, writer = await asyncio.open_unix_connection(path)
    await read_frame(reader)
    ids = await read_frame(reader)
    assert ids[:2] == [0, Tell.IDS]
    return reader, writer, ids[2][:24]


async def read_frame(reader: asyncio.StreamReader) -> list[Any]:
    length = int.from_bytes(await reader.readexactly(4))
    return list(cbor.decode(await reader.readexactly(length), max_bytes=length))


def submission(number: int, output_id: bytes, **changed: Any) -> list[Any]:
    return [number, Ask.SUBMIT, {0: output_id, 1: {"body": DIGEST}, 2: 0}]


HOSTILE = {
    "a frame that is too long": b"\xff\xff\xff\xff",
    "no cbor": b"\x00\x00\x00\x02\xff\xff",
    "an indefinite length": b"\x00\x00\x00\x04\x9f\x01\x0a\xff",
    "no array": frame(5),  # type: ignore[arg-type]
    "an empty array": frame([]),
    "a negative number": frame([-1, Ask.PING]),
    "an unknown operation": frame([1, 99]),
    "arguments that are missing": frame([1, Ask.SUBMIT]),
    "a notice that wants an answer": frame([1, Ask.RESERVE, bytes(24)]),
    "a request without a number": frame([0, Ask.PING]),
    "an id that was not issued": frame(submission(1, bytes(24))),
    "a reservation of an id that was not issued": frame([0, Ask.RESERVE, bytes(24)]),
    "an output that is text": frame([1, Ask.SUBMIT, "output"]),
    "a fetch of text": frame([1, Ask.FETCH, "out_", 5]),
    "a fetch for ever": frame([1, Ask.FETCH, bytes(24), 1 << 40]),
    "a nonce that is too long": frame([1, Ask.QUOTE, bytes(65)]),
    "a path that is too long": frame([1, Ask.SERVE, "x" * 513]),
    "an alias of another length": frame([1, Ask.RESOLVE, b""]),
}


@pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_peer_that_breaks_the_protocol_is_cut_off_and_others_go_on(
    sent: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "link.sock"
    async with linked(MemoryAttester(), path) as (_, remote):
        reader, writer, _ = await greeted(path)
        writer.write(sent)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        await remote.submit(an_output(remote))


@pytest.mark.parametrize(
    "changed",
    [
        {1: {}},
        {1: {"body": "text"}},
        {1: {"body": bytes(31)}},
        {1: {1: bytes(32)}},
        {2: 4},
        {3: bytes(31)},
        {5: bytes(7)},
        {6: 5},
        {7: {"a": [1]}},
        {7: {1: "a"}},
        {9: 3},
        {10: 2},
    ],
)
async def test_an_output_of_another_form_is_never_recorded(changed: Any, tmp_path: Path) -> None:
    path, attester = tmp_path / "link.sock", MemoryAttester()
    attester.submit = checked(attester)  # type: ignore[method-assign]
    async with LinkDoor(attester, LinkConfig(path)):
        reader, writer, output_id = await greeted(path)
        number, operation, value = submission(1, output_id)
        writer.write(frame([number, operation, dict(sorted({**value, **changed}.items()))]))
        answer = await reader.read(5)
        assert answer == b"" or answer[4] == 0x84  # cut off, or told why in four items
        assert not attester.outputs
        writer.close()


def checked(attester: MemoryAttester) -> Any:
    """The engine's own checks in front of an attester that has none."""
    from quotary_attest.engine.outputs import check_output

    plain = attester.submit

    async def submit(output: NewOutput) -> Any:
        check_output(output)
        return await plain(output)

    return submit


async def test_an_id_serves_one_output_of_the_connection_that_it_was_issued_on(tmp_path: Path) -> None:
    path, attester = tmp_path / "link.sock", MemoryAttester()
    async with linked(attester, path) as (_, remote):
        reader, writer, output_id = await greeted(path)
        writer.write(frame(submission(1, output_id)))
        assert (await read_frame(reader))[:2] == [1, 0]
        writer.write(frame(submission(2, output_id)))
        assert await reader.read() == b""
        writer.close()
        reader, writer, _ = await greeted(path)
        writer.write(frame(submission(1, remote.new_output_id())))
        assert await reader.read() == b""
        writer.close()
        assert attester.submitted == 1


async def test_a_door_takes_so_many_connections_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quotary_attest.serving.link.door.MAX_CONNECTIONS", 5)
    path = tmp_path / "link.sock"
    async with LinkDoor(MemoryAttester(), LinkConfig(path)):
        writers = []
        for _ in range(5):
            _, writer, _ = await greeted(path)
            writers.append(writer)
        reader, writer = await asyncio.open_unix_connection(path)
        assert await reader.read() == frame([0, Tell.REFUSED])
        for each in (writer, *writers):
            each.close()


async def test_a_peer_that_reads_nothing_is_not_read_from(tmp_path: Path) -> None:
    path, attester = tmp_path / "link.sock", MemoryAttester(size=100_000)
    async with LinkDoor(attester, LinkConfig(path)) as door:
        reader, writer, first = await greeted(path)
        writer.write(frame(submission(1, first)))
        assert (await read_frame(reader))[0] == 1
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        for number in range(2, 200):
            writer.write(frame([number, Ask.FETCH, first, 1000]))
        (connection,) = door._connections
        async with asyncio.timeout(10):
            while not connection._writer._paused:  # type: ignore[union-attr]  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert connection._transport is not None
        assert not connection._transport.is_reading()  # type: ignore[attr-defined]
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        numbers = {(await read_frame(reader))[0] for _ in range(2, 200)}
        assert numbers == set(range(2, 200))
        writer.close()


PROBE = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
s.connect(sys.argv[1])
data = b""
while piece := s.recv(4096):
    data += piece
    if len(data) > 100: break
sys.stdout.buffer.write(data[:100])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_a_process_of_another_user_is_refused(agent: Agent, tmp_path: Path) -> None:
    # a folder that others may enter
    path = Path("/tmp") / f"quotary-link-{os.getpid()}.sock"

    def probe() -> bytes:
        command = [sys.executable, "-c", PROBE, str(path)]
        return subprocess.run(command, capture_output=True, check=True, timeout=20).stdout

    for allowed, expected in ((frozenset((0,)), frame([0, Tell.REFUSED])), (frozenset((65534,)), None)):
        async with LinkDoor(agent, LinkConfig(path, Allowed(allowed), mode=0o666)):
            said = await asyncio.to_thread(probe)
        if expected is not None:
            assert said == expected
        else:
            assert agent.alias_secret in said
