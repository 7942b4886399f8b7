# SPDX-License-Identifier: Apache-2.0
"""Starting an origin, and taking up its chain again after anything went wrong (design section 4).

Each start adds one to the hardware counter, closes what an earlier run left open, begins a new epoch and commits
a boot record. Staged leaves that are history keep their places before it; nothing is claimed for them. Without a TPM
nothing says what of a staged batch counts, so what a start finds staged is history, always.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Protocol

from quotary_attest.engine.commit import Committer, Made
from quotary_attest.engine.epochs import Epochs, LoggedEpochs, open_log
from quotary_attest.engine.errors import StartRefused
from quotary_attest.engine.host import Host, TeeHost, TpmHost
from quotary_attest.engine.outputs import Leaves
from quotary_attest.engine.position import (
    Course,
    Position,
    decide,
    digest_of,
    explained,
    last_position,
    woke,
)
from quotary_attest.log.journal import StagedBatch
from quotary_attest.roots import ForeignExtend, PlatformState, RootGone
from quotary_attest.workload import Workload
from quotary_verifier.wire.bindings import ZERO, start_digest
from quotary_verifier.wire.records import SALT_BYTES, Boot, BootTpm

_RESUME_HINT = (
    "find the other program that extends this pcr, then start with --resume: "
    "that is a new start, and auditors see a gap"
)
_REBOOT_HINT = (
    "find the program that extends this pcr, then restart the host: only a reboot makes it usable again"
)
_RESTORED_HINT = (
    "a state folder must not be restored from a copy or used on two hosts; "
    "make a new origin with `attest agent init` in a new folder"
)


_LOG = logging.getLogger("quotary.agent")


class Starter(Protocol):
    """Starts an origin, or takes it up again, with one committer and its epochs."""

    async def start(self, workload: Workload, *, resume: bool) -> Made:
        """Start the agent: decide what is on disk, then begin; return the start's commit.

        Raises:
            StartRefused: an operator has to look first; `resume` is their word for what it may overrule.
            RootError: a root failed.
            StoreError: the disk failed.
        """
        ...

    async def take_up(self, error: Exception) -> Made | None:
        """Go on after a failure while running, finish what is staged, or start anew in a new boot.

        Returns the start's commit where a new start was due, else None. Raises as `start`.
        """
        ...

    def refused(self, error: ForeignExtend) -> StartRefused:
        """Return what an operator gets to know where somebody else extended one of our PCRs."""
        ...


class TeeStarter:
    """Starts an origin that has no TPM."""

    def __init__(self, host: TeeHost, epochs: Epochs, committer: Committer) -> None:
        self.host = host
        self.epochs = epochs
        self.committer = committer

    async def start(self, workload: Workload, *, resume: bool) -> Made:
        """Begin a new epoch and commit the boot record behind whatever is staged; see `Starter.start`."""
        del resume  # there is nothing that it could overrule
        host = self.host
        staged = await host.files.run(host.store.staged)
        await self.epochs.begin(workload)
        moment = host.world.now()
        boot = Boot(host.world.random(SALT_BYTES), moment, last_digest(host), None)
        made = await commit_boot(self.committer, boot, staged)
        _LOG.info("this origin has no tpm: only witnesses tell that there is a second history")
        return made

    async def take_up(self, error: Exception) -> Made | None:
        """Have the batch bound again that this process staged: no other can stand in its place; see
        `Starter.take_up`."""
        del error
        committer = self.committer
        if (staged := committer.staged) is not None:
            await committer.finish(committer.replan(staged), extend=True)
            await committer.apply()
        return None

    def refused(self, error: ForeignExtend) -> StartRefused:
        """Return the error as it is; see `Starter.refused`."""
        return StartRefused(str(error), hint=error.hint)


def last_digest(host: Host) -> bytes:
    """Return D of the last commit in the history, 32 zero bytes where there is none."""
    stored = host.store.last_commit
    return ZERO if stored is None else digest_of(host, stored.commit)


async def commit_boot(
    committer: Committer,
    boot: Boot,
    history: StagedBatch | None,
    *,
    before: bytes = b"",
    counts: tuple[int, int] | None = None,
) -> Made:
    """Commit a boot record behind leaves that are history: they keep their places, and nothing is claimed for them.

    `before` and `counts` are the chain PCR and the boot as a TPM says them. Raises as `Committer.make`.
    """
    leaves = Leaves()
    if history is not None:
        leaves.add_batch(history)
    earlier = len(leaves.records)
    leaves.add_public(boot.encode(), boot.time)
    made = await committer.make(committer.plan(leaves, history=earlier, before=before, boot=counts))
    await committer.apply()
    return made


class TpmStarter:
    """Starts an origin in a boot of its TPM."""

    def __init__(self, host: TpmHost, epochs: LoggedEpochs, committer: Committer) -> None:
        self.host = host
        self.epochs = epochs
        self.committer = committer
        self._begun = False
        self._workload = Workload()
        self._resume = False

    async def start(self, workload: Workload, *, resume: bool) -> Made:
        """Start the agent: decide what is on disk, then begin.

        Raises:
            StartRefused: the state is older than its last start, or a PCR of ours is not as it was left; with
                `resume` a foreign chain PCR is no reason.
            RootError: the root failed.
            StoreError: the disk failed.
        """
        host = self.host
        self._begun, self._workload, self._resume = False, workload, resume
        await self._check_counter()
        await host.find_endorsements()
        await host.files.run(host.boot_logs.begin)
        platform = await host.root.platform()
        last = await host.files.run(lambda: last_position(host))
        staged = await host.files.run(host.store.staged)
        if staged is not None and not self.committer.sound(staged):
            staged = replace(staged, before=b"")  # nobody's chain: it is history
        await self._adopt(platform)
        if last is not None:
            self.committer.position = last
        same_boot = last is not None and last.boot == platform.clock.boot
        course = decide(last if same_boot else None, staged, self._chain(platform))
        if course in (Course.EXTEND, Course.QUOTE) and staged is not None:
            await self._finish(staged, course)
            return await self._begin(self.committer.position.chain, platform, None, workload)
        if not resume and (course is Course.FOREIGN or not self._explained(course, last, staged, platform)):
            raise self._foreign(platform)
        return await self._begin(self._chain(platform), platform, staged, workload)

    async def take_up(self, error: Exception) -> Made | None:
        """Take up the chain again where the TPM says that it stands; see `Starter.take_up`."""
        root, committer = self.host.root, self.committer
        platform = await (root.reconnect() if isinstance(error, RootGone) else root.platform())
        position, staged = committer.position, committer.staged
        if not self._begun:
            return await self.start(self._workload, resume=self._resume)
        if platform.clock.boot != position.boot and not woke(
            position, staged, platform, self.host.tpm.chain_pcr
        ):
            return await self.start(self.epochs.workload, resume=False)
        self.epochs.log.fit(platform.pcrs[self.host.tpm.workload_pcr])
        course = decide(position, staged, self._chain(platform))
        if course is Course.FOREIGN:
            raise self._foreign(platform)
        if course is not Course.GO_ON and staged is not None:
            await self._finish(staged, course)
        if self.epochs.log.value != self.epochs.current.value:
            await self.epochs.begin(self.epochs.workload)
        return None

    def refused(self, error: ForeignExtend) -> StartRefused:
        """Return what only the operator can decide, or only a reboot mend; see `Starter.refused`."""
        chain = error.pcr == self.host.tpm.chain_pcr
        return StartRefused(str(error), hint=_RESUME_HINT if chain else _REBOOT_HINT)

    def _chain(self, platform: PlatformState) -> bytes:
        return platform.pcrs[self.host.tpm.chain_pcr]

    def _explained(
        self, course: Course, last: Position | None, staged: StagedBatch | None, platform: PlatformState
    ) -> bool:
        return course is not Course.NEW_BOOT or explained(
            last, staged, self._chain(platform), platform.clock.reset_count
        )

    def _foreign(self, platform: PlatformState) -> StartRefused:
        pcr = self.host.tpm.chain_pcr
        return StartRefused(
            f"pcr {pcr} was extended by somebody else: it is {self._chain(platform).hex()}, "
            "which no commit of this log explains",
            hint=_RESUME_HINT,
        )

    async def _adopt(self, platform: PlatformState) -> None:
        """Take over this boot's workload log. Raises StartRefused where the workload PCR is another."""
        host = self.host
        pcr = host.tpm.workload_pcr
        starts = host.state.read_starts()
        log = await host.files.run(lambda: open_log(host.state.workload, pcr, platform.pcrs[pcr], starts))
        await self.epochs.adopt(log)

    async def _finish(self, staged: StagedBatch, course: Course) -> None:
        """Commit what an earlier run of this boot staged, by what the chain PCR says of it."""
        committer = self.committer
        committer.staged = staged
        plan = committer.replan(staged)
        await committer.finish(plan, extend=course is Course.EXTEND)
        await committer.apply()

    async def _begin(
        self, before: bytes, platform: PlatformState, history: StagedBatch | None, workload: Workload
    ) -> Made:
        """Count the start, begin an epoch, and commit the boot record behind the leaves that are history."""
        host = self.host
        await self._count_start()
        await self.epochs.begin(workload)
        last = last_digest(host)
        salt, moment = host.world.random(SALT_BYTES), host.world.now()
        evidence = await host.root.certify_counter(start_digest(host.origin, last, salt))
        counts = platform.clock.boot
        boot = Boot(salt, moment, last, BootTpm(*counts, before, evidence))
        made = await commit_boot(self.committer, boot, history, before=before, counts=counts)
        self._begun = True
        return made

    async def _check_counter(self) -> int:
        """Hold the counter against the state: equal to the value on disk, or one less, where a start died."""
        stored = self.host.state.read_starts()
        counter = await self.host.root.read_counter()
        if counter > stored:
            raise StartRefused(
                f"the start counter of the tpm is at {counter}, this state knows {stored}: the state is older "
                "than the last start, or another agent has started this origin",
                hint=_RESTORED_HINT,
            )
        if counter < stored - 1:
            raise StartRefused(
                f"the start counter of the tpm is at {counter}, this state knows {stored}: the counter is "
                "another one, or the state is another host's",
                hint=_RESTORED_HINT,
            )
        return counter

    async def _count_start(self) -> None:
        """Add one to the counter; its next value is on disk before."""
        host = self.host
        value = await self._check_counter() + 1
        await host.files.run(lambda: host.state.write_starts(value))
        host.world.crash("counter-on-disk")
        found = await host.root.increment_counter()
        host.world.crash("counter-incremented")
        if found != value:
            raise StartRefused(
                f"the start counter went to {found} where {value} was due: somebody else increments it",
                hint=_RESTORED_HINT,
            )
