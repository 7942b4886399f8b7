# SPDX-License-Identifier: Apache-2.0
"""Who waits for which output: the caller that handed it in, and others that ask for it by its id.

An id is known from the moment it is reserved or handed in until its record can be read from the log, and so is an
alias of it from the moment it is announced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from quotary_attest.engine.errors import StartRefused, Unavailable, UnknownOutput
from quotary_attest.engine.outputs import Delivered, Pending
from quotary_attest.log.errors import StoreError
from quotary_attest.roots import RootError


class Waiting:
    """Outputs that are announced or on their way, by id."""

    def __init__(self) -> None:
        self._pending: dict[bytes, Pending] = {}
        self._reserved: dict[bytes, bytes | None] = {}
        self._aliases: dict[bytes, bytes] = {}
        self._askers: dict[bytes, list[asyncio.Future[Delivered]]] = {}

    def __len__(self) -> int:
        """How many outputs are on their way or announced."""
        return len(self._pending) + len(self._reserved)

    def reserve(self, output_id: bytes) -> None:
        """Announce an output that will be handed in later: whoever asks for it waits."""
        self._reserved.setdefault(output_id, None)

    def announce_alias(self, alias: bytes, output_id: bytes) -> None:
        """Let an output that is announced be found by an alias, too; does nothing where it is not announced.

        An alias that another output has goes to this one.
        """
        if output_id in self._reserved:
            self._forget_alias(self._reserved[output_id], output_id)
            self._reserved[output_id] = alias
            self._aliases[alias] = output_id

    def resolve(self, alias: bytes) -> bytes | None:
        """Return the id of the output that an alias was announced for last; None where none is on its way."""
        return self._aliases.get(alias)

    def abandon(self, output_id: bytes) -> None:
        """Take an announcement back: there will be no such output."""
        alias = self._reserved.pop(output_id, None)
        if output_id not in self._pending:
            self._forget_alias(alias, output_id)
            self._refuse(output_id, UnknownOutput("the output was abandoned before it was complete"))

    def add(self, pending: Pending) -> None:
        """Know an output that was handed in. Raises ValueError where one of its id is on its way already."""
        output_id = pending.output.output_id
        if output_id in self._pending:
            raise ValueError("an output of this id is on its way already")
        self._pending[output_id] = pending
        announced = self._reserved.pop(output_id, None)
        alias = pending.output.alias
        if alias is None:
            pending.output.alias = announced
        elif alias != announced:
            self._forget_alias(announced, output_id)
            self._aliases[alias] = output_id

    def deliver(self, pending: Pending, delivered: Delivered) -> None:
        """Hand out an attestation whose commit is on disk."""
        pending.delivered = delivered
        if not pending.future.done():
            pending.future.set_result(delivered)
        if self._askers:
            for asker in self._askers.pop(pending.output.output_id, ()):
                if not asker.done():
                    asker.set_result(delivered)

    def fail(self, pending: Pending, error: Exception) -> None:
        """Tell those who wait for an output that it does not come."""
        output_id = pending.output.output_id
        self._pending.pop(output_id, None)
        self._forget_alias(pending.output.alias, output_id)
        if not pending.future.done():
            pending.future.set_exception(error)
        self._refuse(output_id, error)

    def forget(self, output_ids: Sequence[bytes | None]) -> None:
        """Drop outputs that can be read from the log."""
        for output_id in output_ids:
            if output_id is not None:
                pending = self._pending.pop(output_id, None)
                if pending is not None and pending.output.alias is not None:
                    self._forget_alias(pending.output.alias, output_id)

    async def ask(self, output_id: bytes) -> Delivered | None:
        """Wait for an output that is known; None where it is not. Raises UnknownOutput or Unavailable."""
        pending = self._pending.get(output_id)
        if pending is not None and pending.delivered is not None:
            return pending.delivered
        if pending is None and output_id not in self._reserved:
            return None
        asker: asyncio.Future[Delivered] = asyncio.get_running_loop().create_future()
        self._askers.setdefault(output_id, []).append(asker)
        try:
            return await asker
        finally:
            askers = self._askers.get(output_id)
            if askers is not None and asker in askers:
                askers.remove(asker)
                if not askers:
                    del self._askers[output_id]

    def _forget_alias(self, alias: bytes | None, output_id: bytes) -> None:
        if alias is not None and self._aliases.get(alias) == output_id:
            del self._aliases[alias]

    def _refuse(self, output_id: bytes, error: Exception) -> None:
        for asker in self._askers.pop(output_id, ()):
            if not asker.done():
                asker.set_exception(error)


async def in_turn(*jobs: Callable[[], Awaitable[None]]) -> None:
    """Run jobs one after another."""
    for job in jobs:
        await job()


async def settle(job: Callable[[], Awaitable[None]], future: asyncio.Future[None]) -> None:
    """Run a job and hand its outcome to its caller; a failure of root or disk is the engine's business too."""
    try:
        await job()
    except (RootError, StoreError, StartRefused) as error:
        if not future.done():
            future.set_exception(Unavailable(str(error), hint=error.hint))
        raise
    except Exception as error:
        if not future.done():
            future.set_exception(error)
        return
    if not future.done():
        future.set_result(None)
