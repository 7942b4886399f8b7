# SPDX-License-Identifier: Apache-2.0
"""One commit, in the order that makes it safe (design section 4, "Commit order").

1. Stage: records and the intended note to disk, fsync. 2. Extend the chain PCR by D. 3. Quote. 4. Append the
commit to the history, fsync. Only then may anybody be answered. What does not need the quote is done while the
TPM works.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from quotary_attest.engine.assemble import Sealed, support_of
from quotary_attest.engine.epochs import Epochs
from quotary_attest.engine.host import Host
from quotary_attest.engine.outputs import Leaves
from quotary_attest.engine.position import Position
from quotary_attest.log.journal import StagedBatch
from quotary_attest.log.tree import Growth, entry_hashes
from quotary_attest.roots import ForeignExtend, PlatformReset, Quote
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.hardware import HardwareLine, encode_hardware_line
from quotary_verifier.tlog.note import Note, sign_ed25519
from quotary_verifier.wire.attestation import TpmSupport
from quotary_verifier.wire.bindings import ZERO, chain_extend, commit_digest
from quotary_verifier.wire.history import Commit, CommitSupport


@dataclass(frozen=True, slots=True)
class Plan:
    """A batch, the tree that it makes, and its entries; `boot` is the one that its boot record names, if any."""

    batch: StagedBatch
    growth: Growth
    entries: list[bytes]
    boot: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A commit that is in the history: what its attestations share, and how many seconds the TPM took."""

    sealed: Sealed
    seconds: float


class Committer:
    """Makes commits one after another and knows where the chain stands.

    `position` is where the last commit left the chain. `staged` is a batch on disk whose commit is not in the
    history: the rest of its commit failed, or the agent died. `unapplied` are those whose commit is in the
    history and whose leaves are not in tree and records yet.
    """

    def __init__(self, host: Host, epochs: Epochs) -> None:
        self.host = host
        self.epochs = epochs
        self.position = Position(ZERO, (0, 0), ZERO)
        self.staged: StagedBatch | None = None
        self.unapplied: deque[Plan] = deque()

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
        """Stage a batch and commit it; `meanwhile` runs while the TPM works.

        Raises RootError or StoreError; then `staged` tells whether the batch is on disk without its commit.
        """
        host = self.host
        await host.files.run(lambda: host.store.stage(plan.batch))
        self.staged = plan.batch
        host.world.crash("staged")
        return await self.finish(plan, extend=True, meanwhile=meanwhile)

    async def finish(
        self, plan: Plan, *, extend: bool, meanwhile: Callable[[], Awaitable[None]] | None = None
    ) -> Made:
        """Do what is left of a staged batch's commit: all of it, or, after its extend, the quote and the rest."""
        host, batch = self.host, plan.batch
        crash = host.world.crash
        started = host.world.monotonic()
        binding = (
            host.root.commit(batch.digest, between=lambda: crash("extended"))
            if extend
            else (host.root.quote(batch.digest))
        )
        working = asyncio.ensure_future(binding)
        try:
            if meanwhile is not None:
                await meanwhile()
        finally:
            quote = await working
        seconds = host.world.monotonic() - started
        crash("quoted")
        self._check(plan, quote)
        commit, support = self._commit_of(batch, quote)
        await host.files.run(lambda: host.store.commit(commit, batch, plan.growth))
        crash("in-history")
        self.staged = None
        self.unapplied.append(plan)
        self.position = Position(batch.digest, quote.clock.boot, chain_extend(batch.before, batch.digest))
        return Made(Sealed(commit.note, support, self.epochs.current.view), seconds)

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

    def _check(self, plan: Plan, quote: Quote) -> None:
        """Hold the quote against what the verifier will demand of it, before anything relies on it.

        Raises:
            ForeignExtend: the chain or the workload PCR is not as this agent left it.
            PlatformReset: the boot is not the one that the batch's boot record names.
        """
        batch = plan.batch
        if plan.boot is not None and quote.clock.boot != plan.boot:
            raise PlatformReset("the platform was reset, or slept, while the agent started", quote.clock)
        chain_pcr, workload_pcr = self.host.own_pcrs
        for pcr, expected in (
            (chain_pcr, chain_extend(batch.before, batch.digest)),
            (workload_pcr, self.epochs.log.value),
        ):
            if quote.pcrs[pcr] != expected:
                raise ForeignExtend(pcr, expected, quote.pcrs[pcr])

    def _commit_of(self, batch: StagedBatch, quote: Quote) -> tuple[Commit, TpmSupport]:
        host = self.host
        identifier = host.root.identifier
        line = HardwareLine(identifier, batch.first, quote.evidence)
        lines = (
            sign_ed25519(batch.note, host.origin, host.note_key),
            encode_hardware_line(host.origin, host.ak_spki, line),
        )
        note = Note(batch.note, lines).encode()
        support = support_of(identifier, quote, batch.before, host.own_pcrs, host.certificates)
        blob = self.epochs.current.blob
        stored = CommitSupport(identifier, support.pcrs, batch.before, host.certificate_names, blob)
        return Commit(batch.first, note, (stored,)), support
