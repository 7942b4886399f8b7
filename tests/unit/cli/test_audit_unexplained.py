# SPDX-License-Identifier: Apache-2.0
"""Hosts that hide a state behind the logs of another: what a log does not lead to, it does not explain."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from agents import policy_of
from ima_logs import host_log, ima_entry
from platform_defects import EVIL, FILES, RAN, STARTED, aggregate_over
from soft_log import SoftLog
from tcg_logs import good_boot

from quotary_cli.auditing import Wanted, audit_source
from quotary_verifier.audit.findings import Code
from quotary_verifier.audit.report import AuditReport

BOOT = good_boot(banks=(0x0B,))
RECORDS = host_log(aggregate_over(BOOT), FILES)
AT = 1_790_000_100


class BootedLog(SoftLog):
    """A host whose firmware and kernel measured what they did, and logged it."""

    def boot(self) -> None:
        """Measure firmware and loaders."""
        self.pcrs |= dict.fromkeys(range(12), bytes(32)) | BOOT.values()
        self.ran: list[bytes] = []

    def run(self, records: Sequence[bytes]) -> None:
        """Let the kernel measure."""
        self.ran += records
        for record in records:
            self.extend(10, hashlib.sha256(record).digest())

    def name(self) -> None:
        """Let the next commits name both logs as they are now."""
        logs = {"tcg": BOOT.agile(), "ima": b"".join(map(ima_entry, self.ran))}
        self.boot_logs = {name: (self.put(data), len(data)) for name, data in logs.items()}


@pytest.fixture
def log(tmp_path: Path) -> BootedLog:
    """A measured host that served something."""
    log = BootedLog(tmp_path / "log")
    log.boot()
    log.run(RECORDS)
    log.name()
    log.start()
    log.outputs(3)
    return log


def audited(log: SoftLog, rules: str) -> AuditReport:
    return audit_source(Wanted(str(log.finish()), policy_of(log.origin, rules), AT))


@pytest.mark.parametrize("rules", [RAN, STARTED])
def test_a_measured_host_that_names_its_logs_is_accepted(log: BootedLog, rules: str) -> None:
    log.outputs(2)
    assert audited(log, rules).outcome == "verified"


@pytest.mark.parametrize("named", [(), ("tcg",)])
def test_a_program_that_ran_after_the_last_commit_that_names_the_log_is_not_explained_by_it(
    log: BootedLog, named: tuple[str, ...]
) -> None:
    log.run([EVIL])
    log.boot_logs = {name: log.boot_logs[name] for name in named}
    log.outputs(2)
    report = audited(log, RAN)
    assert report.outcome == "could-not-check"
    (found,) = report.findings
    assert found.code is Code.PLATFORM
    assert "does not lead to PCR 10 as it was quoted then" in found.message


def test_a_log_that_is_left_out_and_named_again_explains_what_lies_between(log: BootedLog) -> None:
    kept, log.boot_logs = log.boot_logs, {}
    log.run(RECORDS[-1:])
    log.outputs(2)
    log.run(RECORDS[-1:])
    log.boot_logs = kept
    log.name()
    log.outputs(1)
    assert audited(log, RAN).outcome == "verified"


@pytest.mark.parametrize("rules", [RAN, STARTED])
def test_another_boot_that_passes_for_a_sleep_is_not_explained_by_the_logs_before_it(
    log: BootedLog, rules: str
) -> None:
    """TPM2_Shutdown(STATE) before a reset leaves resetCount as it was; then the chain PCR is extended anew."""
    log.boot_logs = {}
    log.clock = replace(log.clock, restart_count=1)
    log.pcrs[4] = hashlib.sha256(b"another kernel").digest()
    log.pcrs[10] = hashlib.sha256(b"another kernel's files").digest()
    log.outputs(1)
    report = audited(log, rules)
    assert report.outcome == "could-not-check"
    assert [period.status for period in report.periods] == ["accepted", "could-not"]
    assert "as it was quoted then" in report.periods[1].findings[0][2]
