# SPDX-License-Identifier: Apache-2.0
"""One side of the proxy's figures, as a process: prints its address as JSON and runs until its stdin is closed.

    python scripts/benchmarks/proxy_side.py forward|proxy|agent --upstream URL [--state FOLDER --tpm TSS]

- `forward`: what the proxy is held against, the same server and client of aiohttp, only passing bytes on.
- `proxy`: the proxy as it is, with a stand-in for the agent that answers as late and as long as one.
- `agent`: the proxy and the agent in one process, on a TPM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

import attesting
from quotary_attest.engine.outputs import NewOutput, make_output_id, wall_clock
from quotary_attest.serving.proxy import Proxy, ProxyConfig

COMMIT_SECONDS = 0.115
ATTESTATION_BYTES = 2300
"""What a commit on the simulated TPM takes, and what an attestation of one output has."""

_NOT_FORWARDED = frozenset(("host", "connection", "content-length", "accept-encoding", "transfer-encoding"))


@dataclass(frozen=True)
class _Held:
    output_id: bytes
    encoded: bytes


class StandIn:
    """An attester that takes as long as a commit and gives bytes of an attestation's length."""

    outage: Exception | None = None
    alias_secret = bytes(32)

    def new_output_id(self) -> bytes:
        """Return an id as the agent makes it."""
        return make_output_id(wall_clock(), os.urandom)

    def reserve(self, output_id: bytes) -> None:
        """Nobody fetches here."""

    def abandon(self, output_id: bytes) -> None:
        """Nobody fetches here."""

    def announce_alias(self, alias: bytes, output_id: bytes) -> None:
        """Nobody fetches here."""

    async def submit(self, output: NewOutput) -> _Held:
        """Return after a commit's time."""
        await asyncio.sleep(COMMIT_SECONDS)
        return _Held(output.output_id, bytes(ATTESTATION_BYTES))


@asynccontextmanager
async def forwarding(upstream: str) -> AsyncIterator[str]:
    """A server that passes requests on to the upstream and its answers back, piece by piece as they come."""
    async with AsyncExitStack() as stack:
        # A connection of its own for each request, as the proxy has to: engines close theirs after a stream.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, auto_decompress=False)
        )

        async def forward(request: web.Request) -> web.StreamResponse:
            headers = {
                name: value for name, value in request.headers.items() if name.lower() not in _NOT_FORWARDED
            }
            body = await request.read()
            async with session.request(
                request.method, upstream + request.path_qs, headers=headers, data=body
            ) as answer:
                response = web.StreamResponse(status=answer.status)
                response.content_type = answer.content_type
                await response.prepare(request)
                while data := await answer.content.readany():
                    await response.write(data)
                await response.write_eof()
                return response

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, auto_decompress=False)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"


@asynccontextmanager
async def proxying(attester: Any, upstream: str, *, model: str | None = None) -> AsyncIterator[str]:
    """The proxy with an attester."""
    async with Proxy(attester, ProxyConfig(upstream, model=model)) as proxy:
        yield f"http://127.0.0.1:{await proxy.listen('127.0.0.1', 0)}"


@asynccontextmanager
async def side(options: argparse.Namespace) -> AsyncIterator[str]:
    """The side that the command line asks for."""
    async with AsyncExitStack() as stack:
        if options.side == "forward":
            yield await stack.enter_async_context(forwarding(options.upstream))
        elif options.side == "proxy":
            yield await stack.enter_async_context(proxying(StandIn(), options.upstream))
        else:
            run = await stack.enter_async_context(attesting.running(options.state, options.tpm))
            model = attesting.MODEL.name
            yield await stack.enter_async_context(proxying(run.agent, options.upstream, model=model))


async def main() -> None:
    """Run one side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("side", choices=("forward", "proxy", "agent"))
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--tpm")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)  # as `attest agent run` has it
    async with side(options) as url:
        attesting.tune()
        print(json.dumps({"url": url}), flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(main())
