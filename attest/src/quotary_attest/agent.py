# SPDX-License-Identifier: Apache-2.0
"""The agent: attests outputs for one origin on this host. The Python interface of the host side.

::

    async with Agent(folder, tpm="device:/dev/tpmrm0", workload=workload) as agent:
        delivered = await agent.attest(b"an output")
        Path("output.attestation").write_bytes(delivered.encoded)

An `await` on an output returns when its commit, hardware evidence included, is on disk. An origin without a TPM takes
open `roots` in place of `tpm`, one of them required. What cannot be attested is an
error: `Unavailable` (hardware gone, disk full, stopped), `Busy`, `NotServed`; what an operator has to look at before
anything goes on is `StartRefused`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

from quotary_attest.bootlogs import BootLogSettings
from quotary_attest.engine.endorsing import Endorsing
from quotary_attest.engine.errors import (
    AgentError,
    Busy,
    NotQuotable,
    NotServed,
    StartRefused,
    Unavailable,
    UnknownOutput,
)
from quotary_attest.engine.fresh import fresh_quote
from quotary_attest.engine.further import FurtherRoot
from quotary_attest.engine.host import CRASH_POINTS, Host, World
from quotary_attest.engine.loop import MAX_QUEUE, Engine
from quotary_attest.engine.outputs import Delivered, NewOutput, make_output_id
from quotary_attest.engine.statements import declare
from quotary_attest.engine.status import status_of
from quotary_attest.engine.stored import Stored
from quotary_attest.log.errors import NotFound
from quotary_attest.log.store import Store
from quotary_attest.metrics import NO_METRICS, Metrics
from quotary_attest.opening import Opening
from quotary_attest.roots import Root
from quotary_attest.serving.aliases import alias_secret_of
from quotary_attest.serving.attester import STATEMENT_ID
from quotary_attest.workload import Workload
from quotary_verifier.evidence.tee.lines import TeeRoots
from quotary_verifier.wire.bindings import request_commitment
from quotary_verifier.wire.declaration import Declaration
from quotary_verifier.wire.records import ContextValue, Source, State


class Agent:
    """An agent for one origin. Use it as an async context manager, or `open` and `close` it."""

    def __init__(
        self,
        folder: Path,
        *,
        tpm: str = "device:/dev/tpmrm0",
        root: Root | None = None,
        workload: Workload | None = None,
        resume: bool = False,
        world: World | None = None,
        max_queue: int = MAX_QUEUE,
        metrics: Metrics = NO_METRICS,
        boot_logs: BootLogSettings | None = None,
        roots: Sequence[FurtherRoot] = (),
        endorsing: Endorsing | None = None,
        tee_roots: TeeRoots | None = None,
    ) -> None:
        """Describe an agent for the origin in `folder`; `open` starts it.

        `tpm` is a TSS string, used where no open `root` is given; the agent closes either. `resume` is the
        operator's word that a chain PCR which somebody else extended is no reason to stop. `boot_logs` says which
        logs of the boot commits name, by default the kernel's; a `root` that is given follows an IMA log of its own.
        `roots` bind commits beside the TPM, or in its place, are open, and are closed with the agent; their evidence
        has to verify under `tee_roots`, by default the makers'. `endorsing` finds what hardware says of the AK.
        """
        logs = boot_logs or BootLogSettings()
        self._opening = Opening(
            folder, tpm, root, world or World(), metrics, logs, tuple(roots), endorsing, tee_roots
        )
        self._workload, self._resume, self._max_queue = workload or Workload(), resume, max_queue
        self._parts: tuple[Host, Engine, Stored] | None = None
        self._closed = False

    @classmethod
    async def start(
        cls,
        folder: Path,
        *,
        root: Root | None = None,
        workload: Workload | None = None,
        resume: bool = False,
        world: World | None = None,
        max_queue: int = MAX_QUEUE,
        boot_logs: BootLogSettings | None = None,
        roots: Sequence[FurtherRoot] = (),
        endorsing: Endorsing | None = None,
        tee_roots: TeeRoots | None = None,
    ) -> Agent:
        """Return an agent that runs already, on open roots. Arguments as for the class, errors as for `open`."""
        agent = cls(
            folder,
            root=root,
            workload=workload,
            resume=resume,
            world=world,
            max_queue=max_queue,
            boot_logs=boot_logs,
            roots=roots,
            endorsing=endorsing,
            tee_roots=tee_roots,
        )
        await agent.open()
        return agent

    async def open(self) -> None:
        """Start: reach the TPM, recover the log, put the workload in force and commit the boot record. Twice is fine.

        Raises:
            StartRefused: an operator has to look first.
            StateError: the folder is in use, absent or damaged, or these roots are not what its origin lives on.
            RootError: the root failed.
            StoreError: the disk failed, or the log is damaged.
        """
        if self._closed:
            raise Unavailable("the agent was closed", hint="make a new one")
        if self._parts is not None:
            return
        host = await self._opening.open()
        engine = Engine(host, max_queue=self._max_queue)
        try:
            await host.load_certificates()
            await engine.start(self._workload, resume=self._resume)
        except BaseException:
            await host.close()
            raise
        self._parts = host, engine, Stored(host)

    @property
    def _host(self) -> Host:
        return self._running[0]

    @property
    def _engine(self) -> Engine:
        return self._running[1]

    @property
    def _running(self) -> tuple[Host, Engine, Stored]:
        if self._parts is None:
            raise Unavailable("the agent is not open", hint="open it, or use it as an async context manager")
        return self._parts

    async def __aenter__(self) -> Agent:
        """Start, if that was not done."""
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Commit what is queued, then stop and let go of root and folder. Twice is fine, and so is never opened."""
        parts, closed, self._closed = self._parts, self._closed, True
        if parts is None or closed:
            return
        try:
            await parts[1].close()
        finally:
            await parts[0].close()

    @property
    def origin(self) -> str:
        """The name of this log."""
        return self._host.origin

    @property
    def genesis_record(self) -> bytes:
        """The record of leaf 0, whose digest makes the origin."""
        return self._host.genesis_record

    @property
    def store(self) -> Store:
        """The log, for reading and serving."""
        return self._host.store

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that the epoch in force measured: what `NewOutput.model` may say."""
        return tuple(dict.fromkeys(claim.name for claim in self._engine.epochs.current.claims.values()))

    # -- outputs

    @property
    def outage(self) -> Unavailable | None:
        """What `submit` would raise now because nothing can be attested; None while something can."""
        parts = self._parts
        if parts is not None and parts[1].reason is None:
            return None  # at once: this is asked for every piece of every stream
        reason = self._engine.reason
        return None if reason is None else Unavailable(reason[0], hint=reason[1])

    def new_output_id(self) -> bytes:
        """Return a new output id, 24 bytes: a UUIDv7 and 64 random bits."""
        return make_output_id(self._host.world.now(), self._host.world.random)

    def enqueue(self, output: NewOutput) -> asyncio.Future[Delivered]:
        """Hand an output in; the future is done when its commit is on disk, or fails with Unavailable.

        Raises:
            Unavailable: nothing can be attested now.
            Busy: the queue is full.
            NotServed: the output names a model that is not measured.
            ValueError: its id is on its way already, or a field has a length that no verifier accepts.
        """
        return self._engine.put(output).future

    async def submit(self, output: NewOutput) -> Delivered:
        """Attest an output; returns when its commit is on disk. Raises as `enqueue` and its future."""
        return await self.enqueue(output)

    async def attest(
        self,
        body: bytes,
        *,
        nonce: bytes | None = None,
        state: State = State.COMPLETE,
        context: Mapping[str, ContextValue] | None = None,
        request: bytes | None = None,
    ) -> Delivered:
        """Attest bytes that a local caller hands in: source "submitted", so no model is claimed.

        `request` is the request body, if there was one: a fresh key commits to it. Raises as `submit`.
        """
        key = None if request is None else self._host.world.random(32)
        output = NewOutput(
            self.new_output_id(),
            {"body": sha256(body).digest()},
            state,
            request=None if request is None or key is None else request_commitment(key, request),
            request_key=key,
            nonce=nonce,
            context=context or {},
            source=Source.SUBMITTED,
        )
        return await self.submit(output)

    def reserve(self, output_id: bytes) -> None:
        """Announce an output that still streams, so that `fetch` waits for it."""
        self._engine.waiting.reserve(output_id)

    def abandon(self, output_id: bytes) -> None:
        """Take an announcement back: there will be no such output."""
        self._engine.waiting.abandon(output_id)

    @property
    def alias_secret(self) -> bytes:
        """The secret under which this origin makes aliases, 32 bytes; it is the same after every start."""
        return alias_secret_of(bytes(self._host.note_key))

    def announce_alias(self, alias: bytes, output_id: bytes) -> None:
        """Let an output that was reserved, and still streams, be found by an alias, too."""
        self._engine.waiting.announce_alias(alias, output_id)

    async def resolve(self, alias: bytes) -> bytes | None:
        """Return the id of the newest output of an alias, one on its way included; None where there is none, or no
        more. Raises StoreError."""
        output_id = self._engine.waiting.resolve(alias)
        if output_id is not None:
            return output_id
        try:
            return await asyncio.to_thread(self._host.store.by_alias, alias)
        except NotFound:
            return None

    async def fetch(self, output_id: bytes, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Return the attestation of an output, waiting up to `timeout` seconds for one that is on its way;
        `STATEMENT_ID` stands for the host's newest statement.

        Raises:
            UnknownOutput: there is none, or no more.
            Unavailable: its commit failed.
            TimeoutError: it was still on its way.
        """
        if output_id == STATEMENT_ID:
            return (await asyncio.to_thread(self._running[2].statement))[1]
        async with asyncio.timeout(timeout):
            delivered = await self._engine.waiting.ask(output_id)
        if delivered is not None:
            return delivered.encoded
        return await asyncio.to_thread(self._running[2].attestation, output_id)

    async def declare(self, declaration: Declaration) -> None:
        """State in the log which answers are attested from now on, unless the newest statement says so already.

        Raises Unavailable, Busy; StartRefused where the text is too long.
        """
        await declare(*self._running, declaration)

    # -- platform

    async def fresh_quote(self, nonce: bytes, *, model: str | None = None) -> bytes:
        """Return a fresh quote over a caller's nonce of 8 to 64 bytes (artefact kind 19).

        With `model`, the events of that model and of its engine stand in it in full.

        Raises:
            NotQuotable: the origin has no TPM.
            Unavailable: nothing can be quoted now.
            Busy: too many wait already.
            NotServed: the model is not measured.
            ValueError: the nonce has another length.
        """
        return await fresh_quote(self._host, self._engine, nonce, model)

    async def expire(self, before: int) -> int:
        """Delete the records of outputs older than `before` (milliseconds since the epoch) and return how many.

        Their attestations can no longer be fetched; the tree keeps their entries. Raises StoreError.
        """
        return await self._host.background.run(lambda: self._host.store.expire(before))

    @property
    def workload(self) -> Workload:
        """What the epoch in force lists."""
        return self._engine.epochs.workload

    async def begin_epoch(self, workload: Workload) -> None:
        """Put a new, full list of what may serve in force. Outputs handed in before are committed under the old
        one; outputs handed in meanwhile wait. Raises Unavailable or Busy, and then the old list stays."""
        await self._engine.begin_epoch(workload)

    async def reload_certificates(self) -> None:
        """Take up newly installed AK certificates. Raises StateError or Unavailable."""
        await self._engine.reload_certificates()

    def alive(self, limit: float) -> bool:
        """Tell whether the engine's task runs, and has not been at one thing for more than `limit` seconds."""
        return self._parts is not None and self._engine.alive(limit)

    def status(self) -> dict[str, Any]:
        """Return what an operator wants to see, as JSON can hold it."""
        return status_of(self._host, self._engine, self.models)


__all__ = [
    "CRASH_POINTS",
    "Agent",
    "AgentError",
    "BootLogSettings",
    "Busy",
    "Delivered",
    "NewOutput",
    "NotQuotable",
    "NotServed",
    "StartRefused",
    "Unavailable",
    "UnknownOutput",
    "World",
]
