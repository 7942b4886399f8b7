# SPDX-License-Identifier: Apache-2.0
"""Copying a published log into an archive, faithfully: what it is worth is for the audit to say.

The checkpoint comes first and fixes how much of a growing log is copied. What a commit names follows, then the tree.
Equal content gives equal bytes, whatever kind of source it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from quotary_cli.output import ExitCode
from quotary_cli.sources.ahead import read_ahead
from quotary_cli.sources.base import LogSource, SourceFailed, SourceMissing
from quotary_cli.sources.paths import MAX_BLOB, MAX_HISTORY, history_path, parse_path
from quotary_cli.sources.writer import ArchiveWriter
from quotary_verifier.errors import QuotaryError
from quotary_verifier.tlog.checkpoint import Checkpoint, parse_checkpoint
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.tlog.tiles import (
    ENTRIES,
    TILE_WIDTH,
    Tile,
    decode_bundle,
    grown_bundles,
    grown_tiles,
)
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.history import COMMITS_PER_FILE, Commit, split

_DIGEST = 32

Tell = Callable[[int, int], None]
"""Called with how many files were written and how many there will be, as far as is known."""


@dataclass(slots=True)
class Named:
    """What the history names: sizes of checkpoints, blobs, boot logs of each boot in order, leaves that may be public
    records."""

    sizes: list[int] = field(default_factory=list)
    blobs: set[bytes] = field(default_factory=set)
    boots: int = 0
    logs: dict[tuple[int, str], dict[tuple[bytes, int], None]] = field(default_factory=dict)
    alone: list[int] = field(default_factory=list)

    def add(self, commit: Commit, size: int) -> None:
        """Note what a commit names."""
        self.sizes.append(size)
        if size - commit.first == 1:  # boot records and statements have commits of their own
            self.alone.append(commit.first)
        for support in commit.supports:
            self.blobs.update(support.certificates)
            if support.workload_log is not None:
                self.blobs.add(support.workload_log[0])
            for named in support.endorsements.values():
                self.blobs.update(named)
        for tee in commit.tees:
            for named in tee.endorsements.values():
                self.blobs.update(named)
        if any(support.chain_before == ZERO for support in commit.supports):
            self.boots += (
                1  # an auditor wants the longest log of each boot, even where another boot's begins with it
            )
        for name, log in commit.boot_logs.items():
            self.logs.setdefault((self.boots, name), {})[log] = None


class Exporter:
    """One export. `missing` lists what the history names and the source has not, `remarks` what else is odd."""

    def __init__(self, source: LogSource, name: str, writer: ArchiveWriter, tell: Tell) -> None:
        self._source = source
        self._name = name
        self._writer = writer
        self._tell = tell
        self._total = 0
        self.missing: list[str] = []
        self.remarks: list[str] = []
        self.commits = 0

    def copy(self, note: bytes, checkpoint: Checkpoint) -> None:
        """Copy the log up to a checkpoint. Raises SourceFailed, SourceMissing, OSError."""
        size = checkpoint.size
        self._total = 1 + sum(1 for _ in _tiles(size))
        self._add("checkpoint", note)
        named = self._history(checkpoint)
        self.commits = len(named.sizes)
        self._copy(f"cosigned/{size}" for size in sorted(set(named.sizes)))
        needed = named.blobs | self._longest(named.logs)
        self._total += len(needed)
        # a leaf that is no public record has no blob, and nothing is wrong
        maybe = self._entries(sorted({0, *named.alone}), size)
        lost = self._copy(f"blob/{name.hex()}" for name in sorted(needed | maybe))
        self.missing += [path for path in lost if bytes.fromhex(path[5:]) in needed]
        if lost := self._copy(_tiles(size)):
            raise SourceMissing(lost[0], self._name)

    def _history(self, checkpoint: Checkpoint) -> Named:
        named = Named()
        size = number = 0
        while size < checkpoint.size:
            path = history_path(number)
            try:
                data = self._source.read(path, MAX_HISTORY)
            except SourceMissing:
                break
            try:
                kept, size = self._commits(data, checkpoint.size, size, named)
            except QuotaryError as error:
                raise SourceFailed(f"{self._name}: {path}: {error}", code=ExitCode.REJECTED) from None
            if kept:
                self._add(path, kept)
            number += 1
            if len(named.sizes) < number * COMMITS_PER_FILE:
                break
        if size != checkpoint.size:
            self.remarks.append(f"the history ends at {size} leaves, the checkpoint has {checkpoint.size}")
        return named

    def _commits(self, data: bytes, most: int, size: int, named: Named) -> tuple[bytes, int]:
        """Read a history file up to the checkpoint; return the bytes that belong to it, and the size reached."""
        kept = bytearray()
        for item in split(data):
            commit = Commit.decode(item)
            reached = parse_checkpoint(parse_note(commit.note).text).size
            if reached > most:
                break
            size = reached
            named.add(commit, size)
            kept += item
        return bytes(kept), size

    def _longest(self, logs: dict[tuple[int, str], dict[tuple[bytes, int], None]]) -> set[bytes]:
        """Return which logs of a boot are no beginning of another of it: those from which all can be made."""
        found: set[bytes] = set()
        for named in logs.values():
            waiting = list(named)
            while waiting:
                digest, _ = waiting.pop()
                found.add(digest)
                try:
                    whole = self._source.read(f"blob/{digest.hex()}", MAX_BLOB)
                except SourceMissing:
                    continue
                begins = _beginnings(whole, {size for _, size in waiting})
                waiting = [(name, size) for name, size in waiting if begins.get(size) != name]
        return found

    def _entries(self, leaves: list[int], size: int) -> set[bytes]:
        """Return the entries of some leaves, in ascending order, which may be the names of public records."""
        tiles: dict[str, tuple[int, list[int]]] = {}
        for leaf in leaves:
            number = leaf // TILE_WIDTH
            tile = Tile(ENTRIES, number, min(TILE_WIDTH, size - number * TILE_WIDTH))
            tiles.setdefault(tile.path, (tile.width, []))[1].append(leaf)
        found: set[bytes] = set()
        for path, data in read_ahead(self._source, tiles):
            if data is None:
                raise SourceMissing(path, self._name)
            width, wanted = tiles[path]
            try:
                entries = decode_bundle(data, width)
            except QuotaryError as error:
                raise SourceFailed(f"{self._name}: {path}: {error}", code=ExitCode.REJECTED) from None
            found.update(entry for leaf in wanted if len(entry := entries[leaf % TILE_WIDTH]) == _DIGEST)
        return found

    def _copy(self, paths: Iterable[str]) -> list[str]:
        """Copy what stands at some paths, in their order, and return those at which nothing does."""
        lost = []
        wanted = (path for path in paths if not self._writer.has_passed(parse_path(path)))
        for path, data in read_ahead(self._source, wanted):
            if data is None:
                lost.append(path)
            else:
                self._add(path, data)
        return lost

    def _add(self, path: str, data: bytes) -> None:
        if not self._writer.has_passed(parse_path(path)):
            self._writer.add(path, data)
            self._tell(self._writer.files, self._total)


def _beginnings(whole: bytes, sizes: Iterable[int]) -> dict[int, bytes]:
    """Return the SHA-256 of the first bytes of a log, for each size that it has; all of it is hashed once."""
    found, running, at = {}, sha256(), 0
    for size in sorted(size for size in sizes if size <= len(whole)):
        running.update(memoryview(whole)[at:size])
        found[size], at = running.digest(), size
    return found


def _tiles(size: int) -> Iterator[str]:
    for tile in grown_bundles(0, size):
        yield tile.path
    for tile in grown_tiles(0, size):
        yield tile.path
