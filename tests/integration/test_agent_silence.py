# SPDX-License-Identifier: Apache-2.0
"""What the agent logs and counts tells nothing of requests and outputs: a word is put everywhere and looked for."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest
from agents import make_state
from scripted_engine import DONE, Call, completion, delta_event, scripted_engine
from services import service
from tpms import Tpm

CANARY = "c4nary-9f31"
HEX = CANARY.encode().hex()
PLACES = {
    "Authorization": f"Bearer {CANARY}",
    "X-Api-Key": CANARY,
    "Cookie": f"session={CANARY}",
    "User-Agent": CANARY,
    "Quotary-Nonce": HEX,
}
BODY = f'{{"model":"{CANARY}","stream":true,"messages":[{{"role":"user","content":"{CANARY}"}}]}}'.encode()
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", f"/other/{CANARY}?q={CANARY}")


async def talkative(call: Call) -> None:
    """An engine that says the word in every way in which engines answer, fail and break off."""
    text = f"well, {CANARY}"
    kind = call.header("X-Kind")
    if kind == "stream":
        await call.stream(delta_event(text), delta_event("", finish="stop"), DONE)
    elif kind == "error":
        await call.answer(f'{{"error":{{"message":"{CANARY}"}}}}'.encode(), status=b"500 " + CANARY.encode())
    elif kind == "cut":
        await call.begin_stream(b"X-Note: " + CANARY.encode())
        await call.chunk(delta_event(text))
        call.writer.transport.abort()
    elif kind == "nonsense":
        await call.write(f"HTTP/1.1 {CANARY}\r\n\r\n".encode())
        call.close = True
    elif kind == "coding":
        await call.write(
            f"HTTP/1.1 200 OK\r\nContent-Encoding: {CANARY}\r\nContent-Length: 2\r\n\r\nok".encode()
        )
    else:
        await call.answer(completion(text))


@pytest.mark.parametrize(
    ("form", "workers"),
    [
        ("json", 0),
        pytest.param("text", 0, marks=pytest.mark.slow),
        pytest.param("json", 2, marks=pytest.mark.slow),
    ],
)
async def test_no_word_of_requests_answers_headers_or_credentials_is_logged_or_counted(
    tpm: Tpm, tmp_path: Path, form: str, workers: int
) -> None:
    state = tmp_path / "state"
    make_state(tpm, state)
    async with scripted_engine(talkative) as engine:
        file = tmp_path / "agent.toml"
        file.write_text(
            f'[state]\nfolder = "{state}"\n[tpm]\ntcti = "{tpm.tcti}"\n[log]\nlevel = "debug"\n'
            f'[[proxy]]\nupstream = "{engine.url}"\nlisten = "127.0.0.1:0"\nworkers = {workers}\n'
            '[metrics]\nlisten = "127.0.0.1:0"\n'
        )
        async with service(tmp_path, "--config", file, "--log", form) as agent:
            url = agent.ready["proxy"]
            async with aiohttp.ClientSession() as session:
                for path in PATHS:
                    for kind in ("plain", "stream", "error", "cut", "nonsense", "coding"):
                        headers = {**PLACES, "X-Kind": kind}
                        async with session.post(url + path, data=BODY, headers=headers) as response:
                            await read_to_the_end(response)
                wrong = {**PLACES, "Quotary-Nonce": CANARY, "Quotary-Deliver": CANARY}
                for path in (*PATHS, f"/quotary/v1/attestations/{CANARY}", f"/quotary/{CANARY}"):
                    async with session.get(url + path, headers=wrong) as response:
                        await response.read()
                await raw(url, f"{CANARY} {CANARY} HTTP/9\r\n{CANARY}\r\n\r\n".encode())
                await raw(
                    url, f"POST {PATHS[0]} HTTP/1.1\r\nHost: h\r\nContent-Length: {CANARY}\r\n\r\n".encode()
                )
                tpm.gone()
                async with session.post(url + PATHS[0], data=BODY, headers=PLACES) as response:
                    assert response.status == 503
                tpm.back()
                async with session.get(agent.ready["metrics"]) as response:
                    counted = await response.text()
            agent.signal(signal.SIGTERM)
            assert await agent.ended() == 0
    assert "quotary_refusals_total" in counted
    assert "out_" in agent.log, "the log says what it may"
    for told in (agent.log, counted, "".join(agent.reported)):
        for spelling in (CANARY, HEX, CANARY.upper(), "YzRuYXJ5"):
            assert spelling not in told
    assert "Traceback" not in agent.log


async def read_to_the_end(response: aiohttp.ClientResponse) -> None:
    """Read a body, whether it ends or breaks off."""
    try:
        await response.read()
    except aiohttp.ClientPayloadError:
        return


async def raw(url: str, request: bytes) -> None:
    """Send bytes that are no request, and read until the connection is closed."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    await reader.read()
    writer.close()
    await writer.wait_closed()
