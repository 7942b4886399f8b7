# SPDX-License-Identifier: Apache-2.0
"""One connection of the serving link, on the agent's side.

What a peer may ask is bounded in number and size before it is read. An output's id is one that the agent issued on
this very connection, so no peer can hand in an output under an id that another has. Breaking the protocol ends the
connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

from quotary_attest.engine.errors import Busy, Unavailable
from quotary_attest.engine.outputs import Delivered
from quotary_attest.metrics import ServingMetrics, count_sums
from quotary_attest.serving.attester import Attester
from quotary_attest.serving.link.frames import MAX_REQUEST, FrameReader, FrameWriter, frame
from quotary_attest.serving.link.messages import (
    MAX_PENDING,
    OK,
    STOCK,
    VERSION,
    Ask,
    Tell,
    error_parts,
    read_output,
)
from quotary_attest.serving.refusals import logger
from quotary_verifier.errors import MalformedError
from quotary_verifier.wire.limits import MAX_NONCE, MAX_TEXT, MIN_NONCE
from quotary_verifier.wire.names import OUTPUT_ID_BYTES
from quotary_verifier.wire.records import Link, Source


@dataclass(frozen=True, slots=True)
class Role:
    """What a connection is: where its outputs come from, and who says what ties them to an engine.

    Without `link_of` the peer does: it is a worker of the agent's own, which looks at the engine itself. Only with
    `metrics` may the peer count.
    """

    source: Source
    link_of: Callable[[str], Link] | None
    metrics: ServingMetrics | None = None


Admit = Callable[["Connection", asyncio.Transport], Role | None]

_MAX_WAIT: Final = 600_000
_MAX_PATH: Final = 512
_MAX_SUMS: Final = 256
_ALIAS: Final = 32


def outage_parts(outage: Exception | None) -> list[str] | None:
    """Return an outage as it is told: message and hint, or null."""
    return None if outage is None else error_parts(outage)[1:]


class Connection(asyncio.Protocol):
    """Serves one peer. Made by `quotary_attest.serving.link.door.LinkDoor`."""

    def __init__(
        self,
        attester: Attester,
        *,
        admit: Admit,
        gone: Callable[[Connection], None],
        tasks: set[asyncio.Task[Delivered]],
    ) -> None:
        """`admit` says whether a peer may use the agent, and as what; `tasks` keeps what outlives the connection."""
        self._tasks = tasks
        self._attester = attester
        self._admit, self._gone = admit, gone
        self._role: Role | None = None
        self._transport: asyncio.Transport | None = None
        self._writer: FrameWriter | None = None
        self._reader = FrameReader(MAX_REQUEST)
        self._issued: set[bytes] = set()
        self._reserved: set[bytes] = set()
        self._running: dict[int, asyncio.Task[Any]] = {}
        self._submitted = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the peer, or refuse it."""
        # uvloop's are none of asyncio's classes
        self._transport = cast(asyncio.Transport, transport)
        self._writer = FrameWriter(self._transport, _made)
        self._role = self._admit(self, self._transport)
        if self._role is None:
            self._writer.put([0, Tell.REFUSED])
            self._writer.flush()
            self._transport.close()
            return
        attester = self._attester
        self._writer.put([0, Tell.HELLO, VERSION, attester.alias_secret, outage_parts(attester.outage)])
        self._issue()

    def data_received(self, data: bytes) -> None:
        """Take in what the peer sent."""
        if self._role is None:
            return
        try:
            for message in self._reader.feed(data):
                self._take(message)
        except MalformedError as error:
            logger.warning("a peer broke the protocol of the serving link: %s", error)
            self._abort()

    def pause_writing(self) -> None:
        """Let a peer that does not read its answers ask nothing more."""
        assert self._writer is not None
        assert self._transport is not None
        self._writer.pause()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        assert self._writer is not None
        assert self._transport is not None
        self._writer.resume()
        self._transport.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        """Forget what the peer waits for; what it handed in goes its way into the log."""
        self._role = None
        for task in self._running.values():
            task.cancel()
        for output_id in self._reserved:
            self._attester.abandon(output_id)
        self._reserved.clear()
        self._issued.clear()
        self._quiet.set()
        self._gone(self)

    # -- for the door

    def tell(self, what: Tell, *values: Any) -> None:
        """Tell the peer something that it did not ask for."""
        if self._writer is not None:
            self._writer.put([0, what, *values])

    async def finish(self, seconds: float) -> None:
        """Answer what was handed in, then close; a peer that does not take its answers is cut off."""
        if self._transport is None:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._quiet.wait()
        except TimeoutError:
            self._abort()
        if self._writer is not None:
            self._writer.flush()
        self._transport.close()

    # -- what a peer asks

    def _take(self, message: list[Any]) -> None:
        number, operation, *values = message
        handler = _HANDLERS.get((operation, len(values)))
        if handler is None or (number == 0) != (operation in _NOTICES):
            raise MalformedError(f"there is no operation {operation} of this form")
        handler(self, number, *values)

    def _submit(self, number: int, value: Any) -> None:
        assert self._role is not None
        output = read_output(value, source=self._role.source)
        output_id = output.output_id
        if output_id in self._reserved:
            self._reserved.discard(output_id)
        elif output_id in self._issued:
            self._issued.discard(output_id)
        else:
            raise MalformedError("an output has an id that was not issued for it")
        if self._role.link_of is not None:
            output.link = None if output.model is None else self._role.link_of(output.model)
        if self._submitted >= MAX_PENDING:
            self._attester.abandon(output_id)
            self._fail(number, Busy(f"{MAX_PENDING} outputs of one process wait already"))
            return
        self._submitted += 1
        self._quiet.clear()
        task = asyncio.get_running_loop().create_task(self._attester.submit(output))
        self._tasks.add(task)
        task.add_done_callback(partial(self._submission_ended, number))
        self._issue()

    def _submission_ended(self, number: int, task: asyncio.Task[Delivered]) -> None:
        self._tasks.discard(task)
        self._submitted -= 1
        if not self._submitted:
            self._quiet.set()
        error = Unavailable("the agent is stopping") if task.cancelled() else task.exception()
        if error is None:
            self._put((number, task.result()))
        else:
            self._fail(number, error)

    def _reserve(self, _: int, output_id: Any) -> None:
        self._check(output_id, OUTPUT_ID_BYTES, "an output id")
        if output_id not in self._issued:
            raise MalformedError("an output is announced under an id that was not issued for it")
        if len(self._reserved) >= MAX_PENDING:
            raise MalformedError(f"more than {MAX_PENDING} outputs are announced")
        self._issued.discard(output_id)
        self._reserved.add(output_id)
        self._attester.reserve(output_id)
        self._issue()

    def _abandon(self, _: int, output_id: Any) -> None:
        self._check(output_id, OUTPUT_ID_BYTES, "an output id")
        if output_id in self._reserved:
            self._reserved.discard(output_id)
            self._attester.abandon(output_id)
        # also one that was shown to a client and never announced: it must not serve another output
        self._issued.discard(output_id)
        self._issue()

    def _alias(self, _: int, alias: Any, output_id: Any) -> None:
        self._check(alias, _ALIAS, "an alias")
        self._check(output_id, OUTPUT_ID_BYTES, "an output id")
        if output_id in self._reserved:
            self._attester.announce_alias(alias, output_id)

    def _resolve(self, number: int, alias: Any) -> None:
        self._check(alias, _ALIAS, "an alias")
        self._start(number, self._attester.resolve(alias))

    def _fetch(self, number: int, output_id: Any, milliseconds: Any) -> None:
        self._check(output_id, OUTPUT_ID_BYTES, "an output id")
        if type(milliseconds) is not int or not 0 <= milliseconds <= _MAX_WAIT:
            raise MalformedError(f"a fetch waits for up to {_MAX_WAIT} milliseconds")
        self._start(number, self._attester.fetch(output_id, milliseconds / 1000))

    def _cancel(self, _: int, number: Any) -> None:
        task = self._running.get(number) if type(number) is int else None
        if task is not None:
            task.cancel()

    def _quote(self, number: int, nonce: Any, model: Any) -> None:
        if type(nonce) is not bytes or not MIN_NONCE <= len(nonce) <= MAX_NONCE:
            raise MalformedError(f"a nonce is {MIN_NONCE} to {MAX_NONCE} bytes")
        if model is not None and (type(model) is not str or len(model) > MAX_TEXT):
            raise MalformedError(f"a model is a name of up to {MAX_TEXT} characters")
        self._start(number, self._attester.fresh_quote(nonce, model=model))

    def _serve(self, number: int, path: Any) -> None:
        if type(path) is not str or len(path) > _MAX_PATH:
            raise MalformedError(f"a path of the log has up to {_MAX_PATH} characters")
        self._start(number, asyncio.to_thread(self._attester.store.serve, path))

    def _ping(self, number: int) -> None:
        self._put([number, OK, None])

    def _count(self, _: int, sums: Any) -> None:
        metrics = None if self._role is None else self._role.metrics
        if metrics is None or type(sums) is not list or len(sums) > _MAX_SUMS:
            raise MalformedError("this peer has nothing to count")
        try:
            count_sums(metrics, [(str(event), str(label), int(count)) for event, label, count in sums])
        except (TypeError, ValueError):
            raise MalformedError("there is no such thing to count") from None

    # -- answers

    def _start(self, number: int, work: Coroutine[Any, Any, Any]) -> None:
        if number in self._running or len(self._running) >= MAX_PENDING:
            work.close()
            raise MalformedError("a number is in use, or too many requests wait")
        task = asyncio.create_task(work)
        self._running[number] = task
        task.add_done_callback(partial(self._ended, number))

    def _ended(self, number: int, task: asyncio.Task[Any]) -> None:
        del self._running[number]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._put([number, OK, task.result()])
        else:
            self._fail(number, error)

    def _fail(self, number: int, error: BaseException) -> None:
        if not isinstance(error, Exception):
            error = Unavailable("the agent is stopping")
        self._put([number, *error_parts(error)])

    def _put(self, item: Any) -> None:
        if self._role is not None and self._writer is not None:
            self._writer.put(item)

    def _issue(self) -> None:
        """Fill up the peer's stock of ids once half of it is used."""
        if len(self._issued) > STOCK // 2 or len(self._reserved) >= MAX_PENDING - STOCK:
            return
        fresh = [self._attester.new_output_id() for _ in range(STOCK - len(self._issued))]
        self._issued.update(fresh)
        self._put([0, Tell.IDS, b"".join(fresh)])

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @staticmethod
    def _check(value: Any, length: int, what: str) -> None:
        if type(value) is not bytes or len(value) != length:
            raise MalformedError(f"{what} is not {length} bytes")


def _made(item: Any) -> bytes:
    """Return an answer's frame; an attestation's bytes are joined only now."""
    if type(item) is tuple:
        number, delivered = item
        return frame([number, OK, delivered.encoded])
    return frame(item)


_HANDLERS: Final[dict[tuple[int, int], Callable[..., None]]] = {
    (Ask.SUBMIT, 1): Connection._submit,
    (Ask.RESERVE, 1): Connection._reserve,
    (Ask.ABANDON, 1): Connection._abandon,
    (Ask.ALIAS, 2): Connection._alias,
    (Ask.RESOLVE, 1): Connection._resolve,
    (Ask.FETCH, 2): Connection._fetch,
    (Ask.CANCEL, 1): Connection._cancel,
    (Ask.QUOTE, 2): Connection._quote,
    (Ask.SERVE, 1): Connection._serve,
    (Ask.PING, 0): Connection._ping,
    (Ask.COUNT, 1): Connection._count,
}
_NOTICES: Final = frozenset((Ask.RESERVE, Ask.ABANDON, Ask.ALIAS, Ask.CANCEL, Ask.COUNT))
