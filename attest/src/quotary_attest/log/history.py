# SPDX-License-Identifier: Apache-2.0
"""The history on disk: every commit in order, and an index that says where each one stands.

`history/<N>` holds commits N·256 to N·256+255 as a CBOR sequence, as it is published (design section 3, "Log");
N is written by the path rules of tlog-tiles. `commits` has 64 bytes for each commit::

    u64 start ‖ u64 first ‖ u64 size ‖ u32 offset in its file ‖ u32 length ‖ SHA-256 of these and the commit's bytes

A commit counts when its bytes and then its index entry are fsynced, so that whatever part of either a power cut
leaves is recognised and cut, although the published form has no checksum of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from struct import Struct
from typing import Final

from quotary_attest.log.durable import (
    fsync_data,
    make_folder,
    open_file,
    read_at,
    read_file,
    truncate,
    write_at,
)
from quotary_attest.log.errors import DamagedError, NotFound, StoreError, storage
from quotary_verifier.tlog.tiles import numbered_path
from quotary_verifier.wire.history import COMMITS_PER_FILE
from quotary_verifier.wire.limits import MAX_COMMIT

_PLACE: Final = Struct(">QQQII")
_INDEX_BYTES: Final = _PLACE.size + 32
_MAX_FILE: Final = COMMITS_PER_FILE * MAX_COMMIT


@dataclass(frozen=True, slots=True)
class CommitEntry:
    """Where a commit stands: its leaves are [start, size), it claims from `first`; and a checksum."""

    start: int
    first: int
    size: int
    offset: int
    length: int
    checksum: bytes = b""

    def encode(self, commit: bytes) -> bytes:
        """Return the 64 bytes of the index for this place and these bytes of the commit."""
        place = _PLACE.pack(self.start, self.first, self.size, self.offset, self.length)
        return place + sha256(place + commit).digest()

    @classmethod
    def decode(cls, data: bytes) -> CommitEntry:
        """Read 64 bytes of the index."""
        start, first, size, offset, length = _PLACE.unpack_from(data)
        return cls(start, first, size, offset, length, data[_PLACE.size :])


class History:
    """The history files and their index. One thread appends; reading is safe from any thread."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`/history and `folder`/commits, creating them. `recover` comes before anything else."""
        self._folder = folder / "history"
        make_folder(self._folder)
        self._index_path = folder / "commits"
        self._index = open_file(self._index_path, create=True)
        self._tail: tuple[int, int] | None = None  # number and descriptor of the file that grows
        self.count = 0

    def recover(self, durable: int) -> list[str]:
        """Cut what does not count at the end, and return what was cut, in words.

        At most the last commit can be incomplete, as each is fsynced before the next begins, and none of the
        leaves below `durable` may be lost with it. Raises DamagedError where more is missing.
        """
        notes = []
        with storage("read", self._index_path):
            length = os.fstat(self._index).st_size
        self.count, torn = divmod(length, _INDEX_BYTES)
        if torn:
            notes.append(f"cut {torn} bytes of an incomplete entry from the index of commits")
        if self.count and not self._whole(self.count - 1):
            self.count -= 1
            notes.append(f"cut commit {self.count}, which was not completely on disk")
            if self.count and not self._whole(self.count - 1):
                raise DamagedError(f"commit {self.count - 1} of the history is not what was written")
        if (self.entry(self.count - 1).size if self.count else 0) < durable:
            raise DamagedError(f"the history ends below {durable} leaves, which had been committed")
        truncate(self._index, self.count * _INDEX_BYTES, self._index_path)
        fsync_data(self._index, self._index_path)
        return notes + self._cut_tail()

    def _whole(self, number: int) -> bool:
        try:
            before = self.entry(number - 1).size if number else 0
            entry = self.entry(number)
            self.read(number)
        except (NotFound, DamagedError):
            return False
        return entry.start == before < entry.size

    def _cut_tail(self) -> list[str]:
        """Cut the bytes after the last commit that counts, in its file and in the one that would follow."""
        notes = []
        last = self.count // COMMITS_PER_FILE
        for number in range(max(0, last - 1), last + 2):
            path = self._path(number)
            if not path.exists():
                continue
            descriptor = open_file(path)
            try:
                end = self._end(number)
                with storage("read", path):
                    extra = os.fstat(descriptor).st_size - end
                if extra > 0:
                    truncate(descriptor, end, path)
                    fsync_data(descriptor, path)
                    notes.append(f"cut {extra} bytes after the last whole commit from history file {number}")
            finally:
                os.close(descriptor)
        return notes

    def _end(self, number: int) -> int:
        """Return where the counted commits of a history file end."""
        end = min(self.count, (number + 1) * COMMITS_PER_FILE)
        if end <= number * COMMITS_PER_FILE:
            return 0
        entry = self.entry(end - 1)
        return entry.offset + entry.length

    def append(self, commit: bytes, start: int, first: int, size: int) -> int:
        """Append a commit, durable, and return its number.

        Raises StorageFull or StorageFailed; the commit then does not count, and may be appended again.
        """
        number, position = self.count, self.count * _INDEX_BYTES
        file, offset = number // COMMITS_PER_FILE, self._end(number // COMMITS_PER_FILE)
        path = self._path(file)
        entry = CommitEntry(start, first, size, offset, len(commit)).encode(commit)
        descriptor = self._growing(file)
        try:
            write_at(descriptor, commit, offset, path)
            fsync_data(descriptor, path, again=True)
            write_at(self._index, entry, position, self._index_path)
            fsync_data(self._index, self._index_path, again=True)
        except StoreError:
            self._undo(descriptor, offset, position)
            raise
        self.count = number + 1
        return number

    def _undo(self, descriptor: int, offset: int, position: int) -> None:
        """Give back the space of a commit that failed; where that fails too, `recover` does it."""
        try:
            os.ftruncate(self._index, position)
            os.ftruncate(descriptor, offset)
        except OSError:
            return

    def _growing(self, file: int) -> int:
        """Return the descriptor of the history file that grows."""
        if self._tail is None or self._tail[0] != file:
            path = self._path(file)
            make_folder(path.parent)
            descriptor = open_file(path, create=True)
            if self._tail is not None:
                os.close(self._tail[1])
            self._tail = (file, descriptor)
        return self._tail[1]

    def entry(self, number: int) -> CommitEntry:
        """Return the index entry of a commit. Raises NotFound where there is none."""
        data = b""
        if 0 <= number < self.count:
            data = read_at(self._index, _INDEX_BYTES, number * _INDEX_BYTES, self._index_path)
        if len(data) != _INDEX_BYTES:
            raise NotFound(f"the history has no commit {number}")
        return CommitEntry.decode(data)

    def find(self, index: int, count: int) -> int:
        """Return which of the first `count` commits took leaf `index` in; by bisection, O(log n) reads.

        Raises NotFound where none of them did.
        """
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if self.entry(middle).size <= index:
                low = middle + 1
            else:
                high = middle
        if index < 0 or low == count:
            raise NotFound(f"no commit holds leaf {index}")
        return low

    def read(self, number: int) -> bytes:
        """Return the bytes of a commit.

        Raises NotFound where there is none, DamagedError where the bytes are not those that were written.
        """
        entry = self.entry(number)
        path = self._path(number // COMMITS_PER_FILE)
        if entry.length > MAX_COMMIT or not path.exists():
            raise DamagedError(f"commit {number} is not in its history file")
        descriptor = open_file(path)
        try:
            commit = read_at(descriptor, entry.length, entry.offset, path)
        finally:
            os.close(descriptor)
        if not entry.encode(commit).endswith(entry.checksum):
            raise DamagedError(f"commit {number} of the history is not what was written")
        return commit

    def file(self, number: int, end: int) -> bytes:
        """Return history file `number` as far as the commits below `end` go. Raises NotFound if it is empty."""
        first = number * COMMITS_PER_FILE
        last = min(end, first + COMMITS_PER_FILE, self.count) - 1
        if number < 0 or last < first:
            raise NotFound(f"there is no history file {number}")
        entry = self.entry(last)
        data = read_file(self._path(number), max_bytes=entry.offset + entry.length)
        if data is None or len(data) != entry.offset + entry.length:
            raise DamagedError(f"history file {number} is not complete")
        return data

    def _path(self, number: int) -> Path:
        return self._folder / numbered_path(number)

    def close(self) -> None:
        """Close the files; nothing is pending."""
        os.close(self._index)
        if self._tail is not None:
            os.close(self._tail[1])
            self._tail = None
