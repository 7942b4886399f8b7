# SPDX-License-Identifier: Apache-2.0
"""Making a new origin: note key, genesis record, and the log with leaf 0 (design section 3, "Genesis record")."""

from __future__ import annotations

from pathlib import Path

from nacl.signing import SigningKey

from quotary_attest.engine.host import World
from quotary_attest.log.journal import StagedBatch
from quotary_attest.log.store import Store
from quotary_attest.state import HostIdentity, create_state, make_state_folder
from quotary_attest.tpm.model import TpmIdentity
from quotary_verifier.wire.names import check_host
from quotary_verifier.wire.records import SALT_BYTES, Genesis
from quotary_verifier.wire.records import TpmIdentity as GenesisTpm

_SEED_BYTES = 32


def init_state(
    folder: Path, host: str, tpm: TpmIdentity, *, counter: int, world: World | None = None
) -> HostIdentity:
    """Make a new origin on a TPM in an empty folder: note key, genesis record, and the log with its leaf 0.

    `tpm` is what `quotary_attest.tpm.keys.make_identity` made and `counter` the start counter's value now. No PCR
    is touched: leaf 0 is staged, and history to the first start.

    Raises:
        StateError: the folder is not empty or cannot be made.
        MalformedError: the host is not a DNS name.
        StoreError: the disk failed.
    """
    keys = GenesisTpm(tpm.ak_public, tpm.parent_name, tpm.chain_pcr, tpm.workload_pcr, tpm.nv_public)
    return _init(folder, host, world or World(), tpm, keys, counter)


def init_tee_state(folder: Path, host: str, *, world: World | None = None) -> HostIdentity:
    """Make a new origin without a TPM in an empty folder. Which roots bind its commits is said when an agent runs.

    Raises as `init_state`.
    """
    return _init(folder, host, world or World(), None, None, None)


def _init(
    folder: Path,
    host: str,
    world: World,
    tpm: TpmIdentity | None,
    keys: GenesisTpm | None,
    counter: int | None,
) -> HostIdentity:
    check_host(host)
    make_state_folder(folder)
    seed, moment = world.random(_SEED_BYTES), world.now()
    genesis = Genesis(
        salt=world.random(SALT_BYTES),
        time=moment,
        host=host,
        note_key=bytes(SigningKey(seed).verify_key),
        tpm=keys,
    ).encode()
    store = Store.open(folder / "log")
    try:
        store.put_blob(genesis)
        store.stage(StagedBatch(0, 0, b"", b"", b"", [genesis], [None], [moment], [None]))
    finally:
        store.close()
    identity = HostIdentity(genesis, seed, tpm)
    create_state(folder, identity, counter)
    return identity
