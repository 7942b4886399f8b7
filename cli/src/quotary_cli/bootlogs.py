# SPDX-License-Identifier: Apache-2.0
"""Boot logs that lie beside attestations: in single files, in folders of blobs, in archives (`--with-logs`).

A log is found by its SHA-256, whatever its file is called. Of an IMA log, any prefix that ends with a record is found,
too: a host's static files and an archive hold the longest part of each boot's log only (docs/spec/history.md).
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from quotary_cli.given import is_archive
from quotary_cli.output import ExitCode, Failure
from quotary_cli.sources.archive import ArchiveSource
from quotary_cli.sources.base import Source, SourceMissing
from quotary_cli.sources.folder import FolderSource
from quotary_verifier.errors import QuotaryError
from quotary_verifier.logs.ima_prefix import prefix_digests
from quotary_verifier.wire.attestation import DIGEST_BYTES, Attestation
from quotary_verifier.wire.limits import MAX_NAMED_BOOT_LOG


class BootLogFiles:
    """Finds logs by their digests. Files are read when the first digest is asked for."""

    def __init__(self, places: Sequence[Path]) -> None:
        """`places` are files, folders and archives. Raises Failure where one is not there, or an archive is none."""
        self._sources: list[Source] = []
        self._files: list[Path] = []
        for place in places:
            if place.is_dir():
                self._sources.append(FolderSource(place))
                self._files += sorted(path for path in place.iterdir() if _plain(path))
            elif not place.is_file():
                raise Failure(f"{place}: no such file or folder", code=ExitCode.USAGE)
            elif is_archive(place):
                self._sources.append(ArchiveSource.open(place))
            else:
                self._files.append(place)
        self._known: dict[bytes, bytes | None] = {}
        self._prefixes: dict[bytes, tuple[Callable[[], bytes], int]] | None = None

    def close(self) -> None:
        """Close archives."""
        for source in self._sources:
            source.close()

    def for_attestation(self, attestation: bytes | None) -> Mapping[bytes, bytes]:
        """Return those logs that an attestation names by digest and that are here; SHA-256 → bytes."""
        if attestation is None or not (self._sources or self._files):
            return {}
        named = [value for value in boot_logs_of(attestation).values() if len(value) == DIGEST_BYTES]
        return {digest: log for digest in named if (log := self.find(digest)) is not None}

    def find(self, digest: bytes) -> bytes | None:
        """Return the log with this SHA-256, None where there is none. Raises Failure where a file cannot be read."""
        if digest not in self._known:
            self._known[digest] = self._blob(digest) or self._part(digest)
        return self._known[digest]

    def all(self) -> Iterator[bytes]:
        """Yield every file and blob. Raises Failure where one cannot be read."""
        for read in self._candidates():
            yield read()

    def _blob(self, digest: bytes) -> bytes | None:
        """Return a blob that is called by its digest, and has it."""
        for source in self._sources:
            try:
                data = source.read(f"blob/{digest.hex()}", MAX_NAMED_BOOT_LOG)
            except SourceMissing:
                continue
            if hashlib.sha256(data).digest() == digest:
                return data
        return None

    def _part(self, digest: bytes) -> bytes | None:
        """Return a file, or the part of an IMA log, with a digest."""
        if self._prefixes is None:
            self._prefixes = {}
            for read in self._candidates():
                data = read()
                for name, size in ((hashlib.sha256(data).digest(), len(data)), *prefix_digests(data)):
                    self._prefixes.setdefault(name, (read, size))
        found = self._prefixes.get(digest)
        if found is None:
            return None
        read, size = found
        return read()[:size]

    def _candidates(self) -> Iterator[Callable[[], bytes]]:
        for file in self._files:
            yield partial(_read, file)
        for source in self._sources:
            for path in source.paths("blob") or ():
                yield partial(source.read, path, MAX_NAMED_BOOT_LOG)


def boot_logs_of(attestation: bytes) -> Mapping[str, bytes]:
    """Return the boot logs of an attestation as they stand in it; none where it cannot be read, which others say."""
    try:
        return Attestation.decode(attestation).boot_logs
    except QuotaryError:
        return {}


def _plain(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _read(path: Path) -> bytes:
    """Return a file's bytes; none of one that is longer than a log can be. The kernel's files are read to their end."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_NAMED_BOOT_LOG + 1)
    except OSError as error:
        raise Failure(f"{path}: {(error.strerror or str(error)).lower()}", code=ExitCode.USAGE) from None
    return data if len(data) <= MAX_NAMED_BOOT_LOG else b""
