# SPDX-License-Identifier: Apache-2.0
"""Hashing files: several at a time, with progress, and such that a change meanwhile does not go unnoticed.

SHA-256 of one file cannot be split, so files are hashed side by side, the longest first, each in pieces that stay in
the processor's cache. Reading is left to the kernel's readahead. What was read stays in the page cache, as the engine
is about to load it, unless all of it would push out half of the memory: then it is let go of piece by piece.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from quotary_attest.measuring.errors import MeasureError
from quotary_attest.measuring.verity import KnownDigests, verity_digest

Progress = Callable[[int], None]
"""Called with the number of bytes that were hashed since the last call, from any thread, one call at a time."""

_PIECE: Final = 1 << 20
_WINDOW: Final = 64 << 20
_MOST_WORKERS: Final = 16
_TICK_NS: Final = 20_000_000
"""Older kernels stamp files by a clock that moves every 10 ms at the slowest; two changes within do not differ."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A file's content at one moment, as far as the kernel tells without reading it: where it is, its length and when
    it was last changed (ns). The same identity later means: the same file, not written to, renamed or truncated."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Return the identity that a stat gave."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class MeasuredFile:
    """One file: its name (in a folder, its path there), length in bytes and SHA-256; what the kernel said of it then;
    and its fs-verity digest, empty where it has none."""

    name: str
    size: int
    digest: bytes
    identity: Identity | None = field(default=None, compare=False)
    path: Path | None = field(default=None, compare=False)
    verity: str = field(default="", compare=False)


def hash_file(
    path: Path,
    progress: Progress | None = None,
    *,
    name: str = "",
    known: KnownDigests | None = None,
    drop: bool = False,
) -> MeasuredFile:
    """Hash one file. `drop` lets go of its pages; `known` saves the reading where fs-verity vouches for the content.

    Raises:
        MeasureError: it cannot be read, is no regular file, or changed while it was read.
    """
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )  # a FIFO must not be waited for
        try:
            return _hash_open(descriptor, path, progress, name or path.name, known, drop)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise MeasureError(f"cannot read {path}: {(error.strerror or 'it failed').lower()}") from error


def _hash_open(
    descriptor: int, path: Path, progress: Progress | None, name: str, known: KnownDigests | None, drop: bool
) -> MeasuredFile:
    status = _settled(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise MeasureError(f"cannot read {path}: it is not a regular file")
    verity = verity_digest(descriptor) or ""
    before = Identity.of(status)
    digest = known.get(verity) if known is not None and verity else None
    if digest is None:
        digest, size = _read_all(descriptor, before.size, progress, drop)
        if size != before.size or Identity.of(os.fstat(descriptor)) != before:
            raise MeasureError(f"{path} changed while it was measured")
        if known is not None and verity:
            known.add(verity, digest)
    elif progress is not None:
        progress(before.size)
    return MeasuredFile(name, before.size, digest, before, path, verity)


def _settled(descriptor: int) -> os.stat_result:
    """Return a file's status once it is old enough that a later change must show in it."""
    status = os.fstat(descriptor)
    while abs(time.time_ns() - status.st_ctime_ns) < _TICK_NS:
        time.sleep(_TICK_NS / 1e9)
        status = os.fstat(descriptor)
    return status


def _read_all(descriptor: int, size: int, progress: Progress | None, drop: bool) -> tuple[bytes, int]:
    """Return the SHA-256 and the length of what can be read; no more than a piece beyond `size` is."""
    digest = hashlib.sha256()
    buffer = bytearray(min(_PIECE, size + 1))
    view = memoryview(buffer)
    done = dropped = 0
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    while done <= size and (count := os.readv(descriptor, [buffer])):
        digest.update(view[:count])
        done += count
        if progress is not None:
            progress(count)
        if drop and done - dropped >= _WINDOW:
            os.posix_fadvise(descriptor, dropped, done - dropped, os.POSIX_FADV_DONTNEED)
            dropped = done
    return digest.digest(), done


def hash_files(
    files: Sequence[tuple[str, Path]],
    progress: Progress | None = None,
    *,
    known: KnownDigests | None = None,
    workers: int | None = None,
) -> tuple[MeasuredFile, ...]:
    """Hash files side by side; the result has the order of `files` (name, path).

    `workers` is how many at a time, by default one for each processor, at most 16.

    Raises:
        MeasureError: as `hash_file`, of the first that failed; the others are given up.
    """
    lengths = [_length(path) for _, path in files]
    drop = sum(lengths) > _spare_memory() // 2
    count = max(1, min(workers or _processors(), len(files)))
    given_up = threading.Event()
    told = _one_at_a_time(progress, given_up)
    order = sorted(range(len(files)), key=lambda place: -lengths[place])
    with ThreadPoolExecutor(count, thread_name_prefix="quotary-measure") as pool:
        try:
            running = {
                place: pool.submit(
                    hash_file, files[place][1], told, name=files[place][0], known=known, drop=drop
                )
                for place in order
            }
            done, _ = wait(running.values(), return_when=FIRST_EXCEPTION)
            found = {future: future.result() for future in done}  # raises if one failed; else all are done
        except BaseException:  # an interrupt, too, and also one that comes while a thread is being started
            given_up.set()  # else it would wait for a hundred gigabytes
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return tuple(found[running[place]] for place in range(len(files)))


def _one_at_a_time(progress: Progress | None, given_up: threading.Event) -> Progress:
    """Return what each thread tells its progress to; it ends a thread whose result nobody wants any more."""
    lock = threading.Lock()

    def tell(count: int) -> None:
        if given_up.is_set():
            raise MeasureError("the measuring was given up")
        if progress is not None:
            with lock:
                progress(count)

    return tell


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise MeasureError(f"cannot read {path}: {(error.strerror or 'it failed').lower()}") from error


def _processors() -> int:
    return min(len(os.sched_getaffinity(0)), _MOST_WORKERS)


def _spare_memory() -> int:
    """Return the bytes that the kernel could give to the page cache now."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
