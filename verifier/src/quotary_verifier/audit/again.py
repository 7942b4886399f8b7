# SPDX-License-Identifier: Apache-2.0
"""Reading parts of an audited history again: a server could answer otherwise then, and does not get away with it."""

from __future__ import annotations

from hashlib import sha256
from itertools import islice

from quotary_verifier.audit.commits import MAX_HISTORY_FILE
from quotary_verifier.audit.opening import CannotOpen, Opened, open_log
from quotary_verifier.audit.reading import Absent, Read
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.audit.tees import chained
from quotary_verifier.errors import EvidenceError
from quotary_verifier.tlog.tiles import numbered_path
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.history import COMMITS_PER_FILE, split


def open_again(report: AuditReport, read: Read) -> Opened:
    """Open the log that was audited, which may have grown.

    Raises:
        EvidenceError: it cannot be opened any more, or is another log.
    """
    try:
        opened = open_log(read)
    except CannotOpen as error:
        raise EvidenceError(str(error)) from None
    if report.log is None or opened.host.origin != report.log.origin:
        raise EvidenceError(f"now it is the log of {opened.host.origin}")
    return opened


def commits_again(number: int, report: AuditReport, read: Read) -> list[bytes]:
    """Return the commits of history file `number` that were audited, as they stand there. What came since is left out.

    Raises:
        EvidenceError: they are others than those that were audited, or not there any more.
        MalformedError: the file has another form, or is too large.
    """
    path = f"history/{numbered_path(number)}"
    audited = 0 if report.log is None else report.log.commits - number * COMMITS_PER_FILE
    try:
        data = read(path, MAX_HISTORY_FILE)
    except Absent as error:
        raise EvidenceError(str(error)) from None
    commits = list(islice(split(data), min(audited, COMMITS_PER_FILE)))
    digest = ZERO
    for commit in commits:
        digest = chained(digest, sha256(commit).digest())
    if digest != report.history[number]:
        raise EvidenceError(f"{path} has other commits than those that were audited")
    return commits
