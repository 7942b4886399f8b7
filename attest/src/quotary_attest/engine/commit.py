# SPDX-License-Identifier: Apache-2.0
"""One commit, in the order that makes it safe (design section 4, "Commit order").

1. Stage: records and the intended note to disk, fsync. 2. Extend the chain PCR by D. 3. Quote. 4. Append the
commit to the history, fsync. Only then may anybody be answered. What does not need the quote is done while the
TPM works.

Roots beside the TPM bind the same D once the batch is staged, while the TPM works; the commit goes into the history
when all of them are done. Where none is due, nothing of this is in the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from quotary_attest.engine.assemble import Sealed, Supports
from quotary_attest.engine.binding import Binder, BindingSteps, Plan
from quotary_attest.engine.epochs import Epochs
from quotary_attest.engine.further import FurtherLine
from quotary_attest.engine.host import Host
from quotary_attest.engine.outputs import Leaves
from quotary_attest.engine.position import Position
from quotary_attest.log.journal import StagedBatch
from quotary_attest.log.tree import entry_hashes
from quotary_attest.roots import Quote, RootGone
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.note import Note, sign_ed25519
from quotary_verifier.wire.bindings import ZERO, commit_digest
from quotary_verifier.wire.history import Commit


@dataclass(frozen=True, slots=True)
class Recorded:
    """A commit as it stands in the history, what its attestations have of it, and where it leaves the chain."""

    commit: Commit
    supports: Supports
    position: Position


@dataclass(frozen=True, slots=True)
class Made:
    """A commit that is in the history: what its attestations share, and how many seconds binding it took."""

    sealed: Sealed
    seconds: float


class Stages:
    """How far the commit is that is on its way. What can wait does so until its batch is on disk, or its extend done,
    and takes no time of the interpreter from them; where no commit is on its way, nothing waits."""

    __slots__ = ("extended", "staged")

    def __init__(self) -> None:
        self.staged, self.extended = asyncio.Event(), asyncio.Event()
        self.end()

    def begin(self) -> None:
        """A commit begins."""
        self.staged.clear()
        self.extended.clear()

    def end(self, _: object = None) -> None:
        """It is over, whatever came of it."""
        self.staged.set()
        self.extended.set()


class Committer:
    """Makes commits one after another and knows where the chain stands.

    `position` is where the last commit left the chain. `staged` is a batch on disk whose commit is not in the
    history: the rest of its commit failed, or the agent died. `unapplied` are those whose commit is in the
    history and whose leaves are not in tree and records yet.
    """

    def __init__(self, host: Host, epochs: Epochs, binder: Binder) -> None:
        self.host = host
        self.epochs = epochs
        self._binder = binder
        self.position = Position(ZERO, (0, 0), ZERO)
        self.staged: StagedBatch | None = None
        self.unapplied: deque[Plan] = deque()
        self.stages = Stages()

    def plan(
        self,
        leaves: Leaves,
        *,
        history: int = 0,
        before: bytes | None = None,
        boot: tuple[int, int] | None = None,
    ) -> Plan:
        """Return the commit that appends `leaves`; nothing is written.

        The first `history` of them it does not claim for. `before` is the chain PCR now, by default as the last
        commit left it.
        """
        store = self.host.store
        start = store.size
        growth = store.edge.extended(leaves.hashes)
        text = Checkpoint(self.host.origin, growth.size, growth.root).text
        batch = StagedBatch(
            start=start,
            first=start + history,
            note=text,
            before=self.position.chain if before is None else before,
            digest=commit_digest(self.host.origin, start + history, text),
            records=leaves.records,
            output_ids=leaves.output_ids,
            times=leaves.times,
            request_keys=leaves.request_keys,
            aliases=leaves.aliases,
        )
        return Plan(batch, growth, leaves.entries, boot)

    def replan(self, batch: StagedBatch) -> Plan:
        """Return the plan of a batch that was found on disk."""
        entries = batch.entries()
        return Plan(batch, self.host.store.edge.extended(entry_hashes(entries)), entries)

    def sound(self, batch: StagedBatch) -> bool:
        """Whether a batch found on disk states the commit that its leaves make: one that does not was put there by
        somebody else, and is history."""
        growth = self.host.store.edge.extended(entry_hashes(batch.entries()))
        text = Checkpoint(self.host.origin, growth.size, growth.root).text
        return (batch.note, batch.digest) == (text, commit_digest(self.host.origin, batch.first, text))

    async def make(self, plan: Plan, meanwhile: Callable[[], Awaitable[None]] | None = None) -> Made:
        """Stage a batch and commit it; `meanwhile` runs while the TPM quotes.

        Raises RootError or StoreError; then `staged` tells whether the batch is on disk without its commit.
        """
        return await self._bind(plan, meanwhile, stage=True)

    async def finish(self, plan: Plan, *, extend: bool) -> Made:
        """Do what is left of a staged batch's commit: all of it, or, after its extend, the quote and the rest."""
        if extend:
            return await self._bind(plan, None, stage=False)
        steps = _Steps(self, plan, stage=False, alone=False)
        quoting = asyncio.ensure_future(self._binder.again(plan.batch.digest, steps))
        await self._beside(quoting, plan, steps)
        return self._made(plan, steps)

    async def _bind(
        self, plan: Plan, meanwhile: Callable[[], Awaitable[None]] | None, *, stage: bool
    ) -> Made:
        alone = not self.host.further.due(self.host.store.commits)
        steps = _Steps(self, plan, stage=stage, alone=alone)
        self.stages.begin()
        working: asyncio.Future[Any] = asyncio.ensure_future(self._binder.commit(plan.batch.digest, steps))
        if not alone:
            working = asyncio.ensure_future(self._beside(working, plan, steps))
        working.add_done_callback(self.stages.end)
        try:
            if meanwhile is not None:
                await self.stages.extended.wait()
                await meanwhile()
        finally:
            try:
                await working
            finally:
                steps.leave()
        return self._made(plan, steps)

    async def _beside(self, quoting: asyncio.Future[Any], plan: Plan, steps: _Steps) -> None:
        """Let other roots bind a commit while the TPM quotes it, then put it into the history."""
        binding = asyncio.ensure_future(self._lines(quoting, plan))
        try:
            await quoting
            lines = await binding
        finally:
            binding.cancel()  # does nothing to one that is done
            await asyncio.gather(binding, return_exceptions=True)
        await self.host.files.run(lambda: steps.record(lines))

    async def _lines(self, quoting: asyncio.Future[Any], plan: Plan) -> tuple[FurtherLine, ...]:
        """Return the lines of the roots beside the TPM; nothing is asked to bind what is not on disk."""
        await self.stages.staged.wait()
        if quoting.done() and (quoting.cancelled() or quoting.exception() is not None):
            return ()
        batch, host = plan.batch, self.host
        return await host.further.bind(host.store.commits, batch.first, batch.digest)

    def _made(self, plan: Plan, steps: _Steps) -> Made:
        """Take note of a commit that is in the history."""
        recorded = steps.result
        self.staged = None
        self.unapplied.append(plan)
        self.position = recorded.position
        note, logs = recorded.commit.note, self.host.carried(recorded.commit.boot_logs)
        return Made(Sealed(note, recorded.supports, self.epochs.current.view, logs), steps.seconds)

    async def apply(self) -> None:
        """Update tree and records with all that is in the history."""
        while self.unapplied:
            await self.apply_next()

    async def apply_next(self) -> StagedBatch:
        """Update tree and records with the oldest batch that they do not have yet, and return it."""
        host, plan = self.host, self.unapplied[0]
        await host.background.run(lambda: host.store.apply(plan.batch, plan.growth, plan.entries))
        self.unapplied.popleft()
        host.world.crash("applied")
        return plan.batch

    async def sync(self) -> None:
        """Make applied batches durable where they are, so that their journals can go."""
        await self.host.background.run(self.host.store.sync)
        self.host.world.crash("synced")

    def record(self, plan: Plan, quote: Quote | None, lines: tuple[FurtherLine, ...]) -> Recorded:
        """Put a commit into the history, durable. Raises as `Binder.part`, and StoreError."""
        host, batch = self.host, plan.batch
        own = self._binder.part(plan, quote)
        signed = (
            sign_ed25519(batch.note, host.origin, host.note_key),
            *own.lines,
            *(further.line for further in lines),
        )
        tees = tuple(further.stored(host.store.put_blob) for further in lines)
        commit = Commit(batch.first, Note(batch.note, signed).encode(), own.stored, own.logs, tees)
        host.store.commit(commit, batch, plan.growth)
        supports = Supports(own.supports, tuple(further.support for further in lines))
        return Recorded(commit, supports, own.position)


class _Steps(BindingSteps):
    """What the disk does about a commit, for a TPM on the root's own thread: no hop between threads costs time.

    Who gave the commit up calls `leave`. A root that answers after that, when the batch may be on its way anew,
    finds nothing left to do.
    """

    def __init__(self, committer: Committer, plan: Plan, *, stage: bool, alone: bool) -> None:
        """`alone` says that no other root is asked, so that the commit is whole with its quote."""
        self.seconds = 0.0
        self._alone = alone
        self._quote: Quote | None = None
        self._committer = committer
        self._plan = plan
        self._stage = stage
        self._loop = asyncio.get_running_loop()
        self._world = committer.host.world
        self._begun = self._world.monotonic()
        self._lock = threading.Lock()
        self._left = False
        self._result: Recorded | None = None

    @property
    def result(self) -> Recorded:
        """The commit as it stands in the history."""
        if self._result is None:
            raise RuntimeError("the root returned before the commit was in the history")
        return self._result

    def before(self) -> None:
        """Put records and intended note on disk."""
        with self._in_time():
            if self._stage:
                self._committer.host.store.stage(self._plan.batch)
                self._committer.staged = self._plan.batch
                self._world.crash("staged")
        self._begun = self._world.monotonic()
        self._loop.call_soon_threadsafe(self._committer.stages.staged.set)

    def between(self) -> None:
        """Let the rest of the process use the time of the quote."""
        self._world.crash("extended")
        self.go_on()

    def go_on(self) -> None:
        """Let the rest of the process go on: the disk and the chain need no time of it any more."""
        self._loop.call_soon_threadsafe(self._committer.stages.extended.set)

    def after(self, quote: Quote) -> None:
        """Put the commit into the history, unless other roots are still to come."""
        self._bound()
        self._quote = quote
        if self._alone:
            self.record(())

    def record(self, lines: tuple[FurtherLine, ...]) -> None:
        """Check the evidence and put the commit into the history."""
        if self._quote is None:  # nothing but these roots binds it
            self._bound()
        with self._in_time():
            self._result = self._committer.record(self._plan, self._quote, lines)
        self._world.crash("in-history")

    def _bound(self) -> None:
        self.seconds = self._world.monotonic() - self._begun
        self._world.crash("quoted")

    def leave(self) -> None:
        """Keep a job that is still running from writing anything more."""
        with self._lock:
            self._left = True

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        with self._lock:
            if self._left:
                raise RootGone("the root answered after its commit was given up", hint="it is made anew")
            yield
