# SPDX-License-Identifier: Apache-2.0
"""`attest policy check`: every departure of a host from a policy, where `attest verify` ends with the first step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from quotary_cli.enrolment import json_option
from quotary_cli.evidence import EVIDENCE, Verified, logs_option, read_evidence
from quotary_cli.moments import parse_time
from quotary_cli.output import ExitCode, clean, print_json, style
from quotary_cli.policyfile import PolicyFile, policy_options
from quotary_verifier import Policy
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.policy.appraise import appraise_platform
from quotary_verifier.policy.findings import Appraisal, Finding, Severity
from quotary_verifier.recipe.leaf import LoggedModels, check_model
from quotary_verifier.wire import cbor
from quotary_verifier.wire.limits import MAX_RECORD
from quotary_verifier.wire.records import KIND_OUTPUT, Output

SCHEMA = "quotary-policy-check/v1"
_MARKS: Final = {
    Severity.FAIL: ("rejected", "red"),
    Severity.COULD_NOT: ("not checked", "yellow"),
    Severity.WARN: ("warning", "yellow"),
}

_SHOWN: Final = 5
"""Departures from one rule that are shown, unless each is asked for: one more does as well as the words for it."""


@click.command()
@click.argument("evidence", nargs=-1, required=True, type=EVIDENCE, metavar="EVIDENCE...")
@policy_options
@logs_option
@click.option("--at", metavar="TIME", help="Check as of this time (default: now).")
@click.option("--all", "everything", is_flag=True, help="Show each departure, however many break one rule.")
@json_option
def check(
    evidence: tuple[Path, ...],
    policy: PolicyFile,
    log_places: tuple[Path, ...],
    at: str | None,
    everything: bool,
    as_json: bool,
) -> int:
    """Hold EVIDENCE (attestations: files, folders, archives) against a policy, and tell every departure from it.

    Of many departures from one rule the first are shown and the others counted; --all and --json have each. Evidence
    that does not verify is refused before. Nothing is said of outputs: `attest verify` does that.
    """
    moment = parse_time(at)
    rules = policy.read(moment)
    found = read_evidence(evidence, log_places, rules, moment, quiet=as_json)
    results = [_result(one, rules, moment) for one in found]
    code = _exit_code(results)
    if as_json:
        print_json({"schema": SCHEMA, "exit": int(code), "results": [_as_json(result) for result in results]})
    else:
        for result in results:
            _show(result, everything=everything)
    return code


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one attestation."""

    verified: Verified
    appraisal: Appraisal
    findings: tuple[Finding, ...]


def _result(verified: Verified, policy: Policy, at: int) -> Result:
    appraisal = appraise_platform(policy, verified.evidence, at)
    return Result(verified, appraisal, (*appraisal.findings, *_model(verified, policy)))


def _model(verified: Verified, policy: Policy) -> list[Finding]:
    """Hold the model that an output's record names against the policy; other records name none."""
    value = cbor.decode(verified.record, max_bytes=MAX_RECORD, what="record")
    log = verified.evidence.workload
    if value.get(cbor.KIND) != KIND_OUTPUT or log is None:
        return []
    try:
        check_model(policy, Output.decode(verified.record), LoggedModels(log))
    except (EvidenceError, MalformedError) as error:
        return [Finding("model", str(error))]
    except UnsupportedError as error:
        return [Finding("model", str(error), Severity.COULD_NOT)]
    return []


def _exit_code(results: list[Result]) -> ExitCode:
    severities = {finding.severity for result in results for finding in result.findings}
    if Severity.FAIL in severities:
        return ExitCode.REJECTED
    return ExitCode.NOT_CHECKED if Severity.COULD_NOT in severities else ExitCode.OK


def _show(result: Result, *, everything: bool) -> None:
    state = {
        ExitCode.OK: ("accepted", "green"),
        ExitCode.REJECTED: _MARKS[Severity.FAIL],
        ExitCode.NOT_CHECKED: _MARKS[Severity.COULD_NOT],
    }[_exit_code([result])]
    reference = f"  reference set {result.appraisal.reference}" if result.appraisal.reference else ""
    click.echo(f"{style(*state)}  {clean(result.verified.name)}{clean(reference)}")
    broken: dict[tuple[Severity, str], list[Finding]] = {}
    for finding in result.findings:
        broken.setdefault((finding.severity, finding.rule), []).append(finding)
    for (severity, rule), found in broken.items():
        mark = style(*_MARKS[severity])
        shown = found if everything or len(found) <= _SHOWN + 1 else found[:_SHOWN]
        for finding in shown:
            click.echo(f"  {mark}  {rule}: {clean(finding.message)}")
        if len(shown) < len(found):
            click.echo(
                f"  {mark}  {rule}: {len(found) - len(shown)} more, {len(found)} in all (--all shows each)"
            )
    for tolerance in result.appraisal.tolerances:
        click.echo(f"  tolerated  {clean(tolerance)}")


def _as_json(result: Result) -> dict[str, Any]:
    evidence = result.verified.evidence
    return {
        "evidence": result.verified.name,
        "origin": evidence.origin,
        "reset_count": evidence.clock.reset_count,
        "restart_count": evidence.clock.restart_count,
        "reference": result.appraisal.reference,
        "findings": [finding.as_json() for finding in result.findings],
        "tolerances": list(result.appraisal.tolerances),
    }
