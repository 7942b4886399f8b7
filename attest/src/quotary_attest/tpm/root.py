# SPDX-License-Identifier: Apache-2.0
"""The TPM as the root of an origin: the asynchronous face of `session`.

Each method is one job of the connection's thread. When the transport fails the root stays "gone", every call
says so at once, and `reconnect` makes a fresh connection.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from quotary_attest.roots import CommitSteps, PlatformState, Quote
from quotary_attest.tpm.connection import Connection, Retry
from quotary_attest.tpm.errors import TpmGone
from quotary_attest.tpm.ima import DEFAULT_LOG, ImaReplay
from quotary_attest.tpm.model import Authorizations, TpmIdentity
from quotary_attest.tpm.session import Session
from quotary_attest.tpm.worker import Worker
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE

T = TypeVar("T")


def suspended_seconds() -> float:
    """Seconds this system has slept since it booted: Linux counts them in one clock and not in the other."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


@dataclass(frozen=True, slots=True)
class TpmOptions:
    """How to reach and use a TPM. `deadline` in seconds bounds one job; `ima_log` may be absent."""

    authorizations: Authorizations = field(default_factory=Authorizations)
    retry: Retry = field(default_factory=Retry)
    deadline: float = 120.0
    ima_log: Path = DEFAULT_LOG
    suspended: Callable[[], float] = suspended_seconds


async def open_root(identity: TpmIdentity, tcti: str, options: TpmOptions | None = None) -> TpmRoot:
    """Connect to a TPM, load an identity's keys, and read the platform.

    Raises TpmGone when the TPM cannot be reached, TpmForeignKey when the identity is another TPM's,
    TpmConflict when the start counter is gone or another, TpmUnsupported when there is no such TCTI.
    """
    root = TpmRoot(identity, tcti, options or TpmOptions())
    await root.reconnect()
    return root


class TpmRoot:
    """Implements `quotary_attest.roots.Root`. Make it with `open_root`."""

    def __init__(self, identity: TpmIdentity, tcti: str, options: TpmOptions) -> None:
        self.identity = identity
        self.tcti = tcti
        self._options = options
        self._worker: Worker | None = None
        self._session: Session | None = None

    @property
    def identifier(self) -> str:
        """The identifier of its hardware line."""
        return IDENTIFIER_TPM2_QUOTE

    @property
    def chain_pcr(self) -> int:
        """Number of the PCR that chains the commits."""
        return self.identity.chain_pcr

    @property
    def workload_pcr(self) -> int:
        """Number of the PCR that the workload log extends."""
        return self.identity.workload_pcr

    @property
    def gone(self) -> bool:
        """True after the transport failed and until `reconnect` succeeds."""
        return self._session is None

    async def platform(self) -> PlatformState:
        """Read clock and PCRs; see `Root.platform`."""
        return await self._run(lambda session: session.platform())

    async def extend_chain(self, digest: bytes) -> None:
        """Extend the chain PCR alone; see `Root.extend_chain`."""
        await self._run(lambda session: session.extend(self.chain_pcr, digest))

    async def extend_workload(self, digest: bytes) -> None:
        """Extend the workload PCR; see `Root.extend_workload`."""
        await self._run(lambda session: session.extend(self.workload_pcr, digest))

    async def quote(self, extra_data: bytes) -> Quote:
        """Quote PCRs 0-15; see `Root.quote`."""
        return await self._run(lambda session: session.quote(extra_data))

    async def commit(self, digest: bytes, steps: CommitSteps | None = None) -> Quote:
        """Extend the chain PCR and quote the same digest; see `Root.commit`."""
        return await self._run(lambda session: session.commit(digest, steps or CommitSteps()))

    async def read_counter(self) -> int:
        """The start counter's value."""
        return await self._run(lambda session: session.read_counter())

    async def increment_counter(self) -> int:
        """Add one to the start counter; see `Root.increment_counter`."""
        return await self._run(lambda session: session.increment_counter())

    async def certify_counter(self, extra_data: bytes) -> bytes:
        """NV_Certify of the start counter; see `Root.certify_counter`."""
        return await self._run(lambda session: session.certify_counter(extra_data))

    async def run(self, job: Callable[[Connection], T]) -> T:
        """Run another job on this connection's thread, such as reading EK certificates."""
        return await self._run(lambda session: job(session.connection))

    async def reconnect(self) -> PlatformState:
        """Leave the old connection, if any, and make a fresh one; see `Root.reconnect`."""
        await self.close()
        worker = Worker(deadline=self._options.deadline)
        try:
            session = await worker.run(self._open)
        except BaseException:
            worker.stop()
            raise
        self._worker, self._session = worker, session
        return await self.platform()

    def _open(self) -> Session:
        options = self._options
        connection = Connection(self.tcti, retry=options.retry)
        try:
            return Session(
                connection,
                self.identity,
                options.authorizations,
                ima=ImaReplay(options.ima_log, (self.chain_pcr, self.workload_pcr)),
                suspended=options.suspended,
            )
        except BaseException:
            connection.close()
            raise

    async def close(self) -> None:
        """Flush the AK and close the connection; see `Root.close`."""
        worker, session = self._worker, self._session
        self._worker = self._session = None
        if worker is None or worker.dead:
            return
        with contextlib.suppress(TpmGone):
            if session is not None:
                await worker.run(session.close)
        worker.stop()

    async def _run(self, job: Callable[[Session], T]) -> T:
        """Run a job; a failed transport leaves the root gone."""
        worker, session = self._worker, self._session
        if worker is None or session is None:
            raise TpmGone(
                "the connection to the tpm is closed", hint="it is made anew as soon as the tpm answers"
            )
        try:
            return await worker.run(lambda: session.perform(job))
        except TpmGone:
            await self._abandon(worker, session)
            raise

    async def _abandon(self, worker: Worker, session: Session) -> None:
        """Drop a connection whose transport failed; several waiting jobs may find out at once."""
        if self._session is session:
            self._worker = self._session = None
        if not worker.dead:
            with contextlib.suppress(TpmGone):
                await worker.run(session.connection.close)
            worker.stop()
