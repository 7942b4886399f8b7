# SPDX-License-Identifier: Apache-2.0
"""One request to an attested path, between server and application (docs/spec/serving.md, "The middleware").

The same happens to an answer's bytes as in the proxy (`quotary_attest.serving.tap`); only who carries them differs. The
application's last `send` waits for the commit. There is no way to abort an answer in ASGI: one that must not end
properly is left without its end, for which servers close the connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from contextlib import suppress
from enum import Enum
from typing import Final

from quotary_attest.engine.errors import AgentError
from quotary_attest.roots import RootError
from quotary_attest.serving.asgi.line import Cut, Line, off_loop
from quotary_attest.serving.asgi.routes import credential, refuse
from quotary_attest.serving.asgi.settings import Settings
from quotary_attest.serving.asgi.types import (
    DIGESTS,
    LENGTH,
    OURS,
    App,
    Fields,
    Message,
    Receive,
    Scope,
    Send,
    field,
    length,
    media_type,
    route_of,
    values,
    without,
)
from quotary_attest.serving.delivery import ATTESTATION, DELIVER, Delivery, Terms, delivery_of, header_value
from quotary_attest.serving.fields import ATTESTED, NONCE, OUTPUT, all_identity, parse_nonce
from quotary_attest.serving.paths import Api
from quotary_attest.serving.refusals import Refusal, coded, logger, refusal_of_agent, unexpected
from quotary_attest.serving.tap import EVENT_STREAM, StreamTap, is_json, whole_account
from quotary_attest.serving.ticket import Account, Recorder, Ticket
from quotary_verifier.wire.inband import insert, opens_object
from quotary_verifier.wire.records import ContextValue, State

NOT_ATTESTED: Final = (AgentError, RootError, ValueError)
"""What attesting an output can raise."""

_BODYLESS: Final = frozenset((204, 205, 304))
_WHO_MAY_ASK: Final = frozenset((401, 403))
# Ways past the body's messages, so an application is not told of them.
_BYPASSES: Final = frozenset(
    (
        "http.response.pathsend",
        "http.response.zerocopysend",
        "http.response.trailers",
        "http.response.push",
        "http.response.early_hint",
    )
)
_IDENTITY: Final = (b"accept-encoding", b"identity")
_ACCEPTED: Final = frozenset((b"accept-encoding",))


class _Phase(Enum):
    """What is done with the messages of an answer."""

    WAITING = "none came yet"
    PASSING = "passed on as they are"
    HELD = "kept until the answer is whole"
    STREAMING = "passed on and hashed"
    ENDED = "nothing is sent any more"


class Exchange:
    """One request and its answer."""

    def __init__(
        self, recorder: Recorder, settings: Settings, api: Api, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._recorder = recorder
        self._settings = settings
        self._scope = scope
        self._line = Line(receive, send, took=self._took, left=self._client_gone)
        self._terms = Terms(api)
        self._nonce: bytes | None = None
        self._ticket: Ticket | None = None
        self._mac: hmac.HMAC | None = None
        self._phase = _Phase.WAITING
        self._cut = False
        self._start: Message = {}
        self._status = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._tap: StreamTap | None = None

    async def run(self, app: App) -> None:
        """Let the application answer, and attest its answer."""
        try:
            try:
                self._begin()
            except Exception as error:
                await self._refuse(error)
            else:
                await self._attend(app)
        finally:
            self._line.close()
            if self._ticket is not None:
                self._ticket.abandon()

    async def _attend(self, app: App) -> None:
        try:
            await app(self._for_app(), self._line.read, self._write)
        except Exception as error:
            if self._cut:  # whatever the application made of it
                return
            await self._broken_off(error)
            raise
        except asyncio.CancelledError as error:
            await self._broken_off(error)
            raise
        else:
            await self._broken_off(None)

    def _begin(self) -> None:
        """Read what the client asks of us; refuse what cannot be attested before the engine works on it."""
        fields, settings = self._scope["headers"], self._settings
        delivery = delivery_of(values(fields, DELIVER))
        lenient = settings.when_unavailable == "pass"
        self._terms = Terms(self._terms.api, delivery, settings.max_inband, lenient)
        self._nonce = parse_nonce(values(fields, NONCE))
        context: dict[str, ContextValue] = {"endpoint": route_of(self._scope)}
        if settings.engine is not None:
            context["engine"] = settings.engine
        self._ticket = Ticket(
            self._recorder, model=settings.model, context=context, credential=credential(self._scope)
        )
        self._mac = hmac.new(self._ticket.key, digestmod="sha256")
        if (outage := self._recorder.outage) is not None and not lenient:
            raise outage

    def _for_app(self) -> Scope:
        scope = dict(self._scope)
        scope["headers"] = [*without(scope["headers"], _ACCEPTED), _IDENTITY]
        extensions = scope.get("extensions")
        if extensions:
            scope["extensions"] = {name: each for name, each in extensions.items() if name not in _BYPASSES}
        return scope

    # -- towards the application

    def _took(self, body: bytes) -> None:
        """Commit to a piece of the request."""
        if self._mac is not None:
            self._mac.update(body)

    async def _write(self, message: Message) -> None:
        """Take a message of the application's answer."""
        kind = message["type"]
        if self._phase is _Phase.ENDED:
            await asyncio.sleep(0)  # whoever listens on `receive` comes first
            raise Cut("the answer has ended")
        if kind == "http.response.start":
            await self._on_start(message)
        elif self._phase is _Phase.PASSING:
            await self._line.send(message)
        elif kind == "http.response.body":
            more = message.get("more_body", False)
            await self._on_body(bytes(message.get("body", b"")), more=more)

    # -- the answer

    async def _on_start(self, message: Message) -> None:
        # frameworks send their own kind of number
        self._status = int(message["status"])
        fields = without(message.get("headers", ()), OURS)
        self._start = {**message, "headers": fields}
        reason = self._unattestable()
        if reason is None:
            try:
                if not all_identity(values(fields, "content-encoding")):
                    raise coded()
                self._announce()
            except (*NOT_ATTESTED, Refusal) as error:
                if not self._terms.lenient:
                    self._break_off()
                    await self._refuse(error)
                    return
                reason = type(error).__name__
        if reason is not None:
            level = logging.INFO if self._status in (*_WHO_MAY_ASK, *_BODYLESS) else logging.WARNING
            logger.log(level, "an answer of status %d goes out unattested: %s", self._status, reason)
            self._phase = _Phase.PASSING
            await self._send_start([*fields, field(ATTESTED, "no")])
        elif self._is_held(fields):
            self._phase = _Phase.HELD
        else:
            await self._stream()

    def _unattestable(self) -> str | None:
        """Say why an answer is not attested, whatever the agent says."""
        if self._status in _WHO_MAY_ASK:
            return "it says who may not ask"
        if self._status in _BODYLESS:
            return "it has no body"
        if not self._line.read_whole:
            return "it was begun before the request was read"
        return None

    def _announce(self) -> None:
        assert self._ticket is not None
        assert self._mac is not None
        self._ticket.announce_committed(self._mac.digest(), self._nonce)

    def _is_held(self, fields: Fields) -> bool:
        kind, size = media_type(fields), length(fields)
        if kind == EVENT_STREAM:
            return False
        return size <= self._settings.max_held if size is not None else is_json(kind)

    async def _stream(self) -> None:
        """Send the header of an answer that is passed on as it comes."""
        assert self._ticket is not None
        ticket, fields = self._ticket, self._start["headers"]
        self._tap = StreamTap(self._terms, media_type(fields), self._status, ticket.key, ticket.known_as)
        self._phase = _Phase.STREAMING
        self._line.watch()
        await self._send_start([*self._own(fields, LENGTH), field(OUTPUT, ticket.text)])

    def _own(self, fields: Fields, names: frozenset[bytes]) -> Fields:
        """Return the fields that stay true of a body with a span in it."""
        spanned = self._terms.in_stream or self._terms.in_object
        return without(fields, names | DIGESTS if spanned else names)

    async def _on_body(self, body: bytes, *, more: bool) -> None:
        if self._phase is _Phase.STREAMING:
            await self._pump(body, more=more)
            return
        self._pieces.append(body)
        self._size += len(body)
        if not more:
            await self._whole(b"".join(self._pieces))
        elif self._size > self._settings.max_held:
            begun, self._pieces = b"".join(self._pieces), []
            await self._stream()
            await self._pump(begun, more=True)

    async def _pump(self, data: bytes, *, more: bool) -> None:
        """Pass a piece of a stream on; `_send` waits while the client is slow, and then the application waits."""
        tap, ticket = self._tap, self._ticket
        assert tap is not None
        assert ticket is not None
        holder = tap.holder
        outage = not self._terms.lenient and self._recorder.outage is not None
        if outage:
            data = b"" if holder is None else holder.rest_of_event(data)
        if holder is not None:
            data = holder.feed(data)
        if data:
            await self._send_body(data)
            tap.sent(data)
        if outage and (holder is None or holder.between_events):
            error = self._recorder.outage or AgentError("the agent could not attest for a while")
            await self._fail(tap, error, between_events=holder is not None)
        elif not more:
            await self._finish(tap, ticket, clean=True)

    async def _finish(self, tap: StreamTap, ticket: Ticket, *, clean: bool) -> None:
        """Attest what was sent and what is held, and end the answer as the application did."""
        before, tail, place = tap.finish()
        if before:
            await self._send_body(before)
            tap.sent(before)
        tap.close(tail)
        account = tap.account(clean=clean)
        if not clean and not tail:
            ticket.record(account)
            return
        try:
            inserted = await self._attested(tap, ticket, account, place=place)
        except NOT_ATTESTED as error:
            if not (self._terms.lenient and place and tap.mark):
                await self._fail(tap, error, between_events=place)
                return
            logger.warning("output %s goes out unattested: %s", ticket.text, type(error).__name__)
            inserted = tap.mark
        self._phase = _Phase.ENDED
        body = inserted + tail
        if clean or body:
            await self._line.send({"type": "http.response.body", "body": body, "more_body": not clean})

    async def _attested(self, tap: StreamTap, ticket: Ticket, account: Account, *, place: bool) -> bytes:
        if self._terms.delivery is Delivery.DEFERRED:
            await ticket.hand_in(account)
            return b""
        attestation = await ticket.attest(account)
        return tap.span(attestation) if place else b""

    async def _fail(self, tap: StreamTap, error: Exception, *, between_events: bool) -> None:
        """End a stream that cannot be attested: an error event where one may stand, and no proper end."""
        self._break_off()
        if between_events:
            await self._send_body(tap.error(error))

    async def _whole(self, body: bytes) -> None:
        """Send an answer that was held, with its attestation in it."""
        ticket, fields = self._ticket, self._start["headers"]
        assert ticket is not None
        kind = media_type(fields)
        account = await off_loop(
            body, lambda: whole_account(self._terms, kind, self._status, ticket.key, body)
        )
        extra = [field(OUTPUT, ticket.text)]
        try:
            body = await self._carrying(ticket, account, kind, body, extra)
        except NOT_ATTESTED as error:
            if not self._terms.lenient:
                self._break_off()
                await self._refuse(error)
                return
            logger.warning("output %s goes out unattested: %s", ticket.text, type(error).__name__)
            extra.append(field(ATTESTED, "no"))
        self._phase = _Phase.ENDED
        sized = field("content-length", str(len(body)))
        await self._send_start([*self._own(fields, LENGTH), *extra, sized])
        await self._line.send({"type": "http.response.body", "body": body, "more_body": False})

    async def _carrying(
        self, ticket: Ticket, account: Account, kind: str, body: bytes, extra: Fields
    ) -> bytes:
        """Return the body as it goes out once it is attested; add the header field if there is to be one."""
        terms = self._terms
        if terms.delivery is Delivery.DEFERRED:
            await ticket.hand_in(account)
            return body
        attestation = await ticket.attest(account)
        if terms.delivery is Delivery.HEADER and (value := header_value(attestation)) is not None:
            extra.append(field(ATTESTATION, value))
        in_object = terms.in_object and is_json(kind) and opens_object(body)
        if not in_object or len(attestation) > terms.max_inband:
            return body
        return await off_loop(body, lambda: insert(body, attestation)) or body

    # -- ends that are none

    def _client_gone(self) -> None:
        """Record the prefix that was sent; the application learns of it as it would without us."""
        ticket = self._ticket
        if ticket is None or not ticket.open:
            return
        # an application that does not look must not go on for nobody: its next `send` fails
        self._phase, self._cut = _Phase.ENDED, True
        if self._tap is not None:
            self._tap.close()
            ticket.record(self._tap.account(clean=False, client_gone=True))
        else:
            ticket.record(Account(State.CLIENT_GONE, {"body": hashlib.sha256().digest()}, self._status))

    async def _broken_off(self, error: BaseException | None) -> None:
        """See to an answer that the application left without its end, by an error or by returning."""
        phase, ticket = self._phase, self._ticket
        if phase in (_Phase.ENDED, _Phase.PASSING, _Phase.WAITING) or ticket is None or not ticket.open:
            return
        self._phase = _Phase.ENDED
        if self._tap is not None and isinstance(error, asyncio.CancelledError):
            self._tap.close()
            ticket.record(self._tap.account(clean=False, client_gone=self._line.gone.is_set()))
        elif self._tap is not None:
            with suppress(OSError):
                await self._finish(self._tap, ticket, clean=False)
        elif error is None:
            await self._refuse(Refusal(502, "upstream_failed", "the model server broke off its answer"))

    def _break_off(self) -> None:
        """Let the application stop, as for a client that is gone: by `receive` now, by its next `send` at the latest.

        Engines stop generating when they are told by `receive`; an error in `send` alone leaves some at work.
        """
        self._phase, self._cut = _Phase.ENDED, True
        self._line.gone.set()

    async def _refuse(self, error: Exception) -> None:
        """Answer with an error of our own."""
        refusal = refusal_of_agent(error) or unexpected(error)
        output = None if self._ticket is None else self._ticket.text
        await refuse(self._line.send, refusal, self._terms.api, output)

    # -- towards the server

    async def _send_start(self, fields: Fields) -> None:
        await self._line.send({**self._start, "headers": fields})

    async def _send_body(self, body: bytes) -> None:
        await self._line.send({"type": "http.response.body", "body": body, "more_body": True})
