# SPDX-License-Identifier: Apache-2.0
"""From checked commits to the jobs that hash their leaves, in step with each other and with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from quotary_verifier.audit.commits import CheckedCommit, CheckedFile, CommitsJob
from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.audit.starts import MAX_LOST
from quotary_verifier.audit.subtrees import TILES_PER_JOB, Subtree, SubtreeJob
from quotary_verifier.audit.tees import TeeJob, VerifiedTees
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.merkle import MAX_TREE_SIZE
from quotary_verifier.tlog.tiles import TILE_WIDTH
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.history import COMMITS_PER_FILE

MAX_STALE: Final = 256
"""Commits whose tree does not grow that are looked at: each is false, and a server could send them without end."""

_MAX_CUTS: Final = 2048
"""Checkpoints in one job: what waits for a job is bounded by it."""


class Workers(Protocol):
    """Do jobs, in any process, and yield the results in the order of the jobs, never many jobs ahead."""

    def commits(self, jobs: Iterable[CommitsJob]) -> Iterator[CheckedFile]:
        """Check history files: `CommitChecker.file` of the origin."""
        ...

    def subtrees(self, jobs: Iterable[SubtreeJob]) -> Iterator[Subtree]:
        """Hash subtrees: `hash_subtree`."""
        ...

    def tees(self, jobs: Iterable[TeeJob]) -> Iterator[VerifiedTees]:
        """Verify the TEE lines of history files: `TeeChecker.file` of the origin."""
        ...


@frozen
class Queued:
    """A commit that waits for its leaves, and the sizes besides its own whose roots are wanted for it."""

    commit: CheckedCommit
    extra: tuple[int, ...]


class CommitStream:
    """The commits of a history up to the published checkpoint.

    `problem` says why they end before it, or what is wrong behind it in the same file.
    """

    def __init__(self, workers: Workers, checkpoint: Checkpoint, commits: int, size: int) -> None:
        """Begin behind the first `commits` commits, whose tree has `size` leaves."""
        self._workers = workers
        self._checkpoint = checkpoint
        self._commits, self._size = commits, size
        self.problem: Finding | None = None

    def __iter__(self) -> Iterator[CheckedCommit]:
        """Yield the commits in order."""
        end = self._checkpoint.size
        if self._size >= end:
            return
        number, skip = divmod(self._commits, COMMITS_PER_FILE)
        stale = 0
        for file in self._workers.commits(_files(number, skip)):
            for commit in file.commits:
                if commit.size > end:
                    self.problem = self._ends(
                        f"commit {commit.number} is of {commit.size} leaves, past the checkpoint"
                    )
                    return
                stale += commit.size <= self._size
                if stale > MAX_STALE:
                    self.problem = self._ends(f"the trees of more than {MAX_STALE} commits do not grow")
                    return
                self._size = max(self._size, commit.size)
                yield commit
                if commit.size == end:
                    self.problem = file.problem  # of what follows, which no commit before it makes good
                    return
                self._commits = commit.number + 1
            if file.problem is not None or self._commits % COMMITS_PER_FILE:
                self.problem = file.problem or self._ends(f"the history ends before commit {self._commits}")
                return

    def _ends(self, how: str) -> Finding:
        message = f"{how}, and no commit has the published checkpoint of {self._checkpoint.size} leaves"
        return Finding(
            Code.HISTORY_SHORT, Severity.COULD_NOT, Place(path="checkpoint", commit=self._commits), message
        )


def _files(number: int, skip: int) -> Iterator[CommitsJob]:
    yield CommitsJob(number, skip)
    while True:
        number += 1
        yield CommitsJob(number)


class JobStream:
    """The jobs that hash the leaves of a stream of commits; the commits wait in `queue` meanwhile."""

    def __init__(self, commits: Iterable[CheckedCommit], tiles: int, size: int, published: int) -> None:
        """Begin with tile number `tiles` of a log of which `size` leaves are known, and `published` published."""
        self._commits = commits
        self._published = published
        self._first, self._size = tiles, size
        self.queue: deque[Queued] = deque()
        self._cuts: list[int] = [size] if size % TILE_WIDTH else []
        self._entries: list[int] = []

    def __iter__(self) -> Iterator[SubtreeJob]:
        """Yield the jobs in order; each is of the tiles under one tile of level 1, or of fewer."""
        for commit in self._commits:
            self._take(commit)
            while self._size >= self._border or (
                len(self._cuts) >= _MAX_CUTS and self._size // TILE_WIDTH > self._first
            ):
                yield self._job(min(self._size // TILE_WIDTH * TILE_WIDTH, self._border))
        if self._cuts:
            yield self._job(self._size)

    @property
    def _border(self) -> int:
        """The leaf at which the tile of level 1 ends that the next job begins in."""
        return (self._first // TILES_PER_JOB + 1) * TILES_PER_JOB * TILE_WIDTH

    def _take(self, commit: CheckedCommit) -> None:
        """Queue a commit, and ask for what will be wanted of its leaves."""
        history = range(max(self._size, commit.first - MAX_LOST), commit.first)
        extra: tuple[int, ...] = ()
        if self._size < commit.size <= MAX_TREE_SIZE:
            leaves = [leaf for leaf in history if leaf < commit.size]
            extra = tuple(leaf + 1 for leaf in leaves if leaf + 1 < commit.size)
            self._cuts += [*extra, commit.size]
            self._entries += [*leaves, *([commit.first] if self._size <= commit.first < commit.size else [])]
            self._size = commit.size
        self.queue.append(Queued(commit, extra))

    def _job(self, end: int) -> SubtreeJob:
        cuts = tuple(cut for cut in self._cuts if cut <= end)
        entries = tuple(leaf for leaf in self._entries if leaf < end)
        self._cuts = [cut for cut in self._cuts if cut > end]
        self._entries = [leaf for leaf in self._entries if leaf >= end]
        job = SubtreeJob(self._first, end, cuts, entries, self._published)
        self._first = end // TILE_WIDTH
        return job
