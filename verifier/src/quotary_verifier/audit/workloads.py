# SPDX-License-Identifier: Apache-2.0
"""The workload logs that commits name: replayed once for each prefix that a quote covers."""

from __future__ import annotations

from typing import Final

from quotary_verifier.audit.reading import Blobs
from quotary_verifier.errors import EvidenceError, UnsupportedError
from quotary_verifier.logs.cel import parse_log
from quotary_verifier.logs.workload import TYPE_MODEL, TYPE_SEPARATOR, WorkloadEvent, WorkloadLog, read_log

MAX_WORKLOAD_LOG: Final = 64 * 1024 * 1024
"""Bytes of the workload log of one boot that an audit reads."""

_KEPT: Final = 64


class Workloads:
    """Replays the logs of one origin; the results for the prefixes asked for last are kept."""

    __slots__ = ("_blobs", "_kept", "_pcr")

    def __init__(self, blobs: Blobs, pcr: int) -> None:
        self._blobs, self._pcr = blobs, pcr
        self._kept: dict[tuple[bytes, int] | None, WorkloadLog] = {}

    def get(self, named: tuple[bytes, int] | None) -> WorkloadLog:
        """Return the log of which a commit names a blob and its leading bytes; none is an empty log.

        Raises:
            Absent: the blob is not published.
            EvidenceError, MalformedError: it is no such log.
        """
        log = self._kept.get(named)
        if log is None:
            log = self._replay(named)
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[named] = log
        return log

    def models(self, named: tuple[bytes, int] | None, first: int, last: int) -> tuple[str, ...]:
        """Return the names of the models that the epochs `first` to `last` of a log list. Raises as `get`."""
        if named is None or first > last:
            return ()
        epoch, found = 0, []
        for content in self._contents(named):
            try:
                event = WorkloadEvent.decode(content)
            except UnsupportedError:
                continue  # `get` tells of it
            if event.type == TYPE_SEPARATOR:
                epoch += 1
            elif event.type == TYPE_MODEL and first <= epoch <= last:
                found.append(event.name)
        return tuple(dict.fromkeys(found))

    def _replay(self, named: tuple[bytes, int] | None) -> WorkloadLog:
        return read_log(() if named is None else self._contents(named))

    def _contents(self, named: tuple[bytes, int]) -> list[bytes]:
        digest, size = named
        data = self._blobs.get(digest, MAX_WORKLOAD_LOG)
        if size > len(data):
            raise EvidenceError(
                f"{size} leading bytes of a workload log are named, and it has {len(data)} in all"
            )
        return [record.content for record in parse_log(data[:size], pcr=self._pcr)]
