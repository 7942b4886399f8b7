# SPDX-License-Identifier: Apache-2.0
"""What others got wrong, where no other test names it (docs/threat-model.md)."""

from __future__ import annotations

import cca_tokens
import pytest
from amd_pki import BOUND, NOW, AmdForge
from forge import NOW as AT
from tee_defects import AMD, REQUIRED, ROOTS, RULES, bound, snp

from quotary_verifier import Question, Rejected, load_policy, verify
from quotary_verifier.evidence.tee.amd_certs import Generation
from quotary_verifier.evidence.tee.lines import TeeRoots
from quotary_verifier.evidence.tee.shape import report_data
from quotary_verifier.evidence.tee.snp import verify_snp
from quotary_verifier.evidence.tee.snp_rules import SnpRules, appraise_snp
from quotary_verifier.policy.tee import TeeRules, appraise_tee
from quotary_verifier.tlog.hardware import IDENTIFIER_CCA
from quotary_verifier.wire.tee_support import TeeSupport


def test_bits_of_the_platforms_state_that_are_not_known_reject_nothing() -> None:
    forge = AmdForge(Generation.TURIN)
    report = forge.report({0x40: b"\x65\x80"})  # bit 6 is set on real Turin processors
    claims = verify_snp(report, forge.endorsements(), NOW, report_data=BOUND, roots=forge.roots())
    rules = SnpRules(frozenset({Generation.TURIN}), alias_check=True)
    assert appraise_snp(claims, rules) == ()
    assert int(claims.report.platform_info) == 0x8065


ELSEWHERE = AmdForge(chip=b"\x77" * 64)


def test_a_genuine_machine_elsewhere_is_told_by_its_device_alone() -> None:
    forge = bound(snp(forge=ELSEWHERE))  # the same image, and the very commit, on another processor
    data, question = forge.attestation().encode(), Question(forge.body, AT)
    verdict = verify(data, question, load_policy(forge.policy(REQUIRED + RULES + ROOTS).encode()))
    assert verdict.claim("tee.sev-snp.device").value == ELSEWHERE.chip.hex()  # type: ignore[union-attr]
    named = RULES + f'devices = ["{AMD.chip.hex()}"]\n'
    with pytest.raises(Rejected, match="which is not accepted"):
        verify(data, question, load_policy(forge.policy(REQUIRED + named + ROOTS).encode()))


def test_a_realm_elsewhere_is_told_by_its_instance_alone() -> None:
    def realm(digest: bytes, genesis: bytes) -> tuple[bytes, TeeSupport]:
        made = cca_tokens.token({10: report_data(digest, genesis)}, {256: b"\x01" * 33})
        return made, TeeSupport(IDENTIFIER_CCA, {})

    forge = bound(realm)
    rules = f'[tee]\nrequired = ["cca"]\n[tee.cca]\nkeys = ["""{cca_tokens.pem_key()}"""]\n'
    data, question = forge.attestation().encode(), Question(forge.body, AT)
    verify(data, question, load_policy(forge.policy(rules).encode()))
    for devices, accepted in ((f'["{"01" * 33}"]', True), (f'["{"03" * 33}"]', False), ("[]", False)):
        policy = load_policy(forge.policy(f"{rules}devices = {devices}\n").encode())
        if accepted:
            verify(data, question, policy)
        else:
            with pytest.raises(Rejected, match="the device"):
                verify(data, question, policy)


def test_claims_of_a_kind_without_rules_break_none() -> None:
    claims = verify_snp(AMD.report(), AMD.endorsements(), NOW, report_data=BOUND, roots=AMD.roots())
    assert appraise_tee(claims, TeeRules(roots=TeeRoots(amd=AMD.roots()))) == ()
