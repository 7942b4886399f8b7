# SPDX-License-Identifier: Apache-2.0
"""For tests of the consumer's library: an attesting host, and somebody in the middle who alters answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from agents import running
from aiohttp import web
from proxies import running as proxied
from scripted_engine import DONE, Call, chunk_event, completion, delta_event
from tpms import Tpm

from quotary import Checks
from quotary_attest.agent import Agent

MESSAGES: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
_CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "look_up", "arguments": '{"a":'}}
_REST = {"index": 0, "function": {"arguments": "1}"}}


async def engine(call: Call) -> None:
    """Answer as a chat server does, by what the request asks for."""
    body = call.body.replace(b" ", b"")
    if call.target.endswith("/models"):
        await call.answer(
            b'{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"x"}]}'
        )
    elif b"refused" in body:
        await call.answer(b'{"error":{"message":"no such model","code":404}}', status=b"404 Not Found")
    elif b'"stream":true' in body:
        await _stream(call, body)
    elif b"tools" in body:
        call_whole = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": '{"a":1}'}}
        message = {"role": "assistant", "content": None, "tool_calls": [call_whole]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        await call.answer(completion("", choices=[choice]))
    else:
        await call.answer(completion("Hello"))


async def _stream(call: Call, body: bytes) -> None:
    last = [] if b"no-done" in body else [DONE]
    if b"fails" in body:
        await call.stream(delta_event("Hel"), b'data: {"error":{"message":"broke","code":500}}\n\n')
    elif b"tools" in body:
        await call.stream(
            delta_event(None, role="assistant", tool_calls=[_CALL]),
            delta_event(None, tool_calls=[_REST]) + delta_event(None, finish="tool_calls"),
            *last,
        )
    else:
        usage = chunk_event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3})
        words = delta_event("Hel") + delta_event("lo")
        await call.stream(
            delta_event("", role="assistant"), words, delta_event(None, finish="stop") + usage, *last
        )


@dataclass
class Answer:
    """An answer on its way through the middle."""

    status: int
    headers: dict[str, str]
    body: bytes


Tamper = Callable[[Answer], Answer | None]


def honest(answer: Answer) -> Answer:
    """Change nothing."""
    return answer


@dataclass
class Middle:
    """Stands between client and host: passes requests on, and answers through `tamper`. None breaks the connection.

    `nonces` are those of the requests that came, `requests` alters what is passed on of a request's body.
    """

    upstream: str
    tamper: Tamper = honest
    fetched: Tamper = honest
    requests: Callable[[bytes], bytes] = bytes
    nonces: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    codings: set[str | None] = field(default_factory=set)
    fetches: int = 0
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Pass one request on and its answer back."""
        fetch = request.path.startswith("/quotary/")
        self.fetches += fetch
        self.authorizations.append(request.headers.get("Authorization"))
        self.codings.add(request.headers.get("Accept-Encoding"))
        self.nonces += request.headers.getall("Quotary-Nonce", [])
        headers = {k: v for k, v in request.headers.items() if k not in ("Host", "Content-Length")}
        body = self.requests(await request.read())
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                self.upstream + request.path_qs,
                data=body,
                headers=headers,
                allow_redirects=False,
            ) as got,
        ):
            dropped = {"Content-Length", "Transfer-Encoding", "Date", "Server", "Connection", "Keep-Alive"}
            kept = {name: value for name, value in got.headers.items() if name not in dropped}
            answer = Answer(got.status, kept, await got.read())
        altered = (self.fetched if fetch else self.tamper)(answer)
        if altered is None:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        return web.Response(status=altered.status, headers=altered.headers, body=altered.body)


@asynccontextmanager
async def middle(upstream: str, **how: Any) -> AsyncIterator[Middle]:
    """Run somebody in the middle."""
    made = Middle(upstream, **how)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{tail:.*}", made.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield made
    finally:
        await runner.cleanup()


@dataclass
class Host:
    """An attesting host: agent, proxy, and who stands in the middle."""

    agent: Agent
    proxy: str
    middle: Middle
    engine: Any

    @property
    def policy(self) -> str:
        """A policy that pins the host and demands a nonce."""
        return (
            f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{self.agent.origin}"\n'
            "[tpm]\nsoftware = true\n[freshness]\nnonce = true\n"
        )

    def checks(self, **how: Any) -> Checks:
        """Checks under that policy."""
        return replace(Checks(self.policy), **how)


@asynccontextmanager
async def attesting_host(tpm: Tpm, folder: Path, script: Any = engine, **config: Any) -> AsyncIterator[Host]:
    """Run agent, proxy, scripted engine and the middle."""
    async with (
        running(tpm, folder / "state") as agent,
        proxied(script, agent, model="llama", **config) as setup,
        middle(setup.url) as between,
    ):
        yield Host(agent, setup.url, between, setup.engine)
