# SPDX-License-Identifier: Apache-2.0
"""Write the published log as static files, for any web server to serve (C2SP tlog-tiles, "Parameters").

What the agent serves from flat files is written under the very paths at which it serves it. The checkpoint comes
last, so that a tree of files never promises tiles that are not there yet; a later export adds to an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from quotary_attest.log.errors import storage
from quotary_attest.log.store import Store
from quotary_verifier.tlog.tiles import grown_bundles, grown_tiles, numbered_path
from quotary_verifier.wire.history import COMMITS_PER_FILE


def export(store: Store, target: Path) -> int:
    """Write the published log below `target` and return how many files were written.

    Files that never change again are left alone where they exist. Raises StorageFull or StorageFailed; the
    checkpoint is then that of the earlier export. Nothing is fsynced: it can all be made again.
    """
    commits, size = store.published
    written = 0
    for path in _beside_history(store, size):
        if path.startswith("cosigned/") or not (target / path).exists():  # a note may get more cosignatures
            _write(target / path, store.serve(path))
            written += 1
    for number in range(-(-commits // COMMITS_PER_FILE)):
        path = f"history/{numbered_path(number)}"
        count = min(COMMITS_PER_FILE, commits - number * COMMITS_PER_FILE)
        exact = f"history/{numbered_path(number, count)}"
        _write(target / path, store.serve(exact))
        written += 1
    if commits:
        _write(target / "checkpoint", store.commit_of(size - 1).commit.note)
        written += 1
    return written


def _beside_history(store: Store, size: int) -> Iterator[str]:
    """Yield the paths of the tiles and bundles of the tree of `size` leaves, of all blobs and cosigned notes, and of
    the longest part of each boot log that a commit named."""
    for tiles in (grown_tiles(0, size), grown_bundles(0, size)):
        for tile in tiles:
            yield tile.path
    yield from store.paths_beside_tree()
    for name in store.longest_boot_logs():  # what shorter prefixes are named, anybody can compute from these
        yield f"blob/{name}"


def _write(path: Path, data: bytes) -> None:
    """Put a file in place whole: a web server never sees a part of it."""
    with storage("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(data)
        temporary.replace(path)
