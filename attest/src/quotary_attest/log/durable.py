# SPDX-License-Identifier: Apache-2.0
"""Files that are on disk when a call returns: write, fsync, rename, and fsync of the folder that names them.

A file's name is durable only after an fsync of its folder, and its bytes only after an fsync of the file, so
each function here does both in the order that leaves either the old state or the new one after a power cut.
Files are readable by their owner only: they hold records and request keys.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from quotary_attest.log.errors import StoreError, storage

FILE_MODE = 0o600
FOLDER_MODE = 0o700
TEMPORARY = ".tmp"
"""The suffix of a file that is not yet what its name without it says; `open` of a store removes them."""


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, each of them durable. An existing one is left as it is."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with storage("create", path):
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    with storage("fsync", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_file(path: Path, *, create: bool = False) -> int:
    """Return a descriptor for reading and writing; a file that is created gets a durable name."""
    with storage("open", path):
        try:
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            if not create:
                raise
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE)
    try:
        fsync_folder(path.parent)
    except StoreError:
        os.close(descriptor)
        raise
    return descriptor


def write_at(descriptor: int, data: bytes, offset: int, path: Path) -> None:
    """Write all of `data` at `offset`; `path` is for the error. Not fsynced."""
    view = memoryview(data)
    with storage("write", path):
        while view:
            written = os.pwrite(descriptor, view, offset)
            view = view[written:]
            offset += written


def read_at(descriptor: int, length: int, offset: int, path: Path) -> bytes:
    """Return up to `length` bytes from `offset`, fewer only where the file ends."""
    parts = []
    with storage("read", path):
        while length:
            part = os.pread(descriptor, length, offset)
            if not part:
                break
            parts.append(part)
            length -= len(part)
            offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def fsync_data(descriptor: int, path: Path, *, again: bool = False) -> None:
    """Make a file's bytes and its length durable.

    `again` says that the caller writes all that the file was to gain once more after a failure; else one is final.
    """
    with storage("fsync", path, again=again):
        os.fdatasync(descriptor)


def truncate(descriptor: int, length: int, path: Path) -> None:
    """Cut a file to `length` bytes. Not fsynced."""
    with storage("truncate", path):
        os.ftruncate(descriptor, length)


def create_file(path: Path, data: bytes) -> None:
    """Create a file that does not exist yet, durable; where it fails no file of that name is left.

    A power cut before the call returns may leave a file with any part of the bytes: the reader must recognise
    that by a checksum.
    """
    with storage("create", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE)
    try:
        write_at(descriptor, data, 0, path)
        with storage("fsync", path):
            os.fsync(descriptor)
        fsync_folder(path.parent)
    except StoreError:
        remove_file(path)
        raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` in place of what `path` names, durable: after a power cut it is the old file or the new one."""
    temporary = path.with_name(path.name + TEMPORARY)
    remove_file(temporary)
    create_file(temporary, data)
    with storage("rename", path):
        os.replace(temporary, path)  # noqa: PTH105 - all calls that change a disk are in this file and look alike
    fsync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file if it is there. Not fsynced: after a power cut it may be back."""
    with storage("remove", path), suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - as above


def read_file(path: Path, *, max_bytes: int) -> bytes | None:
    """Return a file's bytes, None where there is no such file; no more than `max_bytes` are read."""
    with storage("read", path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
    try:
        with storage("read", path):
            size = os.fstat(descriptor).st_size  # a read of `max_bytes` would take that much memory first
        return read_at(descriptor, min(size, max_bytes), 0, path)
    finally:
        os.close(descriptor)
