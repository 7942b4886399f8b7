# SPDX-License-Identifier: Apache-2.0
"""What the log publishes, by path: a pure mapping from tlog-tiles paths to places in the flat files.

Every path is parsed into numbers or a checked name before a file is touched; whatever does not parse is not
found. A tile is served if and only if the published tree has all of its hashes, in any width up to that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quotary_attest.log.blobs import Blobs
from quotary_attest.log.errors import NotFound
from quotary_attest.log.hashes import HashTree
from quotary_attest.log.history import History
from quotary_verifier.errors import MalformedError
from quotary_verifier.tlog.tiles import (
    ENTRIES,
    TILE_HEIGHT,
    TILE_WIDTH,
    parse_numbered_path,
    parse_tile_path,
)
from quotary_verifier.wire.history import COMMITS_PER_FILE


@dataclass(frozen=True, slots=True)
class Published:
    """How far the log is published: leaves, commits, and the note of the last of them."""

    size: int
    commits: int
    note: bytes


def serve(
    path: str,
    published: Published,
    tree: HashTree,
    history: History,
    blobs: Blobs,
    prefix: Callable[[str], bytes],
) -> bytes:
    """Return what stands at `path`; `prefix` has the blobs that are parts of boot logs. Raises NotFound."""
    head, _, rest = path.partition("/")
    try:
        if path == "checkpoint" and published.note:
            return published.note
        if head == "tile":
            return tile(path, published.size, tree)
        if head == "history":
            return history_file(rest, published.commits, history)
    except MalformedError as error:
        raise NotFound(str(error)) from error
    if head == "blob":
        try:
            return blobs.get(rest)
        except NotFound:
            return prefix(rest)
    if head == "cosigned":
        return blobs.cosigned(rest)
    raise NotFound("nothing is published at this path")


def tile(path: str, size: int, tree: HashTree) -> bytes:
    """Return a hash tile or entry bundle of the tree of `size` leaves (tlog-tiles, "Merkle Tree").

    Raises MalformedError for a path of another form, NotFound where the tree does not have that much of it.
    """
    wanted = parse_tile_path(path)
    entries = wanted.level == ENTRIES
    exist = size if entries else size >> (wanted.level * TILE_HEIGHT)
    if wanted.number * TILE_WIDTH + wanted.width > exist:
        raise NotFound(f"the log does not have {path} yet")
    if entries:
        return tree.bundle(wanted.number, wanted.width)
    return tree.tile(wanted.level, wanted.number, wanted.width)


def history_file(path: str, commits: int, history: History) -> bytes:
    """Return the history file at `path`, a number by the tile path rules.

    Without a width it is all that is published of the file, with `.p/<width>` its first commits. Raises
    MalformedError for a path of another form, NotFound where there is no such file or it has fewer.
    """
    number, width = parse_numbered_path(path)
    end = min(number * COMMITS_PER_FILE + width, commits)
    if width < COMMITS_PER_FILE and end - number * COMMITS_PER_FILE < width:
        raise NotFound(f"history file {number} does not have {width} commits yet")
    return history.file(number, end)
