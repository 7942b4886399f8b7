# SPDX-License-Identifier: Apache-2.0
"""The link to the engine: what the verdict says of real processes behind a proxy, and of those who only claim to be."""

from __future__ import annotations

import asyncio
import base64
import json
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import aiohttp
import pytest
from agents import judge, running
from small_engine import PYTHON, Running, small_engine
from tpms import Tpm

from quotary_attest.agent import Agent
from quotary_attest.engine.outputs import NewOutput
from quotary_attest.enginelink import Peer, ProcessPeer, TcpPeer
from quotary_attest.inventory import EngineFile, Inventory, measure_inventory
from quotary_attest.linking import checked, processes, sockets
from quotary_attest.linking.checked import CheckedLink
from quotary_attest.linking.processes import Process, holder_of, process_peer
from quotary_attest.linking.sockets import peer_inodes
from quotary_attest.measure import ModelFile
from quotary_attest.serving import peers as serving_peers
from quotary_attest.serving.link.client import RemoteAttester
from quotary_attest.serving.link.door import LinkConfig, LinkDoor
from quotary_attest.serving.local import LocalConfig, LocalInterface
from quotary_attest.serving.proxy import Proxy, ProxyConfig
from quotary_verifier.recipe.verdict import Verdict
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.records import Link, Output

ASK = b'{"messages":[]}'
CHAT = "/v1/chat/completions"


class Host:
    """A measured model and engine, the checks of them, and a clock that tests move."""

    def __init__(self, folder: Path, engine: Path = PYTHON) -> None:
        self.weights = folder / "model.gguf"
        self.weights.write_bytes(b"first weights   " + bytes(4096))
        self.other = folder / "other.gguf"
        self.other.write_bytes(b"other weights   " + bytes(4096))
        self.inventory: Inventory = measure_inventory(
            [ModelFile("m", (self.weights,))], EngineFile("small", engine, ("--model", "x"))
        )
        self.now = 0.0
        assert self.inventory.engine is not None
        self.link = CheckedLink(self.inventory.engine, self.inventory.files, clock=lambda: self.now)

    def later(self) -> None:
        """Let the last examination grow old."""
        self.now += 10.0


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@asynccontextmanager
async def serving(tpm: Tpm, folder: Path, host: Host) -> AsyncIterator[Callable[..., object]]:
    """An agent on a TPM; yields what asks an engine through a proxy of it and returns the verdict."""
    async with running(tpm, folder / "state", workload=host.inventory.workload) as agent:

        async def asked(engine: Running, *, between: Callable[[], None] | None = None) -> Verdict:
            config = ProxyConfig(engine.url, model=agent.workload.models[0].key)
            async with Proxy(agent, config, link=host.link) as proxy, aiohttp.ClientSession() as client:
                url = f"http://127.0.0.1:{await proxy.listen('127.0.0.1', 0)}{CHAT}"
                if between is None:
                    return await answered(agent, client, url, ASK)
                return await answered(agent, client, url, ASK[:-1] + b',"stream":true}', between, engine)

        yield asked


async def answered(
    agent: Agent,
    client: aiohttp.ClientSession,
    url: str,
    body: bytes,
    between: Callable[[], None] | None = None,
    engine: Running | None = None,
) -> Verdict:
    """The verdict about one answer; `between` is called once a streamed one has begun."""
    async with client.post(url, data=body) as answer:
        received = b""
        if between is not None and engine is not None:
            received = await answer.content.readuntil(b"\n\n")
            between()
            async with client.post(engine.url + "/release"):
                pass
        received += await answer.content.read()
    plain, attestation = strip(received)
    assert attestation is not None
    return judge(attestation, plain, agent.origin, request=body)


def claim(verdict: object, name: str) -> str:
    """The value of one claim."""
    assert isinstance(verdict, Verdict)
    return next(str(each.value) for each in verdict.claims if each.name == name)


# -- verdicts


async def test_an_engine_with_the_measured_weights_open_is_checked(
    tpm: Tpm, tmp_path: Path, host: Host
) -> None:
    async with serving(tpm, tmp_path, host) as asked:
        with small_engine(host.weights) as engine:
            verdict = await asked(engine)  # type: ignore[misc]
            assert claim(verdict, "model_link") == "checked"
            assert claim(verdict, "model") == "m"
            host.later()
            verdict = await asked(engine)  # type: ignore[misc]
            assert claim(verdict, "model_link") == "checked"


async def test_what_is_not_the_measured_engine_on_the_measured_file_is_only_configured(
    tpm: Tpm, tmp_path: Path, host: Host
) -> None:
    async with serving(tpm, tmp_path, host) as asked:
        with small_engine(host.other) as second_upstream:  # the same program with other weights
            assert claim(await asked(second_upstream), "model_link") == "configured"  # type: ignore[misc]
            assert "weights open" in host.link.reason(host.inventory.workload.models[0].key)
        host.later()
        with small_engine(host.weights, "--read") as closed:  # read once, neither open nor mapped since
            assert claim(await asked(closed), "model_link") == "configured"  # type: ignore[misc]
        host.later()
        with small_engine(host.weights) as engine:
            assert claim(await asked(engine), "model_link") == "checked"  # type: ignore[misc]
            host.other.rename(host.weights)  # the file is swapped below the running engine
            host.later()
            assert claim(await asked(engine), "model_link") == "configured"  # type: ignore[misc]
            assert "not as it was measured" in host.link.reason(host.inventory.workload.models[0].key)


async def test_another_program_is_not_the_engine_whatever_it_has_open(tpm: Tpm, tmp_path: Path) -> None:
    host = Host(tmp_path, engine=Path("/bin/sleep"))
    async with serving(tpm, tmp_path, host) as asked:
        with small_engine(host.weights) as engine:
            assert claim(await asked(engine), "model_link") == "configured"  # type: ignore[misc]
    assert "not the measured engine" in host.link.reason(host.inventory.workload.models[0].key)


async def test_weights_that_change_while_an_answer_streams_take_the_check_back(
    tpm: Tpm, tmp_path: Path, host: Host
) -> None:
    def overwrite() -> None:
        with host.weights.open("r+b") as file:
            file.write(b"other weights")
        host.later()

    async with serving(tpm, tmp_path, host) as asked:
        with small_engine(host.weights) as engine:
            verdict = await asked(engine, between=host.later)  # type: ignore[call-arg,misc]
            assert claim(verdict, "model_link") == "checked"
        with small_engine(host.weights) as engine:
            verdict = await asked(engine, between=overwrite)  # type: ignore[call-arg,misc]
            assert claim(verdict, "model_link") == "configured"


async def test_a_server_that_takes_the_engines_place_is_found_out_at_once(
    tpm: Tpm, tmp_path: Path, host: Host
) -> None:
    async with serving(tpm, tmp_path, host) as asked:
        with small_engine(host.weights) as engine:
            assert claim(await asked(engine), "model_link") == "checked"  # type: ignore[misc]
            engine.kill()
            with small_engine(host.other, port=engine.port) as successor:
                assert claim(await asked(successor), "model_link") == "configured"  # type: ignore[misc]
                host.later()
                assert claim(await asked(successor), "model_link") == "configured"  # type: ignore[misc]
                successor.kill()
            with small_engine(host.weights, port=engine.port) as again:
                host.later()
                assert claim(await asked(again), "model_link") == "checked"  # type: ignore[misc]


async def test_an_engine_at_a_new_address_is_found_at_once_and_one_at_an_old_address_within_a_second(
    tpm: Tpm, tmp_path: Path, host: Host
) -> None:
    async with serving(tpm, tmp_path, host) as asked:
        with small_engine(host.weights) as first, small_engine(host.weights) as second:
            assert claim(await asked(first), "model_link") == "checked"  # type: ignore[misc]
            assert claim(await asked(second), "model_link") == "checked"  # type: ignore[misc]
            second.kill()
            with small_engine(host.weights, port=second.port) as successor:
                assert claim(await asked(successor), "model_link") == "configured"  # type: ignore[misc]
                host.now += 1.0
                assert claim(await asked(successor), "model_link") == "checked"  # type: ignore[misc]


async def test_a_caller_on_the_local_socket_gets_no_model_however_it_asks(
    tpm: Tpm, tmp_path: Path, host: Host
) -> None:
    path = tmp_path / "agent.sock"
    async with (
        running(tpm, tmp_path / "state", workload=host.inventory.workload) as agent,
        LocalInterface(agent, LocalConfig(path)),
        aiohttp.ClientSession(base_url="http://agent", connector=aiohttp.UnixConnector(str(path))) as client,
    ):
        item = {"bytes": "aGVsbG8="}
        for request in ({"items": [item | {"model": "m"}]}, {"items": [item], "model": "m"}):
            async with client.post("/v1/attest", data=json.dumps(request)) as refused:
                assert refused.status == 400
        async with client.post("/v1/attest", data=json.dumps({"items": [item]})) as answer:
            (output,) = (await answer.json())["outputs"]
        verdict = judge(base64.b64decode(output["attestation"]), b"hello", agent.origin)
        assert claim(verdict, "source") == "submitted by a local caller"
        assert not [each for each in verdict.claims if each.name.startswith("model")]


async def test_middleware_is_checked_by_the_process_that_the_kernel_names(
    tpm: Tpm, tmp_path: Path, host: Host
) -> None:
    def check(peer: serving_peers.Peer) -> Callable[[str], Link]:
        return partial(host.link.link, peer=process_peer(peer.pid))

    path = tmp_path / "link.sock"
    async with (
        running(tpm, tmp_path / "state", workload=host.inventory.workload) as agent,
        LinkDoor(agent, LinkConfig(path), check=check),
        RemoteAttester(path) as remote,
    ):
        async with asyncio.timeout(10):
            assert await remote.ready(10)

        async def link_of_one() -> str:
            output = NewOutput(remote.new_output_id(), {"body": b"\x01" * 32}, model="m")
            delivered = await remote.submit(output)
            model = Output.decode(Attestation.decode(delivered.encoded).record).model
            assert model is not None
            return model.link.name

        # this process runs the measured program; it is the engine once it has the weights open
        assert await link_of_one() == "CONFIGURED"
        host.later()
        with host.weights.open("rb"):
            assert await link_of_one() == "CHECKED"


# -- the parts


@pytest.mark.parametrize(
    ("family", "bound", "reached"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::", "127.0.0.1"),
        (socket.AF_INET6, "::", "::1"),
    ],
)
@pytest.mark.parametrize("netlink", ["answers", "forbidden", "no module", "no module, said at the end"])
def test_the_other_end_of_a_connection_is_found(
    monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily, bound: str, reached: str, netlink: str
) -> None:
    if netlink == "forbidden":
        monkeypatch.setattr(sockets, "_ask", _forbidden)
    elif netlink != "answers":
        told = sockets._DONE if netlink.endswith("end") else 2
        replaced = {**vars(socket), "socket": partial(_KernelWithoutTcpDiag, told)}
        monkeypatch.setattr(sockets, "socket", SimpleNamespace(**replaced))
    with closing(socket.socket(family)) as listener:
        if bound == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((bound, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection((reached, port)) as client:
            peer = TcpPeer(client.getsockname()[:2], client.getpeername()[:2])
            listening = frozenset((os.fstat(listener.fileno()).st_ino,))
            assert peer_inodes(peer) == listening  # nobody has taken the connection up yet
            accepted, _ = listener.accept()
            with accepted:
                assert peer_inodes(peer) == {os.fstat(accepted.fileno()).st_ino}
            assert peer_inodes(peer) == listening
    assert peer_inodes(peer) == frozenset()


class _KernelWithoutTcpDiag:
    """Stands for a netlink socket of a kernel without tcp_diag, which cannot be taken out of the one that runs.

    Such a kernel answers ENOENT to everything (net/ipv4/inet_diag.c, inet_diag_lock_handler): as an error, or, to a
    list that it began, in the message that ends it.
    """

    def __init__(self, told: int, *_: object) -> None:
        self._told = told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def settimeout(self, _: float) -> None:
        """Answers at once."""

    def send(self, message: bytes) -> None:
        """A request; only a list ends with a message of its own."""
        listed = int.from_bytes(message[6:8], sys.byteorder) & sockets._DUMP
        self._kind = self._told if listed else 2

    def recv(self, _: int) -> bytes:
        """ENOENT."""
        return sockets._HEADER.pack(20, self._kind, 0, 1, 0) + (-2).to_bytes(4, sys.byteorder, signed=True)


def _forbidden(*_: object) -> None:
    raise PermissionError(1, "netlink is forbidden here")


def test_an_end_on_another_host_or_with_an_odd_address_is_nowhere() -> None:
    assert peer_inodes(TcpPeer(("192.0.2.1", 4000), ("192.0.2.2", 1))) == frozenset()
    assert peer_inodes(TcpPeer(("::1", 4000), ("127.0.0.1", 1))) == frozenset()
    assert peer_inodes(TcpPeer(("not an address", 4000), ("nor this", 1))) == frozenset()


def test_every_socket_that_listens_at_a_shared_address_counts() -> None:
    with closing(socket.socket()) as one, closing(socket.socket()) as two:
        address = ("127.0.0.1", 0)
        for each in (one, two):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            each.bind(address)
            each.listen()
            address = one.getsockname()
        inodes = {os.fstat(each.fileno()).st_ino for each in (one, two)}
        assert peer_inodes(TcpPeer(("127.0.0.1", 1), address)) == inodes


def test_one_who_shares_the_engines_address_ends_the_check(host: Host) -> None:
    key = host.inventory.workload.models[0].key
    with host.weights.open("rb"), closing(socket.socket()) as mine, closing(socket.socket()) as beside:
        for each in (mine, beside):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        mine.bind(("127.0.0.1", 0))
        mine.listen()
        peer = TcpPeer(("127.0.0.1", 1), mine.getsockname())
        assert host.link.link(key, peer) is Link.CHECKED
        beside.bind(mine.getsockname())
        beside.listen()
        with subprocess.Popen(["/bin/sleep", "60"], pass_fds=(beside.fileno(),)) as stranger:
            beside.close()
            assert len(peer_inodes(peer)) == 2
            assert host.link.link(key, peer) is Link.CONFIGURED
            stranger.kill()
            stranger.wait()
        assert host.link.link(key, peer) is Link.CHECKED


def test_all_processes_are_looked_at_less_and_less_often_where_none_is_the_one(
    monkeypatch: pytest.MonkeyPatch, host: Host
) -> None:
    looked: list[float] = []

    def nobody(_inodes: frozenset[int]) -> None:
        looked.append(host.now)

    key = host.inventory.workload.models[0].key
    with host.weights.open("rb"), closing(socket.create_server(("127.0.0.1", 0))) as listener:
        peer = TcpPeer(("127.0.0.1", 1), listener.getsockname())
        with monkeypatch.context() as patched:
            patched.setattr(checked, "holder_of", nobody)
            while host.now < 100:
                assert host.link.link(key, peer) is Link.CONFIGURED
                host.now += 0.5
        assert looked == [0.0, 2.0, 6.0, 14.0, 30.0, 62.0, 94.0]
        host.now += 32
        assert host.link.link(key, peer) is Link.CHECKED


def test_a_socket_at_another_address_of_the_same_port_does_not_count() -> None:
    with closing(socket.socket()) as one, closing(socket.socket()) as two:
        one.bind(("127.0.0.1", 0))
        one.listen()
        two.bind(("127.0.0.2", one.getsockname()[1]))
        two.listen()
        assert peer_inodes(TcpPeer(("127.0.0.1", 1), one.getsockname())) == {os.fstat(one.fileno()).st_ino}


def test_a_process_is_known_by_its_start_and_not_by_its_number(host: Host) -> None:
    with small_engine(host.weights) as engine:
        process = Process.of(engine.process.pid)
        assert process is not None
        assert process.alive
        mine = Process.of(os.getpid())
        assert mine is not None
        assert process.descends_from(mine)
        assert not mine.descends_from(process)
        assert not Process(process.pid, process.started - 1).alive
        engine.process.kill()
        engine.process.wait()
        assert not process.alive
        assert Process.of(process.pid) is None
    assert holder_of(frozenset((1,))) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel shows mapped files to root only")
def test_a_mapped_file_is_known_where_the_maps_name_another_device_as_on_btrfs(
    monkeypatch: pytest.MonkeyPatch, host: Host
) -> None:
    status = host.weights.stat()
    wanted = frozenset(((status.st_dev, status.st_ino),))
    mine = Process(os.getpid(), 0)
    with host.weights.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        monkeypatch.setattr(processes, "_opened", lambda _pid, _wanted: set())
        assert mine.open_files(wanted) == wanted
        monkeypatch.setattr("os.makedev", lambda _major, _minor: -5)
        assert mine.open_files(wanted) == wanted
        assert mine.open_files(frozenset(((7, status.st_ino),))) == frozenset()


def test_a_zombie_is_not_alive(host: Host) -> None:
    with small_engine(host.weights) as engine:
        process = Process.of(engine.process.pid)
        assert process is not None
        engine.process.kill()
        os.waitid(os.P_PID, engine.process.pid, os.WEXITED | os.WNOWAIT)
        assert not process.alive


def test_a_process_that_has_the_number_of_one_that_connected_is_not_it(tmp_path: Path) -> None:
    host = Host(tmp_path)
    key = host.inventory.workload.models[0].key
    with small_engine(host.weights) as engine:
        peer = process_peer(engine.process.pid)
        assert host.link.link(key, peer) is Link.CHECKED
        earlier = replace(peer, started=(peer.started or 0) - 1)
        assert host.link.link(key, earlier) is Link.CONFIGURED
    assert host.link.link(key, process_peer(engine.process.pid)) is Link.CONFIGURED


def test_weights_that_a_child_of_the_engine_has_open_count(tmp_path: Path) -> None:
    host = Host(tmp_path)
    key = host.inventory.workload.models[0].key
    command = [PYTHON, "-I", "-c", CHILD, str(host.weights)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert host.link.link(key, ProcessPeer(process.pid)) is Link.CHECKED
        host.later()
        host.weights.touch()
        assert host.link.link(key, ProcessPeer(process.pid)) is Link.CONFIGURED
        process.kill()


CHILD = """
import os, sys, time
if not os.fork():
    file = open(sys.argv[1], "rb")
    os.write(1, b"ready\\n")
    time.sleep(60)
os.wait()
"""


@pytest.mark.parametrize(
    "peer", [None, ProcessPeer(0), ProcessPeer(1 << 30), TcpPeer(("127.0.0.1", 1), ("127.0.0.1", 2))]
)
def test_without_a_process_there_is_nothing_to_check(host: Host, peer: Peer | None) -> None:
    key = host.inventory.workload.models[0].key
    assert host.link.link(key, peer) is Link.CONFIGURED
    assert host.link.link("unheard of", ProcessPeer(os.getpid())) is Link.CONFIGURED
    assert not host.link.holds("unheard of")
    assert host.link.holds(key)


def test_nothing_is_kept_or_logged_of_names_that_a_peer_makes_up(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        made_up = f"m{number}\nERROR an operator must do this now"
        assert host.link.link(made_up, ProcessPeer(os.getpid())) is Link.CONFIGURED
    assert caplog.messages == []
    assert host.link.reason("m1") == ""
    assert (host.link._told, host.link._known) == ({}, {})
