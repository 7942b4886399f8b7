# SPDX-License-Identifier: Apache-2.0
"""The npm package: a `fetch` below the official client, whose answers are verified by the command `attest`."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from consumers import Answer, attesting_host, middle
from tampering import body, both, fields
from tpms import Tpm

from quotary_cli.main import run

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cli" / "npm"
CACHE = ROOT / ".cache" / "npm"
CALLS = Path(__file__).with_name("npm") / "calls.mjs"

REJECTED, MISSING, UNCHECKED = "AttestationRejected", "AttestationMissing", "AttestationNotChecked"


def word(answer: Answer) -> Answer:
    """Change a word."""
    return replace(answer, body=word_in(answer.body))


def word_in(data: bytes) -> bytes:
    return data.replace(b"Hel", b"Hal")


PLAIN: dict[str, tuple[dict[str, Any], str | None]] = {
    "honest": ({}, None),
    "a word": ({"tamper": word}, REJECTED),
    "its text alone": ({"tamper": body(lambda _: b"Hello")}, REJECTED),
    "marked unattested": ({"tamper": fields(Quotary_Attested="no")}, MISSING),
    "no id": ({"tamper": fields(Quotary_Output=None)}, MISSING),
    "another request": ({"requests": lambda data: data.replace(b"hi", b"ho")}, REJECTED),
    "no such id": ({"fetched": lambda answer: replace(answer, status=404)}, MISSING),
    "fetch fails": ({"fetched": lambda answer: replace(answer, status=503)}, UNCHECKED),
    "fetch altered": ({"fetched": body(lambda data: data[:-1])}, REJECTED),
    "fetch too long": ({"fetched": body(lambda _: b"x" * (2 << 20))}, UNCHECKED),
    "a content coding": ({"tamper": fields(Content_Encoding="identity, identity")}, UNCHECKED),
}
STREAMED: dict[str, tuple[dict[str, Any], str | None]] = {
    "honest": ({}, None),
    "a word": ({"tamper": word}, REJECTED),
    "an event more": ({"tamper": body(lambda data: data.replace(b"data: [", b": x\n\ndata: ["))}, REJECTED),
    "cut": ({"tamper": body(lambda data: data[: len(data) // 3])}, REJECTED),
    "behind the end": ({"tamper": body(lambda data: data + b": x\n\n")}, REJECTED),
    "another end": ({"tamper": body(lambda data: word_in(data).replace(b"data: [", b"data:["))}, REJECTED),
    "another type": ({"tamper": both(body(word_in), fields(Content_Type="text/x"))}, REJECTED),
    "marked unattested": ({"tamper": fields(Quotary_Attested="no")}, MISSING),
    "an endless event": ({"tamper": body(lambda data: b"data: " + b"x" * (5 << 20) + data)}, UNCHECKED),
}


def official_client() -> Path:
    """Install the official npm client once, from the package's lock; skip where that cannot be."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not on this machine")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted, stamp = (PACKAGE / "package-lock.json").read_bytes(), CACHE / "stamp"
        if not stamp.exists() or stamp.read_bytes() != wanted:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(PACKAGE / name, CACHE / name)
            words = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            if subprocess.run(words, cwd=CACHE, capture_output=True, check=False).returncode:
                pytest.skip("the official npm client cannot be installed here")
            stamp.write_bytes(wanted)
        shutil.copy(CALLS, CACHE / CALLS.name)
    return CACHE / CALLS.name


def signed(policy: Path) -> dict[str, Any]:
    """Sign a policy, and return the options that take it."""
    key, data = policy.with_name("key.pem"), policy.with_name("signed.policy")
    words = ["policy", "sign", str(policy), "--key", str(key), "--policy-version", "1", "--days", "2"]
    assert run(["policy", "key", "--out", str(key)]) == 0
    assert run([*words, "--out", str(data)]) == 0
    seen = str(policy.with_name("seen.json"))
    return {"policy": str(data), "policyKeys": [f"{key}.pub"], "policyState": seen}


async def test_the_npm_client_gets_verified_answers_and_no_others(tpm: Tpm, tmp_path: Path) -> None:
    calls = await asyncio.to_thread(official_client)
    async with attesting_host(tpm, tmp_path) as host, AsyncExitStack() as stack:

        async def urls(cases: dict[str, tuple[dict[str, Any], str | None]]) -> dict[str, str]:
            made = {
                name: await stack.enter_async_context(middle(host.proxy, **how))
                for name, (how, _) in cases.items()
            }
            return {name: between.url for name, between in made.items()}

        policy = tmp_path / "policy.toml"
        policy.write_text(host.policy)
        given = {
            "policy": str(policy), "command": [sys.executable, "-m", "quotary_cli"], "honest": host.middle.url,
            "plain": await urls(PLAIN), "streamed": await urls(STREAMED), "signed": signed(policy),
        }  # fmt: skip
        node = await asyncio.create_subprocess_exec(
            *("node", str(calls), str(PACKAGE / "index.js"), json.dumps(given)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, problems = await node.communicate()
        assert (node.returncode, problems) == (0, b"")
        fetches, nonces = host.middle.fetches, host.middle.nonces
    found = {call["name"]: call for call in map(json.loads, out.splitlines())}

    def error(name: str) -> str | None:
        return found[name].get("error")

    for kind, cases in (("plain", PLAIN), ("streamed", STREAMED)):
        ends = {name: error(f"{kind}: {name}") for name in cases}
        assert ends == {name: end for name, (_, end) in cases.items()}
        honest = found[f"{kind}: honest"]
        assert honest["text"] == "Hello"
        assert {"name": "origin", "value": host.agent.origin, "source": "host"} in honest["claims"]
    assert found["tools"]["text"] == '{"a":1}'
    assert found["stream helper"]["text"] == "Hello"
    assert (error("error of the engine"), found["error of the engine"]["message"]) == (
        "NotFoundError",
        "404 no such model",
    )
    assert error("models, required") == MISSING
    assert found["models, allowed"]["text"] == "m"
    assert (error("closed early"), error("too long")) == (UNCHECKED, UNCHECKED)
    assert "/nonexistent/policy.toml" in found["no such policy"]["message"]
    assert found["a signed policy"]["text"] == "Hello"
    assert (tmp_path / "seen.json").exists()
    assert "no key was given" in found["a signed policy without a key"]["message"]
    assert found["no such command"] == {
        "name": "no such command", "error": UNCHECKED, "message": "/nonexistent/attest: ENOENT",
    }  # fmt: skip
    plain, streamed = found["before the error, plain"], found["before the error, streamed"]
    assert (plain["text"], plain["error"], streamed["error"]) == ("", REJECTED, REJECTED)
    assert "Hal" in streamed["text"]
    assert "[DONE]" not in streamed["text"]
    assert found["many at once"]["text"] == "2"
    assert found["any fetch"]["text"] == "Hello"
    assert len(nonces) == len(set(nonces))
    assert fetches >= 6
