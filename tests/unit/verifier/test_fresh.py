# SPDX-License-Identifier: Apache-2.0
"""A fresh quote shows the platform now, over the caller's nonce, and can never pass for a commit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from alone_forge import AloneForge
from forge import NOW, Forge
from fresh_quotes import NONCE, made
from tee_defects import POLICY

from quotary_verifier import NotChecked, Outcome, Rejected, Report, Step, load_policy, verify_fresh
from quotary_verifier.wire.fresh import FreshQuote


def judge(fresh: FreshQuote | bytes, forge: Forge, nonce: bytes = NONCE, extra: str = "") -> Report:
    data = fresh if isinstance(fresh, bytes) else fresh.encode()
    try:
        return verify_fresh(data, nonce, NOW, load_policy(forge.policy(extra).encode())).report
    except (Rejected, NotChecked) as error:
        return error.report


def test_a_fresh_quote_verifies_and_speaks_of_no_output() -> None:
    forge = Forge()
    report = judge(made(forge), forge)
    assert report.outcome is Outcome.VERIFIED, report.reason
    names = {claim.name for claim in report.claims}
    assert {"host", "boot", "pcr_0"} <= names
    assert not names & {"output_id", "model", "commit", "matched"}
    assert {check.step for check in report.checks if "no output" in check.detail} >= {
        Step.OUTPUT,
        Step.INCLUSION,
    }


def test_another_nonce_is_rejected() -> None:
    forge = Forge()
    report = judge(made(forge, nonce=b"another!" * 4), forge)
    assert report.failing is Step.NONCE


def test_another_nonce_than_the_policy_expects_is_rejected() -> None:
    forge = Forge()
    rule = f'[freshness]\nexpected_nonce = "{"ab" * 16}"\n'
    assert judge(made(forge), forge, extra=rule).failing is Step.NONCE


def test_a_nonce_that_the_quote_does_not_bind_is_rejected() -> None:
    forge = Forge()
    assert judge(made(forge, binds=bytes(32)), forge).failing is Step.QUOTE_CHAIN


def test_the_quote_of_a_commit_is_no_fresh_quote() -> None:
    from quotary_verifier.tlog.note import parse_note

    forge = Forge()
    commit = parse_note(forge.attestation().note).lines[1].payload[8:]
    assert judge(replace(made(forge), evidence=commit), forge).failing is Step.QUOTE_CHAIN


def test_an_origin_without_a_tpm_has_no_fresh_quote() -> None:
    forge = AloneForge()
    fresh = replace(made(Forge()), genesis=forge.genesis_record)
    with pytest.raises(NotChecked, match="names no TPM") as caught:
        verify_fresh(fresh.encode(), NONCE, NOW, load_policy(forge.pinned(POLICY).encode()))
    assert caught.value.report.failing is Step.GENESIS


def test_an_attestation_is_no_fresh_quote() -> None:
    forge = Forge()
    assert judge(forge.attestation().encode(), forge).failing is Step.DECODE


def test_a_chain_value_that_was_not_quoted_is_rejected() -> None:
    forge = Forge()
    fresh = made(forge)
    wrong = replace(fresh, support=replace(fresh.support, chain_before=bytes(32)))
    assert judge(wrong, forge).failing is Step.QUOTE_PCRS


def test_the_platform_policy_holds_for_fresh_quotes_too() -> None:
    forge = Forge()
    rule = f'[platform.pcrs]\n7 = ["{"0" * 64}"]\n'
    assert judge(made(forge), forge, extra=rule).failing is Step.PLATFORM
    assert judge(made(forge, firmware=0x2019102300163636), forge).failing is Step.TPM_KIND


def test_every_altered_byte_is_rejected() -> None:
    forge = Forge()
    data = made(forge).encode()
    for position in range(len(data)):
        altered = data[:position] + bytes((data[position] ^ 1,)) + data[position + 1 :]
        assert judge(altered, forge).outcome is not Outcome.VERIFIED, position
