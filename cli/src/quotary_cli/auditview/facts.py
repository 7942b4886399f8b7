# SPDX-License-Identifier: Apache-2.0
"""What text and HTML show of an audit: neighbours that differ in nothing that is shown are one, culprits come first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from quotary_cli.sources.base import EXPECTED
from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.audit.report import AuditedModel, AuditReport, Period, Span

SEVERITIES: Final = (Severity.FALSE, Severity.POLICY, Severity.COULD_NOT, Severity.GAP, Severity.NOTICE)
"""The order in which findings are shown."""

MEANINGS: Final = {
    Severity.FALSE: "evidence that is malformed or does not hold",
    Severity.POLICY: "true evidence of what the policy does not accept",
    Severity.COULD_NOT: "a check that could not be done",
    Severity.GAP: "nothing false, but something may have happened that the log does not tell",
    Severity.NOTICE: "worth knowing",
}
STATUSES: Final = ("accepted", "warned", "could-not", "rejected")
"""What a policy says of a period, from good to bad."""

OUTCOMES: Final = {
    "verified": "verified",
    "rejected": "rejected",
    "could-not-check": "could not be checked",
}
HOST_CLOCK: Final = "the host's clock, which is the host's word"


def hint_of(report: AuditReport) -> str:
    """What to do where an audit could not begin because no log is where it was asked to look; else nothing."""
    first = report.findings[0] if report.log is None and report.findings else None
    if first is None or (first.code, first.severity) != (Code.CHECKPOINT, Severity.COULD_NOT):
        return ""
    return EXPECTED if first.where.path == "checkpoint" else ""


@dataclass(frozen=True, slots=True)
class Group:
    """Findings that say the same, with all their places in order."""

    severity: Severity
    code: Code
    message: str
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Periods that follow each other in one boot and differ in nothing but PCR values. `moved` are those PCRs."""

    first: Period
    span: Span
    pcrs: tuple[tuple[int, str], ...]
    moved: tuple[int, ...] = ()

    @property
    def boot(self) -> int:
        """The number of the boot."""
        return self.first.boot

    @property
    def status(self) -> str:
        """What the policy says of it."""
        return self.first.status

    @property
    def models(self) -> tuple[AuditedModel, ...]:
        """The models that may have served."""
        return self.first.models


def headline(report: AuditReport) -> str:
    """Return in one sentence what an audit comes to."""
    counts = dict(report.counts)
    if counts.get(Severity.FALSE):
        return "The log holds evidence that is malformed or false."
    if counts.get(Severity.POLICY):
        return "The evidence holds, and shows what the policy does not accept."
    if report.outcome != "verified":
        return "Nothing is false, but not everything could be checked."
    if counts.get(Severity.GAP):
        return "All evidence holds and the policy accepts it; some of what happened is not explained."
    return "All evidence holds, and the policy accepts all of it."


def groups(findings: Iterable[Finding]) -> list[Group]:
    """Return findings by severity, those that say the same put together, else in the order of the log."""
    found: dict[tuple[Severity, Code, str], list[Place]] = {}
    for finding in findings:
        found.setdefault((finding.severity, finding.code, finding.message), []).append(finding.where)
    made = [Group(*key, tuple(places)) for key, places in found.items()]
    return sorted(made, key=lambda group: SEVERITIES.index(group.severity))


def unlisted(report: AuditReport) -> dict[Severity, int]:
    """Return how many findings of each severity were counted but not kept."""
    listed = [finding.severity for finding in report.findings]
    counts = {severity: count - listed.count(severity) for severity, count in report.counts}
    return {severity: counts[severity] for severity in SEVERITIES if counts.get(severity, 0) > 0}


def stretches(periods: Sequence[Period]) -> list[Stretch]:
    """Return the periods with neighbours put together that differ only in PCR values."""
    made: list[Stretch] = []
    for period in periods:
        if (
            made
            and _alike(made[-1].first, period)
            and made[-1].span.last_commit + 1 == period.span.first_commit
        ):
            made[-1] = _joined(made[-1], period)
        else:
            made.append(Stretch(period, period.span, period.pcrs))
    return made


def model_runs(periods: Sequence[Period]) -> list[tuple[Span, tuple[AuditedModel, ...]]]:
    """Return which models may have served when: neighbours with the same ones are one, across boots too."""
    made: list[tuple[Span, tuple[AuditedModel, ...]]] = []
    for period in periods:
        if made and made[-1][1] == period.models:
            made[-1] = (whole(made[-1][0], period.span), period.models)
        else:
            made.append((period.span, period.models))
    return [(span, models) for span, models in made if models]


def changes(report: AuditReport) -> dict[int, tuple[int, ...]]:
    """Return for each boot but the first which PCRs began with another value than in the boot before it."""
    begun: dict[int, dict[int, str]] = {}
    for period in report.periods:
        begun.setdefault(period.boot, dict(period.pcrs))
    return {
        boot: tuple(
            sorted(
                pcr
                for pcr in {*begun[before], *begun[boot]}
                if begun[before].get(pcr) != begun[boot].get(pcr)
            )
        )
        for before, boot in pairwise(sorted(begun))
    }


def status_of_boots(report: AuditReport) -> dict[int, str]:
    """Return for each boot the worst that the policy says of any of its periods."""
    found: dict[int, str] = {}
    for period in report.periods:
        found[period.boot] = max(found.get(period.boot, STATUSES[0]), period.status, key=rank)
    return found


def rank(status: str) -> int:
    """Return how bad a status is; one that is not known is the worst."""
    return STATUSES.index(status) if status in STATUSES else len(STATUSES)


def where(place: Place) -> str:
    """Return a place in words."""
    named = (("boot", place.boot), ("commit", place.commit), ("leaf", place.leaf))
    parts = [f"{name} {number(value)}" for name, value in named if value is not None]
    return ", ".join(parts if place.path is None else [*parts, place.path])


def instant(ms: int) -> str:
    """Return a time in milliseconds to the minute, or the number where it is no time that a calendar has."""
    try:
        return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}"
    except (OverflowError, OSError, ValueError):
        return f"{ms} ms"


def lasting(times: tuple[int, int] | None) -> str:
    """Return a stretch of time in words."""
    if times is None:
        return "unknown"
    first, last = instant(times[0]), instant(times[1])
    if first == last:
        return first
    return f"{first} to {last[11:] if last[:11] == first[:11] else last}"


def number(value: int) -> str:
    """Return a number with its thousands apart."""
    return f"{value:,}"


def plural(count: int, one: str, many: str = "") -> str:
    """Return a number and what it counts."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def run_of(first: int, last: int) -> str:
    """Return a range of numbers."""
    return number(first) if first == last else f"{number(first)}-{number(last)}"


def _alike(one: Period, other: Period) -> bool:
    blank = {"span": one.span, "pcrs": ()}
    return replace(one, **blank) == replace(other, **blank)  # type: ignore[arg-type]


def _joined(stretch: Stretch, period: Period) -> Stretch:
    span = whole(stretch.span, period.span)
    old, new = dict(stretch.pcrs), dict(period.pcrs)
    moved = {*stretch.moved, *(pcr for pcr in {*old, *new} if old.get(pcr) != new.get(pcr))}
    return Stretch(stretch.first, span, period.pcrs, tuple(sorted(moved)))


def whole(before: Span, after: Span) -> Span:
    """Return the stretch from the beginning of one to the end of another."""
    return Span(
        before.first_commit,
        after.last_commit,
        before.first_leaf,
        after.size,
        None if before.clock is None or after.clock is None else (before.clock[0], after.clock[1]),
        None if before.time_ms is None or after.time_ms is None else (before.time_ms[0], after.time_ms[1]),
    )
