# SPDX-License-Identifier: Apache-2.0
"""One connection of the serving link, on the client's side: questions, answers, and what the agent tells unasked."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, Protocol, cast

from quotary_attest.engine.errors import Busy, Unavailable
from quotary_attest.serving.link.frames import MAX_REPLY, FrameReader, FrameWriter, frame
from quotary_attest.serving.link.messages import MAX_PENDING, OK, VERSION, Ask, Tell, error_of
from quotary_attest.serving.refusals import logger
from quotary_verifier.errors import MalformedError
from quotary_verifier.wire.names import OUTPUT_ID_BYTES

SECRET_BYTES: Final = 32
_MAX_BUFFERED: Final = 64 * 1024 * 1024


class Owner(Protocol):
    """Who is told what becomes of a connection."""

    def greeted(self, session: Session, secret: bytes, outage: Exception | None) -> None:
        """The agent has said who it is: the secret for aliases, and whether it can attest."""
        ...

    def up(self, session: Session) -> None:
        """The agent has issued output ids."""
        ...

    def set_outage(self, session: Session, outage: Exception | None) -> None:
        """The agent can attest no more, or can again."""
        ...

    def refused(self) -> None:
        """The agent does not serve this user."""
        ...

    def down(self, session: Session) -> None:
        """The connection is lost."""
        ...


class Session(asyncio.Protocol):
    """One connection to the agent. It is up from the agent's greeting on."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._reader = FrameReader(MAX_REPLY)
        self._transport: asyncio.Transport | None = None
        self._writer: FrameWriter | None = None
        self._number = 0
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self.stock: deque[bytes] = deque()
        self.issued: set[bytes] = set()
        self.unanswered = 0
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the greeting."""
        # uvloop's are none of asyncio's classes
        self._transport = cast(asyncio.Transport, transport)
        self._writer = FrameWriter(self._transport, frame)

    def data_received(self, data: bytes) -> None:
        """Take in answers and news."""
        self.unanswered = 0
        try:
            for number, status, *values in self._reader.feed(data):
                if number:
                    self._answer(number, status, values)
                else:
                    self._news(status, values)
        except MalformedError as error:
            logger.error("the agent broke the protocol of the serving link: %s", error)
            self.abort()

    def pause_writing(self) -> None:
        """Keep what is asked until the agent reads again."""
        assert self._writer is not None
        self._writer.pause()

    def resume_writing(self) -> None:
        """Go on."""
        assert self._writer is not None
        self._writer.resume()

    def connection_lost(self, _: Exception | None) -> None:
        """Fail what is on its way."""
        self._owner.down(self)
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(Unavailable("the agent went away", hint="see the agent's own log"))
        if not self.lost.done():
            self.lost.set_result(None)

    def tell(self, operation: Ask, *values: Any) -> None:
        """Send a notice."""
        if self._writer is not None:
            self._writer.put([0, operation, *values])

    def ask(self, operation: Ask, *values: Any) -> tuple[int, asyncio.Future[Any]]:
        """Send a request; return its number and the future of its answer. Raises Busy or Unavailable."""
        if self._writer is None or self._transport is None or self._transport.is_closing():
            raise Unavailable("the agent went away", hint="see the agent's own log")
        if len(self._pending) >= MAX_PENDING or self._transport.get_write_buffer_size() > _MAX_BUFFERED:
            raise Busy(f"{MAX_PENDING} requests wait for the agent already")
        self._number += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[self._number] = future
        self._writer.put([self._number, operation, *values])
        return self._number, future

    def forget(self, number: int) -> None:
        """Nobody waits for an answer any more."""
        if self._pending.pop(number, None) is not None:
            self.tell(Ask.CANCEL, number)

    def abort(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Send what is queued, then close."""
        if self._writer is not None and self._transport is not None:
            self._writer.flush()
            self._transport.close()

    def _answer(self, number: int, status: int, values: list[Any]) -> None:
        future = self._pending.pop(number, None)
        if status == OK:
            if len(values) != 1:
                raise MalformedError("an answer is not one value")
            if future is not None and not future.done():
                future.set_result(values[0])
            return
        error = error_of(status, values)
        if future is not None and not future.done():
            future.set_exception(error)

    def _news(self, what: int, values: list[Any]) -> None:
        if what == Tell.IDS and len(values) == 1 and type(values[0]) is bytes:
            fresh = values[0]
            if len(fresh) % OUTPUT_ID_BYTES:
                raise MalformedError("output ids of another length")
            ids = [fresh[at : at + OUTPUT_ID_BYTES] for at in range(0, len(fresh), OUTPUT_ID_BYTES)]
            self.stock.extend(ids)
            self.issued.update(ids)
            self._owner.up(self)
        elif what == Tell.OUTAGE and len(values) == 1:
            self._owner.set_outage(self, _outage_of(values[0]))
        elif what == Tell.HELLO and len(values) == 3:
            version, secret, outage = values
            if version != VERSION or type(secret) is not bytes or len(secret) != SECRET_BYTES:
                raise MalformedError("a greeting of another version")
            self._owner.greeted(self, secret, _outage_of(outage))
        elif what == Tell.REFUSED and not values:
            self._owner.refused()
        else:
            raise MalformedError("news of another form")


def _outage_of(value: Any) -> Exception | None:
    if value is None:
        return None
    if type(value) is not list or len(value) != 2 or not all(type(part) is str for part in value):
        raise MalformedError("an outage is not a message and a hint")
    return Unavailable(value[0], hint=value[1])
