# SPDX-License-Identifier: Apache-2.0
"""An engine's answer on its way to the client, attested, where its length is not known (docs/spec/serving.md).

It is passed on as it is read, and hashed after it was sent, so that neither waits for the other. Its end waits for
the commit, unless the client asked it not to: an answer that ended properly is attested.
"""

from __future__ import annotations

import asyncio
from enum import Enum

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from quotary_attest.engine.errors import Unavailable
from quotary_attest.metrics import Carried, Unattested
from quotary_attest.serving.delivery import Delivery, Terms
from quotary_attest.serving.errors import NOT_ATTESTED, logger, refusal_of
from quotary_attest.serving.idle import IdleWatch
from quotary_attest.serving.notes import note_carried, note_refusal, note_unattested
from quotary_attest.serving.passing import READ_ERRORS, hang_up
from quotary_attest.serving.tap import StreamTap
from quotary_attest.serving.ticket import Account, Ticket


class _Ending(Enum):
    """How the engine's part of a stream ended."""

    CLEAN = "as HTTP says it must"
    CUT = "the engine went away"
    OUTAGE = "the agent cannot attest any more"


class StreamRelay:
    """Passes on an answer whose length is not known beforehand: events, lines, or bytes of any kind."""

    def __init__(
        self,
        ticket: Ticket,
        request: web.Request,
        answer: aiohttp.ClientResponse,
        terms: Terms,
        watch: IdleWatch,
    ) -> None:
        self._ticket = ticket
        self._request = request
        self._answer = answer
        self._terms = terms
        self._watch = watch
        self._tap = StreamTap(terms, answer.content_type, answer.status, ticket.key, ticket.known_as)

    async def run(self, headers: CIMultiDict[str], begun: bytes = b"") -> web.StreamResponse:
        """Pass the answer on under `headers`; `begun` is what was read of its body before. Use it once."""
        response = web.StreamResponse(status=self._answer.status, reason=self._answer.reason, headers=headers)
        try:
            await response.prepare(self._request)
            # In a task of its own: for each piece the interpreter steps through all coroutines from the task to the
            # one that waits, and the handler's are a dozen. Its cancellation is passed on to the task.
            ending = await asyncio.create_task(self._pump(response, begun))
            await self._finish(response, ending)
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
        waiting = self._watch.add(self._answer.content)
        read, write, ticket = self._answer.content.readany, response.write, self._ticket
        holder, sent, strict = self._tap.holder, self._tap.sent, not self._terms.lenient
        data = begun
        try:
            while True:
                outage = strict and ticket.outage is not None
                if outage:
                    data = b"" if holder is None else holder.rest_of_event(data)
                if holder is not None:
                    data = holder.feed(data)
                if data:
                    await write(data)
                    sent(data)
                if outage and (holder is None or holder.between_events):
                    return _Ending.OUTAGE
                waiting.engine = True
                try:
                    data = await read()
                except READ_ERRORS:
                    return _Ending.CUT
                waiting.engine = False
                if not data:
                    return _Ending.CLEAN
        finally:
            self._watch.remove(waiting)

    async def _finish(self, response: web.StreamResponse, ending: _Ending) -> None:
        """Attest what was sent and what is held, and end the answer as the engine's ended."""
        tap = self._tap
        if ending is _Ending.OUTAGE:
            tap.close()
            outage = self._ticket.outage or Unavailable("the agent could not attest for a while")
            await self._fail(response, outage, between_events=tap.holder is not None)
            return
        before, tail, place = tap.finish()
        if before:
            await response.write(before)
            tap.sent(before)
        tap.close(tail)
        account = tap.account(clean=ending is _Ending.CLEAN)
        if ending is _Ending.CUT and not tail:
            self._ticket.record(account)
            hang_up(self._request)
            return
        try:
            inserted = await self._attested(account, place=place)
            note_carried(response, self._carried(inserted))
        except NOT_ATTESTED as error:
            if not (self._terms.lenient and place and tap.mark):
                await self._fail(response, error, between_events=place)
                return
            logger.warning("output %s goes out unattested: %s", self._ticket.text, type(error).__name__)
            inserted = tap.mark
            note_unattested(response, Unattested.OUTAGE)
        if inserted or tail:
            await response.write(inserted + tail)
        if ending is _Ending.CLEAN:
            await response.write_eof()
        else:
            hang_up(self._request)

    async def _attested(self, account: Account, *, place: bool) -> bytes:
        """Return what goes into the stream at its place once it is attested, or handed in if it does not wait."""
        if self._terms.delivery is Delivery.DEFERRED:
            await self._ticket.hand_in(account)
            return b""
        attestation = await self._ticket.attest(account)
        return self._tap.span(attestation) if place else b""

    def _carried(self, inserted: bytes) -> Carried:
        if self._terms.delivery is Delivery.DEFERRED:
            return Carried.DEFERRED
        return Carried.INBAND if inserted else Carried.BY_ID

    async def _fail(self, response: web.StreamResponse, error: Exception, *, between_events: bool) -> None:
        """End a stream that cannot be attested: an error event where one may stand, and no proper end."""
        note_refusal(response, refusal_of(error).code)
        if between_events:
            await response.write(self._tap.error(error))
        hang_up(self._request)

    def _client_gone(self) -> None:
        """Record the prefix that was sent."""
        if self._ticket.open and not self._ticket.cut:
            self._tap.close()
            self._ticket.record(self._tap.account(clean=False, client_gone=True))
