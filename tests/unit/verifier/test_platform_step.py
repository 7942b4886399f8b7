# SPDX-License-Identifier: Apache-2.0
"""Step `platform` in whole verifications: what a verdict says of rules, tolerances, warnings and a policy's end."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from boot_defects import BOOT, RECORDS, carrying, host, ima
from forge import NOW, Forge
from fresh_quotes import NONCE, made
from ima_logs import ng
from platform_defects import APPLICATION, EVIL, RAN, READ, RULES, SECURE_BOOT, STARTED, booted

from quotary_verifier import (
    NotChecked,
    PolicyError,
    Question,
    Rejected,
    Step,
    Verdict,
    load_policy,
    verify,
    verify_fresh,
    verify_in,
    verify_statement,
)
from quotary_verifier.policy.appraise import appraise_platform
from quotary_verifier.policy.findings import PlatformEvidence
from quotary_verifier.recipe.evidence import evidence_of
from quotary_verifier.recipe.steps import ORDER
from quotary_verifier.recipe.verdict import CheckState
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.declaration import Declaration, Service
from quotary_verifier.wire.records import Statement

IGNORING = '[platform.ima]\nignore = ["/usr/*"]\n'
TOLD = Declaration.of([Service(("/v1/chat/completions",))])
LOGS = {"tcg": BOOT.agile(), "ima": ima(RECORDS)}


def judge(forge: Forge, attestation: Attestation, rules: str = RULES, **question: object) -> Verdict:
    policy = load_policy(forge.policy(rules).encode())
    return verify(attestation.encode(), replace(Question(forge.body, at=NOW), **question), policy)


def test_the_step_comes_after_the_boot_logs() -> None:
    assert ORDER[Step.PLATFORM] == ORDER[Step.BOOT_LOGS] + 1


def test_a_verdict_says_which_reference_set_the_host_is_of() -> None:
    forge, logs = booted()
    sets = "".join(
        f'[[reference]]\nname = "{name}"\n[reference.pcrs]\n4 = ["{value}"]\n'
        for name, value in (("other", "ab" * 32), ("this", BOOT.values()[4].hex()))
    )
    claim = judge(forge, carrying(forge, **logs), sets).claim("reference_set")
    assert claim is not None
    assert (claim.value, str(claim.source)) == ("this", "measured")


def test_a_rejection_names_the_first_culprit_and_how_many_more_there_are() -> None:
    forge, logs = booted(BOOT, EVIL, ng("/usr/bin/worse", hashlib.sha256(b"worse").digest()))
    with pytest.raises(
        Rejected, match=r"^platform: PCR 10, record 4 .*/usr/bin/evil: .* \(and 1 more finding\)"
    ):
        judge(forge, carrying(forge, **logs))
    forge, logs = booted(BOOT, *[ng(f"/x/{n}", hashlib.sha256(b"%d" % n).digest()) for n in range(4)])
    with pytest.raises(Rejected, match=r"\(and 3 more findings\)"):
        judge(forge, carrying(forge, **logs))


def test_each_tolerance_that_was_used_stands_in_the_verdict() -> None:
    forge = host()
    verdict = judge(forge, carrying(forge, **LOGS), IGNORING)
    assert verdict.report.tolerances == ("IMA log: 3 records of files at paths that the policy ignores",)


def test_a_broken_rule_that_only_warns_stands_in_the_verdict_with_its_date() -> None:
    forge, logs = booted(BOOT, EVIL)
    warn = '[[warn]]\nrule = "platform.ima.files"\nuntil = 2026-12-01T00:00:00Z\n'
    notices = judge(forge, carrying(forge, **logs), RULES + warn).report.notices
    (said,) = [notice for notice in notices if "only warns" in notice]
    assert said.startswith("platform.ima.files only warns: PCR 10, record 4")
    assert said.endswith("rejected from 2026-12-01T00:00:00Z")


def test_the_verdict_says_that_a_policy_without_rules_says_nothing_of_the_platform() -> None:
    forge = host()
    said = "the policy fixes no PCR: nothing is said of what booted and runs on the host"
    attestation = carrying(forge, **LOGS)
    assert said in judge(forge, attestation, "").report.notices
    assert said in judge(forge, attestation, "[platform.clock]\nrestarts = 0\n").report.notices
    assert said not in judge(forge, attestation, SECURE_BOOT).report.notices


def source(forge: Forge, logs: dict[str, bytes], rules: str) -> str:
    claim = judge(forge, carrying(forge, **logs), rules).claim("model")
    assert claim is not None
    return str(claim.source)


def test_rules_on_what_was_started_pin_who_wrote_the_workload_log_so_that_a_model_is_measured() -> None:
    assert source(host(), LOGS, STARTED) == "measured"
    assert source(host(), LOGS, SECURE_BOOT) == "host"


def test_another_system_that_extends_what_the_right_one_would_makes_no_model_measured() -> None:
    """It copies PCR 8 to 10 out of the public logs of a good host: only PCR 4 was extended before it ran."""
    forge, logs = booted(BOOT.altered(APPLICATION, measured=b"another system"))
    read = f"[platform.boot]\n{READ}{RAN}[platform.pcrs]\n" + "".join(
        f'{pcr} = ["{value.hex()}"]\n' for pcr, value in BOOT.values().items() if pcr in {8, 9}
    )
    assert source(forge, logs, read) == "host"
    with pytest.raises(Rejected, match="PCR 4"):
        source(forge, logs, STARTED)


def test_a_log_that_came_beside_the_attestation_serves_the_rules() -> None:
    forge = host()
    digests = {name: hashlib.sha256(log).digest() for name, log in LOGS.items()}
    attestation = carrying(forge, **digests)
    with pytest.raises(NotChecked, match="by its digest only, and was not handed in"):
        judge(forge, attestation)
    given = {digests[name]: log for name, log in LOGS.items()}
    assert judge(forge, attestation, logs=given).report.failing is None


def test_an_attestation_without_logs_leaves_rules_on_them_open() -> None:
    forge = host()
    with pytest.raises(NotChecked, match="did not come along") as caught:
        judge(forge, forge.attestation())
    assert caught.value.report.failing is Step.PLATFORM


def test_an_empty_ima_log_beside_an_attestation_does_no_harm() -> None:
    forge = Forge()
    empty = hashlib.sha256(b"").digest()
    verdict = judge(forge, carrying(forge, ima=empty), "", logs={empty: b""})
    assert verdict.claim("boot_log.ima") is not None
    with pytest.raises(Rejected, match="PCR 10 is zero"):
        judge(forge, carrying(forge, ima=empty), RAN, logs={empty: b""})


# --- further outputs of a commit, fresh quotes, statements ---------------------------------------------------


def test_another_output_of_the_commit_has_the_same_verdict_on_the_platform() -> None:
    forge, logs = booted(BOOT, EVIL)
    warn = '[[warn]]\nrule = "platform.ima"\nuntil = 2026-12-01T00:00:00Z\n'
    sets = f'[[reference]]\nname = "this"\n[reference.pcrs]\n0 = ["{BOOT.values()[0].hex()}"]\n'
    rules = SECURE_BOOT + '[platform.ima]\nignore = ["/usr/bin/p*"]\n' + warn + sets
    policy = load_policy(forge.policy(rules).encode())
    attestation = carrying(forge, **logs).encode()
    question = Question(forge.body, at=NOW)
    first, commit = verify_in(attestation, question, policy)
    again = commit.verify(attestation, question)
    assert again.report == first.report == verify(attestation, question, policy).report
    assert again.report.tolerances
    assert any("only warns" in notice for notice in again.report.notices)


def fresh(rules: str, logs: dict[str, bytes]) -> Verdict:
    forge = host()
    policy = load_policy(forge.policy(rules).encode())
    return verify_fresh(made(forge).encode(), NONCE, NOW, policy, logs)


def test_a_fresh_quote_carries_no_log_and_takes_any_that_replays_to_it() -> None:
    verdict = fresh(RULES, LOGS)
    assert {check.step: check.state for check in verdict.report.checks}[Step.BOOT_LOGS] is CheckState.PASSED
    assert fresh(IGNORING, LOGS).report.tolerances
    with pytest.raises(NotChecked, match="did not come along"):
        fresh(RULES, {})
    with pytest.raises(Rejected, match="boot-logs: the event log does not replay"):
        fresh(RULES, {**LOGS, "tcg": BOOT.without(0).agile()})
    with pytest.raises(Rejected, match="platform: PCR 10, record 1"):
        fresh(RAN.replace("program-0", "program-9"), LOGS)


def statement(rules: str, logs: dict[str, bytes]) -> Verdict:
    forge = host()
    record = Statement(b"s" * 16, NOW * 1000, TOLD.text).encode()
    attestation = replace(forge.attestation(record=record), boot_logs=logs)
    return verify_statement(attestation.encode(), NOW, load_policy(forge.policy(rules).encode())).verdict


def test_the_rules_hold_for_statements_too() -> None:
    assert statement(IGNORING, LOGS).report.tolerances
    with pytest.raises(NotChecked, match="did not come along"):
        statement(RULES, {})
    with pytest.raises(Rejected, match="platform: PCR 10, record 1"):
        statement(RAN.replace("program-0", "program-9"), LOGS)


# --- a policy's end ------------------------------------------------------------------------------------------

FORGE = Forge()
ENDING = load_policy(FORGE.policy(head="expires = 2026-11-23T12:00:01Z").encode())
ENTRIES: dict[str, Callable[[int], object]] = {
    "verify": lambda at: verify(FORGE.attestation().encode(), Question(FORGE.body, at=at), ENDING),
    "verify_in": lambda at: verify_in(FORGE.attestation().encode(), Question(FORGE.body, at=at), ENDING),
    "verify_fresh": lambda at: verify_fresh(made(FORGE).encode(), NONCE, at, ENDING),
    "verify_statement": lambda at: verify_statement(
        FORGE.attestation(record=Statement(b"s" * 16, NOW * 1000, TOLD.text).encode()).encode(), at, ENDING
    ),
    "evidence_of": lambda at: evidence_of(FORGE.attestation().encode(), at, ENDING),
    "a verified commit": lambda at: verify_in(
        FORGE.attestation().encode(), Question(FORGE.body, at=NOW), ENDING
    )[1].verify(FORGE.attestation().encode(), Question(FORGE.body, at=at)),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_policy_that_has_ended_judges_nothing_good_or_bad(name: str) -> None:
    ENTRIES[name](NOW)
    with pytest.raises(PolicyError, match="ended at"):
        ENTRIES[name](NOW + 1)


# --- evidence for who makes policies -------------------------------------------------------------------------


def verified(attestation: bytes, forge: Forge, rules: str = RULES) -> PlatformEvidence:
    return evidence_of(attestation, NOW, load_policy(forge.policy(rules).encode()))


def test_evidence_is_verified_but_for_the_rules_on_the_platform() -> None:
    forge, logs = booted(BOOT, EVIL)
    found = verified(carrying(forge, **logs).encode(), forge)
    assert found.origin == forge.origin
    assert (found.moving, found.own_key) == (frozenset({forge.chain_pcr, forge.workload_pcr}), True)
    assert found.pcrs[4] == BOOT.values()[4]
    assert found.firmware is not None
    assert found.ima is not None
    assert found.ima.count == len(RECORDS) + 1
    assert found.workload is not None
    assert found.missing == {}
    policy = load_policy(forge.policy(RULES).encode())
    assert [item.path for item in appraise_platform(policy, found, NOW).findings] == ["/usr/bin/evil"]


def test_evidence_says_which_log_is_missing_and_why() -> None:
    forge = host()
    found = verified(carrying(forge, ima=hashlib.sha256(LOGS["ima"]).digest()).encode(), forge)
    assert (found.firmware, found.ima) == (None, None)
    assert "did not come along" in found.missing["tcg"]
    assert "by its digest only" in found.missing["ima"]
    newer = BOOT.agile().replace(b"Spec ID Event03", b"Spec ID Event04")
    assert "could not be read" in verified(carrying(forge, tcg=newer).encode(), forge).missing["tcg"]


def test_evidence_may_come_with_any_record_of_the_commit() -> None:
    forge = host()
    record = Statement(b"s" * 16, NOW * 1000, TOLD.text).encode()
    assert verified(forge.attestation(record=record).encode(), forge).pcrs[4] == BOOT.values()[4]


@pytest.mark.parametrize(
    "change", ["signature", "log", "trust", "leaf", "bytes"], ids=lambda change: f"false {change}"
)
def test_there_is_no_evidence_where_a_step_fails(change: str) -> None:
    forge = host()
    attestation = carrying(forge, **LOGS)
    judged = forge
    if change == "signature":
        attestation = forge.attestation(pcr_digest=bytes(32))
    elif change == "log":
        attestation = carrying(forge, tcg=BOOT.without(0).agile())
    elif change == "trust":
        judged = host()
    elif change == "leaf":
        attestation = replace(attestation, record=attestation.record + b"\0")
    data = attestation.encode()[:-1] if change == "bytes" else attestation.encode()
    with pytest.raises(Rejected):
        verified(data, judged)


def test_there_is_no_evidence_where_a_step_could_not_be_done() -> None:
    forge = host()
    rules = f"crls = []\nrevocation_required = true\n{RULES}"
    with pytest.raises(NotChecked, match="revoked"):
        verified(carrying(forge, **LOGS).encode(), forge, rules)


def test_pcr_values_that_are_kept_load_no_appraiser_and_departures_are_told_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cold verification spends half its time on imports."""
    forge = Forge()
    kept = f'[platform.pcrs]\n7 = ["{forge.pcrs[7].hex()}"]\n'
    monkeypatch.delitem(sys.modules, "quotary_verifier.policy.appraise")
    judge(forge, forge.attestation(), kept)
    assert "quotary_verifier.policy.appraise" not in sys.modules
    chain = f'{forge.chain_pcr} = ["{"0" * 64}"]\n'
    for change, why in ((chain, "extends with every commit"), (f'2 = ["{"0" * 64}"]\n', "PCR 2 is")):
        with pytest.raises(Rejected, match=why):
            judge(forge, forge.attestation(), kept + change)
    unmeasured = Forge(pcrs={7: forge.pcrs[7], 4: forge.pcrs[4]})
    with pytest.raises(Rejected, match="PCR 0 is zero"):
        judge(unmeasured, unmeasured.attestation(), kept)


_ALONE = """
import base64, json, sys
from quotary_verifier import NotChecked, Question, Rejected, load_policy, verify

for name in sys.argv[1:]:
    case = json.load(open(name))
    question = Question(base64.b64decode(case["output"]), at=case["at"])
    try:
        policy = load_policy(case["policy"].encode())
        report = verify(base64.b64decode(case["attestation"]), question, policy).report
    except (NotChecked, Rejected) as error:
        report = error.report
    print(json.dumps(report.as_json()))
"""


def test_an_appraisal_is_the_same_whatever_order_sets_have() -> None:
    folder = Path(__file__).parents[2] / "vectors" / "attestation"
    names = ("another_boot_loader", "platform_that_keeps_every_rule", "known_file_at_another_path")
    command = [sys.executable, "-c", _ALONE, *[str(folder / f"{name}.json") for name in names]]
    said = {
        subprocess.run(
            command, capture_output=True, check=True, timeout=60, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1
