# SPDX-License-Identifier: Apache-2.0
"""TEE lines in a history: matched with their supports and counted, and said not to be verified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from agents import policy_of
from soft_log import SoftLog

from quotary_verifier.audit.commits import CheckedCommit, CommitChecker
from quotary_verifier.audit.findings import Code, Severity
from quotary_verifier.audit.opening import open_log
from quotary_verifier.audit.tees import tee_findings
from quotary_verifier.evidence.tee.amd_certs import Generation
from quotary_verifier.evidence.tee.snp_rules import SnpRules
from quotary_verifier.policy.tee import TeeRules
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


def test_a_commit_with_a_tee_line_and_its_support_holds_and_is_counted(log: SoftLog) -> None:
    commit = made(log)
    result = checked(log, with_tee(log, commit, commit.first))
    assert result.findings == ()
    assert result.tees == ("sev-snp",)


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
        assert result.tees == ()


@pytest.mark.parametrize(("required", "severity"), [(False, Severity.NOTICE), (True, Severity.COULD_NOT)])
def test_a_report_says_that_tee_evidence_is_not_verified_and_is_no_success_where_it_is_required(
    log: SoftLog,
    required: bool,
    severity: Severity,
) -> None:
    names = frozenset({"sev-snp"}) if required else frozenset()
    rules = TeeRules(names, snp=SnpRules(frozenset({Generation.GENOA})))
    policy = replace(policy_of(log.origin), tee=rules)
    (finding,) = tee_findings({"sev-snp": 3}, policy, 7)
    assert (finding.code, finding.severity) == (Code.TEE, severity)
    assert "3 of 7 commits have" in finding.message
    assert len(list(tee_findings({}, policy, 7))) == required
