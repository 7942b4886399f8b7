# SPDX-License-Identifier: Apache-2.0
"""The workload logs that commits name: replayed once for each prefix that a quote covers."""

from __future__ import annotations

from typing import Final

from quotary_verifier.audit.reading import Blobs
from quotary_verifier.errors import EvidenceError
from quotary_verifier.logs.cel import parse_log
from quotary_verifier.logs.workload import WorkloadLog, read_log

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

    def _replay(self, named: tuple[bytes, int] | None) -> WorkloadLog:
        if named is None:
            return read_log(())
        digest, size = named
        data = self._blobs.get(digest, MAX_WORKLOAD_LOG)
        if size > len(data):
            raise EvidenceError(
                f"{size} leading bytes of a workload log are named, and it has {len(data)} in all"
            )
        return read_log([record.content for record in parse_log(data[:size], pcr=self._pcr)])
