# SPDX-License-Identifier: Apache-2.0
"""An engine's answer that is held whole until its attestation is in it (docs/spec/serving.md)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Final, TypeVar

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from quotary_attest.metrics import Carried, Unattested
from quotary_attest.serving.delivery import ATTESTATION, Delivery, Terms, header_value
from quotary_attest.serving.errors import NOT_ATTESTED, Refusal, logger
from quotary_attest.serving.headers import ATTESTED
from quotary_attest.serving.held import Share
from quotary_attest.serving.idle import IdleWatch
from quotary_attest.serving.notes import note_carried, note_unattested
from quotary_attest.serving.passing import READ_ERRORS, hang_up
from quotary_attest.serving.tap import EVENT_STREAM, is_json, whole_account
from quotary_attest.serving.ticket import Account, Ticket
from quotary_verifier.wire.inband import insert, opens_object
from quotary_verifier.wire.records import State

_T = TypeVar("_T")
_LONG_BODY: Final = 256 * 1024


def is_held(answer: aiohttp.ClientResponse, limit: int) -> bool:
    """Tell whether an answer is held whole: JSON, or of a known length that is not too long; never a stream."""
    if answer.content_type == EVENT_STREAM:
        return False
    length = answer.content_length
    return length <= limit if length is not None else is_json(answer.content_type)


class WholeRelay:
    """Passes on an answer that is held whole."""

    def __init__(self, ticket: Ticket, answer: aiohttp.ClientResponse, terms: Terms) -> None:
        self._ticket = ticket
        self._answer = answer
        self._terms = terms

    async def read(self, limit: int, share: Share, watch: IdleWatch) -> tuple[bytes, bool]:
        """Read the body up to `limit` bytes, as many as `share` may hold, or a little more; return it and whether it
        ended.

        Raises:
            Refusal: the engine went away before its end, or fell silent (502).
        """
        pieces: list[bytes] = []
        size = 0
        content = self._answer.content
        waiting = watch.add(content)
        waiting.engine = True
        try:
            while data := await content.readany():
                pieces.append(data)
                size += len(data)
                if size > limit or not share.fits(len(data)):
                    return b"".join(pieces), False
        except READ_ERRORS:
            raise Refusal(502, "upstream_failed", "the model server broke off its answer") from None
        finally:
            watch.remove(waiting)
        return b"".join(pieces), True

    async def run(self, request: web.Request, headers: CIMultiDict[str], body: bytes) -> web.Response:
        """Send the answer with its attestation in it, in its header, or as it was, as the terms say.

        Raises the agent's errors.
        """
        account = await _off_loop(body, self._account)
        carried: Carried | None = None
        try:
            body, carried = await self._attested(account, headers, body)
        except NOT_ATTESTED as error:
            if not self._terms.lenient:
                raise
            logger.warning("output %s goes out unattested: %s", self._ticket.text, type(error).__name__)
            headers[ATTESTED] = "no"
        response = web.Response(
            status=self._answer.status, reason=self._answer.reason, headers=headers, body=body
        )
        if carried is None:
            note_unattested(response, Unattested.OUTAGE)
        else:
            note_carried(response, carried)
        try:
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:  # the client left; its answer is recorded
            pass
        except Exception as error:  # the answer has begun: all that can be done is not to end it properly
            logger.error("unexpected %s while passing on an answer", type(error).__name__)
            hang_up(request)
        return response

    async def _attested(
        self, account: Account, headers: CIMultiDict[str], body: bytes
    ) -> tuple[bytes, Carried]:
        """Return the body as it goes out once it is attested; set the header field if there is to be one."""
        if self._terms.delivery is Delivery.DEFERRED:
            await self._ticket.hand_in(account)
            return body, Carried.DEFERRED
        attestation = await self._ticket.attest(account)
        if self._terms.delivery is Delivery.HEADER and (value := header_value(attestation)) is not None:
            headers[ATTESTATION] = value
            return body, Carried.HEADER
        in_object = self._terms.in_object and is_json(self._answer.content_type) and opens_object(body)
        if not in_object or len(attestation) > self._terms.max_inband:
            return body, Carried.BY_ID
        inserted = await _off_loop(body, lambda content: insert(content, attestation))
        return (body, Carried.BY_ID) if inserted is None else (inserted, Carried.INBAND)

    def client_gone(self) -> None:
        """Record that nothing was sent."""
        if self._ticket.open and not self._ticket.cut:
            digests = {"body": hashlib.sha256().digest()}
            self._ticket.record(Account(State.CLIENT_GONE, digests, self._answer.status))

    def _account(self, body: bytes) -> Account:
        answer = self._answer
        return whole_account(self._terms, answer.content_type, answer.status, self._ticket.key, body)


async def _off_loop(body: bytes, work: Callable[[bytes], _T]) -> _T:
    """Do `work` on a body, in a thread if it is long: other streams go on meanwhile."""
    return work(body) if len(body) <= _LONG_BODY else await asyncio.to_thread(work, body)
