# SPDX-License-Identifier: Apache-2.0
"""A log as static files in a folder. No path leads out of it: names are checked, links are not followed."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from quotary_cli.sources.base import Source, SourceFailed, SourceMissing, SourceTooLarge
from quotary_cli.sources.paths import LogPath, parse_path
from quotary_verifier.errors import MalformedError


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
        place = Path(
            f"{self._root}/{path.text}"
        )  # ten times faster than by `/`, and audits read a great many
        head = path.text.rpartition("/")[0]
        try:
            if head not in self._checked:
                self._check(place)
                self._checked.add(head)
            # looked at before it is opened: a pipe would not even open
            if not stat.S_ISREG(place.lstat().st_mode):
                raise SourceFailed(
                    f"{place}: not a plain file", hint="links in a log's folder are not followed"
                )
            with place.open("rb") as file:
                data = file.read(most + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise SourceMissing(path.text, self.name) from None
        except OSError as error:
            raise SourceFailed(f"{place}: {(error.strerror or str(error)).lower()}") from None
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
