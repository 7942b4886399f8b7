# SPDX-License-Identifier: Apache-2.0
"""Audits of origins without a TPM: TEE lines bind the commits, boot records order the starts, and no count does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from agents import policy_of
from amd_pki import AmdForge
from nacl.signing import SigningKey
from soft_log import SoftLog
from soft_tee_log import SoftTeeLog
from tee_audits import AT, FAR, changed, rules, snp, told, watched

from quotary_cli import auditing
from quotary_cli.auditing import Wanted, audit_source
from quotary_cli.auditview.html import audit_page
from quotary_cli.auditview.text import audit_lines
from quotary_verifier.audit.findings import Code, Severity
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.evidence.tee.nvidia import Architecture, NvidiaRules
from quotary_verifier.policy.model import PlatformRules, Policy
from quotary_verifier.tlog.note import Note, parse_note, sign_ed25519
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.history import Commit
from quotary_verifier.wire.records import BootTpm


@pytest.fixture
def forge() -> AmdForge:
    return AmdForge()


@pytest.fixture
def log(tmp_path: Path, forge: AmdForge) -> SoftTeeLog:
    """Two starts, outputs and a statement."""
    log = SoftTeeLog(tmp_path / "log", snp(forge))
    log.start()
    log.outputs(3)
    log.outputs()
    log.start()
    log.outputs(600)
    return log


def policy(log: SoftLog, forge: AmdForge, **more: object) -> Policy:
    return replace(policy_of(log.origin), tee=rules(forge), **more)  # type: ignore[arg-type]


def audited(log: SoftLog, accepted: Policy, *, at: int = AT, **more: object) -> AuditReport:
    return audit_source(Wanted(str(log.finish()), accepted, at, **more))  # type: ignore[arg-type]


def worst(report: AuditReport) -> list[tuple[Code, Severity, int | None]]:
    return [item for item in told(report) if item[1] is not Severity.NOTICE]


def test_a_history_that_tees_alone_bind_verifies_and_says_what_nobody_can_know(
    log: SoftTeeLog, forge: AmdForge
) -> None:
    report = audited(log, policy(log, forge))
    assert (report.outcome, report.complete, worst(report)) == ("verified", True, [])
    assert [(start.commit, start.leaf, start.counter, start.boot) for start in report.starts] == [
        (0, 1, None, -1),
        (3, 6, None, -1),
    ]
    (tee,) = report.tees
    assert (tee.status, tee.lines, tee.first_leaf, tee.size) == ("accepted", 5, 1, log.size)
    assert (report.boots, report.periods) == ((), ())
    assert report.log is not None
    assert report.as_json()["log"]["ak"] is None
    said = " ".join(report.unknowable)
    for part in ("second history", "set back", "no count orders them", "only witnesses"):
        assert part in said
    assert "chain PCR excludes" not in said


def test_with_witnesses_it_verifies_years_later_and_no_second_history_stays_open(
    log: SoftTeeLog, forge: AmdForge
) -> None:
    accepted, cosign = watched(log, rules(forge))
    cosign(AT)
    report = audited(log, accepted, at=FAR)
    assert report.outcome == "verified"
    assert not any("second history" in text or "set back" in text for text in report.unknowable)


def test_processes_say_what_one_process_says_of_an_origin_without_a_tpm(
    log: SoftTeeLog, forge: AmdForge, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = audited(log, policy(log, forge))
    monkeypatch.setattr(auditing, "_ALONE", 1)
    assert audited(log, policy(log, forge), processes=2).as_json() == alone.as_json()


def test_an_audit_goes_on_when_the_log_has_grown(log: SoftTeeLog, forge: AmdForge, tmp_path: Path) -> None:
    state = tmp_path / "state"
    audited(log, policy(log, forge), state=state)
    log.start()
    log.outputs(5)
    report = audited(log, policy(log, forge), state=state)
    assert (report.outcome, len(report.starts), report.tees[0].lines) == ("verified", 3, 7)


def test_a_commit_without_a_line_or_with_a_false_one_is_false(log: SoftTeeLog, forge: AmdForge) -> None:
    log.tee = None
    log.outputs()
    log.tee = snp(forge, lambda data: bytes(64))
    log.outputs()
    report = audited(log, policy(log, forge))
    assert sorted(worst(report)) == [
        (Code.TEE, Severity.FALSE, 5),
        (Code.TEE, Severity.FALSE, 6),
        (Code.TEE_RULES, Severity.POLICY, 5),
    ]


def test_the_key_of_the_genesis_record_signs_every_note(log: SoftTeeLog, forge: AmdForge) -> None:
    def other(commit: Commit) -> Commit:
        note = parse_note(commit.note)
        line = sign_ed25519(note.text, log.origin, SigningKey.generate())
        return replace(commit, note=Note(note.text, (line, *note.lines[1:])).encode())

    changed(log, 2, other)
    assert worst(audited(log, policy(log, forge))) == [(Code.NOTE, Severity.FALSE, 2)]


def test_supports_of_a_tpm_have_no_place_there(log: SoftTeeLog, forge: AmdForge, tmp_path: Path) -> None:
    beside = SoftLog(tmp_path / "beside")
    beside.start()
    support = Commit.decode(beside._history[0]).supports
    changed(log, 1, lambda commit: replace(commit, supports=support))
    changed(log, 2, lambda commit: replace(commit, boot_logs={"tcg": (bytes(32), 5)}))
    assert worst(audited(log, policy(log, forge))) == [
        (Code.TEE, Severity.FALSE, 1),
        (Code.TEE, Severity.FALSE, 2),
    ]


def test_leaves_before_a_start_are_history_and_a_start_that_died_is_told(
    log: SoftTeeLog, forge: AmdForge
) -> None:
    log.start(lost=[b"l" * 32])
    log.start(commit=False)
    log.start()
    report = audited(log, policy(log, forge))
    size = 607
    assert [(start.history, start.lost) for start in report.starts[2:]] == [
        ((size, size + 1), ()),
        ((size + 2, size + 3), (size + 2,)),
    ]
    assert worst(report) == [(Code.HISTORY_LEAVES, Severity.GAP, 5)]
    assert report.outcome == "verified"


def test_a_boot_record_that_does_not_follow_the_last_commit_is_false(
    log: SoftTeeLog, forge: AmdForge
) -> None:
    log.start(change=lambda record: replace(record, last_commit=ZERO))
    log.start(change=lambda record: replace(record, tpm=BootTpm(1, 0, ZERO, b"e")))
    report = audited(log, policy(log, forge))
    assert worst(report) == [(Code.START, Severity.FALSE, 5), (Code.START, Severity.FALSE, 6)]


def test_leaves_that_no_commit_claims_are_false_where_no_start_follows(
    log: SoftTeeLog, forge: AmdForge
) -> None:
    log.files.append([b"x" * 32, b"y" * 32])
    log.commit(first=log.size - 1)
    report = audited(log, policy(log, forge))
    assert (Code.START, Severity.COULD_NOT, 5) in worst(report)
    (log.files.folder / f"blob/{(b'y' * 32).hex()}").write_bytes(b"")
    assert (Code.START, Severity.FALSE, 5) in worst(audited(log, policy(log, forge)))


def test_a_commit_that_claims_leaves_of_another_or_adds_none_is_false(
    log: SoftTeeLog, forge: AmdForge
) -> None:
    log.commit(first=log.size - 1)
    log.files.append([b"x" * 32, b"y" * 32])
    log.commit(first=log.size - 3)
    log.outputs()
    assert [item for item in worst(audited(log, policy(log, forge))) if item[0] is Code.RANGE] == [
        (Code.RANGE, Severity.FALSE, 5),
        (Code.RANGE, Severity.FALSE, 6),
    ]


def test_a_history_that_does_not_begin_with_a_start_is_false(tmp_path: Path, forge: AmdForge) -> None:
    log = SoftTeeLog(tmp_path / "other", snp(forge))
    log.outputs(3)
    log.start()
    assert worst(audited(log, policy(log, forge))) == [(Code.START, Severity.FALSE, 0)]


def test_a_tree_that_shrinks_or_is_of_another_root_is_false(log: SoftTeeLog, forge: AmdForge) -> None:
    log.files.append([b"x" * 32])
    log.commit(root=bytes(32))
    report = audited(log, policy(log, forge))
    assert (Code.ROOT, Severity.FALSE, 5) in worst(report)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"pins": frozenset({"other.example/" + "a" * 32})}, Code.ENDORSEMENT),
        ({"safe_clock": True}, Code.PLATFORM),
        ({"opaque_events": False}, Code.PLATFORM),
        ({"platform": PlatformRules({0: frozenset({bytes(32)})})}, Code.PLATFORM),
        ({"tee": None}, Code.TEE_RULES),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_policy_that_asks_for_what_only_a_tpm_shows_or_for_no_whole_machine_refuses_it(
    log: SoftTeeLog, forge: AmdForge, change: dict[str, object], code: Code
) -> None:
    report = audited(log, policy(log, forge, **change) if "tee" not in change else policy_of(log.origin))
    assert (code, Severity.POLICY, None) in worst(report)
    assert report.outcome == "rejected"


def test_a_gpu_is_no_machine(log: SoftTeeLog, forge: AmdForge) -> None:
    asked = replace(rules(forge), required=frozenset({"nvidia"}), nvidia=NvidiaRules(frozenset(Architecture)))
    report = audited(log, replace(policy_of(log.origin), tee=asked))
    assert (Code.TEE_RULES, Severity.POLICY, None) in worst(report)


def test_an_attestation_of_another_history_is_shown_by_its_genesis_key(
    log: SoftTeeLog, forge: AmdForge, tmp_path: Path
) -> None:
    """What a host serves to one and not to the auditor."""
    from quotary_verifier.audit.given import GivenRecord, Records
    from quotary_verifier.audit.opening import open_log
    from quotary_verifier.audit.sink import Sink

    hidden = parse_note(log.commit(publish=False, root=b"r" * 32).note)
    log.finish()
    opened = open_log(lambda path, most: (log.files.folder / path).read_bytes())
    given = GivenRecord("a", b"e" * 32, 5, log.origin, log.size, hidden.text, hidden.encode(), log.genesis)
    sink = Sink()
    Records((given,), opened.host, opened.key, sink).finish(True, sink)
    assert sink.kept[0].code is Code.RECORD_OTHER_HISTORY
    unsigned = Note(hidden.text, hidden.lines[1:]).encode()
    sink = Sink()
    Records((replace(given, note=unsigned),), opened.host, opened.key, sink).finish(True, sink)
    assert (sink.kept[0].code, sink.kept[0].severity) == (Code.RECORD, Severity.NOTICE)


def test_people_are_shown_the_evidence_and_that_there_is_no_tpm(log: SoftTeeLog, forge: AmdForge) -> None:
    forge.tcb["microcode"] = 199
    log.tee = snp(forge)
    log.outputs()
    report = audited(log, policy(log, forge))
    lines = "\n".join(audit_lines(report, "log"))
    assert "no TPM" in lines
    assert "sev-snp" in lines
    assert "commits 0-4" in lines
    assert forge.chip.hex()[:16] in lines
    page = audit_page(report, "log")
    assert "the origin has no TPM" in page
    assert forge.chip.hex() in page
