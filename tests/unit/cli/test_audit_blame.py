# SPDX-License-Identifier: Apache-2.0
"""An audit says whose fault it is: evidence of other hosts, gaps behind a false commit, a policy that ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from agents import policy_of
from audit_samples import boot, period, report
from soft_log import SoftLog

from quotary_cli.auditing import Wanted, audit_source
from quotary_cli.auditview.html import audit_page
from quotary_cli.main import run
from quotary_verifier.audit.findings import Code, Severity
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.wire.history import Commit, split

AT = 1_790_000_100
OTHER = Path(__file__).parents[2] / "vectors" / "vm" / "secure-boot"


@pytest.fixture
def log(tmp_path: Path) -> SoftLog:
    """Two boots; commits 0 and 1 are of the first."""
    log = SoftLog(tmp_path / "log")
    log.start()
    log.outputs(3)
    log.reset()
    log.start()
    log.outputs(2)
    return log


def audited(log: SoftLog, *records: Path) -> AuditReport:
    return audit_source(Wanted(str(log.files.folder), policy_of(log.origin), AT, records))


def test_an_attestation_of_another_host_is_no_falsehood_of_this_log(log: SoftLog) -> None:
    log.finish()
    audit = audited(log, OTHER)
    (finding,) = (one for one in audit.findings if one.code is Code.RECORD_UNMATCHED)
    assert finding.severity is Severity.COULD_NOT
    assert "of other logs" in finding.message
    assert audit.exit_code == 3


def test_a_gap_after_a_false_commit_does_not_show_two_equal_values(log: SoftLog) -> None:
    log.finish()
    place = log.files.folder / "history/000"
    items = list(split(place.read_bytes()))
    first = Commit.decode(items[2])
    spoilt = replace(first, note=first.note[:-12] + b"AAAA" + first.note[-8:])
    place.write_bytes(b"".join([*items[:2], spoilt.encode(), *items[3:]]))
    said = [finding.message for finding in audited(log).findings if finding.code is Code.CHAIN_GAP]
    assert [message.partition(":")[0] for message in said] == [
        "the TPM was reset since the last quote that holds, and the chain PCR does not begin at zero"
    ]


def test_a_page_that_has_no_folder_is_refused_before_anything_is_read(
    log: SoftLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{log.origin}"\n')
    page = tmp_path / "nowhere" / "audit.html"
    assert run(["audit", str(tmp_path / "no log either"), "-p", str(policy), "--html", str(page)]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_policy_that_ended_is_told_with_what_helps_and_not_with_the_list_of_keys(
    log: SoftLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'schema = "quotary-policy/v1"\nexpires = 2026-01-01T00:00:00Z\n[[pin]]\norigin = "{log.origin}"\n'
    )
    assert run(["audit", str(log.finish()), "-p", str(policy)]) == 2
    said = capsys.readouterr().err
    assert "ended at 2026-01-01" in said
    assert "--at" in said
    assert "every key" not in said


def test_models_of_one_name_are_told_apart_by_their_weights_in_the_timeline() -> None:
    host = boot(0)
    first = period(host, part=(0, 20))
    second = period(host, part=(20, 40))
    others = replace(second, models=(replace(second.models[0], digest="ab" * 32),))
    page = audit_page(report([host], [first, others]), "gpu-07.tar")
    assert "model llama-3.1-8b, weights abababab…" in page
    assert "model llama-3.1-8b, weights" not in audit_page(report([host], [first]), "gpu-07.tar")
