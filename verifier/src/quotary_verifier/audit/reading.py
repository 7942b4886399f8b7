# SPDX-License-Identifier: Apache-2.0
"""How an audit gets what is published: its caller reads, and what was read is held against its name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from quotary_verifier.errors import EvidenceError

Read = Callable[[str, int], bytes]
"""Return what stands at a path of docs/spec/log.md, of at most so many bytes.

Raises `Absent` where nothing stands there, MalformedError where it is longer or can have no such path. Any other error
is the caller's own, and ends the audit.
"""


class Absent(Exception):  # noqa: N818 - something that is missing, which is not false
    """Nothing stands at `path`."""

    def __init__(self, path: str) -> None:
        super().__init__(f"there is no {path}")
        self.path = path


class Blobs:
    """Blobs by their digest; those asked for last are kept."""

    __slots__ = ("_kept", "_limit", "_read")

    def __init__(self, read: Read, *, keep: int = 8) -> None:
        self._read = read
        self._kept: dict[bytes, bytes] = {}
        self._limit = keep

    def get(self, digest: bytes, most: int) -> bytes:
        """Return the bytes of this SHA-256.

        Raises:
            Absent: there is no such blob.
            EvidenceError: other bytes stand in its place.
            MalformedError: it has more than `most` bytes.
        """
        data = self._kept.get(digest)
        if data is None:
            path = blob_path(digest)
            data = self._read(path, most)
            if hashlib.sha256(data).digest() != digest:
                raise EvidenceError(f"{path} does not hold the bytes of that digest")
            if len(self._kept) >= self._limit:
                del self._kept[next(iter(self._kept))]
            self._kept[digest] = data
        return data


def blob_path(digest: bytes) -> str:
    """Return the path of a blob."""
    return f"blob/{digest.hex()}"
