# SPDX-License-Identifier: Apache-2.0
"""Measuring what serves: weights, engine binary, arguments, and the agent's own code.

A single file is measured by its SHA-256. Several files, and a model folder, are measured by the SHA-256 of a manifest
with one line for each file, in the order of the names' bytes, exactly as `LC_ALL=C sha256sum` prints it; so anybody
can compute the same digest with coreutils: `LC_ALL=C sha256sum *.safetensors | sha256sum`. What stands in the
manifest is what stands in OpenSSF model-signing's manifest of the same files, names and SHA-256 digests (ADR 35).

Specification: docs/spec/workload-log.md, design section 3, "Workload log".
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from quotary_attest.measuring.errors import MeasureError, SignatureError
from quotary_attest.measuring.files import Identity, MeasuredFile, Progress, hash_file, hash_files
from quotary_attest.measuring.folder import check_file_name, model_files, part_of
from quotary_attest.measuring.gguf import gguf_parts
from quotary_attest.measuring.verity import KnownDigests
from quotary_verifier.wire.records import Link

__all__ = [
    "Identity",
    "KnownDigests",
    "MeasureError",
    "MeasuredFile",
    "Measurement",
    "ModelFile",
    "Progress",
    "SignatureError",
    "join_arguments",
    "manifest",
    "measure_code",
    "measure_file",
    "measure_files",
    "model_size",
    "openssf_digest",
]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one or several files together measure to: 32 bytes, and the files in manifest order. `folder` is the model
    folder whose files they are, None for files that were named one by one."""

    digest: bytes
    files: tuple[MeasuredFile, ...]
    folder: Path | None = None
    folders: tuple[tuple[Path, Identity], ...] = field(default=(), compare=False)
    """The model folder and those in it that hold its files, as they were: a file that is added later shows in
    them."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def parts(self) -> Mapping[str, bytes]:
        """The digest of each part of the model, by the part's name: what a change of the whole came from.

        For a folder, each is the SHA-256 of the manifest lines of the part's files; for files, what the head of the
        first says, if it is GGUF. Raises MeasureError where that file has changed since.
        """
        if self.folder is None:
            first = self.files[0]
            readable = first.name.endswith(".gguf") and first.path is not None and first.identity is not None
            return gguf_parts(first.path, first.identity) if readable else {}  # type: ignore[arg-type]
        names = sorted({part_of(file.name) for file in self.files})
        return {part: _manifest_digest([f for f in self.files if part_of(f.name) == part]) for part in names}


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model to be measured: the name that requests use, its files or its one folder, the link to the engine, and
    where its OpenSSF signature lies (None: at the usual place, if there is one)."""

    name: str
    paths: tuple[Path, ...]
    link: Link = Link.CONFIGURED
    signature: Path | None = None


def measure_file(path: Path, progress: Progress | None = None) -> MeasuredFile:
    """Hash one file.

    Raises:
        MeasureError: it cannot be read, is no regular file, or changed while it was read.
    """
    return hash_file(path, progress)


def measure_files(
    paths: Sequence[Path], progress: Progress | None = None, *, known: KnownDigests | None = None
) -> Measurement:
    """Measure one file, the files of one model (in any order), or one model folder. Files are hashed side by side.

    Raises:
        MeasureError: as `measure_file`; or no file, two of one name, or a name with a newline or backslash, which
            a manifest could not hold unescaped.
    """
    named, folder = _files_of(paths)
    files = hash_files(named, progress, known=known)
    if folder is None:
        return Measurement(files[0].digest if len(files) == 1 else _manifest_digest(files), files)
    folders = _folders_of(folder, named)
    if model_files(folder) != named:
        raise MeasureError(f"{folder} changed while it was measured")
    return Measurement(_manifest_digest(files), files, folder, folders)


def _folders_of(folder: Path, named: Sequence[tuple[str, Path]]) -> tuple[tuple[Path, Identity], ...]:
    """Return a model folder and all folders between it and its files, with their identities."""
    inside = {folder / parent for name, _ in named for parent in PurePosixPath(name).parents}
    try:
        return tuple((each, Identity.of(each.stat())) for each in sorted(inside))
    except OSError as error:
        raise MeasureError(f"cannot read {folder}: {(error.strerror or 'it failed').lower()}") from error


def model_size(paths: Sequence[Path]) -> int:
    """Return the bytes that measuring these paths will read. Raises MeasureError."""
    total = 0
    for _, path in _files_of(paths)[0]:
        try:
            total += path.stat().st_size
        except OSError as error:
            raise MeasureError(f"cannot read {path}: {(error.strerror or 'it failed').lower()}") from error
    return total


def _files_of(paths: Sequence[Path]) -> tuple[list[tuple[str, Path]], Path | None]:
    """Return name and path of every file, in manifest order, and the folder if that is what was named."""
    if any(path.is_dir() for path in paths):
        if len(paths) > 1:
            raise MeasureError(f"{paths[0]} is not the only path of its model, and one of them is a folder")
        return model_files(paths[0]), paths[0]
    ordered = sorted(paths, key=lambda path: os.fsencode(path.name))
    if not ordered:
        raise MeasureError("there is no file to measure")
    names = [path.name for path in ordered]
    for name, following in zip(names, [*names[1:], None], strict=True):
        if name == following:
            raise MeasureError(f"two files to measure have the name {name}")
        check_file_name(name)
    return list(zip(names, ordered, strict=True)), None


def manifest(files: Iterable[MeasuredFile]) -> bytes:
    """Return the manifest of several files: `<64 hex digits>  <name>` and a newline for each."""
    return b"".join(file.digest.hex().encode() + b"  " + os.fsencode(file.name) + b"\n" for file in files)


def _manifest_digest(files: Iterable[MeasuredFile]) -> bytes:
    return hashlib.sha256(manifest(files)).digest()


def openssf_digest(files: Iterable[MeasuredFile]) -> bytes:
    """Return the digest by which an OpenSSF model signature names the model as a whole: SHA-256 of the files'
    digests, joined in the order of their paths, compared part by part. It commits to no names, so it identifies
    nothing here."""
    ordered = sorted(files, key=lambda file: file.name.split("/"))
    return hashlib.sha256(b"".join(file.digest for file in ordered)).digest()


def measure_code(packages: Sequence[Path]) -> bytes:
    """Return the digest of installed Python packages: the SHA-256 of a manifest over all their `.py` files.

    Each line is as in `manifest`, the name being the path from the package's parent folder.

    Raises:
        MeasureError: a file cannot be read.
    """
    lines = []
    for package in packages:
        for path in package.rglob("*.py"):
            lines.append((path.relative_to(package.parent).as_posix(), _content_digest(path)))
    text = "".join(f"{digest.hex()}  {name}\n" for name, digest in sorted(lines))
    return hashlib.sha256(text.encode()).digest()


def _content_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise MeasureError(f"cannot read {path}: {(error.strerror or 'it failed').lower()}") from error


def join_arguments(arguments: Sequence[str]) -> bytes:
    """Return a command line as the kernel keeps it, each argument with a zero byte: what gets a commitment."""
    return b"".join(os.fsencode(argument) + b"\0" for argument in arguments)
