# SPDX-License-Identifier: Apache-2.0
"""Writing an archive: files in the one order, under another name until all of it is there, continued if cut off."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from quotary_cli.sources.archive import END, header, padding, places
from quotary_cli.sources.base import SourceFailed
from quotary_cli.sources.paths import LogPath, Part, parse_path

Order = tuple[Part, tuple[int | str, ...]]


def unfinished(archive: Path) -> Path:
    """Return where an archive stands while it is written."""
    return archive.with_name(archive.name + ".part")


class ArchiveWriter:
    """An archive being written. What was added is on disk, under another name, also when no more follows."""

    def __init__(self, target: Path, file: BinaryIO, last: Order | None) -> None:
        self._target = target
        self._file = file
        self._last = last
        self.files = 0
        self.size = 0

    @classmethod
    def begin(cls, target: Path) -> ArchiveWriter:
        """Begin an archive. Raises OSError."""
        return cls(target, unfinished(target).open("wb"), None)

    @classmethod
    def go_on(cls, target: Path) -> ArchiveWriter:
        """Go on with an archive that was cut off, behind its last whole file of the log itself.

        What was put beside the log is written again, because it may be given anew. Raises OSError, SourceFailed.
        """
        file = unfinished(target).open("r+b")
        writer = cls(target, file, None)
        end = 0
        for place in places(file, str(target), cut_off=True):
            if place.path.part >= Part.ATTESTATION:
                break
            end = place.start + place.size + padding(place.size)
            writer._count(place.path, place.size)
        file.seek(end)
        file.truncate()
        return writer

    def has_passed(self, path: LogPath) -> bool:
        """Tell whether a file at this path is there already, or could only come too late."""
        return self._last is not None and (path.part, path.order) <= self._last

    def add(self, path: str, data: bytes) -> None:
        """Write a file that comes after all others. Raises OSError."""
        parsed = parse_path(path)
        if self.has_passed(parsed):
            raise ValueError(f"{path} comes too late")
        self._file.write(header(path, len(data)) + data + bytes(padding(len(data))))
        self._count(parsed, len(data))

    def finish(self) -> None:
        """End the archive, look whether it is one, and put it in place. Raises OSError, SourceFailed."""
        self._file.write(END)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with unfinished(self._target).open("rb") as written:
            # another export to the same place would have spoilt it
            files = sum(1 for _ in places(written, str(self._target)))
        if files != self.files:
            raise SourceFailed(f"{self._target}: something else wrote to it meanwhile")
        unfinished(self._target).replace(self._target)
        folder = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the name is to last as the bytes do
        finally:
            os.close(folder)

    def close(self) -> None:
        """Close the file; without `finish` it stays where a later run finds it."""
        self._file.close()

    def _count(self, path: LogPath, size: int) -> None:
        self._last = (path.part, path.order)
        self.files += 1
        self.size += size
