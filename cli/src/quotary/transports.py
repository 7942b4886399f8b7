# SPDX-License-Identifier: Apache-2.0
"""What the transports of httpx2 and httpx share: the two libraries have one interface under two names.

A transport sits below the client, where a request has the bytes that go out and an answer those that came, once for
each attempt. So every attempt has a nonce of its own, and what an API client parses is what was verified.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from quotary.answers import EXTENSION
from quotary.checks import Checks, PolicySource
from quotary.exchanges import NONCE, Exchange, Form
from quotary.judge import Judge

_ATTEMPTS = 2
_DROPPED = frozenset({"content-length", "transfer-encoding"})


class Checking:
    """The part of a transport that does no input or output.

    `module` is the HTTP library; `inner` is a transport of it, or a client that is used as one.
    """

    module: Any
    stream_type: Any

    def __init__(self, judge: Judge | Checks | PolicySource, inner: Any) -> None:
        self.judge = judge if isinstance(judge, Judge) else Judge(judge)
        self.inner = inner

    def _begin(self, request: Any) -> Exchange:
        """Make the exchange of a request whose body was read, and mark the request."""
        exchange = Exchange(
            self.judge, request.method, str(request.url), request.content, request.headers.get(NONCE)
        )
        request.headers[NONCE] = exchange.nonce.hex()
        request.headers["Accept-Encoding"] = "identity"
        return exchange

    @staticmethod
    def _sent(request: Any, exchange: Exchange) -> None:
        """Take our nonce off a request: who sends the same one again, or follows a redirect, gets another."""
        if exchange.made_nonce:
            del request.headers[NONCE]

    def _whole(self, answer: Any, exchange: Exchange, body: bytes) -> Any:
        """Make the answer anew, of a body that is complete."""
        fields = [(name, value) for name, value in answer.headers.multi_items() if name not in _DROPPED]
        return self.module.Response(
            answer.status_code,
            headers=[*fields, ("content-length", str(len(body)))],
            stream=self.module.ByteStream(body),
            extensions={**answer.extensions, EXTENSION: exchange},
        )

    def _streamed(self, answer: Any, exchange: Exchange, request: Any) -> Any:
        """Make the answer anew, with a body that is checked while it is read."""
        fields = [
            (name, value)
            for name, value in answer.headers.multi_items()
            if exchange.form is Form.UNCHECKED or name != "content-length"
        ]
        return self.module.Response(
            answer.status_code,
            headers=fields,
            stream=self.stream_type(self, answer, exchange, request),
            extensions={**answer.extensions, EXTENSION: exchange},
        )

    def _fetch_request(self, url: str, exchange: Exchange, request: Any, known: int) -> Any:
        headers = {"Accept-Encoding": "identity"}
        if known:
            headers["Range"] = f"bytes={known}-"
        if exchange.may_send_credentials and "authorization" in request.headers:
            headers["Authorization"] = request.headers["authorization"]
        timeout = request.extensions.get("timeout")
        extensions = {} if timeout is None else {"timeout": timeout}
        return self.module.Request("GET", url, headers=headers, extensions=extensions)


class SyncChecking(Checking):
    """A transport for synchronous clients."""

    def handle_request(self, request: Any) -> Any:
        """Send a request and check its answer.

        Raises:
            AttestationError: the answer will not do. For a stream, reading it to its end may raise as well.
        """
        request.read()
        exchange = self._begin(request)
        try:
            answer = self._send(request)
        finally:
            self._sent(request, exchange)
        try:
            exchange.answered(answer.status_code, answer.headers.multi_items())
            if exchange.form is not Form.WHOLE:
                return self._streamed(answer, exchange, request)
            body = b"".join(self.body(answer, exchange, request))
        except BaseException:
            answer.close()
            raise
        answer.close()
        return self._whole(answer, exchange, body)

    def body(self, answer: Any, exchange: Exchange, request: Any) -> Iterator[bytes]:
        """Yield the body of an answer as it may be handed on; the last piece once there is a verdict.

        Raises:
            AttestationError: the answer will not do.
        """
        for piece in answer.iter_raw():
            out = exchange.feed(piece)
            if out:
                yield out
        url = exchange.end()
        if url is not None:
            found = self._fetch(url, exchange, request, self.judge.checks.limits.attestation)
            exchange.fetched(*found) if isinstance(found, tuple) else exchange.not_fetched(found)
        while wanted := exchange.wanted_logs():
            for log, place in wanted:
                found = self._fetch(place, exchange, request, self.judge.checks.limits.log, log.known)
                exchange.took_log(log, *(found if isinstance(found, tuple) else (0, b"")))
        rest = exchange.conclude()
        if rest:
            yield rest

    def _fetch(
        self, url: str, exchange: Exchange, request: Any, most: int, known: int = 0
    ) -> tuple[int, bytes] | str:
        """Fetch up to `most` bytes, without the first that are `known`: status and body, or why not."""
        reason = ""
        for _ in range(_ATTEMPTS):
            try:
                answer = self._send(self._fetch_request(url, exchange, request, known))
                try:
                    body = bytearray()
                    for piece in answer.iter_raw():
                        body += piece
                        if len(body) > most:
                            return f"it is longer than {most} bytes"
                finally:
                    answer.close()
            except self.module.TransportError as error:
                reason = type(error).__name__
            else:
                return answer.status_code, bytes(body)
        return reason

    def _send(self, request: Any) -> Any:
        if isinstance(self.inner, self.module.Client):
            return self.inner.send(request, stream=True, follow_redirects=False)
        return self.inner.handle_request(request)

    def close(self) -> None:
        """Close the transport or client below."""
        self.inner.close()


class AsyncChecking(Checking):
    """A transport for asynchronous clients."""

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request and check its answer.

        Raises:
            AttestationError: the answer will not do. For a stream, reading it to its end may raise as well.
        """
        await request.aread()
        exchange = self._begin(request)
        try:
            answer = await self._send(request)
        finally:
            self._sent(request, exchange)
        try:
            exchange.answered(answer.status_code, answer.headers.multi_items())
            if exchange.form is not Form.WHOLE:
                return self._streamed(answer, exchange, request)
            body = b"".join([piece async for piece in self.body(answer, exchange, request)])
        except BaseException:
            await answer.aclose()
            raise
        await answer.aclose()
        return self._whole(answer, exchange, body)

    async def body(self, answer: Any, exchange: Exchange, request: Any) -> AsyncIterator[bytes]:
        """Yield the body of an answer as it may be handed on; the last piece once there is a verdict.

        Raises:
            AttestationError: the answer will not do.
        """
        async for piece in answer.aiter_raw():
            out = exchange.feed(piece)
            if out:
                yield out
        url = exchange.end()
        if url is not None:
            found = await self._fetch(url, exchange, request, self.judge.checks.limits.attestation)
            exchange.fetched(*found) if isinstance(found, tuple) else exchange.not_fetched(found)
        while wanted := exchange.wanted_logs():
            for log, place in wanted:
                found = await self._fetch(place, exchange, request, self.judge.checks.limits.log, log.known)
                exchange.took_log(log, *(found if isinstance(found, tuple) else (0, b"")))
        rest = exchange.conclude()
        if rest:
            yield rest

    async def _fetch(
        self, url: str, exchange: Exchange, request: Any, most: int, known: int = 0
    ) -> tuple[int, bytes] | str:
        """Fetch up to `most` bytes, without the first that are `known`: status and body, or why not."""
        reason = ""
        for _ in range(_ATTEMPTS):
            try:
                answer = await self._send(self._fetch_request(url, exchange, request, known))
                try:
                    body = bytearray()
                    async for piece in answer.aiter_raw():
                        body += piece
                        if len(body) > most:
                            return f"it is longer than {most} bytes"
                finally:
                    await answer.aclose()
            except self.module.TransportError as error:
                reason = type(error).__name__
            else:
                return answer.status_code, bytes(body)
        return reason

    async def _send(self, request: Any) -> Any:
        if isinstance(self.inner, self.module.AsyncClient):
            return await self.inner.send(request, stream=True, follow_redirects=False)
        return await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the transport or client below."""
        await self.inner.aclose()


class CheckedStream:
    """The body of an answer, read through a `SyncChecking`."""

    def __init__(self, over: SyncChecking, answer: Any, exchange: Exchange, request: Any) -> None:
        self._answer, self._exchange = answer, exchange
        self._body = over.body(answer, exchange, request)

    def __iter__(self) -> Iterator[bytes]:
        return self._body

    def close(self) -> None:
        """Close the answer; where it was not read to its end there will be no verdict."""
        self._exchange.abandon()
        self._answer.close()


class AsyncCheckedStream:
    """The body of an answer, read through an `AsyncChecking`."""

    def __init__(self, over: AsyncChecking, answer: Any, exchange: Exchange, request: Any) -> None:
        self._answer, self._exchange = answer, exchange
        self._body = over.body(answer, exchange, request)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._body

    async def aclose(self) -> None:
        """Close the answer; where it was not read to its end there will be no verdict."""
        self._exchange.abandon()
        await self._answer.aclose()
