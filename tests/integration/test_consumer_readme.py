# SPDX-License-Identifier: Apache-2.0
"""The consumer's lines in the README and in docs/howto/consumer.md run, against an agent and a model server."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import running
from consumers import Host, attesting_host, middle
from llama import llama_server, need_llama
from tpms import Tpm

from quotary_attest.serving.proxy import Proxy, ProxyConfig

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ADDRESS = "https://gpu-07.example.net"


def snippets(page: str, word: str) -> list[str]:
    """The blocks of Python on a page in which a word stands."""
    return [text for text in FENCE.findall((ROOT / page).read_text()) if word in text]


def run(snippet: str, url: str) -> None:
    """Run a block with nothing changed but the host's address."""
    assert ADDRESS in snippet
    code = compile(
        snippet.replace(ADDRESS, url), "snippet", "exec", flags=0x2000
    )  # top-level await, as in a notebook
    names: dict[str, Any] = {}
    result = eval(code, names)
    if asyncio.iscoroutine(result):
        asyncio.run(result)
    for value in names.values():
        with contextlib.suppress(AttributeError):
            value.close() if type(value).__name__ in ("OpenAI", "Client") else None


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    return tmp_path


async def run_all(host: Host, blocks: list[str]) -> None:
    def all_of_them() -> None:
        Path("policy.toml").write_text(host.policy)
        for block in blocks:
            run(block, host.proxy)

    await asyncio.to_thread(all_of_them)


async def test_the_consumers_five_lines_run(
    tpm: Tpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = snippets("README.md", "quotary.openai")
    lines = block.strip().splitlines()
    assert len([line for line in lines if line]) <= 5
    async with attesting_host(tpm, tmp_path) as host:
        await run_all(host, [block])
    shown = capsys.readouterr().out
    assert shown.startswith("Hello Claim(name='model', value='llama'")


@pytest.mark.parametrize("word", ["OpenAI(", "httpx2", "aiohttp"])
async def test_the_blocks_of_the_howto_run(
    tpm: Tpm, tmp_path: Path, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = snippets("docs/howto/consumer.md", word)
    assert blocks
    async with attesting_host(tpm, tmp_path) as host:
        await run_all(host, blocks)
    assert "Hello" in capsys.readouterr().out


@asynccontextmanager
async def real_host(tpm: Tpm, folder: Path) -> AsyncIterator[Host]:
    async with (
        llama_server() as upstream,
        running(tpm, folder / "state") as agent,
        Proxy(agent, ProxyConfig(upstream, model="llama")) as proxy,
    ):
        url = f"http://127.0.0.1:{await proxy.listen('127.0.0.1', 0)}"
        async with middle(url) as between:
            yield Host(agent, url, between, None)


@pytest.mark.slow
async def test_the_five_lines_run_against_a_real_model_server(
    tpm: Tpm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_llama()
    (block,) = snippets("README.md", "quotary.openai")
    async with real_host(tpm, tmp_path) as host:
        await run_all(host, [block.replace('"Hello!"}]', '"Hello!"}], max_tokens=8')])
    assert "Claim(name='model', value='llama'" in capsys.readouterr().out
