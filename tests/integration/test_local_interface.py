# SPDX-License-Identifier: Apache-2.0
"""The local interface on its Unix socket: who may use it, what it does, and what it says to hostile input."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from memory_attester import GONE, MemoryAttester

from quotary_attest.serving.local import MAX_ITEMS, LocalConfig, LocalInterface
from quotary_attest.serving.peers import Allowed, Peer, SocketInUse, listen_on, peer_of
from quotary_verifier.wire.names import parse_output_id
from quotary_verifier.wire.records import Source, State

HEX = "ab" * 32


@asynccontextmanager
async def local(
    path: Path, attester: MemoryAttester | None = None, **config: Any
) -> AsyncIterator[tuple[MemoryAttester, aiohttp.ClientSession]]:
    """Run the interface and a client on its socket."""
    attester = attester or MemoryAttester()
    async with (
        LocalInterface(attester, LocalConfig(path, **config)),
        aiohttp.ClientSession(base_url="http://agent", connector=aiohttp.UnixConnector(str(path))) as client,
    ):
        yield attester, client


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


async def post(client: aiohttp.ClientSession, route: str, value: Any) -> tuple[int, Any]:
    """Post JSON, or bytes as they are; return status and parsed answer."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    async with client.post(route, data=io.BytesIO(data)) as answer:
        return answer.status, json.loads(await answer.read())


def mode_of(path: Path) -> int | None:
    """Return the permissions of what stands at a path."""
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


def open_up(path: Path, mode: int) -> None:
    """Let other users reach a path."""
    path.chmod(mode)


def item(data: bytes) -> dict[str, str]:
    return {"bytes": base64.b64encode(data).decode()}


async def test_bytes_and_digests_are_attested_one_or_many_a_call(path: Path) -> None:
    async with local(path) as (attester, client):
        digests = {"digests": {"body": HEX, "text/0": HEX, "tool/0/12": HEX, "reasoning/3": HEX}}
        status, answer = await post(
            client, "/v1/attest", {"items": [item(b"one"), digests], "nonce": "00" * 8}
        )
        assert status == 200
        first, second = [parse_output_id(output["output_id"]) for output in answer["outputs"]]
        for output_id, output in zip((first, second), answer["outputs"], strict=True):
            assert base64.b64decode(output["attestation"]) == attester.attestations[output_id]
        one, two = attester.outputs[first], attester.outputs[second]
        assert one.digests == {"body": hashlib.sha256(b"one").digest()}
        assert two.digests == {name: bytes.fromhex(HEX) for name in digests["digests"]}
        for output in (one, two):
            assert (output.source, output.model, output.state) == (Source.SUBMITTED, None, State.COMPLETE)
            assert (output.nonce, output.request, output.request_key) == (bytes(8), None, None)


async def test_a_long_request_is_read_off_the_loop(path: Path) -> None:
    async with local(path) as (attester, client):
        status, answer = await post(client, "/v1/attest", {"items": [item(b"x" * 1_000_000)]})
        assert status == 200
        output = attester.outputs[parse_output_id(answer["outputs"][0]["output_id"])]
        assert output.digests == {"body": hashlib.sha256(b"x" * 1_000_000).digest()}


async def test_an_attestation_is_fetched_by_id_and_a_quote_by_nonce(path: Path) -> None:
    async with local(path) as (attester, client):
        _, answer = await post(client, "/v1/attest", {"items": [item(b"one")]})
        output_id = answer["outputs"][0]["output_id"]
        async with client.get(f"/v1/attestations/{output_id}") as got:
            assert await got.read() == attester.attestations[parse_output_id(output_id)]
        async with client.post("/v1/quote", data=json.dumps({"nonce": "cd" * 32})) as got:
            assert await got.read() == b"quote over " + b"\xcd" * 32
            assert got.headers["Content-Type"] == "application/vnd.quotary.fresh-quote+cbor"
        async with client.get("/v1/status") as got:
            assert (await got.json())["outputs"] == 1


async def test_the_published_log_is_served(path: Path) -> None:
    attester = MemoryAttester()
    attester.store.files = {
        "checkpoint": b"note",
        "tile/entries/000": b"e",
        "history/x001/000": b"h",
        "blob/0": b"b",
    }
    async with local(path, attester) as (_, client):
        for name, data in attester.store.files.items():
            async with client.get("/" + name) as got:
                assert (got.status, await got.read()) == (200, data)
        async with client.get("/tile/0/000") as got:
            assert (got.status, (await got.json())["error"]["code"]) == (404, "not_found")


async def test_a_caller_that_goes_away_does_not_take_its_outputs_back(path: Path) -> None:
    attester = MemoryAttester()
    attester.gate.clear()
    async with local(path, attester) as (_, client):
        request = asyncio.create_task(post(client, "/v1/attest", {"items": [item(b"one")]}))
        await attester.until_submitted(1)
        request.cancel()
        attester.gate.set()
    assert len(attester.outputs) == 1


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"\xff\xfe",
        b'{"items":[NaN]}',
        b'{"items":[' + b"1" * 5000 + b"]}",
        b"[" * 100_000,
        b'{"items":' + b"[" * 100_000,
        b'{"items":[],"items":[]}',
        {},
        {"items": []},
        {"items": {}},
        {"items": [{}]},
        {"items": [None]},
        {"items": ["x"]},
        {"items": [item(b"x")], "extra": 1},
        {"items": [{**item(b"x"), "digests": {"body": HEX}}]},
        {"items": [{"bytes": 1}]},
        {"items": [{"bytes": "QUJ"}]},
        {"items": [{"bytes": "QR=="}]},
        {"items": [{"bytes": "QUJD\n"}]},
        {"items": [{"bytes": "Q-_D"}]},
        {"items": [{"digests": {}}]},
        {"items": [{"digests": []}]},
        {"items": [{"digests": {"body": HEX.upper()}}]},
        {"items": [{"digests": {"body": HEX[:-2]}}]},
        {"items": [{"digests": {"body": HEX + "00"}}]},
        {"items": [{"digests": {"body": 1}}]},
        {"items": [{"digests": {"other": HEX}}]},
        {"items": [{"digests": {"text/01": HEX}}]},
        {"items": [{"digests": {"body\n": HEX}}]},
        {"items": [{"digests": {f"text/{n}": HEX for n in range(257)}}]},
        {"items": [item(b"x")] * (MAX_ITEMS + 1)},
        {"items": [item(b"x")], "nonce": "00" * 7},
        {"items": [item(b"x")], "nonce": "00" * 65},
        {"items": [item(b"x")], "nonce": "AB" * 8},
        {"items": [item(b"x")], "nonce": None},
    ],
)
async def test_a_malformed_request_to_attest_is_refused_and_nothing_is_attested(
    path: Path, value: Any
) -> None:
    async with local(path) as (attester, client):
        status, answer = await post(client, "/v1/attest", value)
        assert (status, answer["error"]["code"]) == (400, "malformed_request")
        assert attester.submitted == 0


@pytest.mark.parametrize(
    "value",
    [b"", b"x", {}, {"nonce": ""}, {"nonce": 1}, {"nonce": "00" * 7}, {"nonce": "00" * 8, "pcrs": [16]}],
)
async def test_a_malformed_request_for_a_quote_is_refused(path: Path, value: Any) -> None:
    async with local(path) as (_, client):
        status, answer = await post(client, "/v1/quote", value)
        assert (status, answer["error"]["code"]) == (400, "malformed_request")


async def test_requests_that_are_too_long_are_refused_before_they_are_read_whole(path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000

    async with local(path, max_request=10_000) as (attester, client):
        for route, data in (("/v1/attest", b"x" * 10_001), ("/v1/quote", b"x" * 4097)):
            status, answer = await post(client, route, data)
            assert (status, answer["error"]["code"]) == (413, "request_too_large")
            async with client.post(route, data=endless()) as got:
                assert got.status == 413
        assert attester.submitted == 0


@pytest.mark.parametrize(
    ("method", "route", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/attest", 405),
        ("POST", "/v1/status", 405),
        ("DELETE", "/checkpoint", 405),
        ("GET", "/v1/attestations/x", 400),
        ("GET", "/v1/attestations/out_" + "00" * 24, 404),
        ("GET", "/tile/../../etc/passwd", 404),
        ("GET", "/blob/%2e%2e%2f%2e%2e%2fidentity", 404),
        ("GET", "/history/" + "0" * 5000, 404),
        ("PATCH", "/v1/quote", 405),
    ],
)
async def test_what_is_not_there_is_a_typed_error(path: Path, method: str, route: str, status: int) -> None:
    async with local(path) as (_, client), client.request(method, route) as got:
        assert got.status == status
        assert set((await got.json())["error"]) == {"message", "type", "param", "code"}


async def test_an_outage_is_a_typed_error(path: Path) -> None:
    async with local(path, MemoryAttester(failure=GONE)) as (_, client):
        for route, value in (("/v1/attest", {"items": [item(b"x")]}), ("/v1/quote", {"nonce": "00" * 8})):
            status, answer = await post(client, route, value)
            assert (status, answer["error"]["code"]) == (503, "attestation_unavailable")


ROUTES = [
    ("POST", "/v1/attest"),
    ("GET", "/v1/attestations/x"),
    ("POST", "/v1/quote"),
    ("GET", "/v1/status"),
    ("GET", "/checkpoint"),
    ("GET", "/tile/0/000"),
    ("GET", "/history/000"),
    ("GET", "/blob/00"),
    ("GET", "/nothing"),
]


async def test_a_user_who_is_not_allowed_is_refused_on_every_route(path: Path) -> None:
    nobody = Allowed(frozenset((os.geteuid() + 1,)), frozenset((max(os.getgroups(), default=0) + 12345,)))
    async with local(path, allowed=nobody) as (attester, client):
        for method, route in ROUTES:
            async with client.request(method, route, data=b"x" * 100) as got:
                assert (got.status, (await got.json())["error"]["code"]) == (403, "peer_not_allowed")
        assert attester.submitted == 0


async def test_a_member_of_an_allowed_group_is_let_in(path: Path) -> None:
    group = Allowed(frozenset(), frozenset((os.getegid(),)))
    async with local(path, allowed=group) as (_, client), client.get("/v1/status") as got:
        assert got.status == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_the_kernel_says_who_the_peer_is_with_all_groups() -> None:
    allowed = Allowed(frozenset(), frozenset((4242,)))
    script = (
        "import os,socket,sys\n"
        "os.setgroups(eval(sys.argv[2])); os.setgid(65534); os.setuid(65534)\n"
        "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(b'GET /v1/status HTTP/1.0\\r\\n\\r\\n'); print(s.recv(12).decode())\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "agent.sock"
        open_up(path.parent, 0o755)
        await refused_unless_in_group(path, script, allowed)


async def refused_unless_in_group(path: Path, script: str, allowed: Allowed) -> None:
    async with local(path, allowed=allowed):
        open_up(path, 0o666)
        for groups, status in (("[4242, 7]", "200"), ("[7]", "403"), ("[]", "403")):
            command = [sys.executable, "-c", script, str(path), groups]
            run = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
            assert run.stdout.split()[-1] == status


async def test_the_socket_is_for_user_and_group_only_and_goes_with_the_interface(path: Path) -> None:
    before = os.umask(0)
    try:
        async with local(path, group=os.getegid()):
            assert mode_of(path) == 0o660
    finally:
        os.umask(before)
    assert mode_of(path) is None


def test_the_name_of_the_socket_never_has_a_wider_mode_than_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(Path, "chmod", lambda self, mode: seen.append(stat.S_IMODE(self.stat().st_mode)))
    before = os.umask(0)
    try:
        listen_on(path, mode=0o600).close()
    finally:
        os.umask(before)
    assert seen == [0o600]


def test_a_socket_left_behind_is_replaced_and_a_live_one_or_a_file_is_not(path: Path) -> None:
    listen_on(path).close()
    with listen_on(path) as listener:
        listener.listen()
        with pytest.raises(SocketInUse, match="another process"):
            listen_on(path)
    path.unlink()
    path.write_text("precious")
    with pytest.raises(SocketInUse, match="not a socket"):
        listen_on(path)
    assert path.read_text() == "precious"
    with pytest.raises(OSError, match="too long"):
        listen_on(path.parent / ("x" * 200))


class Transport(asyncio.BaseTransport):
    """A transport over a given socket."""

    def __init__(self, connection: socket.socket | None) -> None:
        super().__init__({"socket": connection})


def test_a_peer_without_credentials_is_nobody() -> None:
    assert peer_of(None) is None
    assert peer_of(Transport(None)) is None
    with socket.socket(socket.AF_INET) as tcp:
        assert peer_of(Transport(tcp)) is None
    one, two = socket.socketpair()
    with one, two:
        peer = peer_of(Transport(one))
        assert peer is not None
        assert (peer.uid, peer.gid) == (os.geteuid(), os.getegid())
    assert not Allowed(frozenset()).admits(Peer(0, 0, frozenset()))
