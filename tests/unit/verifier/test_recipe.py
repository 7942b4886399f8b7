# SPDX-License-Identifier: Apache-2.0
"""Each defect is found by its step, and by no other; a good attestation gives a verdict that says who says what."""

from __future__ import annotations

import hashlib
import json

import pytest
from defects import CASES
from forge import NOW, Forge

from quotary_verifier import (
    CheckState,
    ClaimSource,
    HashedBody,
    NotChecked,
    Outcome,
    Question,
    Rejected,
    Report,
    Step,
    Verdict,
    load_policy,
    verify,
    verify_in,
)
from quotary_verifier.recipe.verdict import SCHEMA


def outcome(attestation: bytes, question: Question, policy: str) -> Report:
    try:
        return verify(attestation, question, load_policy(policy.encode())).report
    except (Rejected, NotChecked) as error:
        return error.report


@pytest.mark.parametrize("name", CASES)
def test_each_case_ends_as_it_must_and_at_its_step(name: str) -> None:
    case = CASES[name]()
    report = outcome(case.attestation, case.question, case.policy)
    assert (report.outcome, report.failing) == (case.outcome, case.step), report.reason


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]().step is not None])
def test_what_is_not_verified_shows_no_claim(name: str) -> None:
    case = CASES[name]()
    assert outcome(case.attestation, case.question, case.policy).claims == ()


def test_every_step_can_fail_in_some_case() -> None:
    assert {make().step for make in CASES.values()} - {None} == set(Step)


def test_a_verdict_is_made_by_verification_alone() -> None:
    with pytest.raises(TypeError, match="verification alone"):
        Verdict(object(), lambda: pytest.fail("never made"))


def test_a_body_that_was_hashed_while_it_passed_is_verified_by_its_digest() -> None:
    forge = Forge()
    attestation, policy = forge.attestation().encode(), load_policy(forge.policy().encode())
    digest = hashlib.sha256(forge.body).digest()
    for without_span in (False, True):
        question = Question(HashedBody(digest, without_span), at=NOW)
        verdict, commit = verify_in(attestation, question, policy)
        assert verdict.claims == commit.verify(attestation, question).claims
        whole = verify(attestation, Question(forge.body, at=NOW), policy)
        assert (verdict.claims == whole.claims) is not without_span
    other = hashlib.sha256(forge.body + b" ").digest()
    with pytest.raises(Rejected, match="the body that was hashed"):
        verify(attestation, Question(HashedBody(other), at=NOW), policy)
    text = hashlib.sha256(b"Paris.").digest()
    with pytest.raises(Rejected, match="the body that was hashed"):
        verify(attestation, Question(HashedBody(text), at=NOW), policy)


def test_a_verdict_is_no_bool() -> None:
    forge = Forge()
    question = Question(forge.body, at=NOW)
    verdict = verify(forge.attestation().encode(), question, load_policy(forge.policy().encode()))
    with pytest.raises(TypeError, match="not a bool"):
        bool(verdict)


def test_the_report_lists_every_step_in_order_and_says_what_was_not_checked() -> None:
    forge = Forge()
    report = outcome(forge.attestation().encode(), Question(forge.body, at=NOW), forge.policy())
    assert [check.step for check in report.checks] == list(Step)
    skipped = {check.step for check in report.checks if check.state is CheckState.NOT_CHECKED}
    assert skipped == {Step.REQUEST, Step.NONCE, Step.BOOT_LOGS, Step.TEE, Step.WITNESS, Step.FRESHNESS}
    assert any("no witness" in text for text in report.notices)


def test_equal_questions_give_equal_bytes() -> None:
    forge = Forge()
    attestation = forge.attestation().encode()
    reports = [outcome(attestation, Question(forge.body, at=NOW), forge.policy()) for _ in range(2)]
    first, second = (json.dumps(report.as_json()) for report in reports)
    assert first == second
    assert json.loads(first)["schema"] == SCHEMA


def test_a_model_is_measured_only_where_the_policy_pins_the_platform() -> None:
    forge = Forge()
    attestation = forge.attestation().encode()
    pinned = forge.policy(f'[platform.pcrs]\n4 = ["{forge.pcrs[4].hex()}"]\n')
    sources = []
    for policy in (forge.policy(), pinned):
        claims = outcome(attestation, Question(forge.body, at=NOW), policy).claims
        sources += [claim.source for claim in claims if claim.name == "model"]
    assert sources == [ClaimSource.HOST, ClaimSource.MEASURED]


def test_a_pcr_that_leaves_kernel_and_programs_open_makes_no_model_measured() -> None:
    forge = Forge()
    policy = forge.policy(f'[platform.pcrs]\n0 = ["{forge.pcrs[0].hex()}"]\n')
    report = outcome(forge.attestation().encode(), Question(forge.body, at=NOW), policy)
    assert [claim.source for claim in report.claims if claim.name == "model"] == [ClaimSource.HOST]


def test_a_configured_link_makes_the_model_the_hosts_word_always() -> None:
    from quotary_verifier.wire.records import Link

    forge = Forge(link=Link.CONFIGURED)
    policy = forge.policy(f'[platform.pcrs]\n4 = ["{forge.pcrs[4].hex()}"]\n')
    report = outcome(forge.attestation().encode(), Question(forge.body, at=NOW), policy)
    assert [claim.source for claim in report.claims if claim.name == "model"] == [ClaimSource.HOST]


def test_a_certificate_without_the_log_endorses_the_host_only() -> None:
    forge = Forge()
    forge.certificate = forge.authority.issue(forge.ak.public_key(), forge.host, None)
    report = outcome(forge.attestation().encode(), Question(forge.body, at=NOW), forge.policy())
    assert report.outcome is Outcome.VERIFIED
    assert any("does not name this log" in text for text in report.notices)
    assert [c.source for c in report.claims if c.name == "origin"] == [ClaimSource.HOST]


def test_a_pinned_origin_whose_certificate_does_not_hold_is_told() -> None:
    case = CASES["revoked_certificate_of_a_pinned_origin"]()
    report = outcome(case.attestation, case.question, case.policy)
    assert any("was revoked" in text for text in report.notices)
    assert [c.source for c in report.claims if c.name == "host"] == [ClaimSource.HOST]


def test_a_foreign_ak_verifies_where_the_policy_allows_it_and_the_verdict_says_so() -> None:
    forge = Forge(attributes=0x00050072)
    parent = (0x4000000B).to_bytes(4)
    forge = _with_parent(forge, parent)
    policy = f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{forge.origin}"\n[tpm]\nunauthenticated_ak = true\n'
    report = outcome(_foreign(forge, parent), Question(forge.body, at=NOW), policy)
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert any("AK without auth" in text for text in report.notices)


def _with_parent(forge: Forge, parent: bytes) -> Forge:
    from dataclasses import replace

    tpm = forge.genesis.tpm
    assert tpm is not None
    forge.genesis = replace(forge.genesis, tpm=replace(tpm, ak_parent=parent))
    forge.genesis_record = forge.genesis.encode()
    forge.origin = forge.genesis.origin(forge.genesis_record)
    return forge


def _foreign(forge: Forge, parent: bytes) -> bytes:
    from quotary_verifier.wire.tpm_names import qualified_name
    from quotary_verifier.wire.tpm_public import parse_public

    signer = qualified_name(parent, parse_public(forge.public).name)
    return forge.attestation(signer=signer).encode()


def test_a_verified_commit_serves_its_other_outputs_and_gives_the_same_report() -> None:
    forge = Forge()
    attestation = forge.attestation().encode()
    question = Question(forge.body, at=NOW, request=forge.request, nonce=forge.nonce)
    verdict, commit = verify_in(attestation, question, load_policy(forge.policy().encode()))
    again = commit.verify(attestation, question)
    assert again.report == verdict.report


@pytest.mark.parametrize("name", [name for name, make in CASES.items() if make().step is not None])
def test_a_verified_commit_lets_no_defect_through(name: str) -> None:
    case = CASES[name]()
    forge = Forge()
    question = Question(forge.body, at=NOW)
    _, commit = verify_in(forge.attestation().encode(), question, load_policy(forge.policy().encode()))
    with pytest.raises((Rejected, NotChecked)):
        commit.verify(case.attestation, case.question)


@pytest.mark.parametrize("defect", ["output", "request", "nonce", "index", "record", "time"])
def test_a_verified_commit_checks_every_leaf_anew(defect: str) -> None:
    from dataclasses import replace

    forge = Forge()
    attestation = forge.attestation()
    question = Question(forge.body, at=NOW, request=forge.request, nonce=forge.nonce)
    _, commit = verify_in(attestation.encode(), question, load_policy(forge.policy().encode()))
    changed = {
        "output": (attestation, replace(question, output=b"other")),
        "request": (attestation, replace(question, request=b"other")),
        "nonce": (attestation, replace(question, nonce=b"m" * 32)),
        "index": (replace(attestation, index=2), question),
        "record": (replace(attestation, record=replace(forge.record(), time=1).encode()), question),
        "time": (attestation, replace(question, at=NOW + 400 * 86400)),
    }[defect]
    with pytest.raises(Rejected):
        commit.verify(changed[0].encode(), changed[1])
