# SPDX-License-Identifier: Apache-2.0
"""What measured machines of ours logged and quoted (tests/vectors/vm): replayed against the quoted PCRs, and read."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from quotary_verifier import Question, Rejected, Step, load_policy, verify, verify_fresh
from quotary_verifier.logs.ima_fields import decode
from quotary_verifier.logs.tcg_boot import read_boot
from quotary_verifier.logs.tcg_loaders import Kind, read_loader_events
from quotary_verifier.logs.tcg_secureboot import read_secure_boot
from quotary_verifier.policy.findings import PlatformEvidence
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.evidence import evidence_of
from quotary_verifier.recipe.verdict import CheckState, Verdict

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "vm"
BOOTS = ["first-boot", "second-boot", "secure-boot"]


def about(boot: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((VECTORS / boot / "about.json").read_text())
    return said


def policy(boot: str) -> Policy:
    text = (
        f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{about(boot)["origin"]}"\n[tpm]\nsoftware = true\n'
    )
    return load_policy(text.encode())


def logs(boot: str) -> dict[str, bytes]:
    return {name: (VECTORS / boot / f"{name}.bin").read_bytes() for name in ("tcg", "ima")}


def judge(boot: str, given: dict[str, bytes]) -> Verdict:
    folder = VECTORS / boot
    question = Question(
        (folder / "output").read_bytes(),
        about(boot)["at"],
        logs={sha256(data).digest(): data for data in given.values()},
    )
    return verify((folder / "output.attestation").read_bytes(), question, policy(boot))


def evidence(boot: str) -> PlatformEvidence:
    given = {sha256(data).digest(): data for data in logs(boot).values()}
    attestation = (VECTORS / boot / "output.attestation").read_bytes()
    return evidence_of(attestation, about(boot)["at"], policy(boot), given)


def test_every_boot_that_was_kept_is_tested() -> None:
    assert sorted(folder.parent.name for folder in VECTORS.glob("*/about.json")) == BOOTS


@pytest.mark.parametrize("boot", BOOTS)
def test_the_logs_of_a_measured_boot_replay_to_what_its_tpm_quoted(boot: str) -> None:
    verdict = judge(boot, logs(boot))
    (check,) = [check for check in verdict.report.checks if check.step is Step.BOOT_LOGS]
    assert check.state is CheckState.PASSED
    assert "its boot aggregate is of PCR 0-9" in check.detail
    shown = evidence(boot)
    assert shown.firmware is not None and shown.ima is not None
    assert not shown.firmware.unconfirmed
    assert shown.ima.violations == ()


@pytest.mark.parametrize("boot", BOOTS)
def test_a_fresh_quote_of_a_measured_boot_is_verified_with_its_logs(boot: str) -> None:
    said = about(boot)
    quote = (VECTORS / boot / "fresh.quote").read_bytes()
    verdict = verify_fresh(quote, bytes.fromhex(said["nonce"]), said["at"], policy(boot), logs(boot))
    (check,) = [check for check in verdict.report.checks if check.step is Step.BOOT_LOGS]
    assert check.state is CheckState.PASSED


@pytest.mark.parametrize("log", ["tcg", "ima"])
def test_the_log_of_another_machine_does_not_replay(log: str) -> None:
    said = about("first-boot")
    quote = (VECTORS / "first-boot" / "fresh.quote").read_bytes()
    foreign = logs("first-boot") | {log: logs("secure-boot")[log]}
    with pytest.raises(Rejected) as caught:
        verify_fresh(quote, bytes.fromhex(said["nonce"]), said["at"], policy("first-boot"), foreign)
    assert caught.value.report.failing is Step.BOOT_LOGS


def test_a_log_that_the_attestation_does_not_name_is_not_taken_for_the_one_it_names() -> None:
    verdict = judge("first-boot", logs("secure-boot"))
    (check,) = [check for check in verdict.report.checks if check.step is Step.BOOT_LOGS]
    assert check.state is CheckState.NOT_CHECKED


def test_a_reboot_is_seen_in_the_counts_of_the_same_tpm() -> None:
    first, second = evidence("first-boot"), evidence("second-boot")
    assert first.origin == second.origin
    assert second.clock.reset_count == first.clock.reset_count + 1


@pytest.mark.parametrize("boot", BOOTS)
def test_loader_kernel_initrd_and_command_line_are_read(boot: str) -> None:
    firmware = evidence(boot).firmware
    assert firmware is not None
    started = read_boot(firmware)
    assert started.exit_boot_services
    assert len(started.applications) == 2
    events = read_loader_events(firmware)
    lines = {event.text for event in events if event.untrusted_kind is Kind.COMMAND_LINE}
    assert lines == {about(boot)["command_line"]}
    assert any(event.untrusted_label.startswith("initrd of the Linux EFI stub") for event in events)


def test_the_sections_of_a_unified_kernel_are_read_by_their_names() -> None:
    firmware = evidence("secure-boot").firmware
    assert firmware is not None
    events = read_loader_events(firmware)
    names = {
        event.text for event in events if event.untrusted_kind is Kind.SECTION and event.text is not None
    }
    assert {".linux", ".osrel", ".cmdline", ".initrd"} <= {name.rstrip("\0") for name in names}


def test_the_secure_boot_state_is_read_with_the_keys_that_were_enrolled() -> None:
    off, on = evidence("first-boot").firmware, evidence("secure-boot").firmware
    assert off is not None and on is not None
    assert not read_secure_boot(off).enabled
    state = read_secure_boot(on)
    assert state.enabled
    assert len(state.pk) == len(state.kek) == len(state.db) == 1
    assert len(state.late_authorities) == 1


@pytest.mark.parametrize("boot", BOOTS)
def test_ima_measured_the_programs_that_ran_and_the_code_of_the_agent(boot: str) -> None:
    ima = evidence(boot).ima
    assert ima is not None
    paths = {fields.path for record in ima.records() if (fields := decode(record.template, record.data)).path}
    assert {b"boot_aggregate", b"/usr/sbin/init", b"/opt/quotary/small_engine.py"} <= paths
    assert any(path.startswith(b"/usr/bin/python3") for path in paths)
    assert any(b"/quotary_attest/__pycache__/agent." in path for path in paths)
