# SPDX-License-Identifier: Apache-2.0
"""Audits with lines of every kind, under policies as people write them: what each says, and what only some can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import device_forge
import pytest
from amd_pki import AmdForge
from cca_tokens import cca_mint, pem_key, token
from soft_log import Bind, SoftLog
from soft_tee_log import SoftTeeLog
from tee_audits import AT, FAR, LAUNCH, ROOTS, snp, told
from tee_makers import nitro, nvidia, tdx

from quotary_cli import auditing
from quotary_cli.auditing import Wanted, audit_source
from quotary_verifier.audit.findings import Code, Severity
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.policy.load import load_policy
from quotary_verifier.tlog.hardware import IDENTIFIER_CCA
from quotary_verifier.wire.tee_support import TeeSupport

SNP = '[tee.sev-snp]\ngenerations = ["genoa"]\n'
DAY = 86_400

Maker = Callable[[bytes, bytes], tuple[bytes, TeeSupport]]


def binding(*makers: Maker) -> Bind:
    """What binds a commit with a line of each."""

    def bind(data: bytes) -> Mapping[str, tuple[bytes, Mapping[str, Sequence[bytes]]]]:
        made = [maker(data[:32], data[32:]) for maker in makers]
        return {support.identifier: (evidence, support.endorsements) for evidence, support in made}

    return bind


def cca(digest: bytes, genesis: bytes) -> tuple[bytes, TeeSupport]:
    return cca_mint(digest + genesis), TeeSupport(IDENTIFIER_CCA, {})


def made(log: SoftLog, *makers: Maker) -> SoftLog:
    log.start()
    log.tee = binding(*makers)
    log.outputs()
    log.outputs()
    return log


def audited(log: SoftLog, rules: str = "", *, at: int = AT, **more: object) -> AuditReport:
    pinned = f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{log.origin}"\n'
    policy = load_policy(f"{pinned}{rules}{ROOTS}".encode())
    return audit_source(Wanted(str(log.finish()), policy, at, **more))  # type: ignore[arg-type]


def states(report: AuditReport) -> dict[str, tuple[str, int]]:
    return {tee.kind: (tee.status, tee.lines) for tee in report.tees}


def test_lines_of_all_kinds_on_one_commit_are_verified_each_by_its_own_rules_also_in_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = (
        '[tee.nitro]\n[tee.nvidia]\narchitectures = ["hopper"]\n'
        f"[tee.cca]\nkeys = ['''{pem_key()}''']\n[tee.tdx]\n"
    )
    log = made(SoftLog(tmp_path / "log"), tdx, nitro, nvidia(), cca)
    report = audited(log, rules)
    found = states(report)
    assert {kind: lines for kind, (_, lines) in found.items()} == {
        "tdx": 2, "nitro": 2, "nvidia": 2, "cca": 2,
    }  # fmt: skip
    assert (found["nitro"][0], found["nvidia"][0]) == ("accepted", "undated")
    earlier = audited(log, rules, at=int(device_forge.NOW.timestamp()))
    assert states(earlier)["nvidia"] == ("warned", 2)
    assert {tee.kind: len(tee.devices) for tee in earlier.tees}["nvidia"] == 2
    assert not any(finding.severity is Severity.FALSE for finding in report.findings)
    monkeypatch.setattr(auditing, "_ALONE", 1)
    assert audited(log, rules, processes=2).as_json() == report.as_json()


def test_collateral_that_has_run_out_dates_nothing_and_is_not_false(tmp_path: Path) -> None:
    log = made(SoftLog(tmp_path / "log"), tdx)
    assert states(audited(log)) == {"tdx": ("not-appraised", 2)}
    report = audited(log, at=AT + 200 * DAY)
    assert states(report) == {"tdx": ("undated", 2)}
    assert report.outcome == "verified"
    required = audited(log, '[tee]\nrequired = ["tdx"]\n[tee.tdx]\n', at=AT + 200 * DAY)
    assert (Code.TEE_RULES, Severity.COULD_NOT, 1) in told(required)


def test_how_old_a_document_was_at_its_commit_no_later_time_tells(tmp_path: Path) -> None:
    log = made(SoftLog(tmp_path / "log"), nitro)
    report = audited(log, "[tee.nitro]\nmax_age = 60\n", at=FAR)
    assert states(report) == {"nitro": ("could-not", 2)}
    assert told(report) == [
        (Code.TEE_RULES, Severity.COULD_NOT, 1),
        (Code.TEE_RULES, Severity.NOTICE, 1),
    ]
    assert "when it was made" in report.findings[0].message


def test_lines_without_platform_keys_count_for_nothing_and_still_have_their_form(tmp_path: Path) -> None:
    log = made(SoftLog(tmp_path / "log"), cca)
    report = audited(log)
    assert states(report) == {"cca": ("not-appraised", 2)}
    assert report.outcome == "verified"
    assert not any(tee.devices for tee in report.tees)  # what a token says is then nobody's word
    log.tee = binding(lambda *_: (token(platform={265: "http://other"}), TeeSupport(IDENTIFIER_CCA, {})))
    log.outputs()
    report = audited(log)
    assert (states(report), report.outcome) == ({"cca": ("not-appraised", 3)}, "verified")
    log.tee = binding(lambda *_: (token()[:-1], TeeSupport(IDENTIFIER_CCA, {})))
    log.outputs()
    assert (Code.TEE, Severity.FALSE, 4) in told(audited(log))


def test_a_rule_that_only_warns_does_not_reject_until_its_date(tmp_path: Path) -> None:
    log = SoftLog(tmp_path / "log")
    log.start()
    log.tee = snp(AmdForge())
    log.outputs()
    rules = SNP + f'measurements = ["{"4e" * 48}"]\n'
    warned = f'[[warn]]\nrule = "tee.sev-snp.measurement"\nuntil = 2027-01-01T00:00:00Z\n{rules}'
    assert states(audited(log, rules)) == {"sev-snp": ("rejected", 1)}
    report = audited(log, warned)
    assert (states(report), report.outcome) == ({"sev-snp": ("warned", 1)}, "verified")
    assert states(audited(log, warned, at=AT + 250 * DAY)) == {"sev-snp": ("rejected", 1)}


def test_the_report_says_which_weights_a_launched_image_serves(tmp_path: Path) -> None:
    log = SoftTeeLog(tmp_path / "log", snp(AmdForge()))
    log.start()
    weights = "ab" * 32
    image = f'[[tee.sev-snp.image]]\nweights = "sha256:{weights}"\nregisters = {{ launch = ["{LAUNCH}"] }}\n'
    rules = f'[tee]\nrequired = ["sev-snp"]\n{SNP}measurements = ["{LAUNCH}"]\n{image}'
    (tee,) = audited(log, rules).tees
    assert dict(tee.devices[0])["serves"] == weights
    other = rules.replace(f'measurements = ["{LAUNCH}"]', "host_data = []")
    warned = f'[[warn]]\nrule = "tee.sev-snp.host-data"\nuntil = 2027-01-01T00:00:00Z\n{other}'
    for text, status in ((other, "rejected"), (warned, "warned")):
        (tee,) = audited(log, text).tees
        assert (tee.status, "serves" in dict(tee.devices[0])) == (status, False)
    (tee,) = audited(log, rules + image.replace(weights, "cd" * 32)).tees
    assert tee.as_json()["devices"][0]["serves"] == f"{weights}, {'cd' * 32}"
