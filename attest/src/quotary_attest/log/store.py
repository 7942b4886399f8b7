# SPDX-License-Identifier: Apache-2.0
"""The store: one log's state folder, written in the order that survives a crash at any point.

::

    stage    journal                         fsynced   the batch is on disk; now the TPM may hear of it
    commit   history, index of commits       fsynced   the commit counts; now its callers may be answered
    apply    entries, tiles, rows            no fsync  proofs, records and serving know the leaves
    sync     entries, tiles, rows            fsynced   the journals of these leaves are removed

`stage` and `commit` belong to one thread, `apply`, `sync` and `expire` to one thread (the same or another); the
two may run at the same time, and batches are applied in the order of their commits. Everything else reads, from
any thread. What is served ends with the last batch applied, so that checkpoint, tiles and history fit together.

An operation that raises StorageFull may be tried again. After StorageFailed nothing is written any more, as the
kernel may have dropped what it could not write: reopen the store, which recovers from the journals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from quotary_attest.log.blobs import Blobs, is_blob_name
from quotary_attest.log.durable import make_folder
from quotary_attest.log.errors import DamagedError, NotFound, StorageFailed
from quotary_attest.log.growing import GrowingLogs
from quotary_attest.log.hashes import HashTree
from quotary_attest.log.history import History
from quotary_attest.log.journal import Journal, StagedBatch
from quotary_attest.log.records import Prefix, Records, StoredRecord
from quotary_attest.log.recovery import RecoveryReport, put_public_records, recover
from quotary_attest.log.serving import Published, serve
from quotary_attest.log.tree import (
    Growth,
    RightEdge,
    consistency_proof,
    entry_hashes,
    inclusion_path,
    tree_root,
)
from quotary_verifier.errors import QuotaryError
from quotary_verifier.wire.history import Commit


@dataclass(frozen=True, slots=True)
class StoredCommit:
    """A commit of the history: its number, its leaves [start, size), the index it claims from, its content."""

    number: int
    start: int
    first: int
    size: int
    commit: Commit


@dataclass(frozen=True, slots=True)
class AttestationParts:
    """What the log holds of an output's attestation: `path` leads from leaf `index` to the root of the commit."""

    index: int
    record: bytes
    request_key: bytes | None
    path: bytes
    commit: StoredCommit


class Store:
    """The log of one origin on disk; see the module for who may call what, and when."""

    def __init__(self, folder: Path) -> None:
        """Use `Store.open`."""
        make_folder(folder)
        self.folder = folder
        self._failed = False
        with ExitStack() as opened:
            self._journal = Journal(folder / "journal")
            self._history = History(folder)
            opened.callback(self._history.close)
            self._tree = HashTree(folder)
            opened.callback(self._tree.close)
            self._records = Records(folder / "records.sqlite")
            opened.callback(self._records.close)
            self._blobs = Blobs(folder)
            self._growing = GrowingLogs(folder / "boot")
            self._named: dict[bytes, Prefix] = {}
            self._report, self._durable = recover(
                self._journal, self._history, self._tree, self._records, self._blobs, self._growing
            )
            self._load()
            self._opened = opened.pop_all()

    def _load(self) -> None:
        """Read what is kept in memory: the last commit and the right edge."""
        self._last = self._commit(self._history.count - 1) if self._history.count else None
        self._edge = RightEdge.load(self.size, self._tree.node)
        self._published = Published(
            self.size, self._history.count, self._last.commit.note if self._last else b""
        )
        self._waiting: deque[StoredCommit] = deque()

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open the log in `folder`, creating an empty one, and recover from whatever a crash left.

        The caller holds the lock of the state folder. Reads the right edge, the last commits and the journals
        only, however large the log is. Raises DamagedError where something acknowledged is missing, StorageFull
        or StorageFailed where the disk does not let it work.
        """
        return cls(folder)

    @property
    def report(self) -> RecoveryReport:
        """What opening found and mended."""
        return self._report

    @property
    def size(self) -> int:
        """The number of leaves that are committed: the size of the last commit."""
        return self._last.size if self._last else 0

    @property
    def applied(self) -> int:
        """The number of leaves that reading knows; below `size` while a batch waits for `apply`."""
        return self._published.size

    @property
    def published(self) -> tuple[int, int]:
        """The number of commits and of leaves that are published, of one moment."""
        published = self._published
        return published.commits, published.size

    @property
    def unsynced(self) -> int:
        """The number of applied leaves that still need their journals: a measure of when to call `sync`."""
        return self._published.size - self._durable

    @property
    def edge(self) -> RightEdge:
        """The right edge of the tree at `size`; `edge.extended(leaf hashes)` is what the next batch makes of it."""
        return self._edge

    @property
    def commits(self) -> int:
        """The number of commits in the history."""
        return self._history.count

    @property
    def last_commit(self) -> StoredCommit | None:
        """The last commit of the history; None in a new log."""
        return self._last

    # -- writing

    def stage(self, batch: StagedBatch) -> None:
        """Put a batch on disk, durable; it replaces one that is staged already.

        Raises ValueError for a batch that does not continue the log or whose commit could not claim from
        `first`; StorageFull or StorageFailed, and then what was staged before still is.
        """
        if batch.start != self.size or not batch.start <= batch.first < batch.size:
            raise ValueError("the batch does not begin where the log ends, or claims from outside of itself")
        with self._writing():
            self._journal.write(batch)

    def staged(self) -> StagedBatch | None:
        """Return the batch that is on disk without its commit, None where there is none."""
        return self._journal.read(self.size)

    def discard_staged(self) -> None:
        """Forget the staged batch: only before any root was asked to bind it."""
        self._journal.remove(self.size)

    def commit(self, commit: Commit, batch: StagedBatch, growth: Growth | None = None) -> StoredCommit:
        """Append the commit of the staged batch to the history, durable; `growth` saves hashing the tree again.

        The caller has checked the evidence. Raises ValueError for a commit that is not that of this batch;
        StorageFull or StorageFailed, and then the commit does not count and the batch is still staged.
        """
        if batch.start != self.size or commit.first != batch.first or not commit.note.startswith(batch.note):
            raise ValueError("the commit is not the one that was staged")
        growth = growth or self._edge.extended(entry_hashes(batch.entries()))
        if (growth.start, growth.size) != (batch.start, batch.size):
            raise ValueError("the tree was not grown by this batch")
        with self._writing():
            number = self._history.append(commit.encode(), batch.start, batch.first, batch.size)
        stored = StoredCommit(number, batch.start, batch.first, batch.size, commit)
        self._edge = growth.edge
        self._last = stored
        self._waiting.append(stored)
        return stored

    def apply(
        self, batch: StagedBatch, growth: Growth | None = None, entries: list[bytes] | None = None
    ) -> None:
        """Write the entries, tile nodes, rows and public records of the oldest commit that is not yet applied.

        `growth` and `entries` save hashing again. Raises ValueError for any other batch; StorageFull or
        StorageFailed, and then nothing of the batch is known to readers and it can be applied again.
        """
        stored = self._waiting[0] if self._waiting else None
        if stored is None or (batch.start, batch.size) != (stored.start, stored.size):
            raise ValueError("this is not the batch of the next commit to apply")
        entries = entries if entries is not None else batch.entries()
        growth = growth or RightEdge.load(batch.start, self._tree.node).extended(entry_hashes(entries))
        with self._writing():
            self._tree.append(entries, growth)
            put_public_records(self._blobs, batch)
            named = [digest for digest, _ in stored.commit.boot_logs.values() if digest in self._named]
            self._records.insert(batch, [self._named[digest] for digest in named])
        for digest in named:
            del self._named[digest]
        self._waiting.popleft()
        self._published = Published(stored.size, stored.number + 1, stored.commit.note)

    def sync(self) -> None:
        """Make all that is applied durable, then remove its journals. Raises StorageFull or StorageFailed."""
        size = self._published.size
        if size == self._durable:
            return
        with self._writing():
            self._tree.sync()
            self._records.sync(size)
            self._journal.remove_below(size)
            self._durable = size

    def expire(self, before_ms: int, *, batches: int = 256) -> int:
        """Delete records of outputs older than a time and return how many; their entries stay in the tree.

        One call works on at most `batches` batches, so that commits are not kept from being applied for long:
        call it until it returns 0. Syncs first, so that no journal can bring a record back.
        """
        self.sync()
        with self._writing():
            return self._records.expire(before_ms, batches)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Refuse to write after a failure that leaves open what is on disk, and remember such a failure."""
        if self._failed:
            raise StorageFailed(
                "the store failed before", hint="restart the agent: it recovers what was committed"
            )
        try:
            yield
        except StorageFailed:
            self._failed = True
            raise

    # -- reading

    def root(self, size: int) -> bytes:
        """Return the root of the tree of the first `size` leaves. Raises NotFound above `applied`."""
        self._known(size)
        return tree_root(self._tree.node, size)

    def proof(self, index: int, size: int) -> bytes:
        """Return the inclusion path of a leaf in the tree of `size` leaves, 32·k bytes; O(log n) reads.

        Raises NotFound where `size` is above `applied` or the leaf is not below it.
        """
        self._known(size)
        if not 0 <= index < size:
            raise NotFound(f"leaf {index} is not in a tree of size {size}")
        return inclusion_path(self._tree.node, index, size)

    def consistency(self, size1: int, size2: int) -> bytes:
        """Return the consistency proof between two sizes, 32·k bytes; O(log n) reads.

        Raises NotFound where `size2` is above `applied` or `size1` is not in 1..`size2`.
        """
        self._known(size2)
        if not 0 < size1 <= size2:
            raise NotFound(f"there is no consistency proof from size {size1} to size {size2}")
        return consistency_proof(self._tree.node, size1, size2)

    def _known(self, size: int) -> None:
        if not 0 <= size <= self._published.size:
            raise NotFound(f"the log has no size {size} yet")

    def output(self, output_id: bytes) -> StoredRecord:
        """Return the record of an output by its 24-byte id. Raises NotFound: not applied yet, never, or expired."""
        return self._below(self._records.by_id(output_id))

    def by_alias(self, alias: bytes) -> bytes:
        """Return the id of the newest output of an alias (32 bytes). Raises NotFound: never, or expired."""
        return self._records.by_alias(alias)

    def public(self, alias: bytes) -> StoredRecord:
        """Return the newest public record of an alias. Raises NotFound: none, or not applied yet."""
        return self._below(self._records.public(alias))

    def record_at(self, index: int) -> StoredRecord:
        """Return the record of a leaf. Raises NotFound: not applied yet, or expired."""
        return self._below(self._records.by_index(index))

    def _below(self, record: StoredRecord) -> StoredRecord:
        # rows become visible a moment before the batch counts as applied
        if record.index >= self._published.size:
            raise NotFound(f"leaf {record.index} is not in the log yet")
        return record

    def commit_of(self, index: int) -> StoredCommit:
        """Return the commit that took a leaf in. Raises NotFound where the leaf is not applied."""
        return self._commit(self._history.find(index, self._published.commits))

    def _commit(self, number: int) -> StoredCommit:
        entry = self._history.entry(number)
        try:
            commit = Commit.decode(self._history.read(number))
        except QuotaryError as error:
            raise DamagedError(f"commit {number} of the history is not readable: {error}") from error
        return StoredCommit(number, entry.start, entry.first, entry.size, commit)

    def parts(self, output_id: bytes) -> AttestationParts:
        """Return what the log holds of an output's attestation. Raises NotFound as `output` does."""
        return self.parts_of(self.output(output_id))

    def parts_of(self, stored: StoredRecord) -> AttestationParts:
        """Return what the log holds of the attestation of a stored record."""
        commit = self.commit_of(stored.index)
        path = self.proof(stored.index, commit.size)
        return AttestationParts(stored.index, stored.record, stored.request_key, path, commit)

    # -- publishing

    def serve(self, path: str) -> bytes:
        """Return what is published at a path, without leading slash.

        Paths are `checkpoint`, `tile/…`, `history/…`, `blob/…` and `cosigned/…`. Raises NotFound for anything
        else, and for what does not exist yet.
        """
        return serve(path, self._published, self._tree, self._history, self._blobs, self._prefix)

    def put_blob(self, data: bytes) -> bytes:
        """Store a blob, durable, and return its SHA-256. Call it before the commit that names it."""
        return self._blobs.put(data)

    def blob(self, digest: bytes) -> bytes:
        """Return the blob of a SHA-256. Raises NotFound."""
        try:
            return self._blobs.get(digest.hex())
        except NotFound:
            return self._prefix(digest.hex())

    def _prefix(self, name: str) -> bytes:
        """Return the part of a boot log that a commit named. Raises NotFound, DamagedError."""
        if not is_blob_name(name):
            raise NotFound(f"there is no blob {name[:80]}")
        digest = bytes.fromhex(name)
        found = self._named.get(digest) or self._records.prefix(digest)
        return self._growing.read(found.file, found.size, digest)

    # -- logs that grow

    def boot_log(self, boot: int, name: str) -> Prefix | None:
        """Return the newest file of a log in a boot, as far as commits named it; None where there is none."""
        file = self._growing.newest(boot, name)
        if file is None:
            return None
        named = [prefix for prefix in self._records.longest_prefixes() if prefix.file == file]
        return named[0] if named else Prefix(sha256().digest(), file, 0)

    def new_boot_log(self, boot: int, name: str) -> str:
        """Return the name of a file for a log of a boot that has begun anew."""
        return self._growing.next(boot, name)

    def grow(self, file: str, data: bytes, offset: int, digest: bytes) -> None:
        """Append to a boot log, durable, and let the next commits name all of it by `digest`, its SHA-256.

        What stands behind `offset` was never named, and is written over. Raises StorageFull or StorageFailed.
        """
        if data:
            with self._writing():
                self._growing.append(file, data, offset)
        self._named[digest] = Prefix(digest, file, offset + len(data))

    def longest_boot_logs(self) -> list[str]:
        """Return the SHA-256 of the longest part that a commit named of each boot log that grows, in hexadecimal."""
        return [prefix.digest.hex() for prefix in self._records.longest_prefixes()]

    def paths_beside_tree(self) -> Iterator[str]:
        """Yield the path of every blob and of every cosigned note that is stored, also of later commits."""
        return self._blobs.paths()

    def put_cosigned(self, size: int, note: bytes) -> None:
        """Store the note of the checkpoint of `size` with its cosignatures, durable."""
        self._known(size)
        self._blobs.put_cosigned(size, note)

    def close(self) -> None:
        """Sync what is applied, as far as the disk allows, and close all files."""
        with self._opened:
            if not self._failed:
                self.sync()
