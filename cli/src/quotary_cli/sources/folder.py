# SPDX-License-Identifier: Apache-2.0
"""A log as static files in a folder. No path leads out of it: names are checked, links are not followed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from quotary_cli.sources.base import Source, SourceFailed, SourceMissing, SourceTooLarge
from quotary_cli.sources.paths import LogPath, parse_path
from quotary_verifier.errors import MalformedError

_NOT_PLAIN = (errno.ELOOP, errno.ENXIO, errno.EISDIR)


class FolderSource(Source):
    """A folder that holds the published paths as files."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder
        self._real: set[Path] = set()
        self._root = str(folder)
        self._checked: set[str] = set()

    def paths(self, head: str) -> Iterator[str]:
        """Yield the names of files directly below one folder that follow the grammar, in order."""
        folder = self._folder / head
        names = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
        for name in names:
            path = f"{head}/{name}"
            try:
                parse_path(path)
            except MalformedError:
                continue
            yield path

    def _get(self, path: LogPath, most: int) -> bytes:
        place = f"{self._root}/{path.text}"
        head = path.text.rpartition("/")[0]
        try:
            if head not in self._checked:
                self._check(Path(place))
                self._checked.add(head)
            data = _plain(place, most + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise SourceMissing(path.text, self.name) from None
        except OSError as error:
            if error.errno in _NOT_PLAIN:
                raise _refused(place) from None
            raise SourceFailed(f"{place}: {(error.strerror or str(error)).lower()}") from None
        if data is None:
            raise _refused(place)
        if len(data) > most:
            raise SourceTooLarge(self.name, path.text, most)
        return data

    def _check(self, place: Path) -> None:
        """Refuse links among the folders between this source's own and a file."""
        for folder in self._between(place):
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise SourceFailed(f"{folder}: not a folder", hint="links in a log's folder are not followed")
            self._real.add(folder)

    def _between(self, place: Path) -> Iterator[Path]:
        """Yield the folders from this source's own down to a file that were not looked at yet."""
        for folder in reversed(place.relative_to(self._folder).parents[:-1]):
            if (whole := self._folder / folder) not in self._real:
                yield whole


def _plain(place: str, most: int) -> bytes | None:
    """Return up to `most` bytes of a plain file, None where it is something else.

    An audit reads two small files for every 256 leaves, so this is four calls of the system and nothing around them.
    """
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        data = os.read(descriptor, most)
        while 0 < len(data) < most and (more := os.read(descriptor, most - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def _refused(place: str) -> SourceFailed:
    return SourceFailed(f"{place}: not a plain file", hint="links in a log's folder are not followed")
