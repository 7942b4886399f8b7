# SPDX-License-Identifier: Apache-2.0
"""Verification for aiohttp: a client middleware that checks each answer.

::

    async with aiohttp.ClientSession(middlewares=(VerifyingMiddleware("policy.toml"),)) as session:
        async with session.post("https://gpu-07.example.net/v1/chat/completions", json=...) as answer:
            print(await answer.json())
            quotary.verdict(answer).claims

It should stand last among several, next to the network: what middlewares below it change is not what is verified.
"""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp.base_protocol import BaseProtocol

from quotary.answers import attach
from quotary.checks import Checks, PolicySource
from quotary.errors import AttestationError
from quotary.exchanges import NONCE, Exchange, Form
from quotary.judge import Judge

_ATTEMPTS = 2
_BUFFER = 64 * 1024


class VerifyingMiddleware:
    """Verifies answers against `policy` and raises `AttestationError` in place of others.

    Raises:
        PolicyError: on construction, if the policy cannot be used.
    """

    def __init__(self, policy: Checks | PolicySource | Judge) -> None:
        self.judge = policy if isinstance(policy, Judge) else Judge(policy)

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send a request and check its answer.

        Raises:
            AttestationError: the answer will not do. For a stream, reading it to its end may raise as well.
        """
        body = request.body if isinstance(request.body, bytes) else await request.body.as_bytes()
        exchange = Exchange(self.judge, request.method, str(request.url), body, request.headers.get(NONCE))
        request.headers[NONCE] = exchange.nonce.hex()
        request.headers["Accept-Encoding"] = "identity"
        try:
            answer = await handler(request)
        finally:
            if exchange.made_nonce:  # who sends the same request again gets another
                del request.headers[NONCE]
        attach(answer, exchange)
        try:
            exchange.answered(answer.status, answer.headers.items())
            if exchange.form is not Form.UNCHECKED:
                reader = _Reader(self, request, answer, exchange)
                answer.content = reader
                if exchange.form is Form.WHOLE:
                    await reader.fill()
        except BaseException:
            answer.close()
            raise
        return answer

    async def fetch(self, url: str, exchange: Exchange, request: aiohttp.ClientRequest) -> None:
        """Fetch the attestation of an exchange from its host."""
        found = await self._get(url, exchange, request, self.judge.checks.limits.attestation)
        exchange.fetched(*found) if isinstance(found, tuple) else exchange.not_fetched(found)

    async def fetch_logs(self, exchange: Exchange, request: aiohttp.ClientRequest) -> None:
        """Fetch the boot logs that the attestation names and nobody knows here."""
        while wanted := exchange.wanted_logs():
            for log, url in wanted:
                found = await self._get(url, exchange, request, self.judge.checks.limits.log, log.known)
                exchange.took_log(log, *(found if isinstance(found, tuple) else (0, b"")))

    async def _get(
        self, url: str, exchange: Exchange, request: aiohttp.ClientRequest, most: int, known: int = 0
    ) -> tuple[int, bytes] | str:
        """Fetch up to `most` bytes, without the first that are `known`: status and body, or why not."""
        headers = {"Accept-Encoding": "identity"}
        if known:
            headers["Range"] = f"bytes={known}-"
        if exchange.may_send_credentials and "Authorization" in request.headers:
            headers["Authorization"] = request.headers["Authorization"]
        reason = ""
        for _ in range(_ATTEMPTS):
            try:
                async with request.session.get(
                    url, headers=headers, allow_redirects=False, middlewares=()
                ) as answer:
                    body = bytearray()
                    async for piece in answer.content.iter_any():
                        body += piece
                        if len(body) > most:
                            return f"it is longer than {most} bytes"
                    return answer.status, bytes(body)
            except (aiohttp.ClientError, TimeoutError) as error:
                reason = type(error).__name__
        return reason


class _Reader(aiohttp.StreamReader):
    """The body of an answer, which reads the one below when it is itself read from, and so keeps its back-pressure."""

    def __init__(
        self,
        over: VerifyingMiddleware,
        request: aiohttp.ClientRequest,
        answer: aiohttp.ClientResponse,
        exchange: Exchange,
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(BaseProtocol(loop), _BUFFER, loop=loop)
        self._below = answer.content
        self._over, self._request, self._exchange = over, request, exchange

    async def fill(self) -> None:
        """Read the whole body and judge it.

        Raises:
            AttestationError: the answer will not do.
        """
        while not self._eof:
            await self._wait("fill")

    async def _wait(self, func_name: str) -> None:  # noqa: ARG002 - the signature is StreamReader's
        """Get more of the body: what `StreamReader` does when it has nothing to hand out."""
        try:
            piece = await self._below.readany()
            if piece:
                self.feed_data(self._exchange.feed(piece))
                return
            url = self._exchange.end()
            if url is not None:
                await self._over.fetch(url, self._exchange, self._request)
            await self._over.fetch_logs(self._exchange, self._request)
            self.feed_data(self._exchange.conclude())
        except AttestationError as error:
            self.set_exception(error)
            raise
        self.feed_eof()

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Note that nothing more is read: the answer was closed, or will not do."""
        self._exchange.abandon()
        super().set_exception(exc, *cause)
