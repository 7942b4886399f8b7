# SPDX-License-Identifier: Apache-2.0
"""Logs of a boot that grow while the agent runs: each is stored once, and commits name prefixes of it.

`boot/<reset count>-<number>.<name>`, a file for each log of a boot, only ever appended to. What commits named is in a
table beside the records (`quotary_attest.log.records`); any such prefix is served as a blob of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

from quotary_attest.log.durable import fsync_data, make_folder, open_file, read_at, read_file, write_at
from quotary_attest.log.errors import DamagedError, NotFound, storage

_NAME: Final = re.compile(r"[0-9]{10}-[0-9]{4}\.[a-z]{1,16}")
_PIECE: Final = 1 << 20


class GrowingLogs:
    """The folder `boot`. One thread appends; reading is safe from any thread."""

    __slots__ = ("_folder",)

    def __init__(self, folder: Path) -> None:
        """Open the folder, creating it."""
        self._folder = folder
        make_folder(folder)

    def names(self) -> list[str]:
        """Return the names of all files, in the order of the boots."""
        with storage("list", self._folder):
            return sorted(path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name))

    def newest(self, boot: int, name: str) -> str | None:
        """Return the newest file of a log in a boot, None where there is none."""
        found = [
            each for each in self.names() if each.startswith(f"{boot:010}-") and each.endswith("." + name)
        ]
        return found[-1] if found else None

    def next(self, boot: int, name: str) -> str:
        """Return the name of a new file of a log in a boot."""
        newest = self.newest(boot, name)
        number = 0 if newest is None else int(newest[11:15]) + 1
        return f"{boot:010}-{number:04}.{name}"

    def append(self, file: str, data: bytes, offset: int) -> None:
        """Write `data` behind the first `offset` bytes, durable; the file is made if need be.

        What stood there was never named: a crash left it. After StorageFull or StorageFailed a part of `data` may stand
        there.
        """
        path = self._folder / file
        with self._open(path, create=True) as descriptor:
            write_at(descriptor, data, offset, path)
            fsync_data(descriptor, path, again=True)

    def _digest(self, file: str, size: int) -> bytes:
        """Return the SHA-256 of the first `size` bytes of a file, or of all that it has."""
        path, found = self._folder / file, sha256()
        with self._open(path) as descriptor:
            for offset in range(0, size, _PIECE):
                found.update(read_at(descriptor, min(_PIECE, size - offset), offset, path))
        return found.digest()

    def read(self, file: str, size: int, digest: bytes) -> bytes:
        """Return the first `size` bytes of a file. Raises NotFound, DamagedError where they have another SHA-256."""
        data = read_file(self._folder / file, max_bytes=size) if _NAME.fullmatch(file) else None
        if data is None:
            raise NotFound(f"the boot log {file} is there no more")
        if sha256(data).digest() != digest:
            raise DamagedError(f"the boot log {file} does not begin with what a commit named")
        return data

    def find(self, digest: bytes, size: int) -> str:
        """Return the file whose first `size` bytes have this SHA-256, the newest first. Raises NotFound."""
        for file in reversed(self.names()):
            if self._digest(file, size) == digest:
                return file
        raise NotFound("no boot log begins with these bytes")

    @contextmanager
    def _open(self, path: Path, *, create: bool = False) -> Iterator[int]:
        descriptor = open_file(path, create=create)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
