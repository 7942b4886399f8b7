# SPDX-License-Identifier: Apache-2.0
"""Measuring what serves: weights, engine binary, arguments, and the agent's own code.

A single file is measured by its SHA-256. Several shards are measured by the SHA-256 of a manifest with one line
for each, in the order of the names' bytes, exactly as `LC_ALL=C sha256sum *.safetensors` prints it; so anybody
can compute the same digest with coreutils: `LC_ALL=C sha256sum *.safetensors | sha256sum`.

Specification: docs/spec/workload-log.md, design section 3, "Workload log".
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quotary_verifier.wire.records import Link

_BUFFER: Final = 1 << 20

Progress = Callable[[int], None]
"""Called with the number of bytes that were hashed since the last call."""


class MeasureError(Exception):
    """A file could not be measured: it cannot be read, or it changed meanwhile. The message names it."""


@dataclass(frozen=True, slots=True)
class MeasuredFile:
    """One file: its base name, length in bytes and SHA-256."""

    name: str
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one or several files together measure to: 32 bytes, and the files in manifest order."""

    digest: bytes
    files: tuple[MeasuredFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model to be measured: the name that requests use, its weights files, and the link to the engine."""

    name: str
    paths: tuple[Path, ...]
    link: Link = Link.CONFIGURED


def measure_file(path: Path, progress: Progress | None = None) -> MeasuredFile:
    """Hash one file.

    Raises:
        MeasureError: it cannot be read, is no regular file, or changed while it was read.
    """
    digest = hashlib.sha256()
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    size = 0
    try:
        with path.open("rb", buffering=0) as file:
            before = _identity(file.fileno())
            while size <= before[0] and (count := file.readinto(buffer)):
                digest.update(view[:count])
                size += count
                if progress is not None:
                    progress(count)
            after = _identity(file.fileno())
    except OSError as error:
        raise MeasureError(f"cannot read {path}: {error.strerror}") from error
    if before != after or size != after[0]:
        raise MeasureError(f"{path} changed while it was measured")
    return MeasuredFile(path.name, size, digest.digest())


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def measure_files(paths: Sequence[Path], progress: Progress | None = None) -> Measurement:
    """Measure one file or the shards of one model; the order of `paths` does not matter.

    Raises:
        MeasureError: as `measure_file`; or no file, two of one name, or a name with a newline or backslash, which
            a manifest could not hold unescaped.
    """
    ordered = sorted(paths, key=lambda path: os.fsencode(path.name))
    names = [path.name for path in ordered]
    if not names:
        raise MeasureError("there is no file to measure")
    for name, following in zip(names, [*names[1:], None], strict=True):
        if name == following:
            raise MeasureError(f"two files to measure have the name {name}")
        if "\n" in name or "\\" in name:
            raise MeasureError(f"the file name {name!r} holds a newline or backslash")
    files = tuple(measure_file(path, progress) for path in ordered)
    if len(files) == 1:
        return Measurement(files[0].digest, files)
    return Measurement(hashlib.sha256(manifest(files)).digest(), files)


def manifest(files: Iterable[MeasuredFile]) -> bytes:
    """Return the manifest of several shards: `<64 hex digits>  <name>` and a newline for each."""
    return b"".join(file.digest.hex().encode() + b"  " + os.fsencode(file.name) + b"\n" for file in files)


def measure_code(packages: Sequence[Path]) -> bytes:
    """Return the digest of installed Python packages: the SHA-256 of a manifest over all their `.py` files.

    Each line is as in `manifest`, the name being the path from the package's parent folder.

    Raises:
        MeasureError: a file cannot be read.
    """
    lines = []
    for package in packages:
        for path in package.rglob("*.py"):
            measured = measure_file(path)
            lines.append((path.relative_to(package.parent).as_posix(), measured.digest))
    text = "".join(f"{digest.hex()}  {name}\n" for name, digest in sorted(lines))
    return hashlib.sha256(text.encode()).digest()


def join_arguments(arguments: Sequence[str]) -> bytes:
    """Return a command line as the kernel keeps it, each argument with a zero byte: what gets a commitment."""
    return b"".join(os.fsencode(argument) + b"\0" for argument in arguments)
