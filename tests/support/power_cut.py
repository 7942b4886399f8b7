# SPDX-License-Identifier: Apache-2.0
"""A disk that loses power: what a state folder holds when only what was fsynced survives.

Every call of `quotary_attest.log.durable` that touches the disk goes through `Disk`, which lets it happen and
notes what it made durable: an fsync of a file its bytes at that moment, an fsync of a folder its names at that
moment. `cut` then writes a folder as a power cut would leave it. SQLite does its own fsyncs; its files are taken
as they were at the last `Records.sync`, or as they are.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from quotary_attest.log import durable
from quotary_attest.log.errors import storage
from quotary_attest.log.records import Records

DATABASE = ("records.sqlite", "records.sqlite-wal")


class PowerCut(Exception):  # noqa: N818 - it is an event
    """Raised in place of the call at which the power fails."""


class Disk:
    """Stands in for `os` in durable.py. `fail_at` counts the calls that change the disk; `error` is raised there."""

    def __init__(self, root: Path, fail_at: int | None = None, error: BaseException | None = None) -> None:
        """Watch the disk below `root`."""
        self._root = root
        self._fail_at = fail_at
        self._error = error or PowerCut()
        self.calls = 0
        self._files: dict[tuple[int, int], bytes] = {}
        self._names: dict[Path, dict[str, tuple[int, int]]] = {}
        self._made: dict[int, int] = {}
        self._database: dict[str, bytes] = {}
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Disk:
        """Take the place of `os`."""
        sync = Records.sync

        def watched(records: Records, size: int) -> None:
            with storage("fsync", self._root):
                self._count()
            sync(records, size)
            self._database = {
                name: (self._root / name).read_bytes() for name in DATABASE if (self._root / name).exists()
            }

        self._patch.setattr(durable, "os", self)
        self._patch.setattr(Records, "sync", watched)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give `os` back."""
        self._patch.undo()

    def __getattr__(self, name: str) -> Any:
        """Whatever does not change the disk is the system's."""
        return getattr(os, name)

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self._fail_at:
            raise self._error

    def _key(self, inode: int) -> tuple[int, int]:
        return inode, self._made.get(inode, 0)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        """Open, noting a new file, whose inode number may have been another file's."""
        if flags & os.O_CREAT:
            self._count()
        descriptor = os.open(path, flags, mode)
        if flags & os.O_CREAT:
            inode = os.fstat(descriptor).st_ino
            self._made[inode] = self._made.get(inode, 0) + 1
        return descriptor

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        """Write at most half of it at once, so that the power can fail within a write."""
        self._count()
        return os.pwrite(descriptor, data[: max(1, (len(data) + 1) // 2)], offset)

    def ftruncate(self, descriptor: int, length: int) -> None:
        """Truncate."""
        self._count()
        os.ftruncate(descriptor, length)

    def replace(self, source: Path, target: Path) -> None:
        """Rename."""
        self._count()
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove."""
        if path.exists():
            self._count()
        path.unlink()

    def fsync(self, descriptor: int) -> None:
        """Note what this makes durable, a file's bytes or a folder's names; no need to trouble the real disk."""
        self._count()
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            self._names[path] = {entry.name: self._key(entry.inode()) for entry in os.scandir(path)}
        else:
            self._files[self._key(os.fstat(descriptor).st_ino)] = path.read_bytes()

    fdatasync = fsync

    def cut(self, target: Path, *, database_survives: bool, removals_survive: bool) -> None:
        """Write what is durable to `target`, the worst that the disk may do.

        With `database_survives` what SQLite wrote is there too, and with `removals_survive` what was removed is
        gone, although nothing asked for either.
        """
        shutil.rmtree(target, ignore_errors=True)
        self._write_folder(self._root, target, removals_survive)
        for name in DATABASE:
            (target / name).unlink(missing_ok=True)
            live = self._root / name
            data = live.read_bytes() if database_survives and live.exists() else self._database.get(name)
            if data is not None:
                (target / name).write_bytes(data)

    def _write_folder(self, source: Path, target: Path, removals_survive: bool) -> None:
        target.mkdir()
        for name, key in self._names.get(source, {}).items():
            if source / name in self._names or (source / name).is_dir():
                self._write_folder(source / name, target / name, removals_survive)
            elif (source / name).exists() or not removals_survive:
                (target / name).write_bytes(self._files.get(key, b""))
