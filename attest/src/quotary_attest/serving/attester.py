# SPDX-License-Identifier: Apache-2.0
"""What serving asks of the agent, so that it can be tested and used without one. `quotary_attest.agent.Agent` has it.

What is awaited may wait for the hardware. It raises the errors of `quotary_attest.engine.errors`: Unavailable where
nothing can be attested now, Busy where the queue is full, UnknownOutput, NotServed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from quotary_attest.engine.outputs import Delivered, NewOutput

STATEMENT_ID: Final = bytes(24)
"""In the place of an output id: the newest statement of the host. No output has this id."""


class LogReader(Protocol):
    """The published side of the log."""

    def serve(self, path: str) -> bytes:
        """Return what is published at `checkpoint`, `tile/…`, `history/…`, `blob/…` or `cosigned/…`.

        Raises `quotary_attest.log.errors.NotFound`. Called in a thread.
        """
        ...


class Attester(Protocol):
    """An agent, as the proxy and the local interface see it."""

    @property
    def outage(self) -> Exception | None:
        """Why nothing can be attested now; None while something can."""
        ...

    def new_output_id(self) -> bytes:
        """Return 24 fresh bytes."""
        ...

    def reserve(self, output_id: bytes) -> None:
        """Announce an output that is still being made, so that `fetch` waits for it."""
        ...

    def abandon(self, output_id: bytes) -> None:
        """There will be no such output, announced or not: nobody waits for it any more, and its id is used up."""
        ...

    @property
    def alias_secret(self) -> bytes:
        """The secret under which this origin makes aliases (`quotary_attest.serving.aliases`), 32 bytes."""
        ...

    def announce_alias(self, alias: bytes, output_id: bytes) -> None:
        """Let an output that was reserved, and is still being made, be found by an alias, too."""
        ...

    async def resolve(self, alias: bytes) -> bytes | None:
        """Return the id of the newest output of an alias, one on its way included; None where there is none."""
        ...

    async def submit(self, output: NewOutput) -> Delivered:
        """Attest an output; returns when its commit is durable."""
        ...

    async def fetch(self, output_id: bytes, timeout: float) -> bytes:  # noqa: ASYNC109 - part of the seam
        """Return an attestation, waiting up to `timeout` seconds for one on its way (then TimeoutError).

        `STATEMENT_ID` asks for that of the host's statement.
        """
        ...

    async def fresh_quote(self, nonce: bytes, *, model: str | None = None) -> bytes:
        """Return a fresh quote over a caller's nonce of 8 to 64 bytes.

        With `model` it shows in full what was measured of that model and its engine (NotServed: it is not measured).
        """
        ...

    def status(self) -> Mapping[str, Any]:
        """Return the agent's state as JSON values."""
        ...

    @property
    def store(self) -> LogReader:
        """The log, for reading."""
        ...
