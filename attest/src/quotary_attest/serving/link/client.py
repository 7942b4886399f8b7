# SPDX-License-Identifier: Apache-2.0
"""The client's side of the serving link: an agent in another process, used like one in this.

`RemoteAttester` is what a worker's proxy and the middleware inside an engine work with. It needs no HTTP library, no
TPM library and no thread. Where the agent is gone it says so at once and never waits for it: what was on its way fails
with Unavailable, and `outage` is set until a new connection stands.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from quotary_attest.engine.errors import AgentError, Busy, Unavailable
from quotary_attest.engine.outputs import Delivered, NewOutput, check_output, make_output_id, wall_clock
from quotary_attest.serving.attester import LogReader
from quotary_attest.serving.link.messages import Ask, output_map
from quotary_attest.serving.link.session import SECRET_BYTES, Session
from quotary_attest.serving.refusals import logger

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_HEARTBEAT: Final = 5.0
_UNANSWERED: Final = 3
_SERVE_SECONDS: Final = 60.0
_SLACK_SECONDS: Final = 5.0


class Received(Delivered):
    """A finished output whose attestation came over the link."""

    __slots__ = ("_encoded",)

    def __init__(self, output_id: bytes, encoded: bytes) -> None:
        self.output_id = output_id
        self._encoded = encoded

    @property
    def encoded(self) -> bytes:
        """The attestation's bytes."""
        return self._encoded


class RemoteLog:
    """The published log, read over the link."""

    def __init__(self, owner: RemoteAttester) -> None:
        self._owner = owner

    def serve(self, path: str) -> bytes:
        """Return what is published at a path. To be called in a thread. Raises NotFound, StoreError, Unavailable."""
        work = asyncio.run_coroutine_threadsafe(self._owner.read_log(path), self._owner.loop)
        return work.result()


class RemoteAttester:
    """An agent in another process. An async context manager; it implements `quotary_attest.serving.attester`."""

    def __init__(self, where: Path | socket.socket) -> None:
        """`where` is the agent's socket in the file system, or a connected one that the agent handed down.

        Only the former is connected again when the agent went away.
        """
        self._where = where
        self._link: Session | None = None
        self._secret = bytes(SECRET_BYTES)
        self._outage: Exception | None = Unavailable("the agent was not reached yet")
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.tried = asyncio.Event()
        """Set for good once the first attempt to reach the agent has ended in one way or the other."""
        self.gone = asyncio.Event()
        """Set for good once a connection that was handed down is lost."""

    async def __aenter__(self) -> RemoteAttester:
        """Begin to connect; `ready` waits for it."""
        self._task = asyncio.create_task(self._keep_connected(), name="quotary-link")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect. What is on its way fails here and goes on in the agent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def ready(self, seconds: float) -> bool:
        """Wait until the agent can be asked, or never can be any more; tell whether it can."""
        waits = [asyncio.create_task(event.wait()) for event in (self._ready, self.gone)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return self._ready.is_set()

    async def first(self, seconds: float) -> None:
        """Wait until the first attempt to reach the agent has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.tried.wait()

    # -- the attester's interface

    @property
    def outage(self) -> Exception | None:
        """Why nothing can be attested now: the agent's reason, or that it is not there."""
        return self._outage

    @property
    def alias_secret(self) -> bytes:
        """The origin's secret for aliases, 32 bytes."""
        return self._secret

    @property
    def store(self) -> LogReader:
        """The log, for reading in a thread."""
        return RemoteLog(self)

    def new_output_id(self) -> bytes:
        """Return an id that the agent issued; where there is none, one that cannot be used."""
        link = self._link
        if link is not None and link.stock:
            return link.stock.popleft()
        return make_output_id(wall_clock(), os.urandom)

    def reserve(self, output_id: bytes) -> None:
        """Announce an output. Raises Unavailable where the agent is gone, Busy where it has not issued the id."""
        link = self._link
        if link is None:
            raise self._outage or Unavailable("the agent went away")
        if output_id not in link.issued:
            raise Busy("the agent has more outputs to begin than it can follow")
        link.tell(Ask.RESERVE, output_id)

    def abandon(self, output_id: bytes) -> None:
        """There will be no such output; the agent issues another id for it."""
        link = self._link
        if link is not None and output_id in link.issued:
            link.issued.discard(output_id)
            link.tell(Ask.ABANDON, output_id)

    def announce_alias(self, alias: bytes, output_id: bytes) -> None:
        """Let an output that is announced be found by an alias, too."""
        link = self._link
        if link is not None and output_id in link.issued:
            link.tell(Ask.ALIAS, alias, output_id)

    async def submit(self, output: NewOutput) -> Delivered:
        """Attest an output. Its source and the link to its engine are the agent's to say.

        Raises:
            Unavailable: the agent is gone, or went away since the output's id was made.
            Busy, NotServed, ValueError: as the agent says.
        """
        check_output(output)
        link, output_id = self._link, output.output_id
        if link is None or output_id not in link.issued:
            raise self._outage or Unavailable("the agent was started anew since this output began")
        link.issued.discard(output_id)
        _, answer = link.ask(Ask.SUBMIT, output_map(output))
        return Received(output_id, _octets(await answer))

    async def fetch(self, output_id: bytes, timeout: float) -> bytes:  # noqa: ASYNC109
        """Return an attestation, waiting up to `timeout` seconds for one on its way (then TimeoutError)."""
        # the agent measures the time; ours only bounds a link that hangs
        async with asyncio.timeout(timeout + _SLACK_SECONDS):
            return _octets(await self._ask(Ask.FETCH, output_id, int(timeout * 1000)))

    async def resolve(self, alias: bytes) -> bytes | None:
        """Return the id of the newest output of an alias, None where there is none."""
        found = await self._ask(Ask.RESOLVE, alias)
        return None if found is None else _octets(found)

    async def fresh_quote(self, nonce: bytes, *, model: str | None = None) -> bytes:
        """Return a fresh quote over a nonce of 8 to 64 bytes; with `model`, what was measured of it in full."""
        return _octets(await self._ask(Ask.QUOTE, nonce, model))

    async def read_log(self, path: str) -> bytes:
        """Return what is published at a path. Raises NotFound, StoreError, Unavailable."""
        async with asyncio.timeout(_SERVE_SECONDS):
            return _octets(await self._ask(Ask.SERVE, path))

    def count(self, sums: Sequence[tuple[str, str, int]]) -> None:
        """Hand over what this process counted (`quotary_attest.metrics.Tally.take`); for workers only."""
        if self._link is not None:
            self._link.tell(Ask.COUNT, [list(each) for each in sums])

    def status(self) -> dict[str, Any]:
        """Return what this process knows of the agent: whether it can attest, and why not."""
        outage = self._outage
        reason = "" if outage is None else str(outage)
        return {
            "state": "running" if outage is None else "unavailable",
            "reason": reason,
            "hint": str(getattr(outage, "hint", "")),
        }

    async def _ask(self, operation: Ask, *values: Any) -> Any:
        link = self._link
        if link is None:
            raise self._outage or Unavailable("the agent went away")
        number, answer = link.ask(operation, *values)
        try:
            return await answer
        finally:
            link.forget(number)

    # -- the connection

    async def _keep_connected(self) -> None:
        pause = _FIRST_PAUSE
        try:
            while True:
                link = await self._connect()
                if link is not None:
                    await self._attend(link)
                self.tried.set()
                if link is not None and link.stock:
                    pause = _FIRST_PAUSE
                if isinstance(self._where, socket.socket):
                    self.gone.set()
                    return
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            if self._link is not None:
                self._link.close()

    async def _connect(self) -> Session | None:
        where = self._where
        try:
            if isinstance(where, socket.socket):
                _, link = await self.loop.create_unix_connection(lambda: Session(self), sock=where)
            else:
                _, link = await self.loop.create_unix_connection(lambda: Session(self), str(where))
        except OSError as error:
            self._outage = Unavailable(
                f"the agent cannot be reached: {(error.strerror or 'error').lower()}",
                hint="is it running, and may this user use its serving socket?",
            )
            return None
        return link

    async def _attend(self, link: Session) -> None:
        """Stay until the connection is lost; drop one whose other end answers nothing for three heartbeats."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_HEARTBEAT):
                        await asyncio.shield(link.lost)
                        return
                link.unanswered += 1
                if link.unanswered > _UNANSWERED:
                    logger.error("the agent does not answer on the serving link")
                    link.abort()
                    continue
                with suppress(AgentError):
                    link.ask(Ask.PING)
        finally:
            if not link.lost.done():
                link.close()

    # -- told by a session

    def greeted(self, session: Session, secret: bytes, outage: Exception | None) -> None:
        """The agent has greeted."""
        self._link, self._secret, self._outage = session, secret, outage

    def up(self, session: Session) -> None:
        """Outputs can begin."""
        if session is self._link:
            self._ready.set()
            self.tried.set()

    def set_outage(self, session: Session, outage: Exception | None) -> None:
        """The agent's state has changed."""
        if session is self._link:
            self._outage = outage

    def refused(self) -> None:
        """The agent does not serve this user."""
        self._outage = Unavailable(
            f"the agent refused uid {os.geteuid()}", hint="allow it in the agent's configuration"
        )

    def down(self, session: Session) -> None:
        """The connection is lost."""
        if session is self._link:
            self._link = None
            self._ready.clear()
            self._outage = Unavailable("the agent went away", hint="see the agent's own log")


def _octets(value: Any) -> bytes:
    if type(value) is not bytes:
        raise AgentError("the agent answered with something else than bytes")
    return value
