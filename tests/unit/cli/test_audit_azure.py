# SPDX-License-Identifier: Apache-2.0
"""Audits of origins on an Azure vTPM's AK: what endorses it is verified, and held to the policy, like TEE lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from amd_pki import AmdForge
from azure_forge import ak_jwk, base64url, modulus, vtpm_key
from azure_host import AZURE_RULES, AzureHost, endorsed
from soft_log import SoftLog
from soft_tpm import SoftKey
from tee_audits import AT, FAR, ROOTS, told, watched

from quotary_cli.auditing import Wanted, audit_source
from quotary_verifier.audit import teejobs
from quotary_verifier.audit.findings import Code, Severity
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.policy.load import load_policy
from quotary_verifier.policy.model import Policy
from quotary_verifier.policy.tee import TeeRules
from quotary_verifier.wire.tpm_names import RH_ENDORSEMENT
from quotary_verifier.wire.tpm_public import parse_public
from quotary_verifier.wire.tpm_reader import u32


@pytest.fixture
def log(tmp_path: Path) -> SoftLog:
    key = SoftKey(vtpm_key("ak"), parse_public(AzureHost().public))
    log = SoftLog(tmp_path / "log", key=key, hierarchy=u32(RH_ENDORSEMENT))
    log.endorsements = endorsed()
    log.start()
    for _ in range(3):
        log.outputs()
    return log


def audited(
    log: SoftLog,
    rules: str = AZURE_RULES,
    *,
    at: int = AT,
    change: Callable[[Policy], Policy] = lambda policy: policy,
) -> AuditReport:
    policy = (
        f'schema = "quotary-policy/v1"\n[tpm]\nunauthenticated_ak = true\n'
        f'[[pin]]\norigin = "{log.origin}"\n{rules}{ROOTS}'
    )
    return audit_source(Wanted(str(log.finish()), change(load_policy(policy.encode())), at))


def worst(report: AuditReport) -> list[tuple[Code, Severity, int | None]]:
    return [item for item in told(report) if item[1] is not Severity.NOTICE]


def test_what_endorses_a_vtpms_key_is_verified_and_said_once(log: SoftLog) -> None:
    report = audited(log)
    (tee,) = report.tees
    assert (report.outcome, tee.kind, tee.status, tee.lines) == ("verified", "azure", "accepted", 4)
    (device,) = map(dict, tee.devices)
    assert (device["hardware"], device["device"]) == ("sev-snp", AmdForge().chip.hex())


def test_one_report_is_verified_once_for_all_commits_of_one_time(
    log: SoftLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, asked = teejobs.EndorsedAk.verify, []

    def counted(*args: object) -> object:
        asked.append(args)
        return verify(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(teejobs.EndorsedAk, "verify", counted)
    assert audited(log).tees[0].lines == 4
    assert len(asked) == 1


def test_an_endorsement_of_another_key_is_false_and_a_missing_one_is_told(log: SoftLog) -> None:
    log.endorsements = endorsed(keys=[ak_jwk(n=base64url(modulus("other")))])
    log.outputs()
    log.endorsements = {}
    log.outputs()
    report = audited(log)
    assert sorted(worst(report)) == [
        (Code.TEE, Severity.FALSE, 4),
        (Code.TEE_RULES, Severity.POLICY, 5),
    ]


def test_a_rule_that_the_paravisor_breaks_is_the_policys_finding(log: SoftLog) -> None:
    report = audited(log, AZURE_RULES.replace("4d" * 48, "4e" * 48))
    assert worst(report) == [(Code.TEE_RULES, Severity.POLICY, 0)]
    assert report.tees[0].status == "rejected"


def test_certificates_of_another_time_leave_a_required_endorsement_open(log: SoftLog) -> None:
    report = audited(log, at=FAR)
    assert worst(report) == [(Code.TEE_RULES, Severity.COULD_NOT, 0)]
    assert report.tees[0].status == "undated"


def test_an_endorsement_is_judged_at_the_time_of_each_commit_although_it_is_read_once(log: SoftLog) -> None:
    asked, cosign = watched(log, TeeRules())
    cosign(AT)
    log.outputs()
    cosign(FAR)
    report = audited(log, change=lambda policy: replace(policy, witnesses=asked.witnesses))
    assert [(tee.status, tee.first_commit) for tee in report.tees] == [("accepted", 0), ("undated", 4)]
