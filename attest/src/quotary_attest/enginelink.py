# SPDX-License-Identifier: Apache-2.0
"""How strongly an output is tied to the model that the agent measured: the seam between serving and the checks.

0 *configured*: the operator says so. 1 *checked*: the process at the other end of the connection runs the measured
engine and has the measured weights open, unchanged since. 2 *started*: besides, it is the process that this agent
started with those files. What each means and does not mean stands in docs/threat-model.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from quotary_verifier.wire.records import Link

Address = tuple[str, int]
"""A numeric IP address and a port."""


@dataclass(frozen=True, slots=True)
class TcpPeer:
    """A TCP connection to an engine: our end and its end."""

    ours: Address
    theirs: Address


@dataclass(frozen=True, slots=True)
class ProcessPeer:
    """A process that connected to us on a Unix socket, as the kernel named it (SO_PEERCRED).

    `started` is when it started, in clock ticks since boot, as seen when it connected: a process that has its number
    after it is another one. None is for whichever process has the number.
    """

    pid: int
    started: int | None = None


Peer = TcpPeer | ProcessPeer


class EngineLink(Protocol):
    """What can be said now of the engine behind a connection."""

    def link(self, model: str, peer: Peer | None = None) -> Link:
        """Return how the process at the other end of `peer` is tied to the weights measured as `model`.

        `model` is a name, or the exact key of a model of the epoch in force (`ServedModel.key`). Without a peer
        nothing ties an output to a process: CONFIGURED. Never raises; what cannot be checked is CONFIGURED.
        """
        ...

    def holds(self, model: str) -> bool:
        """Tell whether the files of a model are still what was measured; asked when an output ends."""
        ...


class ConfiguredLink:
    """The operator's word: nothing is checked."""

    def link(self, model: str, peer: Peer | None = None) -> Link:  # noqa: ARG002 - the seam's
        """Return CONFIGURED."""
        return Link.CONFIGURED

    def holds(self, model: str) -> bool:  # noqa: ARG002 - the seam's
        """Return true: nothing was claimed that could end."""
        return True


CONFIGURED_LINK = ConfiguredLink()


class Tie:
    """What was checked of one request's engine when it began to answer."""

    __slots__ = ("_link", "_model", "_then")

    def __init__(self, link: EngineLink, model: str, peer: Peer | None) -> None:
        self._link, self._model = link, model
        self._then = link.link(model, peer)

    @property
    def link(self) -> Link:
        """What a record of the answer may say: what was checked then, unless the model's files have changed since."""
        return (
            self._then if self._then is Link.CONFIGURED or self._link.holds(self._model) else Link.CONFIGURED
        )
