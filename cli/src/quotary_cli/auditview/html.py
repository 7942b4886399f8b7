# SPDX-License-Identifier: Apache-2.0
"""An audit as one HTML file: it loads nothing, runs nothing, and shows what evidence says as text only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from quotary_cli.auditview.facts import (
    MEANINGS,
    OUTCOMES,
    Group,
    groups,
    headline,
    instant,
    number,
    plural,
    unlisted,
    where,
)
from quotary_cli.auditview.look import SECURITY_POLICY, STYLE
from quotary_cli.auditview.marks import tag, text
from quotary_cli.auditview.parts import tables
from quotary_cli.auditview.timeline import axis_of, scale, timeline
from quotary_verifier.audit.findings import Severity
from quotary_verifier.audit.report import SCHEMA, AuditReport

_BADGES: Final = {"verified": "ok", "rejected": "bad"}
_KINDS: Final = {
    Severity.FALSE: "bad",
    Severity.POLICY: "bad",
    Severity.COULD_NOT: "warn",
    Severity.GAP: "warn",
    Severity.NOTICE: "",
}
_PLACES: Final = 20


def audit_page(report: AuditReport, name: str, *, policy: str = "") -> str:
    """Return the report as HTML. `name` is what people called the log, `policy` what they called the policy."""
    title = report.log.host if report.log is not None else name
    head = tag(
        "head",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{text(SECURITY_POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        tag("title", text(f"{OUTCOMES[report.outcome]}: {title}")),
        f"<style>{STYLE}</style>",
    )
    body = tag(
        "body",
        _head(report, title, name),
        tag("main", *_main(report)),
        _foot(report, policy),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _head(report: AuditReport, title: str, name: str) -> str:
    badge = tag("span", text(OUTCOMES[report.outcome]), class_=f"badge {_BADGES.get(report.outcome, 'warn')}")
    origin = "" if report.log is None else tag("p", tag("span", text(report.log.origin), class_="hex soft"))
    return tag(
        "header",
        badge,
        tag("h1", text(f"Audit of {title}")),
        origin,
        tag("p", text(headline(report)), class_="lead"),
        tag("p", text(f"Read from {name}. Judged as of {instant(report.at * 1000)} UTC."), class_="soft"),
        _tiles(report),
    )


def _tiles(report: AuditReport) -> str:
    made: list[tuple[str, str, str]] = []
    if report.log is not None:
        log = report.log
        rest = "" if report.complete else f"of {number(log.published)} published"
        made.append(("leaves checked", number(log.size), rest))
        made.append(("commits", number(log.commits), ""))
    made.append(("boots", number(len(report.boots)), ""))
    made.append(("starts of the agent", number(len(report.starts)), ""))
    quorums = sum(item.time is not None for item in report.witnesses)
    made.append(("witness quorums", number(quorums), ""))
    if report.records is not None:
        made.append(
            ("records in the log", number(report.records.matched), f"of {number(report.records.given)} given")
        )
    return tag(
        "dl",
        *(
            tag(
                "div", tag("dt", text(term)), tag("dd", text(value), tag("small", text(rest)) if rest else "")
            )
            for term, value, rest in made
        ),
        class_="tiles",
    )


def _main(report: AuditReport) -> Iterator[str]:
    yield _findings(report)
    if axis := axis_of(report):
        yield tag(
            "section",
            tag("h2", text("Timeline"), id="timeline"),
            timeline(report, axis),
            _legend(),
            tag("p", text(scale(axis)), class_="note"),
            aria_labelledby="timeline",
        )
    yield from tables(report)
    if report.unknowable:
        yield tag(
            "section",
            tag("h2", text("What no audit of this log can show"), id="unknowable"),
            tag("ul", *(tag("li", text(line)) for line in report.unknowable), class_="unknown"),
            aria_labelledby="unknowable",
        )


def _findings(report: AuditReport) -> str:
    items = [_finding(group) for group in groups(report.findings)]
    for severity, count in unlisted(report).items():
        more = f"{plural(count, 'finding')} of this kind more than the report keeps"
        items.append(
            tag("li", tag("span", text(severity), class_="kind"), text(more), class_=_KINDS[severity] or None)
        )
    if not items:
        items = [tag("li", text("Nothing was found."), class_="ok")]
    return tag(
        "section",
        tag("h2", text("What was found"), id="findings"),
        tag("ul", *items, class_="findings"),
        aria_labelledby="findings",
    )


def _finding(group: Group) -> str:
    texts = [shown for place in group.places if (shown := where(place))]
    first, rest = texts[:1], texts[1:]
    at = f"{group.code}{' at ' + first[0] if first else ''}"
    more = ""
    if rest:
        left = (
            "" if len(rest) <= _PLACES else f"; and {number(len(rest) - _PLACES)} more, which the JSON lists"
        )
        more = tag(
            "details",
            tag("summary", text(plural(len(rest), "more place", "more places"))),
            tag("p", text("; ".join(rest[:_PLACES]) + left), class_="at"),
        )
    kind = tag("span", text(group.severity), class_="kind", title=MEANINGS[group.severity])
    return tag(
        "li",
        kind,
        text(group.message),
        tag("div", text(at), class_="at"),
        more,
        class_=_KINDS[group.severity] or None,
    )


def _legend() -> str:
    bars = (
        ("ok", "accepted by the policy"),
        ("warn", "accepted with a warning"),
        ("bad", "rejected"),
        ("open", "could not be judged"),
        ("model", "model listed"),
    )
    marks = (("mark bad", "false, or not accepted"), ("mark open", "gap, or could not be checked"))
    return tag("ul", *_keys("rect", bars), *_keys("circle", marks), class_="legend")


def _keys(shape: str, keys: Iterable[tuple[str, str]]) -> Iterator[str]:
    size = {"width": "100%", "height": "100%"} if shape == "rect" else {"cx": "50%", "cy": "50%", "r": "5"}
    for kind, meaning in keys:
        yield tag("li", tag("svg", tag(shape, class_=kind, **size), aria_hidden="true"), text(meaning))


def _foot(report: AuditReport, policy: str) -> str:
    named = f"{policy}, " if policy else ""
    return tag(
        "footer",
        tag("p", text("Policy: "), text(named), tag("span", text(f"SHA-256 {report.policy}"), class_="hex")),
        tag(
            "p",
            text(f"Schema {SCHEMA}; outcome {report.outcome}, exit code {report.exit_code}. "),
            text(
                "This file loads nothing and runs nothing. It is a picture of an audit and proves nothing by itself: "
            ),
            text("run the audit to check it."),
        ),
    )
