# SPDX-License-Identifier: Apache-2.0
"""What every part of the engine works with: the origin's keys, the log, the root, and the world around."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.signing import SigningKey

from quotary_attest.bootlogs import NO_BOOT_LOGS, BootLogSettings
from quotary_attest.engine.bootlogs import BootLogs, Named
from quotary_attest.engine.endorsing import AkEndorsements
from quotary_attest.engine.further import FurtherRoots
from quotary_attest.engine.outputs import Random, RandomPool, wall_clock
from quotary_attest.log.store import Store
from quotary_attest.metrics import NO_METRICS, Metrics
from quotary_attest.roots import Root, RootError, RootGone
from quotary_attest.state import HostIdentity, StateError, StateFolder, read_certificates
from quotary_verifier.evidence.tpm_keys import AttestationKey, attestation_key
from quotary_verifier.wire.records import TpmIdentity
from quotary_verifier.wire.tpm_public import parse_public

T = TypeVar("T")


def _nothing(_name: str) -> None:
    """The crash point of every agent that is not under test."""


def _idle() -> None:
    """Do nothing: after this job a thread has done all jobs before it; and the default use of spare time."""


@dataclass(frozen=True, slots=True)
class World:
    """Time, chance and crash points, injected by tests, and what to do with time that nobody waits for.

    `now` is the wall clock in milliseconds since the epoch, `monotonic` in seconds. `crash` is called with
    the name of each step of starting and committing (`CRASH_POINTS`). `spare` is called once a commit, on the event
    loop, while the root works and nothing is left to do until it answers.
    """

    now: Callable[[], int] = wall_clock
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Random = field(default_factory=RandomPool)
    crash: Callable[[str], None] = _nothing
    spare: Callable[[], None] = _idle


CRASH_POINTS = (
    "counter-on-disk",  # the start counter's next value is on disk, the counter not yet incremented
    "counter-incremented",
    "event-on-disk",  # a workload event is on disk, not yet extended
    "event-extended",
    "staged",  # records and intended note are on disk
    "extended",  # the chain PCR has been extended, nothing quoted
    "quoted",  # the evidence is in memory only
    "boot-log-on-disk",  # what the commit names first of a boot log is stored; only where a log has grown
    "in-history",  # the commit is in the history, nobody has been answered
    "applied",  # tree and records are updated
    "synced",  # and fsynced; the journal is gone
)
"""The steps at which `World.crash` is called, in their order; those from "staged" on to "in-history" come on the root's
thread. Without a TPM there are those from "staged" on, but "extended" and "boot-log-on-disk"."""


class FileThread:
    """A thread on which work waits for the disk, so that the event loop never does.

    There are two: staging and history on one, tree and records on the other (`quotary_attest.log.store`).
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"quotary-{name}")

    async def run(self, job: Callable[[], T]) -> T:
        """Run `job` after all jobs before it. A cancelled caller does not stop it."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._pool, job))

    def close(self) -> None:
        """End the thread after its last job."""
        self._pool.shutdown(wait=True)


class Host:
    """An origin on this host: its identity and note key, its log, the roots that bind its commits.

    What an origin lives on is said by its class: `TpmHost` or `TeeHost`.
    """

    def __init__(
        self,
        folder: StateFolder,
        identity: HostIdentity,
        store: Store,
        world: World,
        metrics: Metrics = NO_METRICS,
        further: FurtherRoots | None = None,
    ) -> None:
        self.state = folder
        self.folder = folder.path
        self.genesis_record = identity.genesis_record
        self.origin = identity.origin
        self.note_key = SigningKey(identity.note_seed)
        self.store = store
        self.world = world
        self.metrics = metrics
        self.further = further or FurtherRoots((), identity, world.now)
        self.files = FileThread("files")
        self.background = FileThread("records")
        self.certificates: tuple[bytes, ...] = ()
        self.certificate_names: tuple[bytes, ...] = ()
        self.certificate_expiry: int | None = None

    def carried(self, logs: Named) -> dict[str, bytes]:
        """Return what the attestations of a commit carry of the boot logs that it names: their digests."""
        del logs
        return {}

    async def load_certificates(self) -> None:
        """Do nothing where no attestation key is there to be certified."""

    async def renew_endorsements(self) -> None:
        """Do nothing where no attestation key is there to be endorsed."""

    async def close(self) -> None:
        """Close roots, log and folder, in that order; what is applied is synced first."""
        await self.further.close()
        await self.files.run(_idle)  # a cancelled commit may still be writing what is closed next
        try:
            await self.background.run(self.store.close)
        finally:
            self.files.close()
            self.background.close()
            self.state.close()


class TeeHost(Host):
    """An origin without a TPM: required roots bind every commit. No chain, counter, workload log or boot logs."""


class TpmHost(Host):
    """An origin with an attestation key in a TPM, which binds every commit; other roots add to it."""

    def __init__(
        self,
        folder: StateFolder,
        identity: HostIdentity,
        store: Store,
        root: Root,
        world: World,
        metrics: Metrics = NO_METRICS,
        boot_logs: BootLogSettings = NO_BOOT_LOGS,
        further: FurtherRoots | None = None,
        endorsements: AkEndorsements | None = None,
    ) -> None:
        super().__init__(folder, identity, store, world, metrics, further)
        tpm = identity.genesis.tpm
        if tpm is None:
            raise StateError("the genesis record names no tpm")
        self.tpm: TpmIdentity = tpm
        self.software_tpm = identity.tpm_keys.properties.is_software
        self.ak: AttestationKey = attestation_key(parse_public(tpm.ak), tpm.ak_parent)
        self.ak_spki = self.ak.public.to_spki_der()
        self.root = root
        self.endorsements = endorsements or AkEndorsements()
        self._carries = boot_logs.carried
        self.boot_logs = BootLogs(boot_logs, store, (tpm.chain_pcr, tpm.workload_pcr), world.crash)

    @property
    def own_pcrs(self) -> tuple[int, int]:
        """Chain PCR and workload PCR."""
        return self.tpm.chain_pcr, self.tpm.workload_pcr

    def carried(self, logs: Named) -> dict[str, bytes]:
        """Return what the attestations of a commit carry of the boot logs that it names: their digests."""
        return {name: digest for name, (digest, _) in logs.items()} if self._carries else {}

    async def load_certificates(self) -> None:
        """Read the installed certificate path and store its blobs.

        Raises:
            StateError: a certificate is damaged, or the first is not the AK's.
        """
        found = read_certificates(self.folder)
        check_leaf(found, self.ak_spki)
        names = await self.files.run(lambda: tuple(self.store.put_blob(der) for der in found))
        self.certificates, self.certificate_names = found, names
        leaf = x509.load_der_x509_certificate(found[0]) if found else None
        self.certificate_expiry = None if leaf is None else int(leaf.not_valid_after_utc.timestamp())

    async def find_endorsements(self) -> None:
        """Look for what hardware says of the AK in this boot. Raises as `AkEndorsements.find`."""
        await self.endorsements.find(self.root, self.ak.public, self.store.put_blob)

    async def renew_endorsements(self) -> None:
        """Look again for what hardware says of the AK. Raises StateError where nothing is, RootGone, StoreError."""
        try:
            await self.endorsements.renew(self.root, self.ak.public, self.store.put_blob)
        except RootGone:
            raise
        except RootError as error:  # no reason to stop: what there was holds on
            raise StateError(str(error), hint=error.hint) from error

    async def close(self) -> None:
        """Close roots, log and folder, in that order; what is applied is synced first."""
        await self.root.close()
        await super().close()


def check_leaf(certificates: Sequence[bytes], spki: bytes) -> None:
    """Check that a path, leaf first, begins with the certificate of the AK with this SPKI.

    Raises:
        StateError: it does not, or a certificate cannot be read.
    """
    try:
        leaves = [x509.load_der_x509_certificate(der) for der in certificates]
    except ValueError as error:
        raise StateError(f"an installed certificate cannot be read: {error}") from error
    if not leaves:
        return
    key = leaves[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key != spki:
        raise StateError(
            "the first installed certificate is not of this origin's attestation key",
            hint="install the certificates that the ca issued for this host: leaf first, root left out",
        )


def check_root(identity: HostIdentity, root: Root) -> None:
    """Raise StateError where the root was opened for other PCRs than the genesis record names."""
    keys = identity.tpm_keys
    if (root.chain_pcr, root.workload_pcr) != (keys.chain_pcr, keys.workload_pcr):
        raise StateError(
            "the root was opened for another origin: its pcrs are not those of the genesis record"
        )
