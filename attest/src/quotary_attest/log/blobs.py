# SPDX-License-Identifier: Apache-2.0
"""Published files beside the tree: blobs named by their SHA-256, and cosigned notes named by their size.

Blobs are certificates, workload and boot logs, and the records that are public: genesis, boot, statement. A name
is 64 lower-case hexadecimal digits or a canonical decimal number, checked before it becomes a path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Final

from quotary_attest.log.durable import make_folder, read_file, replace_file
from quotary_attest.log.errors import DamagedError, NotFound
from quotary_verifier.wire.limits import MAX_EVENT, MAX_EVENTS, MAX_NAMED_BOOT_LOG, MAX_NOTE

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_MAX_BLOB: Final = max(MAX_NAMED_BOOT_LOG, MAX_EVENT * MAX_EVENTS)


def is_blob_name(name: str) -> bool:
    """Tell whether a text is a SHA-256 as blobs are named by it."""
    return _HEX.fullmatch(name) is not None


class Blobs:
    """The folders `blob/<2 hex>/<64 hex>` and `cosigned/<size>`. Safe to use from any thread."""

    __slots__ = ("_blobs", "_cosigned", "_writing")

    def __init__(self, folder: Path) -> None:
        """Open the folders below `folder`, creating them."""
        self._blobs = folder / "blob"
        self._cosigned = folder / "cosigned"
        make_folder(self._blobs)
        make_folder(self._cosigned)
        self._writing = Lock()  # two writers of one name would meet in its temporary file

    def put(self, data: bytes) -> bytes:
        """Store a blob, durable when this returns, and return its SHA-256. Storing it again is cheap."""
        digest = sha256(data).digest()
        path = self._path(digest.hex())
        with self._writing:
            if read_file(path, max_bytes=len(data) + 1) != data:
                make_folder(path.parent)
                replace_file(path, data)
        return digest

    def get(self, name: str) -> bytes:
        """Return the blob of this SHA-256 in hexadecimal digits.

        Raises NotFound for a name that is no such text or no blob's, DamagedError where the bytes are not those.
        """
        if not _HEX.fullmatch(name):
            raise NotFound("a blob is named by 64 lower-case hexadecimal digits")
        data = read_file(self._path(name), max_bytes=_MAX_BLOB)
        if data is None:
            raise NotFound(f"there is no blob {name}")
        if sha256(data).hexdigest() != name:
            raise DamagedError(f"blob {name} does not have the bytes that its name says")
        return data

    def has(self, digest: bytes) -> bool:
        """Tell whether a blob of this SHA-256 is stored."""
        return self._path(digest.hex()).exists()

    def paths(self) -> Iterator[str]:
        """Yield the path of every blob and of every cosigned note, as they are served."""
        for path in self._blobs.glob("[0-9a-f][0-9a-f]/*"):
            if _HEX.fullmatch(path.name):
                yield f"blob/{path.name}"
        for path in self._cosigned.iterdir():
            if _SIZE.fullmatch(path.name):
                yield f"cosigned/{path.name}"

    def put_cosigned(self, size: int, note: bytes) -> None:
        """Store the cosigned note of the checkpoint of `size`, in place of an earlier copy, durable."""
        with self._writing:
            replace_file(self._cosigned / str(size), note)

    def cosigned(self, size: str) -> bytes:
        """Return the cosigned note of a size in decimal digits. Raises NotFound where there is none."""
        if not _SIZE.fullmatch(size):
            raise NotFound("a cosigned note is named by the size of its checkpoint")
        data = read_file(self._cosigned / size, max_bytes=MAX_NOTE)
        if data is None:
            raise NotFound(f"there is no cosigned note of size {size}")
        return data

    def _path(self, name: str) -> Path:
        return self._blobs / name[:2] / name
