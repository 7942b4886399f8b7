# SPDX-License-Identifier: Apache-2.0
"""The timeline of an audit as SVG that fits any width: boots, what the policy says, models, findings, witnesses.

Places along the axis are per cent, so that the drawing needs no script and no style attribute to fit; everything
that it shows stands in the tables too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final

from quotary_cli.auditview.facts import (
    HOST_CLOCK,
    SEVERITIES,
    instant,
    lasting,
    number,
    rank,
    run_of,
    stretches,
    whole,
)
from quotary_cli.auditview.marks import short, tag, text
from quotary_verifier.audit.findings import Finding, Severity
from quotary_verifier.audit.report import AuditedModel, AuditReport, Span

MAX_MODELS: Final = 8
"""Models that get a lane of their own; the others are in the tables."""

_LANE: Final = 46
_BAR: Final = 18
_TOP: Final = 22
_LABEL: Final = 14
_NAME: Final = 48
_MOST_MS: Final = 4_102_444_800_000
_STEPS: Final = tuple(
    timedelta(**step)
    for step in (
        {"seconds": 1},
        {"seconds": 10},
        {"minutes": 1},
        {"minutes": 10},
        {"hours": 1},
        {"hours": 6},
        {"days": 1},
        {"days": 2},
        {"days": 7},
        {"days": 14},
        {"days": 30},
        {"days": 91},
        {"days": 365},
        {"days": 1826},
    )
)
_STATUS_CLASS: Final = {"accepted": "ok", "warned": "warn", "could-not": "open", "rejected": "bad"}
_WEIGHTY: Final = (Severity.FALSE, Severity.POLICY, Severity.COULD_NOT, Severity.GAP)


@dataclass(frozen=True, slots=True)
class Axis:
    """From spans to per cent: by the host's clock where that runs forward through all boots, else by commits."""

    begin: int
    end: int
    by_time: bool

    def at(self, value: int) -> float:
        """Return a place along the axis in per cent."""
        return round(100 * (value - self.begin) / max(1, self.end - self.begin), 3)

    def extent(self, span: Span) -> tuple[float, float]:
        """Return where a span begins and ends."""
        if self.by_time and span.time_ms is not None:
            return self.at(span.time_ms[0]), self.at(span.time_ms[1])
        return self.at(span.first_commit), self.at(span.last_commit + 1)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield places of the axis and what stands there: five to nine of them."""
        if not self.by_time:
            step = max(1, 10 ** (len(str(self.end - self.begin)) - 1) // 2)
            while (self.end - self.begin) // step > 8:
                step *= 2
            for value in range(self.begin + -self.begin % step, self.end, step):
                yield self.at(value), f"commit {number(value)}"
            return
        length = timedelta(milliseconds=self.end - self.begin)
        step_time = next((step for step in _STEPS if length / step <= 7), _STEPS[-1])
        form = "%Y-%m-%d" if step_time >= timedelta(days=1) else "%m-%d %H:%M"
        form = "%H:%M:%S" if step_time < timedelta(minutes=1) else form
        width = int(step_time / timedelta(milliseconds=1))
        for value in range(self.begin + -self.begin % width, self.end, width):
            yield self.at(value), f"{datetime.fromtimestamp(value / 1000, UTC):{form}}"


def axis_of(report: AuditReport) -> Axis | None:
    """Return the axis that fits a report, or None where nothing can be drawn."""
    spans = [boot.span for boot in report.boots]
    if not spans:
        return None
    times = [time for span in spans for time in (span.time_ms or (-1, -1))]
    if (
        times[0] < 0
        or times[-1] > _MOST_MS
        or times[-1] == times[0]
        or any(b < a for a, b in pairwise(times))
    ):
        return Axis(spans[0].first_commit, spans[-1].last_commit + 1, by_time=False)
    return Axis(times[0], times[-1], by_time=True)


def timeline(report: AuditReport, axis: Axis) -> str:
    """Return the timeline as one SVG element."""
    lanes: list[tuple[str, str]] = [
        ("boots", _boots(report, axis)),
        ("policy", _policy(report, axis)),
        *_models(report, axis),
    ]
    if marks := _findings(report, axis):
        lanes.append(("findings", marks))
    if marks := _witnesses(report, axis):
        lanes.append(("witness quorums, by the witnesses' clocks", marks))
    height = _TOP + _LANE * len(lanes)
    drawn = [_grid(axis, height)]
    for place, (label, bars) in enumerate(lanes):
        top = _TOP + _LANE * place
        drawn.append(tag("text", text(label), x="0", y=str(top + _LABEL), class_="lane"))
        drawn.append(
            tag("svg", _rail(), bars, x="0", y=str(top + _LABEL + 6), width="100%", height=str(_BAR))
        )
    title = tag("title", text("Timeline of boots, policy status and models"), id="timeline-title")
    description = tag("desc", text(f"{scale(axis)} The tables below hold the same."), id="timeline-desc")
    return tag(
        "svg",
        title,
        description,
        _patterns(),
        *drawn,
        width="100%",
        height=str(height),
        role="img",
        aria_labelledby="timeline-title timeline-desc",
        class_="timeline",
    )


def scale(axis: Axis) -> str:
    """Return in a sentence what the axis shows."""
    if axis.by_time:
        return f"Times are UTC by {HOST_CLOCK}."
    return "Drawn by the numbers of commits, because the host's clock tells no order of them."


def model_lanes(
    runs: Iterable[tuple[Span, tuple[AuditedModel, ...]]], joined: Callable[[Span, Span], bool]
) -> list[tuple[AuditedModel, list[Span]]]:
    """Return each model with the spans in which it was listed; those that follow each other are one if `joined`."""
    found: dict[tuple[str, str], tuple[AuditedModel, list[Span]]] = {}
    for span, models in runs:
        for model in models:
            spans = found.setdefault((model.name, model.digest), (model, []))[1]
            if spans and spans[-1].last_commit + 1 == span.first_commit and joined(spans[-1], span):
                spans[-1] = whole(spans[-1], span)
            else:
                spans.append(span)
    return list(found.values())


def _boots(report: AuditReport, axis: Axis) -> str:
    bars = []
    for boot in report.boots:
        chain = "" if boot.chain == "zero" else f", chain PCR: {boot.chain}"
        about = f"boot {boot.number}: {lasting(boot.span.time_ms)}, {_range(boot.span)}{chain}"
        bars.append(_bar(axis.extent(boot.span), "boot" if boot.number % 2 else "boot other", about))
        begin, end = axis.extent(boot.span)
        if end - begin > 4:
            label = tag("text", text(boot.number), x=f"{(begin + end) / 2:g}%", y="13", class_="inside")
            bars.append(label)
    return "".join(bars)


def _policy(report: AuditReport, axis: Axis) -> str:
    made = sorted(stretches(report.periods), key=lambda stretch: rank(stretch.status))
    return "".join(
        _bar(
            axis.extent(stretch.span),
            _STATUS_CLASS.get(stretch.status, "open"),
            f"boot {stretch.boot}: {stretch.status}, {_range(stretch.span)}"
            + "".join(f"; {message}" for _, _, message in stretch.first.findings[:3]),
        )
        for stretch in made
    )


def _models(report: AuditReport, axis: Axis) -> Iterator[tuple[str, str]]:
    # within each boot: while the host was off, no model could serve
    begins = {boot.span.first_commit for boot in report.boots}
    lanes = model_lanes(
        ((stretch.span, stretch.models) for stretch in stretches(report.periods)),
        lambda _, after: after.first_commit not in begins,
    )
    named = Counter(model.name for model, _ in lanes)
    for model, spans in lanes[:MAX_MODELS]:
        weights = f", weights {model.digest[:8]}…" if named[model.name] > 1 else ""
        kind = "bad" if model.allowed is False else "model"
        bars = (
            _bar(axis.extent(span), kind, f"{model.name}: {lasting(span.time_ms)}, {_range(span)}")
            for span in spans
        )
        yield f"model {short(model.name, _NAME)}{weights}", "".join(bars)
    if len(lanes) > MAX_MODELS:
        rest = lanes[MAX_MODELS:]
        bars = (_bar(axis.extent(span), "model", f"{model.name}") for model, spans in rest for span in spans)
        yield f"{len(rest)} more models", "".join(bars)


def _findings(report: AuditReport, axis: Axis) -> str:
    place = _places(report, axis)
    marks = []
    for finding in sorted(report.findings, key=_weight):
        if (
            finding.severity in _WEIGHTY
            and (at := place(finding.where.commit, finding.where.boot)) is not None
        ):
            about = f"{finding.severity}: {finding.message}"
            kind = "bad" if finding.severity in _WEIGHTY[:2] else "open"
            marks.append(_mark(at, f"mark {kind}", about))
    return "".join(marks)


def _witnesses(report: AuditReport, axis: Axis) -> str:
    place = _places(report, axis)
    marks = []
    for item in report.witnesses:
        if item.time is None:
            continue
        at = axis.at(item.time * 1000) if axis.by_time else place(item.commit, None)
        if at is not None:
            about = f"{instant(item.time * 1000)}, {number(item.size)} leaves: {', '.join(item.names)}"
            marks.append(_mark(min(100.0, max(0.0, at)), "mark seen", about))
    return "".join(marks)


def _places(report: AuditReport, axis: Axis) -> Callable[[int | None, int | None], float | None]:
    """Return what finds the place of a commit, or of the beginning of a boot."""

    def place(commit: int | None, boot: int | None) -> float | None:
        for each in report.boots:
            span = each.span
            if commit is not None and span.first_commit <= commit <= span.last_commit:
                begin, end = axis.extent(span)
                return begin + (end - begin) * (commit - span.first_commit) / (
                    span.last_commit + 1 - span.first_commit
                )
            if commit is None and boot == each.number:
                return axis.extent(span)[0]
        return None

    return place


def _bar(extent: tuple[float, float], kind: str, about: str) -> str:
    begin, end = (min(100.0, max(0.0, place)) for place in extent)
    wide = max(end - begin, 0.15)  # what lasted a moment is seen all the same
    title = tag("title", text(about))
    return tag("rect", title, x=f"{begin:g}%", y="0", width=f"{wide:g}%", height=str(_BAR), class_=kind)


def _mark(at: float, kind: str, about: str) -> str:
    return tag("circle", tag("title", text(about)), cx=f"{at:g}%", cy=str(_BAR // 2), r="5", class_=kind)


def _rail() -> str:
    return tag("rect", x="0", y="0", width="100%", height=str(_BAR), class_="rail")


def _grid(axis: Axis, height: int) -> str:
    drawn: list[str] = []
    for at, label in _apart(axis.ticks()):
        anchor = "start" if at < 8 else "end" if at > 92 else "middle"
        drawn.append(
            tag("line", x1=f"{at:g}%", x2=f"{at:g}%", y1=str(_TOP - 4), y2=str(height), class_="grid")
        )
        drawn.append(tag("text", text(label), x=f"{at:g}%", y="12", text_anchor=anchor, class_="tick"))
    return "".join(drawn)


def _apart(ticks: Iterable[tuple[float, str]]) -> Iterator[tuple[float, str]]:
    last = -100.0
    for at, label in ticks:
        if at - last >= 10:
            yield at, label
            last = at


def _patterns() -> str:
    """Return hatchings, so that what is bad is told apart without colours."""
    lines = tag("path", d="M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2", class_="hatch")
    dots = tag("circle", cx="3", cy="3", r="1", class_="dot")
    size = {"width": "6", "height": "6", "patternUnits": "userSpaceOnUse"}
    fill = tag("rect", width="6", height="6", class_="hatched")
    fill_open = tag("rect", width="6", height="6", class_="dotted")
    return tag(
        "defs",
        tag("pattern", fill, lines, id="hatching", **size),
        tag("pattern", fill_open, dots, id="dotting", **size),
    )


def _range(span: Span) -> str:
    return f"commits {run_of(span.first_commit, span.last_commit)}"


def _weight(finding: Finding) -> int:
    """Order marks so that what weighs most is drawn last, above the others."""
    return -SEVERITIES.index(finding.severity)
