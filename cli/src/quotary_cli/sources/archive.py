# SPDX-License-Identifier: Apache-2.0
"""A log and what belongs to it in one file: an uncompressed POSIX tar with one permitted form (docs/spec/archive.md).

A header is accepted if and only if it is, byte for byte, the header that we write for its name and size; so links,
devices, extensions, sparse files and other spellings of a number need no rules of their own. Nothing is ever
extracted: files are read from their place in the archive.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from quotary_cli.output import ExitCode
from quotary_cli.sources.base import Source, SourceFailed, SourceMissing, SourceTooLarge
from quotary_cli.sources.paths import LogPath, Part, parse_path
from quotary_verifier.errors import MalformedError

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
MAX_FILES: Final = 1 << 21
"""Files of one archive: a log of 2^28 leaves. Each costs some two hundred bytes of memory."""

_SIZE_DIGITS: Final = 11
_MAGIC: Final = slice(257, 262)
_HINT: Final = "an archive is made by `attest log export`, and may have no other form (docs/spec/archive.md)"


def header(name: str, size: int) -> bytes:
    """Return the 512 bytes before a file of this name and size (POSIX.1-2017, pax, "ustar Interchange Format").

    Mode 0644, owner and time zero, no owner's name: equal content makes equal bytes.
    """
    fields = b"".join(
        (
            name.encode("ascii").ljust(100, b"\x00"),
            b"0000644\x00",
            b"0000000\x00" * 2,
            b"%0*o\x00" % (_SIZE_DIGITS, size),
            b"00000000000\x00",
            b"        ",  # the checksum counts as spaces
            b"0",
            bytes(100),
            b"ustar\x00",
            b"00",
            bytes(32 + 32),
            b"0000000\x00" * 2,
            bytes(155 + 12),
        )
    )
    return fields[:148] + b"%06o\x00 " % sum(fields) + fields[156:]


def padding(size: int) -> int:
    """Return how many zeros follow a file of this size."""
    return -size % BLOCK


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file's bytes lie in an archive."""

    path: LogPath
    start: int
    size: int


def places(file: BinaryIO, name: str, *, cut_off: bool = False) -> Iterator[Place]:
    """Yield every file of an archive, in order; with `cut_off` the archive may end anywhere, and what is whole counts.

    Raises:
        SourceFailed: it is no archive in the permitted form.
    """
    length = file.seek(0, os.SEEK_END)
    start = count = 0
    before: tuple[Part, tuple[int | str, ...]] | None = None
    while True:
        file.seek(start)
        block = file.read(BLOCK)
        if not start and not cut_off and (not length or (block.strip(b"\0") and block[_MAGIC] != b"ustar")):
            raise _no_tar(name, length)
        if not block.strip(b"\0"):
            _check_end(file, name, start, length, cut_off=cut_off)
            return
        if len(block) < BLOCK:
            if cut_off:
                return
            raise _bad(name, "it ends within a header")
        place = _place(block, start, name)
        end = place.start + place.size + padding(place.size)
        if end > length:
            if cut_off:
                return
            raise _bad(name, f"it ends within {place.path.text}")
        count += 1
        if count > MAX_FILES:
            raise _bad(name, f"it holds more than {MAX_FILES} files")
        order = (place.path.part, place.path.order)
        if before is not None and order <= before:
            raise _bad(name, f"{place.path.text} stands twice or out of order")
        before = order
        yield place
        start = end


def _check_end(file: BinaryIO, name: str, start: int, length: int, *, cut_off: bool) -> None:
    if cut_off:
        return
    file.seek(start)
    if file.read(len(END) + 1) != END or length != start + len(END):
        raise _bad(name, "it does not end with two blocks of zeros, or something stands behind them")


def _place(block: bytes, start: int, name: str) -> Place:
    text, _, _ = block[:100].partition(b"\0")
    digits = block[124 : 124 + _SIZE_DIGITS]
    try:
        path = parse_path(text.decode("ascii"))
        size = int(digits, 8) if digits.isdigit() else -1
    except (MalformedError, ValueError):
        raise _bad(name, f"byte {start}: no file of an archive begins here") from None
    if size < 0 or block != header(path.text, size):
        raise _bad(name, f"{path.text} is not written as a plain file of an archive")
    if size > path.most:
        raise _bad(name, f"{path.text} has more than {path.most} bytes")
    return Place(path, start + BLOCK, size)


def _bad(name: str, why: str) -> SourceFailed:
    return SourceFailed(
        f"{name}: not an archive of a log: {why}",
        code=ExitCode.REJECTED,
        hint=_HINT,
    )


def _no_tar(name: str, length: int) -> SourceFailed:
    """A file that never was an archive is a slip of whoever named it, and says nothing of any log."""
    why = "the file is empty" if not length else "it is no tar"
    return SourceFailed(f"{name}: not an archive of a log: {why}", code=ExitCode.USAGE, hint=_HINT)


class ArchiveSource(Source):
    """An archive, read in place. The index in memory has one entry for each file."""

    def __init__(self, name: str, file: BinaryIO, index: dict[str, tuple[int, int]]) -> None:
        self.name = name
        self._file = file
        self._index = index
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, *, cut_off: bool = False) -> ArchiveSource:
        """Open an archive and read its index; `cut_off` accepts one that ends too early. Raises SourceFailed."""
        try:
            file = path.open("rb")
        except OSError as error:
            raise SourceFailed(f"{path}: {(error.strerror or '').lower()}", code=ExitCode.USAGE) from None
        try:
            index = {
                place.path.text: (place.start, place.size)
                for place in places(file, str(path), cut_off=cut_off)
            }
        except BaseException:
            file.close()
            raise
        return cls(str(path), file, index)

    def __contains__(self, path: str) -> bool:
        return path in self._index

    def paths(self, head: str) -> Iterator[str]:
        """Yield the paths that begin with `head` and `/`, all of them for the empty head, in the archive's order."""
        return (path for path in self._index if not head or path.startswith(f"{head}/"))

    def size_of(self, path: str) -> int:
        """Return how many bytes stand at a path that the archive has."""
        return self._index[path][1]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _get(self, path: LogPath, most: int) -> bytes:
        if path.text not in self._index:
            raise SourceMissing(path.text, self.name)
        start, size = self._index[path.text]
        if size > most:
            raise SourceTooLarge(self.name, path.text, most)
        with self._lock:
            self._file.seek(start)
            data = self._file.read(size + padding(size))
        if len(data) != size + padding(size) or data[size:].strip(b"\0"):
            raise _bad(self.name, f"{path.text} is not followed by zeros, or the file shrank")
        return data[:size]
