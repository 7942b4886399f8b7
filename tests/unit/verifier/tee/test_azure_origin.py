# SPDX-License-Identifier: Apache-2.0
"""An origin on the AK of an Azure vTPM: what its hardware's endorsement adds to a verdict, and every refusal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import intel_sgx
import pytest
from azure_forge import VM, AzureForge, vtpm_public
from azure_host import AZURE_RULES, AzureHost, endorsed
from forge import NOW
from fresh_quotes import NONCE, made
from intel_sgx import TdxForge
from tee_defects import LAUNCH, snp
from tee_defects import RULES as SNP_RULES

from quotary_verifier import (
    ClaimSource,
    NotChecked,
    Outcome,
    PolicyError,
    Question,
    Rejected,
    Report,
    Step,
    load_policy,
    verify,
    verify_fresh,
)
from quotary_verifier.errors import MalformedError
from quotary_verifier.evidence.tee.azure import AzureTdxEndorsements
from quotary_verifier.evidence.tee.azure_hcl import TDX
from quotary_verifier.evidence.tee.azure_support import azure_endorsements, verify_azure_ak
from quotary_verifier.evidence.tee.lines import TeeRoots
from quotary_verifier.recipe.tee import ANY_PARAVISOR, ONE_AGENT, ONE_MACHINE
from quotary_verifier.recipe.verdict import CheckState

HOST = AzureHost()
ATTESTATION = HOST.attestation()
LATER = NOW + 20 * 365 * 86_400


def outcome(policy: str, data: bytes | None = None, *, at: int = NOW, host: AzureHost = HOST) -> Report:
    encoded = host.attestation().encode() if data is None else data
    try:
        return verify(encoded, Question(host.body, at), load_policy(policy.encode())).report
    except (Rejected, NotChecked) as error:
        return error.report


def with_endorsements(endorsements: Any) -> bytes:
    (support,) = ATTESTATION.supports
    return replace(ATTESTATION, supports=(replace(support, endorsements=endorsements),)).encode()


def said(report: Report, name: str) -> list[object]:
    return [claim.value for claim in report.claims if claim.name == name]


def test_hardware_endorses_the_key_of_the_vtpm_and_the_two_are_one_machine() -> None:
    report = outcome(HOST.accepted())
    assert report.outcome is Outcome.VERIFIED, report.reason
    _, azure = said(report, "root")
    assert str(azure).startswith("azure: the attestation key, which its hardware endorses")
    assert said(report, "tee.azure") == ["accepted by the policy's rules"]
    assert said(report, "tee.azure.hardware") == ["sev-snp"]
    assert said(report, "tee.azure.vm") == [VM]
    assert said(report, "tee.azure.launch") == [LAUNCH]
    assert said(report, "tee.azure.secure_boot") == [True]
    assert said(report, "tpm_kind") == ["the vTPM of a confidential VM, whose hardware endorses its key"]
    sources = {claim.name: claim.source for claim in report.claims}
    assert sources["tpm_kind"] is ClaimSource.ENDORSED
    assert sources["host"] is ClaimSource.HOST
    assert ONE_MACHINE in report.notices
    assert ONE_AGENT not in report.notices
    assert "AK without auth: any process with the TPM can quote" in report.notices


def test_beside_a_further_root_it_stays_said_that_one_agent_saw_that_one() -> None:
    host = AzureHost(tees=(snp(),))
    report = outcome(host.accepted(), host=host)
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert {ONE_AGENT, ONE_MACHINE} <= set(report.notices)


@pytest.mark.parametrize(
    ("endorsements", "why"),
    [
        ({}, "requires that azure's hardware endorses the ak"),
        (endorsed(settings={"vmUniqueId": VM, "tpm-enabled": True}), "secure boot"),
    ],
    ids=["missing", "secure-boot-off"],
)
def test_an_endorsement_that_is_not_there_or_not_accepted_is_rejected(endorsements: Any, why: str) -> None:
    report = outcome(HOST.accepted(), with_endorsements(endorsements))
    assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.TEE)
    assert why in report.reason


def test_an_endorsement_of_another_key_rejects_whether_or_not_the_policy_asks_for_one() -> None:
    other = AzureHost(role="another vm's", endorsements=endorsed())
    for rules in (AZURE_RULES, ""):
        report = outcome(other.accepted(rules), host=other)
        assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.TEE)
        assert "not the one that the confidential vm's report endorses" in report.reason


def test_an_altered_report_is_rejected_whether_or_not_the_policy_asks_for_one() -> None:
    whole = endorsed()
    (report,) = whole["hcl"]
    for position in range(32, len(report), 37):
        altered = report[:position] + bytes((report[position] ^ 1,)) + report[position + 1 :]
        data = with_endorsements({**whole, "hcl": (altered,)})
        assert outcome(HOST.accepted(""), data).outcome is not Outcome.VERIFIED
        found = outcome(HOST.accepted(), data)
        assert found.failing is Step.TEE


@pytest.mark.parametrize(
    "change",
    [
        {"leaf": None},
        {"issuer": None},
        {"hcl": None},
        {"quote": (b"quote",)},
        {"hcl": (b"one", b"two")},
        {"leaf": (b"one", b"two")},
        {"other": (b"x",)},
    ],
    ids=str,
)
def test_endorsements_with_a_part_missing_or_too_much_are_malformed(change: dict[str, Any]) -> None:
    parts = {name: part for name, part in (endorsed() | change).items() if part is not None}
    report = outcome(HOST.accepted(""), with_endorsements(parts))
    assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.TEE)


def test_an_expired_certificate_of_the_processor_rejects_under_rules() -> None:
    report = outcome(HOST.accepted(), at=LATER)
    assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.TEE)
    assert "is not valid at" in report.reason


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ('vms = ["911b0ef8-9dba-48b0-b275-4e4df2d39253"]', "is not accepted"),
        ("console = false", "console is off"),
    ],
)
def test_the_rules_on_the_vm_are_held_to(rules: str, why: str) -> None:
    policy = HOST.accepted(
        AZURE_RULES.replace("[tee.azure.sev-snp]", f"[tee.azure]\n{rules}\n[tee.azure.sev-snp]")
    )
    report = outcome(policy)
    assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.TEE)
    assert why in report.reason


def test_a_vm_is_named_in_either_case() -> None:
    for vm in (VM, VM.lower()):
        named = AZURE_RULES.replace(
            "[tee.azure.sev-snp]", f'[tee.azure]\nvms = ["{vm}"]\n[tee.azure.sev-snp]'
        )
        assert outcome(HOST.accepted(named)).outcome is Outcome.VERIFIED


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ('[tee]\nrequired = ["azure"]\n', "no table tee.azure"),
        ("[tee.azure]\nconsole = false\n", "accepts no hardware"),
        ('[tee.azure.sev-snp]\ngenerations = ["genoa"]\n', "does not name the paravisor"),
        ("[tee.azure.tdx]\n", "does not name the paravisor"),
        ('[tee.azure]\nvms = ["any"]\n[tee.azure.tdx]\nmrtd = []\n', "unique ids"),
    ],
)
def test_rules_that_could_accept_nothing_are_no_policy(rules: str, why: str) -> None:
    with pytest.raises(PolicyError, match=why):
        load_policy(HOST.accepted(rules, roots="").encode())


def test_with_any_paravisor_one_machine_is_the_word_of_whatever_ran() -> None:
    rules = '[tee.azure]\nany_paravisor = true\n[tee.azure.sev-snp]\ngenerations = ["genoa"]\n'
    report = outcome(HOST.accepted(rules))
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert ANY_PARAVISOR in report.notices
    assert ONE_MACHINE not in report.notices


def test_without_rules_an_endorsement_is_verified_and_nothing_follows_from_it() -> None:
    report = outcome(HOST.accepted(""))
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert said(report, "tee.azure") == ["verified, not appraised"]
    assert said(report, "tpm_kind") == ["unknown: the origin is pinned and nothing endorses its TPM"]
    assert ONE_MACHINE not in report.notices


def test_without_rules_an_absent_endorsement_is_nothing() -> None:
    report = outcome(HOST.accepted("", roots=""), with_endorsements({}))
    assert report.outcome is Outcome.VERIFIED
    (check,) = [check for check in report.checks if check.step is Step.TEE]
    assert check.state is CheckState.NOT_CHECKED


def test_the_origin_stays_pinned_even_where_the_policy_names_the_vm() -> None:
    other = AzureHost(host="other.example.net")
    named = AZURE_RULES.replace("[tee.azure.sev-snp]", f'[tee.azure]\nvms = ["{VM}"]\n[tee.azure.sev-snp]')
    report = outcome(HOST.accepted(named, pin=other.origin))
    assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.AK_ENDORSEMENT)


def test_a_key_without_authorisation_takes_the_policys_leave() -> None:
    policy = HOST.accepted().replace("unauthenticated_ak = true", "unauthenticated_ak = false")
    report = outcome(policy)
    assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.AK_ATTRIBUTES)


def test_endorsements_are_verified_by_the_makers_roots_unless_the_policy_has_its_own() -> None:
    report = outcome(HOST.accepted(roots=""))
    assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.TEE)
    assert any("a root of the policy's own" in notice for notice in outcome(HOST.accepted()).notices)


def test_what_only_warns_of_the_hardwares_own_line_does_not_reach_the_paravisor() -> None:
    later = "until = 2099-01-01T00:00:00Z"
    other = AZURE_RULES.replace(LAUNCH, "4e" * 48)
    report = outcome(HOST.accepted(f'{other}[[warn]]\nrule = "tee.sev-snp"\n{later}\n'))
    assert (report.outcome, report.failing) == (Outcome.REJECTED, Step.TEE)
    off = endorsed(settings={"vmUniqueId": VM, "tpm-enabled": True, "secure-boot": False})
    policy = HOST.accepted(f'{AZURE_RULES}[[warn]]\nrule = "tee.azure.secure-boot"\n{later}\n')
    report = outcome(policy, with_endorsements(off))
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert any("tee.azure.secure-boot only warns" in text for text in report.tolerances)


def test_a_fresh_quote_is_endorsed_as_a_commit_is() -> None:
    policy = load_policy(HOST.accepted().encode())
    good = made(HOST)
    endorsed_quote = replace(good, support=replace(good.support, endorsements=HOST.endorsements))
    report = verify_fresh(endorsed_quote.encode(), NONCE, NOW, policy).report
    assert said(report, "tee.azure") == ["accepted by the policy's rules"]
    with pytest.raises(Rejected, match="has no such endorsement"):
        verify_fresh(good.encode(), NONCE, NOW, policy)
    both = HOST.accepted(AZURE_RULES.replace('["azure"]', '["azure", "sev-snp"]') + SNP_RULES)
    with pytest.raises(Rejected, match="evidence of sev-snp, and a fresh quote carries none"):
        verify_fresh(endorsed_quote.encode(), NONCE, NOW, load_policy(both.encode()))


def test_without_rules_a_report_of_another_time_could_not_be_dated() -> None:
    report = outcome(HOST.accepted(""), at=LATER)
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert said(report, "tee.azure") == ["could not be dated: nothing of it counts"]
    assert said(report, "tpm_kind") == ["unknown: the origin is pinned and nothing endorses its TPM"]
    assert said(report, "root") == ["tpm2-quote: this commit, the PCRs, the workload log and the boot"]


def test_a_tdx_quote_of_the_host_endorses_the_key_as_well() -> None:
    forge = AzureForge(kind=TDX, tail=b"")
    quote = TdxForge(body={0x208: forge.report_data()}).quote()
    at, roots = intel_sgx.NOW, TeeRoots(intel=intel_sgx.forged_root())
    for collateral in (None, intel_sgx.collateral()):
        parts = azure_endorsements(forge.report(), AzureTdxEndorsements(quote, collateral))
        assert ("tcb_info" in parts) is (collateral is not None)
        assert verify_azure_ak(parts, vtpm_public(), at, roots).hardware.kind == "tdx"
    for change in ({"tcb_info": None}, {"quote": None}, {"leaf": (b"x",)}):
        other = {name: part for name, part in {**parts, **change}.items() if part is not None}
        with pytest.raises(MalformedError, match="missing or too many"):
            verify_azure_ak(other, vtpm_public(), at, roots)
