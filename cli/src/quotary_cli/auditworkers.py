# SPDX-License-Identifier: Apache-2.0
"""Who hashes and checks for an audit: this process, or some that share the work (docs/spec/audit.md)."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from itertools import islice
from multiprocessing import get_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from quotary_cli.logsource import LogSource, SourceFailed, SourceMissing, SourceTooLarge, open_source
from quotary_cli.output import ExitCode, Failure
from quotary_verifier.audit.commits import CheckedFile, CommitsJob
from quotary_verifier.audit.opening import commit_checker
from quotary_verifier.audit.reading import Absent, Read
from quotary_verifier.audit.subtrees import Subtree, SubtreeJob, hash_subtree
from quotary_verifier.audit.tees import TeeJob, TeeTerms, VerifiedTees
from quotary_verifier.errors import MalformedError

if TYPE_CHECKING:
    from quotary_verifier.audit.teejobs import TeeChecker

_AHEAD: Final = 2
"""Jobs for each process that are on their way or wait to be taken up; with it memory is bounded."""

_NOTHING_ASKED: Final = TeeTerms()

J = TypeVar("J")
R = TypeVar("R")


def reading(source: LogSource) -> Read:
    """Return how an audit reads a source: what is missing or too long is a finding, and no failure."""

    def read(path: str, most: int) -> bytes:
        try:
            return source.read(path, most)
        except SourceMissing:
            raise Absent(path) from None
        except SourceTooLarge:
            raise MalformedError(f"it has more than the {most} bytes that may stand there") from None
        except SourceFailed as error:
            if error.code is ExitCode.REJECTED:
                raise MalformedError(str(error)) from None
            raise

    return read


class OwnProcess(AbstractContextManager["OwnProcess"]):
    """Does every job where it is asked for."""

    def __init__(
        self, genesis: bytes, read: Read, wanted: frozenset[bytes], terms: TeeTerms = _NOTHING_ASKED
    ) -> None:
        """Take a log by its genesis record and how it is read, the entries to look for, and what is asked of TEEs."""
        self._genesis, self._read, self._wanted, self._terms = genesis, read, wanted, terms
        self._checker = commit_checker(genesis, read)
        self._tees: TeeChecker | None = None

    def commits(self, jobs: Iterable[CommitsJob]) -> Iterator[CheckedFile]:
        """Check history files, one after the other."""
        return map(self._checker.file, jobs)

    def subtrees(self, jobs: Iterable[SubtreeJob]) -> Iterator[Subtree]:
        """Hash subtrees, one after the other."""
        return (hash_subtree(self._read, job, self._wanted) for job in jobs)

    def tees(self, jobs: Iterable[TeeJob]) -> Iterator[VerifiedTees]:
        """Verify the TEE lines of history files, one after the other."""
        return map(self._verify, jobs)

    def _verify(self, job: TeeJob) -> VerifiedTees:
        if self._tees is None:
            from quotary_verifier.audit.teejobs import TeeChecker  # few logs have such lines

            self._tees = TeeChecker(self._genesis, self._read, self._terms)
        return self._tees.file(job)

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""


class Processes(AbstractContextManager["Processes"]):
    """Some processes, each with its own access to the source, that do jobs in any order and give them back in order."""

    def __init__(
        self,
        source: str,
        genesis: bytes,
        wanted: frozenset[bytes],
        count: int,
        terms: TeeTerms = _NOTHING_ASKED,
    ) -> None:
        """Start `count` processes; the rest is as for `OwnProcess`."""
        self._count = count
        # A fresh interpreter each: a fork would take along connections and locks of this one.
        self._pool = ProcessPoolExecutor(
            count,
            mp_context=get_context("spawn"),
            initializer=_begin,
            initargs=(source, genesis, wanted, terms),
        )

    def commits(self, jobs: Iterable[CommitsJob]) -> Iterator[CheckedFile]:
        """Check history files."""
        return self._in_order(_commits, jobs)

    def subtrees(self, jobs: Iterable[SubtreeJob]) -> Iterator[Subtree]:
        """Hash subtrees."""
        return self._in_order(_subtree, jobs)

    def tees(self, jobs: Iterable[TeeJob]) -> Iterator[VerifiedTees]:
        """Verify the TEE lines of history files."""
        return self._in_order(_tees, jobs)

    def _in_order(self, function: Callable[[J], R | _Failed], jobs: Iterable[J]) -> Iterator[R]:
        waiting: deque[Future[R | _Failed]] = deque()
        upcoming = iter(jobs)
        due = _AHEAD * self._count
        while True:
            for job in islice(upcoming, due - len(waiting)):
                waiting.append(self._submit(function, job))
            if not waiting:
                return
            result = self._result(waiting.popleft())
            if isinstance(result, _Failed):
                raise result.failure()
            yield result

    def _submit(self, function: Callable[[J], R], job: J) -> Future[R]:
        try:
            return self._pool.submit(function, job)
        except BrokenProcessPool:
            raise _ended() from None

    def _result(self, future: Future[R]) -> R:
        try:
            return future.result()
        except BrokenProcessPool:
            raise _ended() from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _ended() -> Failure:
    return Failure(
        "a process that hashed for the audit was ended from outside",
        code=ExitCode.FAILURE,
        hint="out of memory, perhaps: --jobs 1 does everything in one process",
    )


class _Failed:
    """A failure on its way between processes: one as an exception does not survive it."""

    def __init__(self, failure: Failure) -> None:
        self._parts: tuple[Any, ...] = (str(failure), failure.code, failure.hint)

    def failure(self) -> Failure:
        """Return it as it was raised."""
        message, code, hint = self._parts
        return Failure(message, code=code, hint=hint)


_worker: OwnProcess | _Failed | None = None


def _begin(source: str, genesis: bytes, wanted: frozenset[bytes], terms: TeeTerms) -> None:
    """Make this process one of the workers."""
    global _worker  # noqa: PLW0603 - a process of a pool has nowhere else to keep what its jobs share
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    try:
        read = reading(open_source(source))
    except Failure as failure:
        _worker = _Failed(failure)
        return
    _worker = OwnProcess(genesis, read, wanted, terms)


def _commits(job: CommitsJob) -> CheckedFile | _Failed:
    return _one(lambda worker: next(worker.commits((job,))))


def _subtree(job: SubtreeJob) -> Subtree | _Failed:
    return _one(lambda worker: next(worker.subtrees((job,))))


def _tees(job: TeeJob) -> VerifiedTees | _Failed:
    return _one(lambda worker: next(worker.tees((job,))))


def _one(function: Callable[[OwnProcess], R]) -> R | _Failed:
    assert _worker is not None
    if isinstance(_worker, _Failed):
        return _worker
    try:
        return function(_worker)
    except Failure as failure:
        return _Failed(failure)
