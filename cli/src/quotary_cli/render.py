# SPDX-License-Identifier: Apache-2.0
"""How a report is shown to people: what it comes to first, then who says what, then what was not checked."""

from __future__ import annotations

import sys
from typing import Final

import click

from quotary_cli.output import clean, style
from quotary_verifier import CheckState, Outcome, Report, Step
from quotary_verifier.recipe.steps import ORDER, TITLES
from quotary_verifier.recipe.verdict import NOT_REACHED, Claim

NO_TPM = "the genesis record names no TPM"
"""Why steps about a quote were not done (`quotary_verifier.recipe.alone`, which is not loaded for other origins)."""

_HEADS = {
    Outcome.VERIFIED: ("verified", "green"),
    Outcome.REJECTED: ("rejected", "red"),
    Outcome.COULD_NOT_CHECK: ("could not be checked", "yellow"),
}
_MARKS = {
    CheckState.PASSED: ("pass", "green"),
    CheckState.FAILED: ("FAIL", "red"),
    CheckState.COULD_NOT_CHECK: ("????", "yellow"),
    CheckState.NOT_CHECKED: ("  - ", "white"),
}
HINTS: Final = {
    Step.DECODE: "this is no attestation, or it was damaged on its way",
    Step.OUTPUT: "the file was changed, or this attestation belongs to another output",
    Step.REQUEST: "the output answers another request than the one you named",
    Step.NONCE: "the output answers another request, or is a replay of an older one",
    Step.INCLUSION: "the record was altered, or never was in this host's log",
    Step.QUOTE_CHAIN: "the quote is of another commit",
    Step.AK_ENDORSEMENT: "ask the operator for the certificate of this host, or pin its origin in the policy",
    Step.TPM_KIND: "set software = true under [tpm] only for tests and demonstrations",
    Step.BOOT_LOGS: "a boot log was altered, or is of another boot than the one that the quote speaks for",
    Step.FRESHNESS: "name the nonce that you sent with the request (--nonce), or ask the host again",
    Step.PLATFORM: "the host booted other firmware or software than the policy lists",
    Step.TEE: "`attest inspect` shows which roots the attestation has; [tee] of the policy says which it takes",
}
_MAIN_CLAIMS = (
    "host",
    "origin",
    "tpm_kind",
    "model",
    "model_weights",
    "state",
    "source",
    "boot_log.tcg",
    "boot_log.ima",
    "matched",
    "statement",
    "boot",
    "root",
)


def render_report(name: str, report: Report, *, explain: bool) -> None:
    """Print one report on stdout."""
    word, colour = _HEADS[report.outcome]
    click.echo(f"{style(word, colour, stream=sys.stdout)}  {clean(name)}")
    if report.failing is not None:
        step = report.failing
        click.echo(f"  step      {ORDER[step]} {step}: {TITLES[step]}")
        click.echo(f"  reason    {clean(report.reason)}")
        if hint := _hint(step, report.reason):
            click.echo(f"  hint      {hint}")
    _claims(report, everything=explain)
    for text in report.tolerances:
        click.echo(f"  tolerated {clean(text)}")
    for text in report.not_understood:
        click.echo(f"  ignored   {clean(text)} (not understood)")
    for text in report.notices:
        click.echo(f"  note      {clean(text)}")
    if explain:
        _steps(report)
    else:
        _summary(report)


def _hint(step: Step, reason: str) -> str:
    """What to do where a step did not pass; of an origin without a TPM nothing else has booted."""
    if step is Step.PLATFORM and NO_TPM in reason:
        return (
            "leave out the rules on a platform, or rely on a host with a tpm; [tee] rules what was launched"
        )
    return HINTS.get(step, "")


def _claims(report: Report, *, everything: bool) -> None:
    for claim in report.claims:
        if everything or _is_main(claim):
            click.echo(f"  {clean(claim.name):<15} {clean(str(claim.value))}  [{claim.source}]")


def _is_main(claim: Claim) -> bool:
    """Whether people see it at once: of each root what it contributes, how it was judged, and that it is open."""
    _, _, kind = claim.name.partition("tee.")
    open_to_host = kind.endswith(".debug") and claim.value is True
    return claim.name in _MAIN_CLAIMS or (kind != "" and "." not in kind) or open_to_host


def _steps(report: Report) -> None:
    for check in report.checks:
        mark = style(*_MARKS[check.state], stream=sys.stdout)
        detail = f" ({clean(check.detail)})" if check.detail else ""
        click.echo(f"  {ORDER[check.step]:>2} {mark} {check.step}: {TITLES[check.step]}{detail}")


def _summary(report: Report) -> None:
    passed = sum(check.state is CheckState.PASSED for check in report.checks)
    left = [
        str(check.step)
        for check in report.checks
        if check.state is CheckState.NOT_CHECKED and check.detail not in {NOT_REACHED, NO_TPM}
    ]
    if any(check.detail == NO_TPM for check in report.checks):
        left.append("what only a tpm shows")
    beyond = sum(check.detail == NOT_REACHED for check in report.checks)
    reached = f"{passed} passed, {beyond} not reached" if beyond else f"{passed} passed"
    click.echo(f"  checks    {reached}; not checked: {', '.join(left) or 'none'} (--explain shows all)")
