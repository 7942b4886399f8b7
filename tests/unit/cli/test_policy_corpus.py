# SPDX-License-Identifier: Apache-2.0
"""Learning from, and comparing, each whole boot of the corpus: real firmware of many makers, GRUB, shim."""

from __future__ import annotations

import functools

import pytest
from appraising import HEAD, ORIGIN
from corpus import corpus_bytes, entries, needs_corpus

from quotary_cli.bootdiff import compare
from quotary_cli.bootsides import verified_side
from quotary_cli.learning import GoodBoot, kinds_of
from quotary_cli.learntext import platform_text
from quotary_verifier.logs.tcg import parse_tcg_log
from quotary_verifier.policy.appraise import appraise_platform
from quotary_verifier.policy.findings import PlatformEvidence, Severity
from quotary_verifier.policy.load import load_policy
from quotary_verifier.policy.model import Policy
from quotary_verifier.wire.tpm import ClockInfo

pytestmark = needs_corpus

SHA256 = 0x0B
ZERO = bytes(32)
NOT_WHOLE = frozenset(
    f"tpm/eventlog/tcg2-{name}.bin"
    for name in ("one-short-noaction", "tools-small", "tools-uefiaction", "tools-uefivar")
)
"""Logs of a few events, without a measured boot."""
FILES = [
    file
    for one in entries("tpm/eventlog/tcg2-")
    if (file := str(one["file"])).endswith(".bin") and file not in NOT_WHOLE
]


@functools.cache
def booted() -> dict[str, PlatformEvidence]:
    """Evidence of each host, as if a TPM had quoted what its log leads to."""
    found = {}
    for file in FILES:
        log = parse_tcg_log(corpus_bytes(file))
        values = log.unverified_values_do_not_trust(SHA256)
        pcrs = {pcr: values.get(pcr, ZERO) for pcr in range(16)}
        assert ZERO not in (pcrs[0], pcrs[4], pcrs[7]), file
        moving, clock = frozenset({15}), ClockInfo(1, 1, 0, True)
        replayed = log.replay(pcrs, required=())
        found[file] = PlatformEvidence(ORIGIN, pcrs, moving, clock, True, firmware=replayed)
    return found


@functools.cache
def learned(file: str) -> Policy:
    """The policy that one boot teaches."""
    kinds = kinds_of([GoodBoot(file, booted()[file])])
    return load_policy((HEAD + platform_text(kinds, None, None, aggregate=True)).encode())


def test_the_corpus_has_boots_to_learn_from() -> None:
    assert len(booted()) >= 14


@pytest.mark.parametrize("file", FILES)
def test_what_a_real_boot_teaches_accepts_it_and_no_other_of_the_corpus(file: str) -> None:
    for other, evidence in booted().items():
        findings = appraise_platform(learned(file), evidence, 0).findings
        failed = any(finding.severity is Severity.FAIL for finding in findings)
        same = evidence.pcrs == booted()[file].pcrs
        assert (failed, bool(findings)) == (not same, not same), other


@pytest.mark.parametrize("file", FILES)
def test_a_real_boot_differs_from_others_and_not_from_itself(file: str) -> None:
    evidence, other = booted()[file], FILES[FILES.index(file) - 1]
    side = verified_side(file, evidence)
    assert list(compare(side, side)) == []
    changes = list(compare(side, verified_side(other, booted()[other])))
    assert bool(changes) is (booted()[other].pcrs != evidence.pcrs)
    assert all(change.as_json()["message"] for change in changes)
