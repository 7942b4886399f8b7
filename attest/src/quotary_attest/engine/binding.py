# SPDX-License-Identifier: Apache-2.0
"""What a commit is bound with, by what its origin lives on (design section 4, "Commit order").

An origin's TPM extends its chain and quotes, and its quote is held here against what a verifier will demand. Without
a TPM there is nothing of the origin's own: the roots of `quotary_attest.engine.further` bind the commit, and a required
one of them always does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from quotary_attest.engine.assemble import support_of
from quotary_attest.engine.bootlogs import Named
from quotary_attest.engine.epochs import LoggedEpochs
from quotary_attest.engine.host import TeeHost, TpmHost
from quotary_attest.engine.position import Position
from quotary_attest.log.journal import StagedBatch
from quotary_attest.log.tree import Growth
from quotary_attest.roots import CommitSteps, ForeignExtend, PlatformReset, Quote
from quotary_verifier.tlog.hardware import HardwareLine, encode_hardware_line
from quotary_verifier.tlog.note import SignatureLine
from quotary_verifier.wire.attestation import TpmSupport
from quotary_verifier.wire.bindings import chain_extend
from quotary_verifier.wire.history import CommitSupport

NO_BOOT: tuple[int, int] = (0, 0)
"""In place of a boot's counts where nothing counts boots."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A batch, the tree that it makes, and its entries; `boot` is the one that its boot record names, if any."""

    batch: StagedBatch
    growth: Growth
    entries: list[bytes]
    boot: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class OwnPart:
    """What a commit has of its origin's own root: where it leaves the chain, the boot logs that it names; and hardware
    line, support in the history and support in attestations, one of each or none."""

    position: Position
    lines: tuple[SignatureLine, ...] = ()
    stored: tuple[CommitSupport, ...] = ()
    supports: tuple[TpmSupport, ...] = ()
    logs: Named = field(default_factory=dict[str, tuple[bytes, int]])


class BindingSteps(CommitSteps):
    """The steps of a commit, with one for origins on which nothing is extended."""

    def go_on(self) -> None:
        """Come once nothing but evidence is waited for."""


class Binder(Protocol):
    """Binds commits with what is the origin's own."""

    async def commit(self, digest: bytes, steps: BindingSteps) -> None:
        """Take a commit from its staging to its own evidence. Raises RootError, and what a step raises."""
        ...

    async def again(self, digest: bytes, steps: BindingSteps) -> None:
        """Make the evidence anew for a batch that is staged, and extended. Raises as `commit`."""
        ...

    def part(self, plan: Plan, quote: Quote | None) -> OwnPart:
        """Hold the evidence against what the verifier will demand of it, and return the commit's own part.

        Raises:
            ForeignExtend: the chain or the workload PCR is not as this agent left it.
            PlatformReset: the boot is not the one that the batch's boot record names.
            StoreError: what the commit names cannot be stored.
        """
        ...


class TpmBinder:
    """Extend and quote."""

    def __init__(self, host: TpmHost, epochs: LoggedEpochs) -> None:
        self._host = host
        self._epochs = epochs

    async def commit(self, digest: bytes, steps: BindingSteps) -> None:
        """Extend the chain PCR and quote, as one job of the root; see `Binder.commit`."""
        await self._host.root.commit(digest, steps)

    async def again(self, digest: bytes, steps: BindingSteps) -> None:
        """Quote again, without an extend; see `Binder.again`."""
        steps.before()
        steps.after(await self._host.root.quote(digest))

    def part(self, plan: Plan, quote: Quote | None) -> OwnPart:
        """Check the quote and take it apart; see `Binder.part`."""
        if quote is None:
            raise RuntimeError("the root returned without a quote")
        self._check(plan, quote)
        host, batch = self._host, plan.batch
        logs = host.boot_logs.named(quote)
        identifier = host.root.identifier
        line = HardwareLine(identifier, batch.first, quote.evidence)
        own, known = host.own_pcrs, host.endorsements
        support = support_of(identifier, quote, batch.before, own, host.certificates, known.parts)
        blob, pcrs = self._epochs.current.blob, support.pcrs
        stored = CommitSupport(identifier, pcrs, batch.before, host.certificate_names, blob, known.names)
        return OwnPart(
            Position(batch.digest, quote.clock.boot, chain_extend(batch.before, batch.digest)),
            (encode_hardware_line(host.origin, host.ak_spki, line),),
            (stored,),
            (support,),
            logs,
        )

    def _check(self, plan: Plan, quote: Quote) -> None:
        batch = plan.batch
        if plan.boot is not None and quote.clock.boot != plan.boot:
            raise PlatformReset("the platform was reset, or slept, while the agent started", quote.clock)
        chain_pcr, workload_pcr = self._host.own_pcrs
        expected: Mapping[int, bytes] = {
            chain_pcr: chain_extend(batch.before, batch.digest),
            workload_pcr: self._epochs.log.value,
        }
        for pcr, value in expected.items():
            if quote.pcrs[pcr] != value:
                raise ForeignExtend(pcr, value, quote.pcrs[pcr])


class TeeBinder:
    """Nothing but the staging: what is staged, the required roots bind."""

    def __init__(self, host: TeeHost) -> None:
        self._host = host

    async def commit(self, digest: bytes, steps: BindingSteps) -> None:
        """Stage; see `Binder.commit`."""
        await self.again(digest, steps)

    async def again(self, digest: bytes, steps: BindingSteps) -> None:
        """Stage what is not staged yet; see `Binder.again`."""
        del digest
        await self._host.files.run(steps.before)
        steps.go_on()

    def part(self, plan: Plan, quote: Quote | None) -> OwnPart:
        """Return that there is nothing; see `Binder.part`."""
        del quote
        return OwnPart(Position(plan.batch.digest, NO_BOOT, b""))
