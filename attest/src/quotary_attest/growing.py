# SPDX-License-Identifier: Apache-2.0
"""Reading a file that only grows, such as the kernel's measurement logs.

Files of securityfs say that they have no bytes, so nothing but reading shows where one ends; and seeking in one lets
the kernel write all of it anew. So the file stays open, and each read goes on where the last one ended.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_PIECE: Final = 1 << 20


class GrowingFile:
    """What is left to be read of a file: `rest` is what was read of it and not taken yet. One thread."""

    __slots__ = ("_descriptor", "path", "rest")

    def __init__(self, path: Path) -> None:
        """Read the file at `path`, when the first bytes are asked for."""
        self.path = path
        self.rest = b""
        self._descriptor = -1

    def read(self, most: int) -> None:
        """Read on to the present end, or until `rest` has `most` bytes. Raises OSError."""
        if self._descriptor < 0:
            # a path that is no file, such as a named pipe, must not hold the agent up
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        pieces, size = [self.rest], len(self.rest)
        while size < most and (piece := os.read(self._descriptor, min(_PIECE, most - size))):
            pieces.append(piece)
            size += len(piece)
        if len(pieces) > 1:
            self.rest = b"".join(pieces)

    def take(self, count: int) -> bytes:
        """Take the first `count` bytes off what was read."""
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def restart(self) -> None:
        """Close the file, and begin again with the first byte of whatever is at the path by then."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self.rest = -1, b""


def read_whole(path: Path, most: int) -> bytes | None:
    """Return a file's bytes, `most` + 1 of them where it has more; None where there is no such file. Raises OSError."""
    file = GrowingFile(path)
    try:
        file.read(most + 1)
        return file.rest
    except FileNotFoundError:
        return None
    finally:
        file.restart()
