# SPDX-License-Identifier: Apache-2.0
"""What opening a store does: from whatever a crash left to the state after the last commit that counts.

The history decides which leaves are committed. What of them the last `sync` recorded as durable is as it is;
what came after is written again from the journals, whether or not it arrived: entries, tile nodes, rows. Then
everything is synced and the journals of committed batches go. A batch at the end of the log stays staged.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from quotary_attest.log.blobs import Blobs
from quotary_attest.log.errors import DamagedError, NotFound
from quotary_attest.log.growing import GrowingLogs
from quotary_attest.log.hashes import HashTree
from quotary_attest.log.history import History
from quotary_attest.log.journal import Journal, StagedBatch
from quotary_attest.log.records import Prefix, Records
from quotary_attest.log.tree import tree_root
from quotary_verifier.errors import QuotaryError
from quotary_verifier.tlog.checkpoint import parse_checkpoint
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.history import Commit

_CHUNK: Final = 4096


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What opening mended, one line each; empty after a clean close. `restored` counts leaves written again."""

    notes: tuple[str, ...]
    restored: int


def put_public_records(blobs: Blobs, batch: StagedBatch) -> None:
    """Publish the records of a batch that are no outputs: genesis, boot, statement. Each is fsynced."""
    for record, output_id in zip(batch.records, batch.output_ids, strict=True):
        if output_id is None:
            blobs.put(record)


def recover(
    journal: Journal,
    history: History,
    tree: HashTree,
    records: Records,
    blobs: Blobs,
    growing: GrowingLogs,
) -> tuple[RecoveryReport, int]:
    """Bring all files to the last commit and return what was mended, and the number of durable leaves.

    Raises DamagedError where leaves that were committed are in no file, or the tree is not that of the last
    checkpoint; nothing that counts was cut then.
    """
    durable = records.durable
    starts = journal.starts()
    # a batch is staged only when all leaves before it are committed, so its mere file name proves that many
    notes = history.recover(max(durable or 0, *starts[-1:], 0))
    size = history.entry(history.count - 1).size if history.count else 0
    if durable is None:
        _name_again(history, records, blobs, growing)
        durable = min([*starts[:1], size])
        if durable:
            notes.append(
                f"records.sqlite is new: the records of {durable} leaves are lost, their entries are not"
            )
    good = durable
    notes += _fill_entries(tree, records, good)
    position = good
    while position < size:
        batch = journal.read(position)
        if batch is None or batch.size > size:
            raise DamagedError(f"leaf {position} was committed and is neither in the log nor in a journal")
        tree.entries.write(position, batch.entries())
        put_public_records(blobs, batch)
        records.insert(batch, prefixes_of(_commit_at(history, position), blobs, growing))
        position = batch.size
    tree.rebuild(good, size)
    if size:
        _check_root(tree, history, size)
    if records.durable != size:
        tree.sync()
        records.sync(size)
    notes += _clean_journal(journal, size)
    if position > good:
        notes.append(f"restored {position - good} leaves from the journal")
    return RecoveryReport(tuple(notes), position - good), size


def prefixes_of(commit: Commit, blobs: Blobs, growing: GrowingLogs) -> list[Prefix]:
    """Return the parts of boot logs that a commit names, found by their bytes; what is stored whole is a blob."""
    found = []
    for digest, size in commit.boot_logs.values():
        if not blobs.has(digest):
            with suppress(
                NotFound
            ):  # whoever asks for it is told that it is gone; nothing else depends on it
                found.append(Prefix(digest, growing.find(digest, size), size))
    return found


def _commit_at(history: History, index: int) -> Commit:
    number = history.find(index, history.count)
    try:
        return Commit.decode(history.read(number))
    except QuotaryError as error:
        raise DamagedError(f"commit {number} of the history is not readable: {error}") from error


def _name_again(history: History, records: Records, blobs: Blobs, growing: GrowingLogs) -> None:
    """Fill the table of prefixes anew from the history, where the database was lost."""
    if not growing.names():
        return
    last: object = None
    for number in range(history.count):
        commit = _commit_at(history, history.entry(number).start)
        if commit.boot_logs != last:
            records.insert_prefixes(prefixes_of(commit, blobs, growing))
            last = commit.boot_logs


def _fill_entries(tree: HashTree, records: Records, good: int) -> list[str]:
    """Derive entries that a damaged file lacks below `good` from the records, where all of them are stored."""
    have = len(tree.entries)
    if have >= good:
        return []
    found = 0
    for first in range(have, good, _CHUNK):
        rows = records.between(first, min(first + _CHUNK, good))
        tree.entries.write(first, [sha256(row.record).digest() for row in rows])
        found += len(rows)
        if found != min(first + _CHUNK, good) - have:
            raise DamagedError(f"the entries end at leaf {have}, and not all records after it are stored")
    return [f"derived {found} entries that were missing from the records"]


def _check_root(tree: HashTree, history: History, size: int) -> None:
    """Raise DamagedError unless the tree has the root that the last commit's checkpoint states."""
    try:
        note = parse_note(Commit.decode(history.read(history.count - 1)).note)
        checkpoint = parse_checkpoint(note.text)
    except QuotaryError as error:
        raise DamagedError(f"the last commit of the history is not readable: {error}") from error
    if (checkpoint.size, checkpoint.root) != (size, tree_root(tree.node, size)):
        raise DamagedError("the tree does not have the root of the last checkpoint")


def _clean_journal(journal: Journal, size: int) -> list[str]:
    """Remove the batches that are durable elsewhere, and a staged one that never was whole."""
    journal.remove_below(size)
    if journal.starts() and journal.read(size) is None:
        journal.remove(size)
        return [f"removed a batch at leaf {size} that was not completely staged"]
    return []
