# SPDX-License-Identifier: Apache-2.0
"""TEE lines of a commit by itself: matched with their supports, before anything is verified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from soft_log import SoftLog

from quotary_verifier.audit.commits import CheckedCommit, CommitChecker
from quotary_verifier.audit.findings import Code, Severity
from quotary_verifier.audit.opening import open_log
from quotary_verifier.tlog.hardware import IDENTIFIER_SEV_SNP, HardwareLine, encode_hardware_line
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.history import Commit, CommitTeeSupport


@pytest.fixture
def log(tmp_path: Path) -> SoftLog:
    log = SoftLog(tmp_path)
    log.start()
    log.finish()
    return log


def made(log: SoftLog) -> Commit:
    """The next commit of a log."""
    log.files.append([b"e" * 32])
    return log.commit(publish=False)


def checked(log: SoftLog, commit: Commit) -> CheckedCommit:
    """Check a commit of a log that has others."""

    def read(path: str, most: int) -> bytes:
        data = (log.files.folder / path).read_bytes()
        assert len(data) <= most
        return data

    return CommitChecker(open_log(read).host, read).check(commit.encode(), 1)


def told(result: CheckedCommit) -> list[tuple[Code, Severity]]:
    return [(finding.code, finding.severity) for finding in result.findings]


SUPPORT = CommitTeeSupport(IDENTIFIER_SEV_SNP, {"leaf": (bytes(32),), "issuer": (b"\1" * 32,)})


def with_tee(log: SoftLog, commit: Commit, *firsts: int) -> Commit:
    lines = [
        encode_hardware_line(log.origin, b"", HardwareLine(IDENTIFIER_SEV_SNP, first, b"report %d" % number))
        for number, first in enumerate(firsts)
    ]
    note = parse_note(commit.note).with_lines(lines)
    return replace(commit, note=note.encode(), tees=(SUPPORT,))


def test_a_commit_with_a_tee_line_and_its_support_is_kept_for_its_verification(log: SoftLog) -> None:
    commit = made(log)
    result = checked(log, with_tee(log, commit, commit.first))
    assert result.findings == ()
    assert result.tees == ("sev-snp",)
    assert len(result.sha256) == 32


def test_a_tee_line_that_does_not_fit_its_commit_is_false(log: SoftLog) -> None:
    commit = made(log)
    good = with_tee(log, commit, commit.first)
    for bad in (
        replace(good, tees=()),
        replace(commit, tees=(SUPPORT,)),
        with_tee(log, commit, commit.first + 1),
        with_tee(log, commit, commit.first, commit.first),
    ):
        result = checked(log, bad)
        assert told(result) == [(Code.TEE, Severity.FALSE)]
        assert result.tees is None
