# SPDX-License-Identifier: Apache-2.0
"""Batches and commits for a store, with notes that carry one line of no key, and the leaves kept for comparison."""

from __future__ import annotations

from hashlib import sha256
from itertools import count

from quotary_attest.log.journal import StagedBatch
from quotary_attest.log.store import Store
from quotary_attest.log.tree import entry_hashes
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.note import Note, SignatureLine
from quotary_verifier.wire.history import Commit, CommitSupport

ORIGIN = "log.example/" + "a" * 32
_serial = count()


def output_id(serial: int) -> bytes:
    """The 24 bytes of an output id."""
    return serial.to_bytes(24)


def alias(serial: int) -> bytes:
    """The alias of every other output."""
    return sha256(b"alias %d" % serial).digest()


def batch_for(
    store: Store, leaves: int, *, public: int = 0, time: int = 1000, record_bytes: int = 40
) -> StagedBatch:
    """A batch that continues the store: `public` records without an output id, then outputs."""
    serials = [next(_serial) for _ in range(leaves)]
    records = [sha256(b"%d" % serial).digest().ljust(record_bytes, b".") for serial in serials]
    entries = [sha256(record).digest() for record in records]
    growth = store.edge.extended(entry_hashes(entries))
    return StagedBatch(
        start=store.size,
        first=store.size,
        note=Checkpoint(ORIGIN, growth.size, growth.root).text,
        before=sha256(b"before %d" % store.size).digest(),
        digest=sha256(b"digest %d" % store.size).digest(),
        records=records,
        output_ids=[None] * public + [output_id(serial) for serial in serials[public:]],
        times=[time + place for place in range(leaves)],
        request_keys=[None if serial % 3 else sha256(b"key %d" % serial).digest() for serial in serials],
        aliases=[None if serial % 2 else alias(serial) for serial in serials],
    )


def commit_for(batch: StagedBatch) -> Commit:
    """A commit of the batch, with one support."""
    note = Note(batch.note, (SignatureLine(ORIGIN, b"line", b"\x01" * 64),)).encode()
    support = CommitSupport(
        identifier="quotary/tpm2-quote/v1",
        pcrs={0: b"\x07" * 32, 7: b"\x08" * 32},
        chain_before=batch.before,
        certificates=(b"\x09" * 32,),
        workload_log=(b"\x0a" * 32, 100),
    )
    return Commit(batch.first, note, (support,))


def append(store: Store, leaves: int, *, sync: bool = False, **options: int) -> StagedBatch:
    """Stage, commit and apply a batch, and sync if asked to."""
    batch = batch_for(store, leaves, **options)
    store.stage(batch)
    store.commit(commit_for(batch), batch)
    store.apply(batch)
    if sync:
        store.sync()
    return batch


def leaf_hashes_of(batches: list[StagedBatch]) -> list[bytes]:
    """The leaf hashes of the batches in order."""
    return [leaf for batch in batches for leaf in entry_hashes(batch.entries())]
