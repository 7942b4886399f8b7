# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with the log's files, each a type of its own.

::

    StoreError
    ├── StorageFull       no space left: what was there before is still there and readable; may be tried again
    ├── StorageFailed     the disk or file system failed: nothing more is written until the store is reopened
    ├── DamagedError      the state folder contradicts itself in a way that no crash explains
    └── NotFound          what was asked for is not (or not yet, or no longer) in the log
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class StoreError(Exception):
    """Base of the log's errors. `hint` says what an operator can do about it; it may be empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class StorageFull(StoreError):  # noqa: N818 - it is a state, and reads as one where it is caught
    """No space (or quota, or allowed file size) is left for a write. The state before it stands."""


class StorageFailed(StoreError):  # noqa: N818
    """A read, write or fsync failed for another reason than space: what is on disk is known after reopening."""


class DamagedError(StoreError):
    """The files contradict each other, or lack something that was acknowledged. Nothing was changed."""


class NotFound(StoreError):  # noqa: N818
    """There is no such leaf, record, tile, file or blob."""


@contextmanager
def storage(action: str, path: Path, *, again: bool = True) -> Iterator[None]:
    """Turn every OSError of the block into StorageFull or StorageFailed; `action` as in "write".

    Without `again` it is StorageFailed even where space is lacking, because trying again proves nothing: the
    kernel reports a failed fsync once, and may have dropped the bytes.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or "unknown error"
        if error.errno in _FULL and again:
            raise StorageFull(
                f"cannot {action} {path.name}: {reason.lower()}",
                hint="free space on the file system of the state folder; nothing was lost",
            ) from error
        raise StorageFailed(f"cannot {action} {path.name}: {reason.lower()}") from error
