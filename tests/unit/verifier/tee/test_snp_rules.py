# SPDX-License-Identifier: Apache-2.0
"""Every rule for SEV-SNP reports: what breaks it, and that a relying party who says so may accept it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from amd_pki import BOUND, NOW, AmdForge

from quotary_verifier.errors import EvidenceError, PolicyError, UnsupportedError
from quotary_verifier.evidence.tee.amd_certs import Generation, SigningKey
from quotary_verifier.evidence.tee.shape import Finding, Severity, enforce
from quotary_verifier.evidence.tee.snp import SnpClaims, verify_snp
from quotary_verifier.evidence.tee.snp_report import Tcb
from quotary_verifier.evidence.tee.snp_rules import SnpRules, appraise_snp

RULES = SnpRules(frozenset({Generation.GENOA, Generation.TURIN}))
GENOA = Generation.GENOA


def claims(changes: Mapping[int, bytes] | None = None, **forged: Any) -> SnpClaims:
    forge = AmdForge(**forged)
    return verify_snp(
        forge.report(changes), forge.endorsements(), NOW, report_data=BOUND, roots=forge.roots()
    )


def failed(found: tuple[Finding, ...]) -> set[str]:
    return {finding.rule for finding in found if finding.severity is Severity.FAIL}


def policy(bit: int) -> bytes:
    return (0x30000 | 1 << bit).to_bytes(8, "little")


VLEK = {"signing_key": SigningKey.VLEK}
OLD, NEW = (AmdForge().raw_tcb(microcode=value) for value in (199, 201))

# rule: what breaks it, how the processor differs, and with which rules it is accepted again
BROKEN: dict[str, tuple[dict[int, bytes], dict[str, Any], dict[str, Any]]] = {
    "generation": ({}, {"generation": Generation.MILAN}, {"generations": frozenset(Generation)}),
    "version": ({}, {"version": 2}, {"versions": frozenset({2})}),
    "debug": ({0x08: policy(19)}, {}, {"debug": True}),
    "migration-agent": ({0x08: policy(18)}, {}, {"migration_agent": True}),
    "vmpl": ({0x30: b"\1"}, {}, {"vmpls": frozenset({1})}),
    "chip-id": ({0x1A0: bytes(64)}, {}, {"masked_chip": True}),
    "provisional": ({0x1E0: OLD}, {}, {"provisional": True}),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_what_is_unsafe_is_refused_unless_the_rules_accept_it_by_name(rule: str) -> None:
    changes, forged, accepting = BROKEN[rule]
    found = appraise_snp(claims(changes, **forged), RULES)
    assert failed(found) == {f"sev-snp.{rule}"}
    with pytest.raises(EvidenceError, match=r"^sev-snp: "):
        enforce(found)
    assert failed(appraise_snp(claims(changes, **forged), replace(RULES, **accepting))) == set()


LEAST = {GENOA: Tcb(10, 1, 27, 200)}
DEMANDED: dict[str, tuple[dict[int, bytes], dict[str, Any], dict[str, Any]]] = {
    "signing-key": ({}, VLEK, {"signing_keys": frozenset({SigningKey.VCEK})}),
    "alias-check": ({0x40: b"\x05"}, {}, {"alias_check": True}),
    "smt": ({}, {}, {"smt": False}),
    "measurement": ({0x90: b"\x4c"}, {}, {"measurements": frozenset({b"\x4d" * 48})}),
    "host-data": ({0xC0: b"\x47"}, {}, {"host_data": frozenset({b"\x48" * 32})}),
    "id-key": ({0xE0: b"\1"}, {}, {"id_keys": frozenset({bytes(48)})}),
    "author-key": ({0x110: b"\1"}, {}, {"author_keys": frozenset({bytes(48)})}),
    "guest-svn": ({0x04: b"\6"}, {}, {"guest_svn": 7}),
    "device": ({}, {"chip": b"\2" * 64}, {"devices": frozenset({AmdForge().chip})}),
    "provider": ({}, VLEK, {"providers": frozenset({"another.example"})}),
    "reported-tcb": (
        {},
        {"tcb": {"bootloader": 9, "tee": 9, "snp": 255, "microcode": 255}},
        {"reported": LEAST},
    ),
    "committed-tcb": ({0x1E0: OLD}, {}, {"committed": LEAST, "provisional": True}),
    "launch-tcb": ({0x1F0: OLD}, {}, {"launch": LEAST}),
}
FULFILLED: dict[str, tuple[dict[int, bytes], dict[str, Any]]] = {
    "signing-key": ({}, {}),
    "smt": ({0x40: b"\x24"}, {}),
    "guest-svn": ({0x04: b"\7"}, {}),
    "provider": ({}, {}),
}


@pytest.mark.parametrize("rule", DEMANDED)
def test_what_the_rules_demand_is_refused_where_it_is_missing_and_otherwise_not(rule: str) -> None:
    changes, forged, demanding = DEMANDED[rule]
    rules = replace(RULES, **demanding)
    assert failed(appraise_snp(claims(changes, **forged), rules)) == {f"sev-snp.{rule}"}
    assert failed(appraise_snp(claims(changes, **forged), replace(RULES, provisional=True))) == set()
    fulfilled, otherwise = FULFILLED.get(rule, ({}, {}))
    assert appraise_snp(claims(fulfilled, **otherwise), rules) == ()


def test_a_reported_tcb_above_the_current_one_is_refused_whatever_the_rules_say() -> None:
    found = appraise_snp(claims({0x38: OLD, 0x1E0: OLD}), replace(RULES, provisional=True))
    assert failed(found) == {"sev-snp.tcb-order"}


def test_a_least_tcb_holds_for_its_own_generation_alone() -> None:
    turin = claims(generation=Generation.TURIN)
    assert appraise_snp(turin, replace(RULES, reported={GENOA: Tcb(255, 255, 255, 255)})) == ()
    least = {Generation.TURIN: Tcb(10, 1, 27, 200, 4)}
    assert failed(appraise_snp(turin, replace(RULES, reported=least))) == {"sev-snp.reported-tcb"}


def test_newer_current_firmware_that_is_not_committed_may_be_taken_back() -> None:
    found = appraise_snp(claims({0x38: NEW}), RULES)
    assert failed(found) == {"sev-snp.provisional"}
    with pytest.raises(EvidenceError, match="not committed"):
        enforce(found)


def test_a_crl_that_the_rules_demand_and_nobody_brought_leaves_the_question_open() -> None:
    found = appraise_snp(claims(), replace(RULES, revocation=True))
    with pytest.raises(UnsupportedError, match="no crl of that time"):
        enforce(found)
    forge = AmdForge()
    with_crl = verify_snp(
        forge.report(), forge.endorsements(forge.crl()), NOW, report_data=BOUND, roots=forge.roots()
    )
    assert appraise_snp(with_crl, replace(RULES, revocation=True)) == ()


def test_milan_is_warned_of_where_it_is_accepted() -> None:
    found = appraise_snp(claims(generation=Generation.MILAN), SnpRules(frozenset(Generation)))
    (warning,) = enforce(found)
    assert (warning.rule, warning.severity) == ("sev-snp.generation", Severity.WARN)
    assert "2605.12990" in warning.message


def test_every_broken_rule_is_found_and_the_first_is_raised_with_the_number_of_the_others() -> None:
    found = appraise_snp(claims({0x08: policy(19), 0x30: b"\2"}, generation=Generation.MILAN), RULES)
    assert failed(found) == {"sev-snp.generation", "sev-snp.debug", "sev-snp.vmpl"}
    with pytest.raises(EvidenceError, match=r"Milan is not accepted \(and 2 more\)"):
        enforce(found)


def test_rules_that_accept_no_generation_are_no_policy() -> None:
    with pytest.raises(PolicyError, match="no generation"):
        SnpRules(frozenset())
