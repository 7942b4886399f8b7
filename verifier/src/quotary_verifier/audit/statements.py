# SPDX-License-Identifier: Apache-2.0
"""The statements in a log (docs/spec/records.md, "Statement"), which nothing but their public records gives away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quotary_verifier.audit.commits import CheckedCommit
from quotary_verifier.audit.findings import Code, Place, Severity
from quotary_verifier.audit.reading import Absent, Blobs
from quotary_verifier.audit.report import AuditedStatement
from quotary_verifier.audit.sink import Sink
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.wire.declaration import Declaration
from quotary_verifier.wire.limits import MAX_RECORD
from quotary_verifier.wire.records import Statement

PROBED: Final = 16
"""Commits after a start in which a statement is looked for where blobs cannot be listed: agents make it then."""

MAX_STATEMENTS: Final = 10_000


class Statements:
    """Collects statements. An agent commits each by itself, so only commits of one leaf are looked at."""

    def __init__(self, found: list[AuditedStatement], blobs: Blobs, sink: Sink, *, searched: bool) -> None:
        self._found, self._blobs, self._sink, self._searched = found, blobs, sink, searched

    def commit(
        self,
        commit: CheckedCommit,
        start: int,
        entries: Mapping[int, bytes],
        public: Mapping[int, bytes],
        since_start: int,
    ) -> None:
        """Look for statements among the leaves from `start` on; `public` are those that have a blob."""
        if self._searched:
            for leaf, entry in sorted(public.items()):
                if leaf >= start:
                    self._read(commit, leaf, entry)
        elif commit.size - commit.first == 1 and 1 < since_start <= PROBED:
            entry = entries.get(commit.first, b"")
            if entry:
                self._read(commit, commit.first, entry)

    def _read(self, commit: CheckedCommit, leaf: int, entry: bytes) -> None:
        where = Place(path=f"blob/{entry.hex()}", commit=commit.number, leaf=leaf)
        try:
            data = self._blobs.get(entry, MAX_RECORD)
        except Absent:
            return
        except (MalformedError, EvidenceError) as error:
            if not any(finding.where.path == where.path for finding in self._sink.kept):
                self._sink.tell(
                    Code.RECORD, Severity.FALSE, where, f"the public record of leaf {leaf}: {error}"
                )
            return
        try:
            record = Statement.decode(data)
        except MalformedError:
            return  # another kind of record
        except UnsupportedError as error:
            self._sink.tell(Code.STATEMENT, Severity.COULD_NOT, where, str(error))
            return
        try:
            Declaration.parse(record.text)
        except MalformedError as error:
            self._sink.tell(Code.STATEMENT, Severity.FALSE, where, str(error))
        except UnsupportedError as error:
            self._sink.tell(Code.STATEMENT, Severity.COULD_NOT, where, str(error))
        if leaf < commit.first:
            message = "a statement is among leaves that no commit claims: it was staged before a crash"
            self._sink.tell(Code.STATEMENT, Severity.NOTICE, where, message)
        if len(self._found) < MAX_STATEMENTS:
            self._found.append(AuditedStatement(leaf, commit.number, record.time, record.text))
