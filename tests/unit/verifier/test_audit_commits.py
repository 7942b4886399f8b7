# SPDX-License-Identifier: Apache-2.0
"""A commit by itself: whatever in it does not belong to it is false, and named by what it is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import soft_log
from soft_log import SoftLog
from soft_tpm import ecc_key

from quotary_verifier.audit.commits import CheckedCommit, CommitChecker, CommitsJob
from quotary_verifier.audit.findings import Code, Severity
from quotary_verifier.audit.opening import open_log
from quotary_verifier.audit.reading import Absent
from quotary_verifier.errors import MalformedError
from quotary_verifier.tlog.note import Note, parse_note
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.history import Commit, CommitSupport
from quotary_verifier.wire.tpm import PcrSelection


@pytest.fixture
def log(tmp_path: Path) -> SoftLog:
    log = SoftLog(tmp_path)
    log.start()
    log.finish()
    return log


def read_from(folder: Path) -> Callable[[str, int], bytes]:
    def read(path: str, most: int) -> bytes:
        place = folder / path
        if not place.is_file():
            raise Absent(path)
        data = place.read_bytes()
        if len(data) > most:
            raise MalformedError(f"{path} is too long")
        return data

    return read


def checked(log: SoftLog, commit: Commit) -> CheckedCommit:
    """Check a commit of a log that has others."""
    read = read_from(log.files.folder)
    return CommitChecker(open_log(read).host, read).check(commit.encode(), 1)


def told(result: CheckedCommit) -> list[tuple[Code, Severity]]:
    return [(finding.code, finding.severity) for finding in result.findings]


def made(log: SoftLog) -> Commit:
    """The next commit of a log."""
    log.files.append([b"e" * 32])
    return log.commit(publish=False)


def with_support(commit: Commit, **changes: object) -> Commit:
    (support,) = commit.supports
    return replace(commit, supports=(replace(support, **changes),))  # type: ignore[arg-type]


def test_a_commit_that_holds_gives_its_quote_with_all_sixteen_values(log: SoftLog) -> None:
    result = checked(log, made(log))
    assert result.findings == ()
    assert result.quoted is not None
    assert result.quoted.pcrs == log.pcrs
    assert result.after == log.pcrs[soft_log.CHAIN]


def test_a_quote_of_another_digest_is_false(log: SoftLog, monkeypatch: pytest.MonkeyPatch) -> None:
    attest = log._attest
    monkeypatch.setattr(log, "_attest", lambda body, _: attest(body, b"o" * 32))
    result = checked(log, made(log))
    assert (told(result), result.quoted) == ([(Code.QUOTE, Severity.FALSE)], None)
    assert "extraData" in result.findings[0].message


def test_a_quote_under_another_name_or_by_another_key_is_false(log: SoftLog) -> None:
    own, log.signer = log.signer, b"\0\x0b" + b"n" * 32
    assert told(checked(log, made(log))) == [(Code.QUOTE, Severity.FALSE)]
    log.signer, key = own, log.key
    log.key = replace(ecc_key(), public=key.public)
    result = checked(log, made(log))
    assert told(result) == [(Code.QUOTE, Severity.FALSE)]
    assert "signature" in result.findings[0].message


def test_a_quote_of_fewer_registers_is_false(log: SoftLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_log, "SELECTION", PcrSelection(0x0B, b"\x7f\xff\x00"))
    assert told(checked(log, made(log))) == [(Code.QUOTE, Severity.FALSE)]


@pytest.mark.parametrize(
    "pcrs",
    [
        {**soft_log.PCRS, 4: b"x" * 32},
        {pcr: value for pcr, value in soft_log.PCRS.items() if pcr != 7},
        {**soft_log.PCRS, 5: ZERO},
        {**soft_log.PCRS, soft_log.CHAIN: b"x" * 32},
        {**soft_log.PCRS, soft_log.WORKLOAD: b"x" * 32},
    ],
)
def test_values_that_were_not_quoted_or_must_not_be_given_are_false(
    log: SoftLog, pcrs: Mapping[int, bytes]
) -> None:
    result = checked(log, with_support(made(log), pcrs=pcrs))
    assert (told(result), result.quoted) == ([(Code.PCRS, Severity.FALSE)], None)


def test_another_chain_before_or_less_of_the_workload_log_is_false(log: SoftLog) -> None:
    commit = made(log)
    assert told(checked(log, with_support(commit, chain_before=b"b" * 32))) == [(Code.PCRS, Severity.FALSE)]
    assert log.workload is not None
    digest, size = log.workload
    for wrong in ((digest, size - 1), (digest, size + 1), (digest, 0), None):
        assert told(checked(log, with_support(commit, workload_log=wrong))) == [(Code.PCRS, Severity.FALSE)]
    absent = checked(log, with_support(commit, workload_log=(b"d" * 32, size)))
    assert told(absent) == [(Code.WORKLOAD, Severity.COULD_NOT)]
    assert absent.quoted is not None
    assert absent.quoted.pcrs is None


def test_a_commit_that_claims_from_elsewhere_than_its_quote_is_false(log: SoftLog) -> None:
    commit = made(log)
    result = checked(log, replace(commit, first=commit.first - 1))
    assert told(result) == [(Code.QUOTE, Severity.FALSE)]
    assert "claims from leaf 1, its quote from 2" in result.findings[0].message


def test_a_note_without_the_line_of_the_ak_or_with_two_is_false(log: SoftLog) -> None:
    commit = made(log)
    note = parse_note(commit.note)
    for lines in (note.lines[:1], (*note.lines, note.lines[1])):
        wrong = replace(commit, note=Note(note.text, lines).encode())
        assert told(checked(log, wrong)) == [(Code.QUOTE, Severity.FALSE)]


def test_what_has_no_place_in_the_history_is_malformed(log: SoftLog) -> None:
    commit = made(log)
    (support,) = commit.supports
    other = CommitSupport("quotary/other/v1", support.pcrs, support.chain_before, (), support.workload_log)
    for supports in ((), (support, support), (other,)):
        with pytest.raises(MalformedError):
            checked(log, replace(commit, supports=supports))


def test_a_file_is_checked_up_to_what_is_wrong_in_it(log: SoftLog) -> None:
    log.outputs(1)
    log.outputs(1)
    folder = log.finish()
    path = folder / "history/000"
    path.write_bytes(path.read_bytes() + b"\xa0")
    read = read_from(folder)
    checker = CommitChecker(open_log(read).host, read)
    file = checker.file(CommitsJob(0, skip=1))
    assert [commit.number for commit in file.commits] == [1, 2]
    assert file.problem is not None
    assert (file.problem.where.path, file.problem.where.commit) == ("history/000", 3)
    missing = checker.file(CommitsJob(1))
    assert missing.problem is not None
    assert missing.problem.severity is Severity.COULD_NOT
