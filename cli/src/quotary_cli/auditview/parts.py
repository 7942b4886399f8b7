# SPDX-License-Identifier: Apache-2.0
"""The tables of the HTML report: boots, periods, starts, models, statements, witnesses, records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from quotary_cli.auditview.facts import (
    Stretch,
    changes,
    instant,
    lasting,
    model_runs,
    number,
    plural,
    run_of,
    status_of_boots,
    stretches,
)
from quotary_cli.auditview.marks import short, table, tag, text
from quotary_cli.auditview.timeline import model_lanes
from quotary_verifier.audit.report import AuditedBoot, AuditedModel, AuditReport, Span

MOST_ROWS: Final = 400
"""Rows of a table; what is left out stands in the JSON form."""

_PERIOD: Final = "from - to (host's clock)"
_MOMENT: Final = "time (host's clock)"

_TAGS: Final = {"accepted": "ok", "warned": "warn", "rejected": "bad"}
Item = TypeVar("Item")


def tables(report: AuditReport) -> Iterator[str]:
    """Yield a section for each part of the report that has anything to show."""
    if report.boots:
        yield _section("Boots", "boots", _boots(report))
    if report.periods:
        yield _section("Platform and policy", "periods", _periods(report))
    if lanes := model_lanes(model_runs(report.periods), lambda _before, _after: True):
        yield _section("Models", "models", _models(lanes))
    if report.tees:
        yield _section("Evidence of TEEs", "tees", _tees(report))
    if report.starts:
        yield _section("Starts of the agent", "starts", _starts(report))
    if report.statements:
        yield _section("Statements of the host", "statements", _statements(report))
    if report.witnesses:
        yield _section("Witnesses", "witnesses", _witnesses(report))
    if report.records is not None:
        yield _section("Records", "records", _records(report))
    if report.log is not None:
        yield _section("Log", "log", _log(report))


def _section(title: str, name: str, *content: str) -> str:
    return tag("section", tag("h2", text(title), id=name), *content, aria_labelledby=name)


def _boots(report: AuditReport) -> str:
    status, changed = status_of_boots(report), changes(report)

    def row(boot: AuditedBoot) -> list[str]:
        pcrs = ", ".join(f"{pcr}" for pcr in changed.get(boot.number, ()))
        return [
            text(boot.number),
            _times(boot.span.time_ms),
            _status(status[boot.number]) if boot.number in status else "",
            text(run_of(boot.span.first_commit, boot.span.last_commit)),
            text(f"{boot.reset_count} / {boot.restart_count}"),
            text(boot.chain) + ("" if boot.safe_clock else text("; clock not safe")),
            _list(_log_line(log.name, log.state, log.said) for log in boot.logs),
            text(pcrs),
        ]

    heads = (
        "boot",
        _PERIOD,
        "policy",
        "commits",
        "resets / restarts",
        "chain PCR",
        "boot logs",
        "changed PCRs",
    )
    return _table(heads, report.boots, row, "Every boot of the host, in order", frozenset({0, 3, 4}))


def _log_line(name: str, state: str, said: str) -> str:
    return f"{name}: {state}" + (f" ({said})" if said else "")


def _periods(report: AuditReport) -> str:
    def row(stretch: Stretch) -> list[str]:
        first = stretch.first
        found = (f"{rule}, {severity}: {message}" for rule, severity, message in first.findings)
        endorsed = f"endorsed by {first.endorsed_by}" if first.endorsed_by else "pinned"
        software = f"software TPM: {first.software_tpm}" if first.software_tpm else ""
        return [
            text(stretch.boot),
            _times(stretch.span.time_ms),
            text(run_of(stretch.span.first_commit, stretch.span.last_commit)),
            _status(stretch.status) + (tag("div", text(first.reference)) if first.reference else ""),
            _list(found) + _pcrs(stretch),
            text("; ".join(part for part in (endorsed, software) if part)),
            text(_workload(stretch)),
        ]

    heads = ("boot", _PERIOD, "commits", "policy", "findings and PCRs", "TPM", "workload")
    caption = "What the policy says of every period in which platform and workload stayed the same"
    return _table(heads, stretches(report.periods), row, caption, frozenset({0, 2}))


def _pcrs(stretch: Stretch) -> str:
    moved = f", moved: {', '.join(map(str, stretch.moved))}" if stretch.moved else ""
    rows = (
        tag("div", text(f"{pcr}: "), tag("span", text(short(value, 64)), class_="hex"))
        for pcr, value in stretch.pcrs
    )
    return tag("details", tag("summary", text(f"{plural(len(stretch.pcrs), 'PCR')}{moved}")), *rows)


def _workload(stretch: Stretch) -> str:
    first = stretch.first
    if first.workload_epoch < 0:
        return "none in force"
    names = [model.name + (" (not allowed)" if model.allowed is False else "") for model in first.models]
    return f"epoch {first.workload_epoch}: {', '.join([*([first.engine] if first.engine else []), *names])}"


def _models(lanes: list[tuple[AuditedModel, list[Span]]]) -> str:
    rows = (
        [
            text(model.name),
            tag("span", text(model.digest), class_="hex"),
            {None: text("no rule"), True: _status("accepted"), False: _status("rejected")}[model.allowed],
            tag("ul", *(tag("li", _times(span.time_ms)) for span in spans[:MOST_ROWS])),
            text(number(sum(span.size - span.first_leaf for span in spans))),
        ]
        for model, spans in lanes[:MOST_ROWS]
    )
    heads = ("model", "weights", "policy", "listed (host's clock)", "leaves meanwhile")
    caption = f"Models that the workload log lists, and so may have served{_left(len(lanes))}"
    return table(heads, rows, caption, frozenset({4}))


def _tees(report: AuditReport) -> str:
    rows = (
        [
            text(tee.kind),
            _status(tee.status),
            text(run_of(tee.first_commit, tee.last_commit)),
            text(number(tee.lines)),
            _list(message for _, _, message in tee.findings),
            "".join(_device(device) for device in tee.devices),
        ]
        for tee in report.tees[:MOST_ROWS]
    )
    heads = ("kind", "policy", "commits", "lines", "found", "devices, by their own evidence")
    caption = f"Hardware lines of TEEs, wherever they say the same{_left(len(report.tees))}"
    return table(heads, rows, caption, frozenset({2, 3}))


def _device(facts: Sequence[tuple[str, str]]) -> str:
    items = (tag("li", text(f"{name}: "), tag("span", text(value), class_="hex")) for name, value in facts)
    return tag("ul", *items)


def _starts(report: AuditReport) -> str:
    rows = (
        [
            text("" if start.boot < 0 else start.boot),
            _times((start.time_ms, start.time_ms)),
            text(number(start.commit)),
            text("" if start.counter is None else number(start.counter)),
            text(number(start.skipped)),
            text("" if start.history is None else f"leaves {run_of(start.history[0], start.history[1] - 1)}"),
            text(", ".join(map(number, start.lost))),
        ]
        for start in report.starts[:MOST_ROWS]
    )
    heads = ("boot", _MOMENT, "commit", "counter", "skipped", "history", "records of lost starts")
    numbered = ", numbered by a counter in the TPM" if report.boots else ""
    caption = f"Every start of the agent{numbered}{_left(len(report.starts))}"
    return table(heads, rows, caption, frozenset({0, 2, 3, 4}))


def _statements(report: AuditReport) -> str:
    rows = (
        [_times((item.time_ms, item.time_ms)), text(number(item.leaf)), tag("pre", _lines(item.text))]
        for item in report.statements[:MOST_ROWS]
    )
    caption = f"What the host promised, each until the next{_left(len(report.statements))}"
    return table((_MOMENT, "leaf", "text"), rows, caption, frozenset({1}))


def _lines(written: str) -> str:
    return "<br>".join(map(text, written.split("\n")))


def _witnesses(report: AuditReport) -> str:
    rows = (
        [
            text("no quorum" if item.time is None else instant(item.time * 1000)),
            text(number(item.size)),
            text(number(item.commit)),
            text(", ".join(item.names)),
        ]
        for item in report.witnesses[-MOST_ROWS:]
    )
    caption = f"Checkpoints that witnesses cosigned, by the witnesses' time{_left(len(report.witnesses))}"
    return table(
        ("quorum (witnesses' clocks)", "leaves", "commit", "witnesses"), rows, caption, frozenset({1, 2})
    )


def _records(report: AuditReport) -> str:
    records = report.records
    assert records is not None
    lines = [
        tag(
            "p",
            text(f"{number(records.matched)} of {number(records.given)} that were given are in the log; ")
            + text(f"{plural(records.omitted, 'leaf has', 'leaves have')} no record among them."),
        )
    ]
    if records.unmatched:
        rows = ([text(name), _status("rejected")] for name in records.unmatched[:MOST_ROWS])
        caption = f"Given, and not in the log{_left(len(records.unmatched))}"
        lines.append(table(("record", "verdict"), rows, caption, frozenset()))
    if records.places:
        placed = ([text(name), text(number(leaf))] for name, leaf in records.places[:MOST_ROWS])
        caption = f"Given, and in the log{_left(len(records.places))}"
        lines.append(
            tag(
                "details",
                tag("summary", text("where each is")),
                table(("record", "leaf"), placed, caption, frozenset({1})),
            )
        )
    return "".join(lines)


def _log(report: AuditReport) -> str:
    log = report.log
    assert log is not None
    rows: Sequence[tuple[str, str]] = (
        ("origin", log.origin),
        ("begun", f"{instant(log.genesis_time_ms)} by the host's clock"),
        ("leaves checked", f"{number(log.size)} of {number(log.published)} published"),
        ("root", log.root),
        (
            "attestation key",
            "none: the origin has no TPM"
            if log.ak_algorithm is None
            else f"{log.ak_algorithm}, {'own' if log.ak_own else 'which any process with the TPM can use'}",
        ),
        (
            "gone on from",
            "" if log.resumed is None else f"{plural(log.resumed, 'leaf', 'leaves')} of an earlier audit",
        ),
    )
    shown = ([text(term), tag("span", text(value), class_="hex")] for term, value in rows if value)
    return table(("fact", "value"), shown, "The log itself", frozenset())


def _table(
    heads: Sequence[str],
    items: Sequence[Item],
    row: Callable[[Item], list[str]],
    caption: str,
    numbers: frozenset[int],
) -> str:
    return table(heads, map(row, items[:MOST_ROWS]), f"{caption}{_left(len(items))}", numbers)


def _list(lines: Iterable[str]) -> str:
    items = [tag("li", text(line)) for line in lines]
    return tag("ul", *items) if items else ""


def _times(times: tuple[int, int] | None) -> str:
    """Return a stretch of time that breaks between its two ends and nowhere else."""
    parts = lasting(times).replace(" to ", " to\n").split("\n")
    return " ".join(tag("span", text(part), class_="t") for part in parts)


def _status(status: str) -> str:
    return tag("span", text(status), class_=f"tag {_TAGS.get(status, 'open')}")


def _left(count: int) -> str:
    return f"; {number(count - MOST_ROWS)} more in the JSON form" if count > MOST_ROWS else ""
