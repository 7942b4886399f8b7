# SPDX-License-Identifier: Apache-2.0
"""Digests that the kernel keeps: fs-verity (Linux, Documentation/filesystems/fsverity.rst, FS_IOC_MEASURE_VERITY).

The digest of a file with fs-verity commits to its whole content (a Merkle tree's root, the file's length, block size
and salt), and the kernel refuses every read that does not fit it and every write. So the SHA-256 that was computed
once for a fs-verity digest is the SHA-256 of every file that has this digest: `KnownDigests` keeps such pairs.
"""

from __future__ import annotations

import errno
import fcntl
import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from quotary_attest.log.durable import replace_file

FS_IOC_MEASURE_VERITY: Final = 0xC0046686
"""_IOWR('f', 134, struct fsverity_digest), whose fixed part has 4 bytes."""

_HEAD: Final = struct.Struct("=HH")
_MAX_DIGEST: Final = 64
_ALGORITHMS: Final = {1: ("sha256", 32), 2: ("sha512", 64)}
_NOT_THERE: Final = frozenset((errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EOVERFLOW))
_SCHEMA: Final = "quotary-verity-digests/v1"

Ioctl = Callable[[int, int, bytearray], object]


def verity_digest(descriptor: int, ioctl: Ioctl = fcntl.ioctl) -> str | None:
    """Return a file's fs-verity digest as `sha256:<hex>`; None where file, file system or kernel has none.

    Raises OSError where reading fails for any other reason.
    """
    buffer = bytearray(_HEAD.pack(0, _MAX_DIGEST) + bytes(_MAX_DIGEST))
    try:
        ioctl(descriptor, FS_IOC_MEASURE_VERITY, buffer)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise
    number, size = _HEAD.unpack_from(buffer)
    name, length = _ALGORITHMS.get(number, ("", 0))
    if size != length or not length:
        return None  # an algorithm of a later kernel: what is not understood is not relied on
    return f"{name}:{buffer[_HEAD.size : _HEAD.size + size].hex()}"


class KnownDigests:
    """SHA-256 digests of files by their fs-verity digest, kept in a file that only the agent writes."""

    def __init__(self, path: Path) -> None:
        """Read what is kept at `path`; a file that is absent or damaged counts as empty, for it is a cache."""
        self._path = path
        self._known: dict[str, bytes] = {}
        self._added = False
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            data = json.loads(path.read_text())
            if data["schema"] == _SCHEMA:
                self._known = {key: bytes.fromhex(value) for key, value in data["sha256"].items()}

    def get(self, verity: str) -> bytes | None:
        """Return the SHA-256 of the content that a fs-verity digest stands for, if it was computed before."""
        found = self._known.get(verity)
        return found if found is not None and len(found) == 32 else None

    def add(self, verity: str, digest: bytes) -> None:
        """Remember the SHA-256 of a content that was read under fs-verity."""
        self._known[verity] = digest
        self._added = True

    def save(self) -> None:
        """Write what was added. Raises StoreError."""
        if not self._added:
            return
        text = json.dumps(
            {"schema": _SCHEMA, "sha256": {key: value.hex() for key, value in self._known.items()}}
        )
        replace_file(self._path, text.encode())
        self._added = False
