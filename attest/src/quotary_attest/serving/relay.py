# SPDX-License-Identifier: Apache-2.0
"""An engine's answer on its way to the client, attested (docs/spec/serving.md).

A streamed answer is passed on as it is read, and hashed after it was sent, so that neither waits for the other. An
answer of known, bounded length is held whole, since its attestation goes into it. In both cases the end of the
answer waits for the commit: an answer that ended properly is attested.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, Final, TypeVar

import aiohttp
from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from quotary_attest.engine.errors import AgentError, Unavailable
from quotary_attest.roots import RootError
from quotary_attest.serving.errors import Refusal, error_event, logger, refusal_of
from quotary_attest.serving.headers import ATTESTED
from quotary_attest.serving.sse import StreamReader, TailHolder
from quotary_attest.serving.text import TextDigests
from quotary_attest.serving.ticket import Ticket
from quotary_verifier.wire.inband import insert, opens_object, stream_span
from quotary_verifier.wire.records import State

READ_ERRORS: Final = (aiohttp.ClientError, TimeoutError, OSError)
"""What reading an upstream's body raises when it does not end as it must."""

_T = TypeVar("_T")
_NOT_ATTESTED: Final = (AgentError, RootError, ValueError)
_LONG_BODY: Final = 256 * 1024
_RESET: Final = struct.pack("ii", 1, 0)  # linger for no time: closing sends a reset (socket(7))


class _Ending(Enum):
    """How the engine's part of a stream ended."""

    CLEAN = "as HTTP says it must"
    CUT = "the engine went away"
    OUTAGE = "the agent cannot attest any more"


def hang_up(request: web.BaseRequest) -> None:
    """End the connection but not the answer, after what was written has gone out: the client sees it cut off.

    In HTTP/1.0 an answer may end with its connection, so there only a reset tells the two apart.
    """
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if request.version < HttpVersion11 and connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.close()


class StreamRelay:
    """Passes on an answer whose length is not known beforehand: an event stream, or bytes of any kind."""

    def __init__(
        self,
        ticket: Ticket,
        request: web.Request,
        answer: aiohttp.ClientResponse,
        *,
        chat: bool,
        max_inband: int,
    ) -> None:
        """`max_inband` is the greatest length of an attestation, in bytes, that goes into the stream."""
        self._ticket = ticket
        self._request = request
        self._answer = answer
        self._max_inband = max_inband
        self._sent = hashlib.sha256()
        events = answer.content_type == "text/event-stream"
        self._holder = TailHolder() if events else None
        self._reader = StreamReader(chat=chat) if events else None

    async def run(self, headers: CIMultiDict[str], begun: bytes = b"") -> web.StreamResponse:
        """Pass the answer on under `headers`; `begun` is what was read of its body before. Use it once."""
        response = web.StreamResponse(status=self._answer.status, reason=self._answer.reason, headers=headers)
        try:
            await response.prepare(self._request)
            await self._finish(response, await self._pump(response, begun))
        except ConnectionError:
            self._client_gone()
        except asyncio.CancelledError:
            self._client_gone()
            raise
        except Exception as error:  # the answer has begun: all that can be done is not to end it properly
            logger.error("unexpected %s while passing on an answer", type(error).__name__)
            hang_up(self._request)
        return response

    async def _pump(self, response: web.StreamResponse, begun: bytes) -> _Ending:
        """Pass on piece by piece; `write` waits while the client is slow, and then the engine waits too."""
        read, holder, reader, sent, ticket = (
            self._answer.content.readany, self._holder, self._reader, self._sent, self._ticket
        )  # fmt: skip
        data = begun
        while True:
            outage = ticket.outage is not None
            if outage:
                data = b"" if holder is None else holder.rest_of_event(data)
            if holder is not None:
                data = holder.feed(data)
            if data:
                await response.write(data)
                sent.update(data)
                if reader is not None:
                    reader.feed(data)
            if outage and (holder is None or holder.between_events):
                return _Ending.OUTAGE
            try:
                data = await read()
            except READ_ERRORS:
                return _Ending.CUT
            if not data:
                return _Ending.CLEAN

    async def _finish(self, response: web.StreamResponse, ending: _Ending) -> None:
        """Attest what was sent and what is held, and end the answer as the engine's ended."""
        if ending is _Ending.OUTAGE:
            outage = self._ticket.outage or Unavailable("the agent could not attest for a while")
            await self._fail(response, outage, between_events=self._holder is not None)
            return
        before, tail, place = (b"", b"", False) if self._holder is None else self._holder.finish()
        if before:
            await response.write(before)
            self._account(before)
        self._sent.update(tail)
        if self._reader is not None:
            self._reader.finish(tail)
        state = self._state(ending)
        if ending is _Ending.CUT and not tail:
            self._submit(state)
            hang_up(self._request)
            return
        try:
            attestation = await self._ticket.attest(state, self._digests(), self._usage, self._answer.status)
        except _NOT_ATTESTED as error:
            await self._fail(response, error, between_events=place)
            return
        await self._end(response, attestation, tail, place=place)
        if ending is _Ending.CLEAN:
            await response.write_eof()
        else:
            hang_up(self._request)

    async def _end(
        self, response: web.StreamResponse, attestation: bytes, tail: bytes, *, place: bool
    ) -> None:
        head = self._reader.head if self._reader is not None and place else None
        if head is not None and len(attestation) <= self._max_inband:
            tail = stream_span(head, attestation) + tail
        if tail:
            await response.write(tail)

    async def _fail(self, response: web.StreamResponse, error: Exception, *, between_events: bool) -> None:
        """End a stream that cannot be attested: an error event where one may stand, and no proper end."""
        if between_events:
            await response.write(error_event(refusal_of(error)))
        hang_up(self._request)

    def _account(self, data: bytes) -> None:
        self._sent.update(data)
        if self._reader is not None:
            self._reader.feed(data)

    def _client_gone(self) -> None:
        """Record the prefix that was sent."""
        if self._reader is not None:
            self._reader.finish()
        if self._ticket.open:
            self._submit(State.CLIENT_GONE)

    def _submit(self, state: State) -> None:
        self._ticket.record(state, self._digests(), self._usage, self._answer.status)

    def _digests(self) -> dict[str, bytes]:
        texts = {} if self._reader is None else self._reader.digests()
        return {"body": self._sent.digest(), **texts}

    @property
    def _usage(self) -> Mapping[str, Any]:
        return {} if self._reader is None else self._reader.usage

    def _state(self, ending: _Ending) -> State:
        reader = self._reader
        if self._answer.status >= 400 or (reader is not None and reader.error):
            return State.ENGINE_ERROR
        if ending is _Ending.CLEAN and (reader is None or reader.complete):
            return State.COMPLETE
        return State.ENGINE_TRUNCATED


class WholeRelay:
    """Passes on an answer that is held whole until its attestation is in it."""

    def __init__(
        self, ticket: Ticket, answer: aiohttp.ClientResponse, *, chat: bool, max_inband: int
    ) -> None:
        """`max_inband` is the greatest length of an attestation, in bytes, that goes into the body."""
        self._ticket = ticket
        self._answer = answer
        self._chat = chat
        self._max_inband = max_inband

    async def read(self, limit: int) -> tuple[bytes, bool]:
        """Read the body up to `limit` bytes or a little more; return it and whether it ended.

        Raises:
            Refusal: the engine went away before its end (502).
        """
        pieces: list[bytes] = []
        size = 0
        try:
            while data := await self._answer.content.readany():
                pieces.append(data)
                size += len(data)
                if size > limit:
                    return b"".join(pieces), False
        except READ_ERRORS:
            raise Refusal(502, "upstream_failed", "the model server broke off its answer") from None
        return b"".join(pieces), True

    async def run(self, headers: CIMultiDict[str], body: bytes) -> web.Response:
        """Return the answer with its attestation in it, or as it was where it has no place for one.

        Raises the agent's errors.
        """
        state, digests, usage = await _off_loop(body, self._appraise)
        attestation = await self._ticket.attest(state, digests, usage, self._answer.status)
        carried = None
        if len(attestation) <= self._max_inband and self._is_json and opens_object(body):
            carried = await _off_loop(body, lambda content: insert(content, attestation))
        return web.Response(
            status=self._answer.status,
            reason=self._answer.reason,
            headers=headers,
            body=body if carried is None else carried,
        )

    def client_gone(self) -> None:
        """Record that nothing was sent."""
        if self._ticket.open:
            nothing = {"body": hashlib.sha256().digest()}
            self._ticket.record(State.CLIENT_GONE, nothing, {}, self._answer.status)

    @property
    def _is_json(self) -> bool:
        return is_json(self._answer)

    def _appraise(self, body: bytes) -> tuple[State, dict[str, bytes], Mapping[str, Any]]:
        """Return state, digests and usage of a body that came whole."""
        digests = {"body": hashlib.sha256(body).digest()}
        error = self._answer.status >= 400
        if not self._is_json:
            return (State.ENGINE_ERROR if error else State.COMPLETE), digests, {}
        try:
            payload = json.loads(body)
        except (ValueError, RecursionError):
            return (State.ENGINE_ERROR if error else State.ENGINE_TRUNCATED), digests, {}
        if not isinstance(payload, dict):
            return (State.ENGINE_ERROR if error else State.COMPLETE), digests, {}
        texts = TextDigests(chat=self._chat)
        texts.add_choices(payload.get("choices"), streamed=False)
        usage = payload.get("usage")
        error = error or payload.get("error") is not None
        return (
            State.ENGINE_ERROR if error else State.COMPLETE,
            {**digests, **texts.digests()},
            usage if isinstance(usage, dict) else {},
        )


def is_json(answer: aiohttp.ClientResponse) -> bool:
    """Tell whether an answer's media type is JSON."""
    kind = answer.content_type
    return kind == "application/json" or kind.endswith("+json")


async def _off_loop(body: bytes, work: Callable[[bytes], _T]) -> _T:
    """Do `work` on a body, in a thread if it is long: other streams go on meanwhile."""
    return work(body) if len(body) <= _LONG_BODY else await asyncio.to_thread(work, body)


async def pass_through(
    request: web.Request, answer: aiohttp.ClientResponse, headers: CIMultiDict[str]
) -> web.StreamResponse:
    """Pass on an answer that is not attested, and say so in its header."""
    headers[ATTESTED] = "no"
    if "Content-Length" in answer.headers:
        headers["Content-Length"] = answer.headers["Content-Length"]
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    with suppress(ConnectionError):  # the client left
        await response.prepare(request)
        while data := await _next(answer):
            await response.write(data)
        if data is None:
            hang_up(request)
        else:
            await response.write_eof()
    return response


async def _next(answer: aiohttp.ClientResponse) -> bytes | None:
    """Return the next bytes of a body, none at its end, None where it breaks off."""
    try:
        return await answer.content.readany()
    except READ_ERRORS:
        return None
