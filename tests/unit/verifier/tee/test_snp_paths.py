# SPDX-License-Identifier: Apache-2.0
"""Roots that remember which certificates were verified under them: faster, and no more is believed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from amd_pki import BOUND, NOW, AmdForge

from quotary_verifier.errors import EvidenceError, OutOfTimeError
from quotary_verifier.evidence.tee import amd_certs
from quotary_verifier.evidence.tee.snp import SnpEndorsements, verify_snp


@pytest.fixture
def linked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the certificates whose signatures are verified from now on."""
    verify, names = amd_certs.verify_link, list[str]()

    def counted(child: amd_certs.AmdCertificate, issuer: amd_certs.AmdCertificate) -> None:
        names.append(child.name)
        verify(child, issuer)

    monkeypatch.setattr(amd_certs, "verify_link", counted)
    return names


def test_a_pair_of_certificates_is_verified_once_for_whoever_remembers_it(linked: list[str]) -> None:
    forge = AmdForge()
    roots, endorsements = forge.roots(), forge.endorsements()
    remembering = roots.remembering()
    linked.clear()
    for _ in range(3):
        verify_snp(forge.report(), endorsements, NOW, report_data=BOUND, roots=remembering)
    assert linked == ["SEV-Genoa", "SEV-VCEK"]
    for _ in range(2):
        verify_snp(forge.report(), endorsements, NOW, report_data=BOUND, roots=roots)
    assert len(linked) == 6


def test_dates_and_revocation_are_judged_each_time() -> None:
    forge = AmdForge()
    roots = forge.roots().remembering()
    plain, revoked = forge.endorsements(), forge.endorsements(forge.crl({5: NOW - timedelta(1)}))
    verify_snp(forge.report(), plain, NOW, report_data=BOUND, roots=roots)
    with pytest.raises(OutOfTimeError):
        verify_snp(forge.report(), plain, NOW + timedelta(4000), report_data=BOUND, roots=roots)
    with pytest.raises(EvidenceError, match="revoked"):
        verify_snp(forge.report(), revoked, NOW, report_data=BOUND, roots=roots)


def test_no_more_than_a_few_paths_are_remembered_and_false_ones_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(amd_certs, "_MAX_LINKS", 2)
    forge = AmdForge()
    roots = forge.roots().remembering()

    for _ in range(2):
        with pytest.raises(EvidenceError):
            verify_snp(
                forge.report(),
                SnpEndorsements(forge.leaf(), forge.issuer(ark="other")),
                NOW,
                report_data=BOUND,
                roots=roots,
            )
    assert roots.links == {}
    for serial in range(1, 6):
        made = SnpEndorsements(forge.leaf(serial=serial), forge.issuer())
        verify_snp(forge.report(), made, NOW, report_data=BOUND, roots=roots)
        assert roots.links is not None
        assert 0 < len(roots.links) <= 2
