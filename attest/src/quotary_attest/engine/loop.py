# SPDX-License-Identifier: Apache-2.0
"""The engine: a queue of outputs, and the one task that commits them (design section 2).

While the hardware is busy with one commit, the records that arrive queue up; when it is free, all of them are appended
at once and one quote covers them. One task owns the chain, so nothing here needs a lock: epochs and fresh quotes
are jobs of the same task, one between two commits. Where the hardware or the disk fails, all who wait get the
error, and the same task tries to take the chain up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from quotary_attest.engine.assemble import Sealed, Template
from quotary_attest.engine.errors import AgentError, Busy, StartRefused, Unavailable
from quotary_attest.engine.host import Host
from quotary_attest.engine.outputs import Delivered, Leaves, NewOutput, Pending
from quotary_attest.engine.parts import parts_of
from quotary_attest.engine.pulse import Pulse
from quotary_attest.engine.waiting import Waiting, in_turn, settle
from quotary_attest.log.errors import DamagedError, StorageFailed, StoreError
from quotary_attest.roots import ForeignExtend, PlatformReset, RootError
from quotary_attest.workload import Workload
from quotary_verifier.wire.records import SALT_BYTES

_LOG = logging.getLogger("quotary.agent")

T = TypeVar("T")

MAX_QUEUE: Final = 1 << 16
"""Outputs that may wait for a commit; more get Busy."""

MAX_JOBS: Final = 64
"""Fresh quotes and epochs that may wait; more get Busy."""

_SLICE: Final = 64
_SYNC_LEAVES: Final = 1 << 16
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_FINAL = (StartRefused, StorageFailed, DamagedError)


class Engine:
    """Takes outputs, commits them in groups, and answers. `start` comes first, `close` last."""

    def __init__(self, host: Host, *, max_queue: int = MAX_QUEUE) -> None:
        self.host = host
        parts = parts_of(host)
        self.epochs, self.committer, self._starter = parts.epochs, parts.committer, parts.starter
        self.waiting = Waiting()
        self.state = "starting"
        self.reason: tuple[str, str] | None = ("the agent is starting", "")
        self.pulse = Pulse(host)
        self._max_queue = max_queue
        self._template = Template(host.genesis_record)
        self._queue: list[Pending] = []
        self._flying: list[Pending] = []
        self._jobs: deque[tuple[Callable[[], Awaitable[None]], asyncio.Future[None]]] = deque()
        self._holding = False
        self._closing = False
        self._wake = asyncio.Event()
        self._delivery: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # -- for callers

    async def start(self, workload: Workload, *, resume: bool = False) -> None:
        """Start the origin and then the task that commits.

        Raises:
            StartRefused: an operator has to look first.
            RootError: the root failed.
            StoreError: the disk failed.
        """
        for attempt in range(_START_ATTEMPTS):
            try:
                made = await self._starter.start(workload, resume=resume)
                break
            except PlatformReset:
                if attempt + 1 == _START_ATTEMPTS:
                    raise
            except ForeignExtend as error:
                raise self._starter.refused(error) from error
        self.pulse.learn(made.seconds)
        self._accept()
        self._task = asyncio.create_task(self._run(), name="quotary-engine")

    def put(self, output: NewOutput) -> Pending:
        """Queue an output; its `future` is done after its commit is on disk.

        Raises:
            Unavailable: nothing can be attested now.
            Busy: the queue is full.
            NotServed: the output names a model that the epoch in force does not list.
            ValueError: an output of this id is on its way already, or a field has a length that no verifier
                accepts.
        """
        try:
            return self._take(output)
        except Exception:
            self.waiting.abandon(output.output_id)  # else who asks for it would wait for ever
            raise

    def _take(self, output: NewOutput) -> Pending:
        if self.reason is not None:
            raise Unavailable(self.reason[0], hint=self.reason[1])
        if len(self._queue) >= self._max_queue:
            raise Busy(f"{self._max_queue} outputs wait for a commit already")
        pending = Pending(output, self.host.world.now(), asyncio.get_running_loop().create_future())
        if not self._holding:
            pending.encode(self.epochs.current, self.epochs.generation, self.host.world.random(SALT_BYTES))
        self.waiting.add(pending)
        self._queue.append(pending)
        self._wake.set()
        return pending

    async def begin_epoch(self, workload: Workload) -> None:
        """Put a new epoch in force, after all outputs that were handed in before have been committed.

        Raises Unavailable or Busy; the old epoch stays in force then.
        """
        await self._do(lambda: self._epoch(workload))

    async def aside(self, job: Callable[[], Awaitable[None]]) -> None:
        """Run a job that commits nothing, between two commits. Raises Unavailable, Busy."""
        await self._do(job)

    async def between(self, job: Callable[[], Awaitable[None]]) -> None:
        """Run a job that may commit, between two commits; what it committed is published. Raises Unavailable, Busy."""
        await self._do(lambda: in_turn(self._quiet, job, self._apply))

    async def reload_certificates(self) -> None:
        """Take up newly installed certificates, and what newly endorses the AK, for the commits that follow.

        Raises StateError, RootError, StoreError, Unavailable; what cannot be taken up leaves what was there.
        """
        await self._do(self.host.load_certificates)
        await self._do(self.host.renew_endorsements)

    @property
    def queued(self) -> int:
        """How many outputs wait for the next commit."""
        return len(self._queue)

    def alive(self, limit: float) -> bool:
        """Tell whether the task runs, and has not been at one thing for more than `limit` seconds."""
        return self._task is not None and not self._task.done() and not self.pulse.stuck(limit)

    async def close(self) -> None:
        """Commit what is queued if the root is there, then stop. Twice is fine."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            if self.state != "running":
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._refuse("closed", AgentError("the agent is stopping"))
        self._fail_all()
        await self._quiet()
        with contextlib.suppress(StoreError):  # what is in the history is applied at the next start, too
            await self.committer.apply()

    # -- the task

    async def _run(self) -> None:
        while not (self._closing and not self._queue and not self._jobs):
            try:
                await self._turn()
            except (RootError, StoreError, StartRefused) as error:
                await self._recover(error)
            except Exception as error:
                _LOG.exception("the engine failed")
                self._stop(
                    AgentError(f"the engine failed: {error}", hint="restart the agent; please report this")
                )
                return

    async def _turn(self) -> None:
        """Wait for work; do one job, then one commit."""
        while True:
            if self._tidying is not None and self._tidying.done():
                tidying, self._tidying = self._tidying, None
                tidying.result()
            if self._queue or self._jobs or self._closing:
                break
            self._wake.clear()
            self._tidy()
            self.pulse.rest()
            await self._wake.wait()
        self.pulse.work()
        if self._jobs:
            job, future = self._jobs.popleft()
            await settle(job, future)
        if self._queue:
            if (wait := self.pulse.due_in) > 0:
                await self.host.world.sleep(wait)
            await self._commit()

    async def _commit(self) -> None:
        """Commit all that is queued."""
        self.pulse.begin()
        queued, self._queue = self._queue, []
        self._flying = outputs = self._encoded(queued)
        if not outputs:
            return
        plan = self.committer.plan(Leaves.of_outputs(outputs))
        parts: list[tuple[bytes, int | None, bytes]] = []

        async def prepare() -> None:
            make, start = self._template.parts, plan.batch.start
            paths = plan.growth.paths()
            for first in range(0, len(outputs), _SLICE):
                await asyncio.sleep(0)
                for place, pending in enumerate(outputs[first : first + _SLICE], first):
                    key = pending.output.request_key
                    parts.append(make(pending.record, start + place, paths[place], pending.event, key))
            self.host.world.spare()

        made = await self.committer.make(plan, prepare)
        self._flying = []
        self.pulse.committed(outputs, made.seconds)
        self._delivery = asyncio.create_task(self._deliver(self._delivery, outputs, parts, made.sealed))
        self._tidy()

    def _encoded(self, queued: list[Pending]) -> list[Pending]:
        """Return the outputs whose records cite the epoch in force, made again where it has changed."""
        generation = self.epochs.generation
        ready = []
        for pending in queued:
            if pending.generation != generation:
                try:
                    pending.encode(self.epochs.current, generation, self.host.world.random(SALT_BYTES))
                except Exception as error:  # one output that cannot be recorded must not cost the others
                    self.waiting.fail(pending, error)
                    continue
            ready.append(pending)
        return ready

    async def _deliver(
        self,
        previous: asyncio.Task[None] | None,
        outputs: list[Pending],
        parts: list[tuple[bytes, int | None, bytes]],
        sealed: Sealed,
    ) -> None:
        """Answer the callers of one commit in slices, after those of the one before.

        The first slice holds those who waited longest. Before the others are answered the next batch goes to disk:
        that costs them a few milliseconds, and spares the next ones more.
        """
        if previous is not None:
            await previous
        for first in range(0, len(outputs), _SLICE):
            if first:
                await self.committer.stages.staged.wait()
            for place, pending in enumerate(outputs[first : first + _SLICE], first):
                self.waiting.deliver(pending, Delivered(pending.output.output_id, parts[place], sealed))
            await asyncio.sleep(0)

    def _tidy(self) -> None:
        """Bring tree and records up to the history, beside the commits that follow."""
        if self._tidying is None and self._untidy:
            self._tidying = asyncio.create_task(self._tidy_up())
            self._tidying.add_done_callback(lambda _: self._wake.set())

    @property
    def _untidy(self) -> bool:
        return bool(self.committer.unapplied or self.host.store.unsynced)

    async def _tidy_up(self) -> None:
        await self.committer.stages.extended.wait()
        await self._apply()
        idle = not (self._queue or self._flying)
        if idle or self.host.store.unsynced >= _SYNC_LEAVES:
            await self.committer.sync()

    async def _apply(self) -> None:
        while self.committer.unapplied:
            done = await self.committer.apply_next()
            self.waiting.forget(done.output_ids)

    async def _epoch(self, workload: Workload) -> None:
        """Hold staging, commit what is queued, and extend the new epoch."""
        self._holding = True
        try:
            if self._queue:
                await self._commit()
            await self.epochs.begin(workload)
        finally:
            self._holding = False

    async def _do(self, job: Callable[[], Awaitable[None]]) -> None:
        """Let the task do a job between two commits."""
        if self.reason is not None:
            raise Unavailable(self.reason[0], hint=self.reason[1])
        if len(self._jobs) >= MAX_JOBS:
            raise Busy(f"{MAX_JOBS} requests wait between two commits already")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._jobs.append((job, future))
        self._wake.set()
        await future

    # -- when something fails

    async def _recover(self, error: Exception) -> None:
        """Tell everyone, then try to take the chain up again until it works, or until it must not."""
        pause = _FIRST_PAUSE
        while True:
            if isinstance(error, ForeignExtend):
                error = self._starter.refused(error)
            self._refuse("unavailable", error)
            self._fail_all()
            if self._closing:
                return
            self.pulse.failed(error)
            if isinstance(error, _FINAL):
                self._stop(error)
                self.pulse.rest()
                await asyncio.Future()
            try:
                await self._take_up(error)
                break
            except (RootError, StoreError, StartRefused) as again:
                error = again
            await self.host.world.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._accept()

    async def _take_up(self, error: Exception) -> None:
        host = self.host
        await self._quiet()
        if isinstance(error, StoreError):
            await host.files.run(host.state.probe)
        await self._apply()
        await self._starter.take_up(error)

    async def _quiet(self) -> None:
        """Wait until nothing runs beside the task; a failure that it meets comes up again in `apply`."""
        running = [task for task in (self._delivery, self._tidying) if task is not None]
        await asyncio.gather(*running, return_exceptions=True)
        self._delivery = self._tidying = None

    def _accept(self) -> None:
        self.state, self.reason = "running", None
        _LOG.info("attesting for %s", self.host.origin)

    def _refuse(self, state: str, error: Exception) -> None:
        reason = (str(error), str(getattr(error, "hint", "")))
        if (state, reason) != (self.state, self.reason):
            _LOG.log(logging.INFO if state == "closed" else logging.ERROR, "%s: %s", state, reason[0])
        self.state, self.reason = state, reason

    def _stop(self, error: Exception) -> None:
        self._refuse("stopped", error)
        self._fail_all()

    def _fail_all(self) -> None:
        """Give all who wait the reason why nothing comes."""
        message, hint = self.reason or ("the agent is stopping", "")
        outputs, self._flying, self._queue = self._flying + self._queue, [], []
        for pending in outputs:
            self.waiting.fail(pending, Unavailable(message, hint=hint))
        while self._jobs:
            _, future = self._jobs.popleft()
            if not future.done():
                future.set_exception(Unavailable(message, hint=hint))


_START_ATTEMPTS: Final = 3
