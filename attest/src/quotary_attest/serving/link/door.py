# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the serving link: who may connect, as what, and what one connection may do.

A door has a *role*, which the peer has no say in: connections that the agent handed to workers of its own relay
(source 0), those that came through the socket in the file system report (source 1). Whoever connects there is asked
for by the kernel's word (`quotary_attest.serving.peers`).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from quotary_attest.engine.errors import Unavailable
from quotary_attest.engine.outputs import Delivered
from quotary_attest.metrics import NO_METRICS, ServingMetrics
from quotary_attest.serving.attester import Attester
from quotary_attest.serving.link.connection import Admit, Connection, Role, outage_parts
from quotary_attest.serving.link.messages import Tell
from quotary_attest.serving.peers import Allowed, Peer, listen_on, peer_of
from quotary_attest.serving.refusals import logger
from quotary_verifier.wire.records import Link, Source

MAX_CONNECTIONS: Final = 256
"""Of one door; a server has one for each of its processes."""

_WATCH_SECONDS: Final = 0.05
_LAST_WORDS_SECONDS: Final = 5.0

EngineCheck = Callable[[Peer], Callable[[str], Link]]
"""Takes note of a peer as it connects; what it returns says of a model whether the peer is its engine, as measured."""


def unchecked(_peer: Peer) -> Callable[[str], Link]:
    """Say that nothing was checked: the operator configured it so."""
    return lambda _model: Link.CONFIGURED


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """What an operator sets. By default only the agent's own user may connect."""

    path: Path
    allowed: Allowed = field(default_factory=lambda: Allowed(frozenset((os.geteuid(),))))
    group: int | None = None
    """The gid that shall own the socket; None leaves the agent's own."""
    mode: int = 0o660
    """Who gets as far as being asked who they are: 0666 where allowed users share no group with the agent."""
    listener: socket.socket | None = None
    """A socket that listens at `path` already, and that somebody else removes; group and mode are not ours then."""


class LinkDoor:
    """Lets other processes of this host use the agent. Open it as an async context manager."""

    def __init__(
        self,
        attester: Attester,
        config: LinkConfig | None = None,
        *,
        check: EngineCheck = unchecked,
        metrics: ServingMetrics = NO_METRICS,
    ) -> None:
        """Without `config` there is no socket in the file system, and only `adopt` makes connections. `metrics` gets
        what workers count."""
        self._attester = attester
        self._config = config
        self._check = check
        self._metrics = metrics
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[Delivered]] = set()
        self._server: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closing = False

    async def __aenter__(self) -> LinkDoor:
        """Listen. Raises SocketInUse or OSError."""
        if self._config is not None:
            config = self._config
            listener = config.listener or listen_on(config.path, mode=config.mode, group=config.group)
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(self._visitor, sock=listener)
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening, answer what was handed in, then close every connection."""
        self._closing = True
        if self._server is not None and self._config is not None:
            self._server.close()
            if self._config.listener is None:
                self._config.path.unlink(missing_ok=True)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        gone = Unavailable("the agent is stopping")
        self._tell_outage(gone)
        await asyncio.gather(*[connection.finish(_LAST_WORDS_SECONDS) for connection in self._connections])

    async def adopt(self, connection: socket.socket) -> None:
        """Serve a worker of the agent's own at the other end of a socket: what it hands in was relayed."""
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: self._connection(self._admit_worker), connection)

    def _visitor(self) -> asyncio.Protocol:
        return self._connection(self._admit_visitor)

    def _connection(self, admit: Admit) -> Connection:
        return Connection(self._attester, admit=admit, gone=self._connections.discard, tasks=self._tasks)

    def _admit_worker(self, connection: Connection, _: asyncio.Transport) -> Role | None:
        if self._closing:
            return None
        self._connections.add(connection)
        return Role(Source.RELAYED, None, self._metrics)

    def _admit_visitor(self, connection: Connection, transport: asyncio.Transport) -> Role | None:
        """Take a connection in; None where its peer may not use the agent."""
        peer = peer_of(transport)
        if self._closing or self._config is None:
            return None
        if peer is None or not self._config.allowed.admits(peer):
            logger.warning("a process of uid %s was refused", "unknown" if peer is None else peer.uid)
            return None
        if len(self._connections) >= MAX_CONNECTIONS:
            logger.warning("a process of uid %d was refused: too many use the serving link", peer.uid)
            return None
        self._connections.add(connection)
        logger.info("a process of uid %d uses the serving link", peer.uid)
        return Role(Source.MIDDLEWARE, self._check(peer))

    async def _watch(self) -> None:
        """Tell every connection when the agent can attest no more, and when it can again."""
        known: Any = None
        while True:
            outage = self._attester.outage
            told = None if outage is None else str(outage)
            if told != known:
                known = told
                self._tell_outage(outage)
            await asyncio.sleep(_WATCH_SECONDS)

    def _tell_outage(self, outage: Exception | None) -> None:
        for connection in self._connections:
            connection.tell(Tell.OUTAGE, outage_parts(outage))
