# SPDX-License-Identifier: Apache-2.0
"""TEE lines in an audit: each is verified at the time of its commit, and held to the policy's rules."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from agents import policy_of
from amd_pki import AmdForge
from soft_log import SoftLog
from tee_audits import AT, FAR, REPORT_DATA, changed, evidence_of, line_of, rules, snp, told, watched

from quotary_cli import auditing
from quotary_cli.auditing import Wanted, audit_source
from quotary_verifier.audit import teejobs, tees
from quotary_verifier.audit.findings import Code, Severity
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.audit.tees import TeeFold
from quotary_verifier.evidence.tee.amd_certs import Generation
from quotary_verifier.evidence.tee.intel_pki import intel_root
from quotary_verifier.evidence.tee.lines import TeeRoots, snp_support
from quotary_verifier.evidence.tee.nitro import nitro_root
from quotary_verifier.evidence.tee.nvidia import nvidia_root
from quotary_verifier.evidence.tee.snp_report import Tcb
from quotary_verifier.policy.tee import TeeRules
from quotary_verifier.tlog.hardware import IDENTIFIER_SEV_SNP
from quotary_verifier.wire.history import Commit


@pytest.fixture
def forge() -> AmdForge:
    return AmdForge()


@pytest.fixture
def log(tmp_path: Path, forge: AmdForge) -> SoftLog:
    """A log whose start and outputs a processor binds, too."""
    log = SoftLog(tmp_path / "log")
    log.tee = snp(forge)
    log.start()
    for _ in range(4):
        log.outputs()
    return log


def audited(log: SoftLog, tee: TeeRules | None, *, at: int = AT, **more: object) -> AuditReport:
    policy = more.pop("policy", replace(policy_of(log.origin), tee=tee))
    return audit_source(Wanted(str(log.finish()), policy, at, **more))  # type: ignore[arg-type]


def test_every_line_is_verified_and_the_report_says_which_device_made_them(
    log: SoftLog, forge: AmdForge
) -> None:
    report = audited(log, rules(forge))
    (tee,) = report.tees
    assert (report.outcome, tee.status, tee.lines) == ("verified", "accepted", 5)
    assert (tee.first_commit, tee.last_commit, tee.first_leaf, tee.size) == (0, 4, 1, 6)
    (device,) = map(dict, tee.devices)
    assert device["device"] == forge.chip.hex()
    assert device["generation"] == "Genoa"
    assert "microcode=200" in device["committed_tcb"]
    assert [finding.severity for finding in report.findings] == [
        Severity.NOTICE
    ]  # a root of the policy's own


@pytest.mark.parametrize(
    "twist",
    [lambda data: bytes(32) + data[32:], lambda data: data[:32] + bytes(32)],
    ids=["commit", "origin"],
)
def test_a_false_line_in_the_midst_of_a_history_is_false_at_its_commit(
    log: SoftLog, forge: AmdForge, twist: Callable[[bytes], bytes]
) -> None:
    log.tee = snp(forge, twist)
    log.outputs()
    log.tee = snp(forge)
    log.outputs()
    for required in (True, False):
        report = audited(log, rules(forge, required=required))
        assert (Code.TEE, Severity.FALSE, 5) in told(report)
        assert report.counts[0] == (Severity.FALSE, 1)
        (tee,) = report.tees
        assert (tee.first_commit, tee.last_commit, tee.lines) == (0, 6, 6)


def test_a_line_of_another_commit_or_another_origin_is_false(
    log: SoftLog, forge: AmdForge, tmp_path: Path
) -> None:
    one, two = evidence_of(log, 2), evidence_of(log, 3)
    changed(log, 2, lambda commit: line_of(log, commit, two))
    changed(log, 3, lambda commit: line_of(log, commit, one))
    other = SoftLog(tmp_path / "other")
    other.tee = snp(forge)
    other.start()
    changed(log, 4, lambda commit: line_of(log, commit, evidence_of(other, 0)))
    report = audited(log, rules(forge))
    assert [place for place in told(report) if place[0] is Code.TEE] == [
        (Code.TEE, Severity.FALSE, number) for number in (2, 3, 4)
    ]
    assert all("report data" in finding.message for finding in report.findings if finding.code is Code.TEE)


def test_evidence_that_is_cut_off_or_endorsed_by_another_chip_is_false(log: SoftLog, forge: AmdForge) -> None:
    cut = evidence_of(log, 2)[:-1]
    changed(log, 2, lambda commit: line_of(log, commit, cut))
    foreign = AmdForge(chip=bytes(range(2, 66)))
    log.tee = lambda data: {
        IDENTIFIER_SEV_SNP: (
            forge.report({REPORT_DATA: data}),
            snp_support(foreign.endorsements()).endorsements,
        )
    }
    log.outputs()
    report = audited(log, rules(forge))
    assert [place for place in told(report) if place[0] is Code.TEE] == [
        (Code.TEE, Severity.FALSE, 2),
        (Code.TEE, Severity.FALSE, 5),
    ]
    assert any("of another chip" in finding.message for finding in report.findings)
    assert report.outcome == "rejected"


def test_a_required_kind_that_is_missing_is_told_once_for_its_commits(log: SoftLog, forge: AmdForge) -> None:
    bind, log.tee = log.tee, None
    log.outputs()
    log.outputs()
    log.tee = bind
    log.outputs()
    log.tee = None
    log.outputs()
    report = audited(log, rules(forge))
    assert [place for place in told(report) if place[1] is Severity.POLICY] == [
        (Code.TEE_RULES, Severity.POLICY, 5),
        (Code.TEE_RULES, Severity.POLICY, 8),
    ]
    missing = [tee for tee in report.tees if tee.status == "missing"]
    assert [(tee.first_commit, tee.last_commit, tee.lines) for tee in missing] == [(5, 6, 0), (8, 8, 0)]
    (finding, _) = [found for found in report.findings if found.severity is Severity.POLICY]
    assert finding.message.startswith("commits 5 to 6: the policy requires evidence of sev-snp")
    assert audited(log, rules(forge, required=False)).outcome == "verified"


def test_a_root_that_binds_every_second_commit_says_one_thing_over_all_of_them(
    log: SoftLog, forge: AmdForge
) -> None:
    bind = log.tee
    for number in range(6):
        log.tee = None if number % 2 == 0 else bind
        log.outputs()
    (tee,) = audited(log, rules(forge, required=False)).tees
    assert (tee.first_commit, tee.last_commit, tee.lines) == (0, 10, 8)


def test_rules_are_applied_to_each_stretch_and_name_what_they_refuse(log: SoftLog, forge: AmdForge) -> None:
    forge.tcb["microcode"] = 199
    log.tee = snp(forge)
    log.outputs()
    log.outputs()
    least = {Generation.GENOA: Tcb(bootloader=0, tee=0, snp=0, microcode=200, fmc=None)}
    report = audited(log, rules(forge, committed=least))
    assert [(tee.status, tee.first_commit, tee.last_commit) for tee in report.tees] == [
        ("accepted", 0, 4),
        ("rejected", 5, 6),
    ]
    (finding,) = [found for found in report.findings if found.severity is Severity.POLICY]
    assert (finding.code, finding.where.commit, finding.where.leaf) == (Code.TEE_RULES, 5, 6)
    assert "microcode" in finding.message
    assert report.exit_code == 1


def test_lines_of_a_kind_without_rules_are_verified_and_said_not_to_be_appraised(
    log: SoftLog, forge: AmdForge
) -> None:
    report = audited(log, TeeRules(roots=TeeRoots(amd=forge.roots())))
    assert [(tee.status, tee.lines) for tee in report.tees] == [("not-appraised", 5)]
    assert report.outcome == "verified"
    assert any("no rules for it" in finding.message for finding in report.findings)
    under_amds_own = audited(log, None)  # no ARK of AMD's signed this
    assert [place for place in told(under_amds_own) if place[0] is Code.TEE] == [
        (Code.TEE, Severity.FALSE, number) for number in range(5)
    ]
    assert under_amds_own.tees == ()


@pytest.mark.parametrize("required", [True, False])
def test_evidence_of_another_time_could_not_be_dated_and_is_not_called_false(
    log: SoftLog, forge: AmdForge, required: bool
) -> None:
    report = audited(log, rules(forge, required=required), at=FAR)
    (tee,) = report.tees
    assert (tee.status, tee.lines, tee.devices) == ("undated", 5, ())
    severity = Severity.COULD_NOT if required else Severity.NOTICE
    assert told(report) == [(Code.TEE_RULES, severity, 0)]
    assert "could not be dated" in report.findings[0].message
    assert "2026-05-02T00:00:00Z to 2027-04-27T00:00:00Z" in report.findings[0].message
    assert report.exit_code == (3 if required else 0)


def test_a_witness_of_then_dates_what_has_run_out_since(log: SoftLog, forge: AmdForge) -> None:
    policy, cosign = watched(log, rules(forge))
    cosign(AT + 60)
    report = audited(log, None, policy=policy, at=FAR)
    assert (report.outcome, report.tees[0].status, report.tees[0].lines) == ("verified", "accepted", 5)


def test_each_line_is_judged_at_the_earliest_quorum_that_covers_its_commit(
    log: SoftLog, forge: AmdForge
) -> None:
    policy, cosign = watched(log, rules(forge))
    cosign(FAR - 2)  # late, but the next checkpoint was seen in time
    log.outputs()
    cosign(AT + 60)
    log.outputs()
    cosign(FAR - 1)
    report = audited(log, None, policy=policy, at=FAR)
    assert [(tee.status, tee.first_commit, tee.last_commit) for tee in report.tees] == [
        ("accepted", 0, 5),
        ("undated", 6, 6),
    ]
    assert report.outcome == "could-not-check"


def test_what_no_witness_covers_yet_is_judged_as_of_now_and_again_once_one_does(
    log: SoftLog, forge: AmdForge, tmp_path: Path
) -> None:
    policy, cosign = watched(log, rules(forge))
    cosign(AT)
    log.outputs()
    state = tmp_path / "state"
    first = audited(log, None, policy=policy, at=FAR, state=state)
    assert [(tee.status, tee.lines) for tee in first.tees] == [("accepted", 5), ("undated", 1)]
    assert first.outcome == "could-not-check"
    log.outputs()
    cosign(AT + 1)
    second = audited(log, None, policy=policy, at=FAR, state=state)
    assert [(tee.status, tee.lines) for tee in second.tees] == [("accepted", 7)]
    assert second.outcome == "verified"


def test_without_witnesses_what_was_judged_stays_judged(
    log: SoftLog, forge: AmdForge, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    audited(log, rules(forge), state=state)
    log.outputs()
    report = audited(log, rules(forge), state=state, at=FAR)
    assert [(tee.status, tee.lines) for tee in report.tees] == [("accepted", 5), ("undated", 1)]


def test_processes_say_what_one_process_says(
    log: SoftLog, forge: AmdForge, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = replace(policy_of(log.origin), tee=rules(forge))
    alone = audited(log, None, policy=policy)
    monkeypatch.setattr(auditing, "_ALONE", 1)
    assert audited(log, None, policy=policy, processes=2).as_json() == alone.as_json()


def test_an_endorsement_that_is_not_published_leaves_the_line_unchecked_and_another_makes_it_false(
    log: SoftLog, forge: AmdForge
) -> None:
    commit = Commit.decode(log._history[0])
    place = log.files.folder / f"blob/{commit.tees[0].endorsements['leaf'][0].hex()}"
    place.write_bytes(b"another")
    assert (Code.TEE, Severity.FALSE, 0) in told(audited(log, rules(forge)))
    place.unlink()
    report = audited(log, rules(forge))
    assert [(tee.status, tee.lines) for tee in report.tees] == [("could-not", 5)]
    assert report.outcome == "could-not-check"
    assert "is not published" in report.findings[0].message


def test_endorsements_without_end_are_not_read(
    log: SoftLog, forge: AmdForge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teejobs, "MAX_ENDORSEMENTS", 500)
    report = audited(log, rules(forge))
    assert (Code.TEE, Severity.FALSE, 0) in told(report)
    assert "bytes that may stand there" in report.findings[0].message
    commit = Commit.decode(log._history[0])
    sizes = [
        (log.files.folder / f"blob/{digest.hex()}").stat().st_size
        for digests in commit.tees[0].endorsements.values()
        for digest in digests
    ]
    for limit, outcome in ((sum(sizes) - 1, "rejected"), (sum(sizes), "verified")):
        monkeypatch.setattr(teejobs, "MAX_ENDORSEMENTS", limit)
        assert audited(log, rules(forge)).outcome == outcome


def test_evidence_of_an_unknown_version_leaves_the_audit_open(log: SoftLog, forge: AmdForge) -> None:
    report = bytearray(evidence_of(log, 2))
    report[0] = 9
    changed(log, 2, lambda commit: line_of(log, commit, bytes(report)))
    found = audited(log, rules(forge, required=False))
    assert [(tee.status, tee.lines) for tee in found.tees] == [
        ("accepted", 2),
        ("could-not", 1),
        ("accepted", 2),
    ]
    assert found.outcome == "could-not-check"


def test_a_history_that_is_another_when_its_lines_are_verified_is_false(
    log: SoftLog, forge: AmdForge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever serves it could give the commits that hold first, and those with the lines that hold later."""
    folder = log.finish()
    changed(log, 2, lambda commit: line_of(log, commit, forge.report()))
    later = b"".join(log._history)
    jobs = TeeFold.jobs

    def swapped(*args: object, **options: object) -> object:
        (folder / "history/000").write_bytes(later)
        return jobs(*args, **options)  # type: ignore[arg-type]

    policy = replace(policy_of(log.origin), tee=rules(forge))
    monkeypatch.setattr(TeeFold, "jobs", swapped)
    report = audit_source(Wanted(str(folder), policy, AT))
    assert (Code.HISTORY, Severity.FALSE, 0) in told(report)
    assert "other commits than it had earlier" in report.findings[-1].message


def test_more_stretches_than_are_listed_are_judged_all_the_same(
    log: SoftLog, forge: AmdForge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tees, "MAX_TEES", 2)
    for microcode in (199, 200, 199):
        forge.tcb["microcode"] = microcode
        log.tee = snp(forge)
        log.outputs()
    least = {Generation.GENOA: Tcb(bootloader=0, tee=0, snp=0, microcode=200, fmc=None)}
    report = audited(log, rules(forge, committed=least))
    assert len(report.tees) == 2
    assert dict(report.counts)[Severity.POLICY] == 2
    assert any("2 stretches of it are not listed" in finding.message for finding in report.findings)


def test_rules_of_every_kind_reach_other_processes(forge: AmdForge) -> None:
    made = rules(forge)
    again = pickle.loads(pickle.dumps(made))
    assert again.snp == made.snp
    assert again.roots.amd.arks[Generation.GENOA].sha256 == made.roots.amd.arks[Generation.GENOA].sha256
    for root in (intel_root(), nitro_root(), nvidia_root()):
        assert pickle.loads(pickle.dumps(root)).sha256 == root.sha256
