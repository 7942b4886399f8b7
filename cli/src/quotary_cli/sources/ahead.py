# SPDX-License-Identifier: Apache-2.0
"""Reading many files of a source in order, several at a time where the other side is far away."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from quotary_cli.sources.base import LogSource, SourceMissing
from quotary_cli.sources.paths import parse_path

Found = tuple[str, bytes | None]

_WAITING = 4
"""Files that wait to be taken, for each thread."""


def read_ahead(source: LogSource, paths: Iterable[str]) -> Iterator[Found]:
    """Yield (path, bytes) in the order of `paths`, None where nothing stands at a path.

    Raises as `LogSource.read`.
    """
    threads = getattr(source, "threads", 1)
    if threads < 2:
        for path in paths:
            yield _read(source, path)
        return
    with ThreadPoolExecutor(threads, "read") as pool:
        rest = iter(paths)
        waiting: deque[Future[Found]] = deque()
        try:
            waiting.extend(pool.submit(_read, source, path) for path in islice(rest, threads * _WAITING))
            while waiting:
                found = waiting.popleft().result()
                waiting.extend(pool.submit(_read, source, path) for path in islice(rest, 1))
                yield found
        finally:
            pool.shutdown(cancel_futures=True)


def _read(source: LogSource, path: str) -> Found:
    try:
        return path, source.read(path, parse_path(path).most)
    except SourceMissing:
        return path, None
