# SPDX-License-Identifier: Apache-2.0
"""Step `boot-logs` (docs/spec/verification.md): what a verdict says of logs that replay and of those not read."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest
from boot_defects import BOOT, RECORDS, carrying, host, ima
from forge import NOW, Forge
from ima_logs import file_data, ima_entry, ng, replayed
from tcg_logs import good_boot

from quotary_verifier import Question, Rejected, Step, load_policy, verify, verify_in
from quotary_verifier.logs.ima import ImaLog, ReplayedIma
from quotary_verifier.recipe.verdict import CheckState, Claim, Verdict
from quotary_verifier.wire.attestation import Attestation


def judge(forge: Forge, attestation: Attestation, extra: str = "") -> Verdict:
    policy = load_policy(forge.policy(extra).encode())
    return verify(attestation.encode(), Question(forge.body, at=NOW), policy)


def step(verdict: Verdict) -> tuple[CheckState, str]:
    (check,) = [check for check in verdict.report.checks if check.step is Step.BOOT_LOGS]
    return check.state, check.detail


def test_the_verdict_lists_which_pcrs_were_replayed_and_from_how_many_events() -> None:
    forge = host()
    verdict = judge(forge, carrying(forge, tcg=BOOT.agile(), ima=ima(RECORDS)))
    said = {
        "tcg": f"{len(BOOT.events)} events, PCR 0-9, 14",
        "ima": "4 records, PCR 10, its boot aggregate is of PCR 0-9",
    }
    assert step(verdict) == (CheckState.PASSED, f"tcg: {said['tcg']}; ima: {said['ima']}")
    claims = {claim.name: claim for claim in verdict.claims if claim.name.startswith("boot_log.")}
    assert {name: claim.value for name, claim in claims.items()} == {
        f"boot_log.{k}": v for k, v in said.items()
    }


def test_what_firmware_measured_is_the_hosts_word_until_the_policy_pins_who_wrote_it() -> None:
    forge = host()
    attestation = carrying(forge, tcg=BOOT.agile())
    assert str(claim(judge(forge, attestation)).source) == "host"
    pins = f'[platform.pcrs]\n4 = ["{BOOT.values()[4].hex()}"]\n'
    assert str(claim(judge(forge, attestation, pins)).source) == "measured"


def claim(verdict: Verdict) -> Claim:
    found = verdict.claim("boot_log.tcg")
    assert found is not None
    return found


def test_a_log_given_by_its_digest_only_is_not_checked() -> None:
    forge = host()
    digest = hashlib.sha256(ima(RECORDS)).digest()
    verdict = judge(forge, carrying(forge, tcg=BOOT.agile(), ima=digest))
    state, detail = step(verdict)
    assert state is CheckState.NOT_CHECKED
    assert "ima is given by its digest only" in detail
    assert "tcg: " in detail
    assert verdict.claim("boot_log.ima") is None


def test_a_log_of_an_unknown_name_is_listed_as_not_understood() -> None:
    forge = host()
    verdict = judge(forge, carrying(forge, ccel=BOOT.agile()))
    assert verdict.report.not_understood == ("boot log: ccel",)
    assert step(verdict)[0] is CheckState.NOT_CHECKED


def test_an_attestation_without_logs_says_so_and_loads_none_of_the_code_that_reads_them() -> None:
    forge = Forge()
    verdict = judge(forge, forge.attestation())
    assert step(verdict) == (CheckState.NOT_CHECKED, "the attestation carries none")
    program = (
        "import sys, quotary_verifier\n"
        "wrong = [name for name in sys.modules if name.startswith('quotary_verifier.logs.')]\n"
        "assert set(wrong) <= {'quotary_verifier.logs.cel', 'quotary_verifier.logs.workload'}, wrong\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_events_of_a_pcr_that_moved_on_are_withheld_and_the_verdict_says_so() -> None:
    forge = host()
    forge = replace(forge, pcrs={**forge.pcrs, 14: hashlib.sha256(b"moved").digest()})
    verdict = judge(forge, carrying(forge, tcg=BOOT.agile()))
    assert any("PCR 14 holds something else" in notice for notice in verdict.report.notices)
    assert claim(verdict).value == f"{len(BOOT.events) - 1} events, PCR 0-9"


@pytest.mark.parametrize("register", [0, 1, 2, 3, 4, 6, 7, 8])
def test_a_pcr_of_the_firmware_must_be_explained_in_full(register: int) -> None:
    forge = host()
    forge = replace(forge, pcrs={**forge.pcrs, register: hashlib.sha256(b"more").digest()})
    with pytest.raises(Rejected, match=f"register {register} is quoted as"):
        judge(forge, carrying(forge, tcg=BOOT.agile()))


def test_later_ima_records_are_counted_and_not_considered() -> None:
    forge = host()
    more = ima([file_data(7)])
    verdict = judge(forge, carrying(forge, ima=ima(RECORDS) + more))
    found = verdict.claim("boot_log.ima")
    assert found is not None
    assert f"{len(more)} later bytes not considered" in str(found.value)


def test_without_the_firmwares_log_a_boot_aggregate_that_fits_nothing_is_not_checked() -> None:
    records = [ng("boot_aggregate", hashlib.sha256(b"another boot").digest()), *RECORDS[1:]]
    forge = host(records=records)
    verdict = judge(forge, carrying(forge, ima=ima(records)))
    assert "no log says what PCR 8 and 9 were at boot" in step(verdict)[1]
    with pytest.raises(Rejected, match="boot aggregate"):
        judge(forge, carrying(forge, tcg=BOOT.agile(), ima=ima(records)))


def test_a_boot_aggregate_of_another_bank_is_not_checked() -> None:
    records = [ng("boot_aggregate", bytes(20), label=b"sha1"), *RECORDS[1:]]
    forge = host(records=records)
    verdict = judge(forge, carrying(forge, tcg=BOOT.agile(), ima=ima(records)))
    assert "the boot aggregate is of the sha1 bank" in step(verdict)[1]


def test_violations_are_counted_in_the_verdict() -> None:
    records = [*RECORDS, b""]
    forge = host(records=records)
    log = ima(RECORDS) + ima_entry(file_data(1), violation=True)
    verdict = judge(forge, carrying(forge, ima=log))
    found = verdict.claim("boot_log.ima")
    assert found is not None
    assert "1 violations" in str(found.value)


def test_what_is_extended_into_the_chain_or_workload_pcr_counts_for_no_log() -> None:
    boot = good_boot().add(13, 0x0D, b"into the workload PCR")
    forge = Forge(pcrs=good_boot().values() | {10: replayed(RECORDS)})
    verdict = judge(forge, carrying(forge, tcg=boot.agile()))
    assert any("PCR 13 holds something else" in notice for notice in verdict.report.notices)


def digests(**logs: bytes) -> dict[str, bytes]:
    """Logs as an attestation names them."""
    return {name: hashlib.sha256(log).digest() for name, log in logs.items()}


def given(**logs: bytes) -> dict[bytes, bytes]:
    """Logs as a question gives them."""
    return {hashlib.sha256(log).digest(): log for log in logs.values()}


def test_a_log_that_is_named_by_its_digest_and_given_beside_is_as_good_as_one_in_full() -> None:
    forge, logs = host(), {"tcg": BOOT.agile(), "ima": ima(RECORDS)}
    policy = load_policy(forge.policy().encode())
    question = Question(forge.body, at=NOW, logs=given(**logs))
    apart = verify(carrying(forge, **digests(**logs)).encode(), question, policy)
    assert step(apart) == step(judge(forge, carrying(forge, **logs)))
    assert apart.claims == judge(forge, carrying(forge, **logs)).claims


def test_a_log_given_under_a_digest_that_is_not_its_own_is_not_the_one_asked_for() -> None:
    forge, log = host(), ima(RECORDS)
    policy = load_policy(forge.policy().encode())
    attestation = carrying(forge, **digests(ima=log)).encode()
    for false in (log[:-1], b"", ima(RECORDS[:-1])):
        question = Question(forge.body, at=NOW, logs={hashlib.sha256(log).digest(): false})
        assert step(verify(attestation, question, policy)) == (
            CheckState.NOT_CHECKED,
            "ima is given by its digest only",
        )


def test_a_log_that_is_given_and_is_not_of_this_boot_rejects() -> None:
    forge, other = host(), ima(RECORDS[:-1])
    question = Question(forge.body, at=NOW, logs=given(ima=other))
    policy = load_policy(forge.policy().encode())
    with pytest.raises(Rejected, match="boot-logs"):
        verify(carrying(forge, **digests(ima=other)).encode(), question, policy)


@pytest.mark.parametrize("apart", [True, False], ids=["by digest", "in full"])
def test_one_log_under_both_names_is_read_as_each_of_them(apart: bool) -> None:
    forge, log = host(), BOOT.agile()
    logs = {"tcg": log, "ima": log}
    attestation = carrying(forge, **(digests(**logs) if apart else logs)).encode()
    question = Question(forge.body, at=NOW, logs=given(**logs))
    with pytest.raises(Rejected, match="no binary IMA log"):
        verify(attestation, question, load_policy(forge.policy().encode()))


@pytest.mark.parametrize("apart", [True, False], ids=["by digest", "in full"])
def test_a_log_of_a_commit_is_replayed_once_for_all_its_outputs(
    apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge, logs = host(), {"tcg": BOOT.agile(), "ima": ima(RECORDS)}
    policy = load_policy(forge.policy().encode())
    replays = []

    def counted(self: ImaLog, *args: object) -> ReplayedIma:
        replays.append(self)
        return replay(self, *args)  # type: ignore[arg-type]

    replay = ImaLog.replay
    monkeypatch.setattr(ImaLog, "replay", counted)
    attestation = carrying(forge, **(digests(**logs) if apart else logs)).encode()
    question = Question(forge.body, at=NOW, logs=given(**logs) if apart else {})
    first, commit = verify_in(attestation, question, policy)
    for _ in range(3):
        assert commit.verify(attestation, question).report == first.report
    with pytest.raises(Rejected, match="output"):
        commit.verify(attestation, replace(question, output=b"another"))
    late = replace(forge.attestation(), boot_logs=digests(**logs) if apart else logs, request_key=None)
    assert commit.verify(late.encode(), question).claim("boot_log.ima") is not None
    assert len(replays) == 1


def test_an_output_of_the_same_commit_is_judged_by_the_logs_that_come_with_it() -> None:
    forge = host()
    policy = load_policy(forge.policy().encode())
    log = BOOT.agile()
    question = Question(forge.body, at=NOW, logs=given(tcg=log))
    attestation = carrying(forge, **digests(tcg=log)).encode()
    _, commit = verify_in(attestation, question, policy)
    assert commit.verify(attestation, question).claim("boot_log.tcg") is not None
    assert commit.verify(attestation, replace(question, logs={})).claim("boot_log.tcg") is None
    false = BOOT.without(0).agile()
    with pytest.raises(Rejected, match="boot-logs"):
        commit.verify(carrying(forge, tcg=false).encode(), question)
    with pytest.raises(Rejected, match="boot-logs"):
        commit.verify(
            carrying(forge, **digests(tcg=false)).encode(), replace(question, logs=given(tcg=false))
        )


def test_a_log_of_an_unknown_version_is_not_checked_and_rejects_nothing() -> None:
    forge = host()
    newer = BOOT.agile().replace(b"Spec ID Event03", b"Spec ID Event04")
    verdict = judge(forge, carrying(forge, tcg=newer))
    assert step(verdict) == (
        CheckState.NOT_CHECKED,
        "not checked: the event log is of a version that is not known",
    )
    assert verdict.claim("boot_log.tcg") is None


def test_a_boot_aggregate_over_a_pcr_that_commits_extend_is_not_checked() -> None:
    forge = Forge(chain_pcr=6, pcrs={10: replayed(RECORDS)})
    verdict = judge(forge, carrying(forge, ima=ima(RECORDS)))
    assert "over a PCR that each commit extends" in step(verdict)[1]
