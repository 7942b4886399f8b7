# SPDX-License-Identifier: Apache-2.0
"""Fill a store with leaves quickly, for benchmarks that need a large log.

Every leaf is a well-formed output record with its row, and everything is written by the store's own classes; only
the journal is left out, so that a crash while filling leaves a folder that cannot be used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from quotary_attest.log.journal import StagedBatch
from quotary_attest.log.store import Store
from quotary_attest.log.tree import Growth, entry_hashes
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.note import Note, SignatureLine
from quotary_verifier.wire.history import Commit
from quotary_verifier.wire.records import Output, Source, State

MakeCommit = Callable[[StagedBatch, Growth], Commit]
"""Makes the commit of a batch; the commit's note begins with `batch.note`, which is its text."""

_SYNC_EVERY = 1 << 17


def prefill(
    store: Store, leaves: int, *, origin: str, batch: int = 2000, make_commit: MakeCommit | None = None
) -> None:
    """Append `leaves` output records to the store in commits of `batch`, and sync.

    Without `make_commit` the notes carry one line of no key: enough for the log, not for a verifier.
    """
    make_commit = make_commit or (lambda batch, _: unsigned_commit(batch))
    template = _Template.make()
    end = store.size + leaves
    while store.size < end:
        columns = template.columns(store.size, min(batch, end - store.size))
        staged = StagedBatch(store.size, store.size, b"", bytes(32), bytes(32), *columns)
        entries = staged.entries()
        growth = store.edge.extended(entry_hashes(entries))
        text = Checkpoint(origin, growth.size, growth.root).text
        staged = StagedBatch(staged.start, staged.first, text, bytes(32), bytes(32), *columns)
        store.commit(make_commit(staged, growth), staged, growth)
        store.apply(staged, growth, entries)
        if store.unsynced >= _SYNC_EVERY:
            store.sync()
    store.sync()


def one_batch(store: Store, count: int, *, origin: str) -> tuple[float, StagedBatch, Growth, list[bytes]]:
    """Return when its making began (perf_counter), the next batch of `count` leaves, its growth and its entries.

    Making the records does not count, and hashing, tree, paths and note do: a batch is timed from there on.
    """
    columns = _Template.make().columns(store.size, count)
    begun = time.perf_counter()
    bare = StagedBatch(store.size, store.size, b"", bytes(32), bytes(32), *columns)
    entries = bare.entries()
    growth = store.edge.extended(entry_hashes(entries))
    growth.paths()
    text = Checkpoint(origin, growth.size, growth.root).text
    return begun, StagedBatch(bare.start, bare.first, text, bytes(32), bytes(32), *columns), growth, entries


def unsigned_commit(batch: StagedBatch) -> Commit:
    """A commit whose note carries one line of no key."""
    origin = batch.note.split(b"\n", 1)[0].decode()
    line = SignatureLine(origin, bytes(4), bytes(64))
    return Commit(batch.first, Note(batch.note, (line,)).encode(), ())


@dataclass(frozen=True, slots=True)
class _Template:
    """An encoded output record, cut around its salt, its output id and its body digest."""

    head: bytes
    middle: bytes
    before_digest: bytes
    tail: bytes
    time: int

    @classmethod
    def make(cls) -> _Template:
        """Encode one record with recognisable values in the three places."""
        salt, output_id, digest = b"\xa1" * 16, b"\xa2" * 24, b"\xa3" * 32
        now = time.time_ns() // 1_000_000
        record = Output(
            salt=salt,
            time=now,
            output_id=output_id,
            state=State.COMPLETE,
            digests={"body": digest, "text/0": b"\xa4" * 32},
            request=b"\xa5" * 32,
            nonce=None,
            model=None,
            context={"endpoint": "/v1/chat/completions", "engine": "prefill"},
            source=Source.SUBMITTED,
        ).encode()
        head, rest = record.split(salt)
        middle, rest = rest.split(output_id)
        before_digest, tail = rest.split(digest)
        return cls(head, middle, before_digest, tail, now)

    def columns(
        self, start: int, count: int
    ) -> tuple[list[bytes], list[bytes | None], list[int], list[bytes | None]]:
        """Return records, output ids, times and request keys of `count` leaves, unlike any other ones."""
        noise = os.urandom(112 * count)
        # the first six bytes of a UUIDv7 are its time in milliseconds: ids grow, and so does their index
        ids = [
            (self.time + (start + at // 112) // 16).to_bytes(6) + noise[at : at + 18]
            for at in range(0, 112 * count, 112)
        ]
        records = [
            b"".join(
                (
                    self.head,
                    noise[at + 24 : at + 40],
                    self.middle,
                    output_id,
                    self.before_digest,
                    noise[at + 40 : at + 72],
                    self.tail,
                )
            )
            for at, output_id in zip(range(0, 112 * count, 112), ids, strict=True)
        ]
        keys: list[bytes | None] = [noise[at + 80 : at + 112] for at in range(0, 112 * count, 112)]
        return records, list(ids), [self.time] * count, keys
