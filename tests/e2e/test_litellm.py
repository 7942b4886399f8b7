# SPDX-License-Identifier: Apache-2.0
"""LiteLLM above our transport, in an environment of its own: what is verified, and what never passes there."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from consumers import Answer, attesting_host, middle
from tpms import Tpm

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "litellm"
WANTED = ["litellm==1.106.2", "cryptography", "cbor2", "PyNaCl"]
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
MORE = """
import asyncio, json, sys

litellm.suppress_debug_info = True
messages = [{"role": "user", "content": "hi"}]

def asking(url, provider="openai"):
    return dict(model=provider + "/m", api_base=url + "/v1", messages=messages, max_retries=0)

def content(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

async def asynchronous(url):
    return (await litellm.acompletion(**asking(url))).choices[0].message.content

async def streaming(url):
    return content([chunk async for chunk in await litellm.acompletion(**asking(url), stream=True)])

async def report(name, work):
    try:
        text = work()
        found = {"text": await text if asyncio.iscoroutine(text) else text}
    except Exception as error:
        found = {"error": type(error).__name__}
    print(json.dumps({"name": name, **found}))

async def main(good, bad):
    for name, url in (("good", good), ("bad", bad)):
        await report(name, lambda: litellm.completion(**asking(url)).choices[0].message.content)
        await report(name + " stream", lambda: content(litellm.completion(**asking(url), stream=True)))
        await report(name + " async", lambda: asynchronous(url))
        await report(name + " async stream", lambda: streaming(url))
    await report("elsewhere", lambda: litellm.completion(**asking(bad, "hosted_vllm")).choices[0].message.content)

asyncio.run(main(*sys.argv[1:]))
"""

pytestmark = [pytest.mark.fresh, pytest.mark.timeout(300)]


def environment() -> Path:
    """Make the environment once, and return its Python; skip where it cannot be made."""
    CACHE.parent.mkdir(exist_ok=True)
    with CACHE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        python, stamp = CACHE / "bin" / "python", CACHE / "stamp"
        if not stamp.exists() or stamp.read_text() != str(WANTED):
            subprocess.run([sys.executable, "-m", "venv", "--clear", CACHE], check=True)
            words = [python, "-m", "pip", "install", "-q", "--only-binary", ":all:", *WANTED]
            if subprocess.run(words, capture_output=True, check=False).returncode:
                pytest.skip("LiteLLM cannot be installed here")
            stamp.write_text(str(WANTED))
    return python


def word(answer: Answer) -> Answer:
    """Change a word."""
    return replace(answer, body=answer.body.replace(b"Hel", b"Hal"))


async def test_litellm_is_verified_where_it_uses_the_session(tpm: Tpm, tmp_path: Path) -> None:
    python = await asyncio.to_thread(environment)
    page = await asyncio.to_thread((ROOT / "docs" / "howto" / "consumer.md").read_text)
    (lines,) = (text for text in FENCE.findall(page) if "litellm" in text)
    async with attesting_host(tpm, tmp_path) as host, middle(host.proxy, tamper=word) as bad:
        await asyncio.to_thread((tmp_path / "policy.toml").write_text, host.policy)
        program = lines.replace("https://gpu-07.example.net", host.proxy) + MORE
        done = await asyncio.create_subprocess_exec(
            *(str(python), "-c", program, host.middle.url, bad.url),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "OPENAI_API_KEY": "k",
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "PYTHONPATH": f"{ROOT}/cli/src:{ROOT}/verifier/src",
            },
        )
        out, _ = await done.communicate()
    assert done.returncode == 0
    first, *rest = out.decode().splitlines()
    assert first == "Hello"
    calls = (json.loads(line) for line in rest if line.startswith("{"))
    found = {call.pop("name"): call for call in calls}
    ways = ("", " stream", " async", " async stream")
    assert [found["good" + way].get("text") for way in ways] == ["Hello"] * 4
    assert all("error" in found["bad" + way] for way in ways)
    assert len(host.middle.nonces) == len(bad.nonces) == 4
    assert found["elsewhere"] == {"text": "Hallo"}, (
        "this provider is verified now: the ADR and the how-to say it is not"
    )
