# SPDX-License-Identifier: Apache-2.0
"""An audit for a terminal: what it comes to, what is wrong and where, then the history in a few lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

import click

from quotary_cli.auditview.facts import (
    HOST_CLOCK,
    OUTCOMES,
    Group,
    changes,
    groups,
    headline,
    hint_of,
    instant,
    lasting,
    model_runs,
    number,
    plural,
    run_of,
    status_of_boots,
    unlisted,
    where,
)
from quotary_cli.output import clean, style
from quotary_verifier.audit.findings import Severity
from quotary_verifier.audit.report import AuditedLog, AuditReport

_COLOURS: Final = {
    "verified": "green",
    "rejected": "red",
    "could-not-check": "yellow",
    Severity.FALSE: "red",
    Severity.POLICY: "red",
    Severity.COULD_NOT: "yellow",
    Severity.GAP: "yellow",
    Severity.NOTICE: "cyan",
    "accepted": "green",
    "warned": "yellow",
    "could-not": "yellow",
    "undated": "yellow",
    "not-appraised": "yellow",
}
_FINDINGS: Final = 12
_ROWS: Final = 12
_PLACES: Final = 3
_VALUE: Final = 16


def print_audit(report: AuditReport, name: str, *, everything: bool = False) -> None:
    """Print an audit of the log that people named `name`; `everything` cuts no list."""
    for line in audit_lines(report, name, everything=everything):
        click.echo(line)


def audit_lines(report: AuditReport, name: str, *, everything: bool = False) -> Iterator[str]:
    """Yield the lines of an audit."""
    yield f"{_paint(OUTCOMES[report.outcome], report.outcome)}  {clean(name)}"
    yield f"  {headline(report)}"
    yield from _findings(report, everything)
    if hint := hint_of(report):
        yield f"  hint      {hint}"
    if report.log is not None:
        yield from _log(report, report.log)
    yield from _boots(report, everything)
    yield from _models(report, everything)
    yield from _tees(report, everything)
    yield from _others(report, everything)
    if report.unknowable:
        yield ""
        yield "what no audit of this log can show"
        yield from (f"  - {clean(text)}" for text in report.unknowable)


def _findings(report: AuditReport, everything: bool) -> Iterator[str]:
    found = groups(report.findings)
    shown = found if everything else found[:_FINDINGS]
    if shown:
        yield ""
    for group in shown:
        word = _paint(f"{group.severity:<9}", group.severity)
        yield f"  {word} {clean(group.message)}"
        yield f"            {group.code}{_places(group, everything)}"
    if left := len(found) - len(shown):
        yield f"  {left} more (--explain shows all)"
    for severity, count in unlisted(report).items():
        yield f"  {plural(count, 'finding')} of the kind {severity} more than the report keeps"


def _places(group: Group, everything: bool) -> str:
    texts = [text for place in group.places if (text := where(place))]
    shown = texts if everything else texts[:_PLACES]
    rest = f"; and {number(len(texts) - len(shown))} more places" if len(shown) < len(texts) else ""
    return f"  at {clean('; '.join(shown))}{rest}" if shown else ""


def _log(report: AuditReport, log: AuditedLog) -> Iterator[str]:
    yield ""
    reached = "" if report.complete else f" of {number(log.published)} that are published"
    resumed = "" if log.resumed is None else f", gone on from {number(log.resumed)}"
    yield f"log        {clean(log.origin)}"
    yield f"           {plural(log.size, 'leaf', 'leaves')}{reached} in {plural(log.commits, 'commit')}{resumed}"
    begun = f"begun {instant(log.genesis_time_ms)} by the host's clock"
    yield f"           {begun}, {_key(log)}"


def _key(log: AuditedLog) -> str:
    if log.ak_algorithm is None:
        return "no TPM"
    return f"AK {clean(log.ak_algorithm)}{'' if log.ak_own else ', which any process with the TPM can use'}"


def _boots(report: AuditReport, everything: bool) -> Iterator[str]:
    if not report.boots:
        return
    status, changed = status_of_boots(report), changes(report)
    yield ""
    yield f"boots      by {HOST_CLOCK}, in UTC"
    boots = report.boots if everything else report.boots[-_ROWS:]
    if len(boots) < len(report.boots):
        yield f"           {plural(len(report.boots) - len(boots), 'earlier boot')} (--explain shows all)"
    for boot in boots:
        says = clean(status.get(boot.number, ""))
        row = f"{boot.number:>9}  {lasting(boot.span.time_ms):<36}  {_paint(f'{says:<9}', says)}"
        yield f"{row} commits {run_of(boot.span.first_commit, boot.span.last_commit)}{_about(boot.chain)}"
        if changed.get(boot.number):
            yield f"           other values than in the boot before: PCR {', '.join(map(str, changed[boot.number]))}"
        for log in boot.logs:
            if everything or log.state != "replayed":
                yield f"           log {clean(log.name)}: {clean(log.state)}{_said(log.said)}"
    for start in report.starts:
        if start.skipped or start.history:
            history = (
                f", leaves {run_of(start.history[0], start.history[1] - 1)} are history"
                if start.history
                else ""
            )
            skipped = (
                f"{plural(start.skipped, 'number')} of the start counter skipped"
                if start.skipped
                else "a start"
            )
            yield f"           {skipped} before commit {number(start.commit)}{history}"


def _about(chain: str) -> str:
    return "" if chain == "zero" else f", chain {clean(chain)}"


def _said(text: str) -> str:
    return f" ({clean(text)})" if text else ""


def _models(report: AuditReport, everything: bool) -> Iterator[str]:
    made = model_runs(report.periods)
    if not made:
        return
    yield ""
    yield "models     that the workload log lists, and so may have served, by the host's clock"
    shown = made if everything else made[-_ROWS:]
    if len(shown) < len(made):
        yield f"           {plural(len(made) - len(shown), 'earlier period')} (--explain shows all)"
    for span, models in shown:
        names = [clean(model.name) + (" (not allowed)" if model.allowed is False else "") for model in models]
        yield f"           {lasting(span.time_ms)}  {', '.join(names)}"


def _tees(report: AuditReport, everything: bool) -> Iterator[str]:
    if not report.tees:
        return
    yield ""
    yield "tees       that bind commits beside or in place of a TPM, and what they say of themselves"
    made = report.tees if everything else report.tees[-_ROWS:]
    if len(made) < len(report.tees):
        yield f"           {plural(len(report.tees) - len(made), 'earlier stretch', 'earlier stretches')}"
    for tee in made:
        lines = f", {plural(tee.lines, 'line')}" if tee.lines else ""
        commits = f"commits {run_of(tee.first_commit, tee.last_commit)}"
        yield f"           {clean(tee.kind)}  {_paint(clean(tee.status), tee.status)}  {commits}{lines}"
        for device in tee.devices:
            facts = (f"{name} {value if everything else _short(value)}" for name, value in device)
            yield f"             {clean(', '.join(facts))}"


def _short(value: str) -> str:
    return value if len(value) <= _VALUE or " " in value else f"{value[:_VALUE]}…"


def _others(report: AuditReport, everything: bool) -> Iterator[str]:
    if report.statements:
        newest = report.statements[-1]
        yield ""
        count = plural(len(report.statements), "statement")
        yield f"statements {count}, the newest of {instant(newest.time_ms)} by the host's clock"
    quorums = [item for item in report.witnesses if item.time is not None]
    yield ""
    if quorums:
        newest_seen = quorums[-1]
        assert newest_seen.time is not None
        yield (
            f"witnesses  {plural(len(quorums), 'checkpoint')} with a quorum, the newest of {number(newest_seen.size)} "
            f"leaves at {instant(newest_seen.time * 1000)}"
        )
    else:
        yield "witnesses  no checkpoint with a quorum"
    if report.records is not None:
        records = report.records
        yield f"records    {number(records.matched)} of {number(records.given)} given are in the log"
        names = records.unmatched if everything else records.unmatched[:_ROWS]
        yield from (f"           not there: {clean(name)}" for name in names)
        yield f"           {plural(records.omitted, 'leaf', 'leaves')} without a record that was given"


def _paint(text: str, kind: str) -> str:
    return style(text, _COLOURS.get(kind, "red"), stream=sys.stdout)
