# SPDX-License-Identifier: Apache-2.0
"""The records in SQLite: found by output id, alias or leaf index, deleted by age.

Write-ahead log, one connection that writes and one that reads, so that a reader never waits for a writer. A
transaction is not fsynced as such; `sync` makes all of them durable together, with the number of leaves up to
which nothing needs a journal any more. A table of spans, one row a batch, finds old records without an index on
time. Ids are indexed but not unique: if a caller ever reused one, the first output keeps it. An engine may well
reuse the ids of its own that aliases come from: such an alias means the newest output. A table beside them finds the
prefixes of boot logs that commits named.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

from quotary_attest.log.durable import fsync_folder, open_file
from quotary_attest.log.errors import DamagedError, NotFound, StorageFailed, StorageFull
from quotary_attest.log.journal import StagedBatch

_SCHEMA_VERSION: Final = 3
_PREFIXES: Final = """
CREATE TABLE prefix (digest BLOB NOT NULL, file TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (digest, file))
WITHOUT ROWID;
"""
_WITHOUT_PREFIXES: Final = 2
"""The version of databases of agents that named no boot logs."""
_SCHEMA: Final = (
    """
CREATE TABLE output (idx INTEGER PRIMARY KEY, id BLOB, time INTEGER NOT NULL, record BLOB NOT NULL,
                     request_key BLOB, alias BLOB);
CREATE INDEX output_id ON output (id) WHERE id IS NOT NULL;
CREATE INDEX output_alias ON output (alias) WHERE alias IS NOT NULL;
CREATE TABLE span (start INTEGER PRIMARY KEY, size INTEGER NOT NULL, oldest INTEGER NOT NULL,
                   newest INTEGER NOT NULL);
CREATE TABLE state (durable INTEGER NOT NULL);
"""
    + _PREFIXES
)
_WAL_LIMIT: Final = 64 << 20
_CACHE_KIB: Final = 8192
_BY_ID: Final = "SELECT idx, time, record, request_key FROM output WHERE id = ? ORDER BY idx LIMIT 1"
_BY_ALIAS: Final = "SELECT id FROM output WHERE alias = ? AND id IS NOT NULL ORDER BY idx DESC LIMIT 1"
_PUBLIC: Final = (
    "SELECT idx, time, record, request_key FROM output"
    " WHERE alias = ? AND id IS NULL ORDER BY idx DESC LIMIT 1"
)
_BY_INDEX: Final = "SELECT idx, time, record, request_key FROM output WHERE idx = ?"
_NAME_PREFIX: Final = "INSERT OR IGNORE INTO prefix VALUES (?, ?, ?)"
_LONGEST: Final = "SELECT max(size), digest, file FROM prefix GROUP BY file ORDER BY file"
_BETWEEN: Final = "SELECT idx, time, record, request_key FROM output WHERE idx >= ? AND idx < ? ORDER BY idx"


class Prefix(NamedTuple):
    """A part of a boot log that a commit named: its SHA-256, the file in `boot/`, and how many of its first bytes."""

    digest: bytes
    file: str
    size: int


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it was staged: leaf index, time in milliseconds, bytes, and the request key if it has one."""

    index: int
    time: int
    record: bytes
    request_key: bytes | None


class Records:
    """The database `records.sqlite`. One thread at a time writes; reading is safe from any thread."""

    def __init__(self, path: Path) -> None:
        """Open the database, creating it. Raises DamagedError where the file is something else."""
        self._path = path
        if (
            not path.exists()
        ):  # so that its owner only can read it; SQLite gives its other files the same mode
            os.close(open_file(path, create=True))
        with self._typed("open"):
            self._writer = _connect(path)
            self._prepare()
            self._reader = _connect(path)
            self._reader.execute("PRAGMA query_only = ON")
        fsync_folder(path.parent)
        self._reading = Lock()

    def _prepare(self) -> None:
        run = self._writer.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        run("PRAGMA wal_autocheckpoint = 0")
        run(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
        run("PRAGMA secure_delete = ON")
        (version,) = run("PRAGMA user_version").fetchone()
        if version == 0:
            self._writer.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT")
        elif version == _WITHOUT_PREFIXES:
            self._writer.executescript(f"BEGIN; {_PREFIXES} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT")
        elif version != _SCHEMA_VERSION:
            raise DamagedError(f"records.sqlite has version {version}, this agent knows {_SCHEMA_VERSION}")

    @property
    def durable(self) -> int | None:
        """The number of leaves that `sync` last recorded; None in a database that never saw one."""
        row = self._one("SELECT durable FROM state")
        return None if row is None else int(row[0])

    def insert(self, batch: StagedBatch, prefixes: Sequence[Prefix] = ()) -> None:
        """Insert the rows of a batch in one transaction; rows of the same leaves are replaced. Not fsynced.

        `prefixes` are those parts of boot logs that its commit is the first to name.
        """
        rows = zip(
            count(batch.start),
            batch.output_ids,
            batch.times,
            batch.records,
            batch.request_keys,
            batch.aliases or repeat(None),
            strict=False,
        )
        span = (batch.start, batch.size, min(batch.times), max(batch.times))
        with self._typed("write"), self._transaction() as run:
            self._writer.executemany("INSERT OR REPLACE INTO output VALUES (?, ?, ?, ?, ?, ?)", rows)
            run("INSERT OR REPLACE INTO span VALUES (?, ?, ?, ?)", span)
            if prefixes:
                self._writer.executemany(_NAME_PREFIX, prefixes)

    def insert_prefixes(self, prefixes: Sequence[Prefix]) -> None:
        """Insert parts of boot logs that earlier commits named. Not fsynced."""
        with self._typed("write"), self._transaction():
            self._writer.executemany(_NAME_PREFIX, prefixes)

    def prefix(self, digest: bytes) -> Prefix:
        """Return where the part of a boot log with this SHA-256 is. Raises NotFound where no commit named one."""
        row = self._one("SELECT digest, file, size FROM prefix WHERE digest = ? LIMIT 1", digest)
        if row is None:
            raise NotFound("no commit named such a part of a boot log")
        return Prefix(*row)

    def longest_prefixes(self) -> list[Prefix]:
        """Return the longest part of each boot log that a commit named."""
        with self._typed("read"), self._reading:
            rows = self._reader.execute(_LONGEST).fetchall()
        return [Prefix(digest, file, size) for size, digest, file in rows]

    def sync(self, durable: int) -> None:
        """Make every row durable and record with them that `durable` leaves need no journal any more."""
        with self._typed("fsync"):
            # FULL: the commit of this transaction fsyncs the write-ahead log, and with it all earlier ones
            self._writer.execute("PRAGMA synchronous = FULL")
            try:
                with self._transaction() as run:
                    run("DELETE FROM state")
                    run("INSERT INTO state VALUES (?)", (durable,))
            finally:
                self._writer.execute("PRAGMA synchronous = NORMAL")
            self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def expire(self, before: int, spans: int) -> int:
        """Delete the records of outputs older than `before` milliseconds and return how many; all others stay.

        Works on at most `spans` batches that hold such records, one short transaction each; 0 says that none is
        left. Then the write-ahead log is emptied, so that no copy of a deleted record stays in the database's
        files, unless another process is reading.
        """
        deleted = 0
        with self._typed("write"):
            while not deleted and (old := self._old_spans(before, spans)):
                deleted = sum([self._expire_span(before, *span) for span in old])
            if deleted:
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return deleted

    def _old_spans(self, before: int, limit: int) -> list[tuple[int, int, int]]:
        query = "SELECT start, size, newest FROM span WHERE oldest < ? ORDER BY start LIMIT ?"
        return self._writer.execute(query, (before, limit)).fetchall()

    def _expire_span(self, before: int, start: int, size: int, newest: int) -> int:
        with self._transaction() as run:
            deleted: int = run(
                "DELETE FROM output WHERE idx >= ? AND idx < ? AND time < ? AND id IS NOT NULL",
                (start, size, before),
            ).rowcount
            if newest < before:
                run("DELETE FROM span WHERE start = ?", (start,))
            else:
                run("UPDATE span SET oldest = ? WHERE start = ?", (before, start))
        return deleted

    def by_id(self, output_id: bytes) -> StoredRecord:
        """Return the record of an output. Raises NotFound where none is stored, or no more."""
        return self._stored(_BY_ID, output_id, "there is no record of this output")

    def by_index(self, index: int) -> StoredRecord:
        """Return the record of a leaf. Raises NotFound where none is stored, or no more."""
        return self._stored(_BY_INDEX, index, f"there is no record of leaf {index}")

    def by_alias(self, alias: bytes) -> bytes:
        """Return the id of the newest output of an alias. Raises NotFound where none is stored, or no more."""
        row = self._one(_BY_ALIAS, alias)
        if row is None:
            raise NotFound("there is no output of this alias")
        return bytes(row[0])

    def public(self, alias: bytes) -> StoredRecord:
        """Return the newest public record of an alias. Raises NotFound where there is none."""
        return self._stored(_PUBLIC, alias, "there is no public record of this alias")

    def _stored(self, query: str, key: bytes | int, absent: str) -> StoredRecord:
        row = self._one(query, key)
        if row is None:
            raise NotFound(absent)
        return StoredRecord(*row)

    def between(self, first: int, end: int) -> list[StoredRecord]:
        """Return the stored records of the leaves [first, end), in order."""
        with self._typed("read"), self._reading:
            rows = self._reader.execute(_BETWEEN, (first, end)).fetchall()
        return [StoredRecord(*row) for row in rows]

    def _one(self, query: str, *values: bytes | int) -> Any:
        with self._typed("read"), self._reading:
            # fetchall ends the statement, and with it the snapshot that would hold up a checkpoint
            rows = self._reader.execute(query, values).fetchall()
        return rows[0] if rows else None

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield self._writer.execute
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    @contextmanager
    def _typed(self, action: str) -> Iterator[None]:
        """Turn SQLite's errors into the log's."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            message = f"cannot {action} {self._path.name}: {error}"
            if code == sqlite3.SQLITE_FULL:
                raise StorageFull(
                    message, hint="free space on the file system of the state folder"
                ) from error
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise DamagedError(message) from error
            raise StorageFailed(message) from error

    def close(self) -> None:
        """Close both connections."""
        with self._typed("close"):
            self._reader.close()
            self._writer.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return connection
