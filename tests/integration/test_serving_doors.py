# SPDX-License-Identifier: Apache-2.0
"""The doors for clients of TEE proxies, on a real agent: OpenSSL and tpm2-tools judge what they give out."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from agents import AT, LLAMA, judge, policy_of, running
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from memory_attester import MemoryAttester
from proxies import Setup
from proxies import running as proxied
from scripted_engine import DONE, Call, delta_event
from tpms import Tpm

from quotary_attest.agent import Agent, NewOutput
from quotary_attest.serving.aliases import alias_of
from quotary_attest.serving.doors import MAX_REPORTS
from quotary_verifier.logs.workload import read_log
from quotary_verifier.recipe.fresh import verify_fresh
from quotary_verifier.wire.bindings import fresh_digest
from quotary_verifier.wire.fresh import FreshQuote
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.tpm import parse_attest

NONCE = "5A" * 32
KEY = {"Authorization": "Bearer sk-one"}
BODY = b"an answer"
NOT_FOUND = {
    "error": {
        "message": "Chat id not found or expired",
        "type": "not_found",
        "param": None,
        "code": None,
    }
}


async def engine(call: Call) -> None:
    await call.answer(b'{"engine":"answers"}')


@pytest.fixture
async def agent(tpm: Tpm, tmp_path: Path) -> AsyncIterator[Agent]:
    async with running(tpm, tmp_path / "state") as agent:
        yield agent


@pytest.fixture
async def setup(agent: Agent) -> AsyncIterator[Setup]:
    async with proxied(engine, agent) as setup:  # type: ignore[arg-type]
        yield setup


async def made(agent: Agent) -> str:
    """Attest an output that its engine calls chatcmpl-7, and return its id."""
    alias = alias_of(agent.alias_secret, KEY["Authorization"], "chatcmpl-7")
    output = NewOutput(agent.new_output_id(), {"body": hashlib.sha256(BODY).digest()}, alias=alias)
    return format_output_id((await agent.submit(output)).output_id)


async def ask(setup: Setup, path: str, **query: str) -> tuple[int, Any]:
    async with setup.client.get(setup.url + path, params=query, headers=KEY) as answer:
        return answer.status, await answer.json()


def accepts(*command: str | Path) -> bool:
    """Whether a program that is not ours says that something is good."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


async def test_openssl_verifies_the_signature_over_the_text_and_the_attestation_verifies(
    agent: Agent, setup: Setup, tmp_path: Path
) -> None:
    output_id = await made(agent)
    status, answer = await ask(setup, "/v1/signature/chatcmpl-7", model="llama", signing_algo="ed25519")
    assert status == 200
    assert await ask(setup, f"/v1/signature/{output_id}") == (200, answer)
    assert (answer["output_id"], answer["origin"]) == (output_id, agent.origin)
    assert (answer["signing_algo"], answer["signature_kind"]) == ("ed25519", "checkpoint")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(answer["signing_address"]))
    (tmp_path / "key").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "signature").write_bytes(bytes.fromhex(answer["signature"]))
    (tmp_path / "text").write_text(answer["text"], newline="")
    (tmp_path / "other").write_text(answer["text"] + "x", newline="")
    check = ("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", tmp_path / "key", "-rawin")
    signature = ("-sigfile", tmp_path / "signature")
    assert accepts(*check, "-in", tmp_path / "text", *signature)
    assert not accepts(*check, "-in", tmp_path / "other", *signature)
    assert answer["text"].split("\n")[0] == agent.origin
    judge(base64.b64decode(answer["attestation"]), BODY, agent.origin)


async def test_a_client_that_compares_hashes_finds_none_and_so_never_a_wrong_one(
    agent: Agent, setup: Setup
) -> None:
    await made(agent)
    _, answer = await ask(setup, "/v1/signature/chatcmpl-7")
    parts = answer["text"].split(":")
    assert len(parts) == 1
    assert hashlib.sha256(BODY).hexdigest() not in answer["text"]


async def test_another_credential_an_unknown_id_and_no_id_at_all_get_the_same_answer(
    agent: Agent, setup: Setup
) -> None:
    await made(agent)
    url = f"{setup.url}/v1/signature/"
    for name, headers in (
        ("chatcmpl-7", {}),
        ("chatcmpl-7", {"Authorization": "Bearer sk-two"}),
        ("chatcmpl-8", KEY),
        ("out_" + "00" * 24, KEY),
        ("x" * 300, KEY),
    ):
        async with setup.client.get(url + name, headers=headers) as answer:
            assert (answer.status, await answer.json()) == (404, NOT_FOUND)


@pytest.mark.parametrize("path", ["/v1/signature/chatcmpl-7", "/v1/attestation/report"])
@pytest.mark.parametrize("algorithm", ["ecdsa", "es256", "ED25519", ""])
async def test_no_other_algorithm_is_pretended(path: str, algorithm: str) -> None:
    async with proxied(engine) as setup:
        status, answer = await ask(setup, path, signing_algo=algorithm)
    message = "Invalid signing algorithm. Must be 'ed25519'"
    assert (status, answer["error"]["type"], answer["error"]["message"]) == (
        400,
        "invalid_signing_algo",
        message,
    )


async def test_tpm2_tools_accept_the_reports_quote_over_the_clients_nonce(
    agent: Agent, setup: Setup, tmp_path: Path
) -> None:
    status, report = await ask(
        setup, "/v1/attestation/report", nonce=NONCE, model="m", signing_algo="ed25519"
    )
    assert status == 200
    assert report["request_nonce"] == NONCE
    verify_fresh(base64.b64decode(report["fresh_quote"]), bytes.fromhex(NONCE), AT, policy_of(agent.origin))
    extra = fresh_digest(agent.origin, bytes.fromhex(NONCE))
    assert parse_attest(bytes.fromhex(report["tpm_quote"])).extra_data == extra
    values = b"".join(bytes.fromhex(report["tpm_pcrs"][str(pcr)]) for pcr in range(16))
    quoted = parse_attest(bytes.fromhex(report["tpm_quote"])).quote
    assert quoted is not None
    assert hashlib.sha256(values).digest() == quoted.pcr_digest
    public = bytes.fromhex(report["ak_public"])
    for name, content in (
        ("public", len(public).to_bytes(2) + public),
        ("message", bytes.fromhex(report["tpm_quote"])),
        ("signature", bytes.fromhex(report["tpm_signature"])),
    ):
        (tmp_path / name).write_bytes(content)
    if shutil.which("tpm2_checkquote") is None:
        pytest.skip("not installed: tpm2-tools")
    files = [f"--{name}={tmp_path / name}" for name in ("public", "message", "signature")]
    command = ("tpm2_checkquote", *files, "--hash-algorithm=sha256")
    assert accepts(*command, f"-q{extra.hex()}")
    assert not accepts(*command, f"-q{NONCE}")


async def test_what_a_tpm_host_does_not_have_is_null_and_the_list_of_all_holds_one(setup: Setup) -> None:
    _, report = await ask(setup, "/v1/attestation/report")
    assert len(bytes.fromhex(report["request_nonce"])) == 32
    for name in ("intel_quote", "quote", "nvidia_payload", "event_log", "vm_config", "info"):
        assert report[name] is None
    (only,) = report.pop("all_attestations")
    assert only == report
    _, second = await ask(setup, "/v1/attestation/report")
    assert second["request_nonce"] != report["request_nonce"]
    address = report["signing_address"]
    assert (await ask(setup, "/v1/attestation/report", signing_address="0x" + address.upper()))[0] == 200
    assert (await ask(setup, "/v1/attestation/report", signing_address="0x" + "00" * 32))[0] == 404


async def test_the_report_shows_what_was_measured_of_the_model_behind_this_proxy(agent: Agent) -> None:
    async with proxied(engine, agent, model=LLAMA.key) as setup:  # type: ignore[arg-type]
        status, report = await ask(
            setup, "/v1/attestation/report", nonce=NONCE, model="whatever-it-is-called"
        )
    assert (status, report["model"], report["model_weights"]) == (200, "llama", LLAMA.weights.hex())
    fresh = FreshQuote.decode(base64.b64decode(report["fresh_quote"]))
    shown = [event.event for event in read_log(fresh.support.workload_log).current if event.event is not None]
    assert {"llama", "vllm"} <= {event.name for event in shown}
    async with proxied(engine, agent, model="unmeasured") as setup:  # type: ignore[arg-type]
        assert (await ask(setup, "/v1/attestation/report"))[0] == 503


@pytest.mark.parametrize(
    ("nonce", "message"),
    [
        ("zz" * 32, "Nonce must be hex-encoded"),
        ("0x" + "00" * 31, "Nonce must be hex-encoded"),
        ("abc", "Nonce must be hex-encoded"),
        ("00 " * 32, "Nonce must be hex-encoded"),
        ("00" * 31, "Nonce must be 32 bytes"),
        ("00" * 33, "Nonce must be 32 bytes"),
        ("", "Nonce must be 32 bytes"),
    ],
)
async def test_a_nonce_of_another_form_is_refused(nonce: str, message: str) -> None:
    async with proxied(engine) as setup:
        status, answer = await ask(setup, "/v1/attestation/report", nonce=nonce)
    assert (status, answer["error"]["message"]) == (400, message)


class Slow(MemoryAttester):
    """Quotes when told to."""

    async def fresh_quote(self, nonce: bytes, *, model: str | None = None) -> bytes:
        async with self.changed:
            self.submitted += 1
            self.changed.notify_all()
        await self.gate.wait()
        raise TimeoutError


async def test_only_so_many_reports_wait_for_the_tpm() -> None:
    attester = Slow()
    attester.gate.clear()
    async with proxied(engine, attester) as setup:
        waiting = [asyncio.create_task(ask(setup, "/v1/attestation/report")) for _ in range(MAX_REPORTS)]
        await attester.until_submitted(MAX_REPORTS)
        status, answer = await ask(setup, "/v1/attestation/report")
        assert (status, answer["error"]["code"]) == (503, "overloaded")
        attester.gate.set()
        await asyncio.gather(*waiting)
        assert attester.submitted == MAX_REPORTS
        await ask(setup, "/v1/attestation/report")
        assert attester.submitted == MAX_REPORTS + 1


async def test_an_operator_can_leave_these_paths_to_the_engine() -> None:
    async with proxied(engine, doors=False) as setup:
        for path in ("/v1/signature/chatcmpl-7", "/v1/attestation/report"):
            assert await ask(setup, path) == (200, {"engine": "answers"})
    async with proxied(engine) as setup:
        async with setup.client.post(setup.url + "/v1/signature/chatcmpl-7", data=b"{}") as answer:
            assert await answer.json() == {"engine": "answers"}  # only what the doors answer is theirs
        assert [call.method for call in setup.engine.calls] == ["POST"]


async def test_a_head_request_gets_the_header_alone(agent: Agent, setup: Setup) -> None:
    output_id = await made(agent)
    url = f"{setup.url}/quotary/v1/attestations/{output_id}"
    async with setup.client.get(url) as whole, setup.client.head(url) as head:
        assert head.status == 200
        assert head.headers["Content-Length"] == str(len(await whole.read()))
        assert await head.read() == b""


async def test_what_moves_in_the_published_log_is_sent_again_only_when_it_did(
    agent: Agent, setup: Setup
) -> None:
    url = f"{setup.url}/quotary/v1/checkpoint"

    async def get(tag: str = "") -> aiohttp.ClientResponse:
        answer = await setup.client.get(url, headers={"If-None-Match": tag} if tag else {})
        await answer.read()
        return answer

    first = await get()
    tag = first.headers["ETag"]
    same = await get(tag)
    assert (same.status, await same.read(), same.headers["ETag"]) == (304, b"", tag)
    assert (await get('"other"')).status == 200
    await agent.attest(b"more")
    async with asyncio.timeout(10):
        while (moved := await get(tag)).status == 304:
            pass
    assert moved.headers["ETag"] != tag


async def test_pages_may_read_what_the_proxy_answers_itself_and_what_the_engine_lets_them() -> None:
    async def script(call: Call) -> None:
        body = b"{}"
        fields = b"Access-Control-Allow-Origin: https://app.example\r\n" if b"open" in call.body else b""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + fields
        await call.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    attester = MemoryAttester()
    attester.store.files = {"checkpoint": b"note\n"}
    async with proxied(script, attester) as setup:
        for path in ("/quotary/v1/checkpoint", "/v1/signature/x", "/quotary/v1/attestations/x"):
            async with setup.client.get(setup.url + path) as answer:
                assert answer.headers["Access-Control-Allow-Origin"] == "*"
                assert answer.headers["Cache-Control"] == ("no-cache" if "checkpoint" in path else "no-store")
            asking = {"Origin": "https://app.example", "Access-Control-Request-Headers": "authorization"}
            async with setup.client.options(setup.url + path, headers=asking) as answer:
                assert answer.status == 204
                assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
        async with setup.post(b"open") as answer:
            assert answer.headers.getall("Access-Control-Allow-Origin") == ["https://app.example"]
            assert "Quotary-Output" in answer.headers["Access-Control-Expose-Headers"]
        async with setup.post(b"closed") as answer:
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert "Access-Control-Expose-Headers" not in answer.headers


async def test_a_client_of_tee_proxies_finds_its_chat_by_the_id_in_the_first_chunk(agent: Agent) -> None:
    """It asks while the answer still streams, and waits for the commit: no race, and no 404."""
    ended = asyncio.Event()

    async def script(call: Call) -> None:
        await call.begin_stream()
        await call.chunk(delta_event("Hel"))
        await ended.wait()
        await call.chunk(delta_event("lo", finish="stop") + DONE)
        await call.end()

    async with proxied(script, agent, model="llama") as setup:  # type: ignore[arg-type]
        async with setup.post(headers=KEY) as answer:
            first = await answer.content.readexactly(len(delta_event("Hel")))
            chat_id = json.loads(first.removeprefix(b"data: "))["id"]
            asking = asyncio.create_task(ask(setup, f"/v1/signature/{chat_id}"))
            async with setup.client.get(f"{setup.url}/v1/signature/{chat_id}") as other:
                assert other.status == 404
            ended.set()
            body, attestation = strip(first + await answer.read())
        status, found = await asking
        assert status == 200
        assert found["output_id"] == answer.headers["Quotary-Output"]
        assert base64.b64decode(found["attestation"]) == attestation
        judge(base64.b64decode(found["attestation"]), body, agent.origin)
