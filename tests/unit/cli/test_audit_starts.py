# SPDX-License-Identifier: Apache-2.0
"""Starts in a history: what a boot record must say, and which lost commits explain a chain that does not go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from agents import policy_of
from soft_log import CHAIN, SoftLog

from quotary_cli.auditing import Wanted, audit_source
from quotary_verifier.audit import boots
from quotary_verifier.audit.findings import Code, Place, Severity
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.audit.sink import MAX_FINDINGS, Sink
from quotary_verifier.audit.state import decode_state
from quotary_verifier.audit.stream import MAX_STALE
from quotary_verifier.wire.records import Boot, BootTpm

AT = 1_790_000_100


@pytest.fixture
def log(tmp_path: Path) -> SoftLog:
    log = SoftLog(tmp_path / "log")
    log.start()
    log.outputs(20)
    log.reset()
    return log


def audited(log: SoftLog) -> AuditReport:
    return audit_source(Wanted(str(log.finish()), policy_of(log.origin), AT))


def tpm_of(record: Boot) -> BootTpm:
    assert record.tpm is not None
    return record.tpm


CHANGES: dict[str, Callable[[Boot], Boot]] = {
    "another commit": lambda record: replace(record, last_commit=b"d" * 32),
    "another chain PCR": lambda record: replace(record, tpm=replace(tpm_of(record), chain_before=b"c" * 32)),
    "another boot": lambda record: replace(record, tpm=replace(tpm_of(record), reset_count=9)),
    "nothing of the origin's TPM": lambda record: replace(record, tpm=None),
    "extraData": lambda record: replace(record, salt=b"s" * 16),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_boot_record_that_does_not_belong_to_its_commit_is_false(log: SoftLog, what: str) -> None:
    log.start(change=CHANGES[what])
    report = audited(log)
    (found,) = report.findings
    assert (found.code, found.severity, found.where.commit) == (Code.START, Severity.FALSE, 2)
    assert what in found.message
    assert [start.commit for start in report.starts] == [0]


def test_a_counter_certified_before_the_last_commit_is_false(log: SoftLog) -> None:
    log.start()
    log.outputs(1)
    clock = log.clock
    log.clock = replace(clock, clock=clock.clock - 100)
    record = log.start(commit=False)
    assert record
    log.clock = replace(clock, clock=clock.clock + 10)
    log.commit(first=log.size - 1)
    (found,) = audited(log).findings
    assert (found.code, found.severity) == (Code.START, Severity.FALSE)
    assert "the clock ran back within one boot" in found.message


def died(log: SoftLog) -> None:
    """A start that dies between its extend and the history: the next one knows nothing of its D."""
    digest = log.digest
    log.start(commit=False)
    log.commit(first=log.size - 1, publish=False)
    log.digest = digest


@pytest.mark.parametrize("deaths", ["e", "be", "eb", "ee", "beeb"])
def test_every_order_of_deaths_before_and_after_an_extend_is_explained(log: SoftLog, deaths: str) -> None:
    for death in deaths:
        if death == "e":
            died(log)
        else:
            log.start(commit=False)
    first = log.size
    log.start()
    report = audited(log)
    assert report.outcome == "verified", report.findings
    assert {f.code for f in report.findings} == {Code.LOST_COMMIT, Code.HISTORY_LEAVES}
    start = report.starts[-1]
    assert (start.leaf, start.skipped, len(start.lost)) == (first, 0, len(deaths))
    assert report.boots[-1].chain == "explained"


def test_an_extend_beside_a_lost_commit_is_a_gap(log: SoftLog) -> None:
    died(log)
    log.extend(CHAIN, b"x" * 32)
    log.start()
    report = audited(log)
    assert {f.code for f in report.findings} == {Code.CHAIN_GAP, Code.HISTORY_LEAVES}
    assert report.boots[-1].chain == "gap"


def test_a_lost_start_that_found_another_chain_explains_nothing(log: SoftLog) -> None:
    log.extend(CHAIN, b"x" * 32)
    died(log)
    log.start()
    report = audited(log)
    assert {f.code for f in report.findings} == {Code.CHAIN_GAP, Code.HISTORY_LEAVES}


def test_a_commit_that_stands_twice_in_the_history_does_not_grow_it(log: SoftLog) -> None:
    log.start()
    log.files.append([b"e" * 32])
    log.publish(log.commit())
    log.outputs(1)
    report = audited(log)
    assert (report.findings[0].code, report.findings[0].severity) == (Code.RANGE, Severity.FALSE)
    assert "has 24 leaves, and had 24 before" in report.findings[0].message


def test_commits_that_do_not_grow_the_tree_are_not_read_without_end(log: SoftLog) -> None:
    """A server may publish a size that no history reaches, and send history files for as long as it is asked."""
    log.start()
    made = log.commit(first=log.size - 1)
    for _ in range(3 * MAX_STALE):
        log.publish(made)
    log.files.append([b"e" * 32])
    made = log.commit()
    for _ in range(3 * MAX_STALE):
        log.publish(made)
    log.outputs(1)
    report = audited(log)
    assert report.log is not None
    assert report.log.commits <= MAX_STALE + 4
    assert not report.complete
    assert any(f"more than {MAX_STALE} commits do not grow" in finding.message for finding in report.findings)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (((b"a" * 32, 10), (b"b" * 32, 10)), "two digests are named for the first 10 bytes"),
        (((b"a" * 32, 20), (b"b" * 32, 10)), "shrank within the boot"),
    ],
)
def test_commits_of_one_boot_that_name_different_boot_logs_are_false(
    log: SoftLog, parts: tuple[tuple[bytes, int], ...], why: str
) -> None:
    log.start()
    for part in parts:
        log.boot_logs = {"later": part}
        log.outputs(1)
    (found,) = (f for f in audited(log).findings if f.severity is Severity.FALSE)
    assert (found.code, found.where.commit) == (Code.BOOT_LOG, 4)
    assert why in found.message


def test_findings_are_counted_all_and_kept_as_far_as_anybody_reads() -> None:
    sink = Sink()
    for number in range(MAX_FINDINGS + 5):
        sink.tell(Code.QUOTE, Severity.FALSE, Place(commit=number), "the same")
        sink.tell(Code.WORKLOAD, Severity.COULD_NOT, Place("blob/x", number), "there is no blob/x")
    assert dict(sink.by_severity()) == {Severity.FALSE: MAX_FINDINGS + 5, Severity.COULD_NOT: 1}
    assert len(sink.kept) == MAX_FINDINGS + 1


def test_a_boot_log_that_grows_with_every_commit_takes_bounded_memory(
    log: SoftLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boots, "MAX_PREFIXES", 3)
    log.start()
    for size in range(10, 20):
        log.boot_logs = {"ima": (bytes([size]) * 32, size)}
        log.pcrs[10] = bytes([size]) * 32
        log.outputs()
    state = tmp_path / "state"
    report = audit_source(Wanted(str(log.finish()), policy_of(log.origin), AT, state=state))
    assert any("not all are checked" in finding.message for finding in report.findings)
    held = decode_state(state.read_bytes()).history.open
    assert held is not None
    kept = held.logs["ima"]
    assert kept.prefixes.keys() == kept.ima.keys() == kept.commits.keys() == {10, 11, 19}
