# SPDX-License-Identifier: Apache-2.0
"""Opening an origin: its state folder, its log, and the roots that it lives on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from quotary_attest.bootlogs import IMA_LOG, BootLogSettings
from quotary_attest.engine.endorsing import AkEndorsements, Endorsing
from quotary_attest.engine.further import FurtherRoot, FurtherRoots, check_anchored, close_all
from quotary_attest.engine.host import Host, TeeHost, TpmHost, World, check_root
from quotary_attest.log.store import Store
from quotary_attest.metrics import Metrics
from quotary_attest.roots import Root
from quotary_attest.state import HostIdentity, StateFolder, read_identity
from quotary_attest.tpm.model import TpmIdentity
from quotary_verifier.evidence.tee.lines import TeeRoots


@dataclass(frozen=True, slots=True)
class Opening:
    """What an agent was given to open its origin with; see `quotary_attest.agent.Agent`."""

    folder: Path
    tpm: str
    root: Root | None
    world: World
    metrics: Metrics
    boot_logs: BootLogSettings
    roots: tuple[FurtherRoot, ...]
    endorsing: Endorsing | None
    tee_roots: TeeRoots | None

    async def open(self) -> Host:
        """Lock the folder, reach the TPM if the origin has one, and recover the log; a failure gives all of it back.

        Raises:
            StateError: the folder is in use, absent or damaged, or these roots are not what its origin lives on.
            RootError: the root failed.
            StoreError: the disk failed, or the log is damaged.
        """
        root, state = self.root, None
        try:
            state = StateFolder(self.folder)
            identity = read_identity(self.folder)
            if root is None and identity.tpm is not None:
                root = await _reach(identity.tpm, self.tpm, self.boot_logs)
            return await self._host(state, identity, root)
        except BaseException:
            await close_all(self.roots)
            if state is not None:
                state.close()
            if root is not None:
                await root.close()
            raise

    async def _host(self, state: StateFolder, identity: HostIdentity, root: Root | None) -> Host:
        if root is None:
            check_anchored(self.roots)
        else:
            check_root(identity, root)
        further = FurtherRoots(self.roots, identity, self.world.now, self.tee_roots)
        store = await asyncio.to_thread(Store.open, state.log)
        if root is None:
            return TeeHost(state, identity, store, self.world, self.metrics, further)
        known = AkEndorsements(self.endorsing, self.world.now, self.tee_roots)
        return TpmHost(state, identity, store, root, self.world, self.metrics, self.boot_logs, further, known)


async def _reach(keys: TpmIdentity, tpm: str, logs: BootLogSettings) -> Root:
    """Open the root on a TPM. The import is late: what needs no TPM has none of its libraries."""
    from quotary_attest.tpm.root import TpmOptions, open_root

    return await open_root(keys, tpm, TpmOptions(ima_log=logs.ima or IMA_LOG))
