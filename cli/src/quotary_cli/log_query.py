# SPDX-License-Identifier: Apache-2.0
"""`attest log query`: which outputs of which hosts were made while this ran, booted or was accepted, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from quotary_cli.auditing import Wanted, audit_source, named_files
from quotary_cli.auditview.facts import STATUSES, headline, hint_of, lasting, number, plural, run_of
from quotary_cli.auditworkers import reading
from quotary_cli.logsource import open_source
from quotary_cli.moments import parse_time
from quotary_cli.output import ExitCode, Failure, clean, print_json
from quotary_cli.policyfile import PolicyFile, policy_options
from quotary_cli.questions import Answer, Question, answers, unlogged
from quotary_verifier.audit.again import open_again
from quotary_verifier.audit.findings import Severity
from quotary_verifier.audit.given import MAX_GIVEN
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.errors import QuotaryError
from quotary_verifier.logs.ima import IMA_PCR
from quotary_verifier.policy.model import Policy
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.records import Output

SCHEMA = "quotary-log-query/v1"
CLOCK = "host"
_DIGEST = 64
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """What one log answers. `outputs` are given records in the leaves that fit: name, output id if known, leaf; of the
    boots `unlogged` nothing tells what they measured, though it was asked for."""

    source: str
    report: AuditReport
    found: tuple[Answer, ...]
    outputs: tuple[tuple[str, str, int], ...]
    unlogged: tuple[int, ...] = ()

    @property
    def leaves(self) -> int:
        """How many leaves fit."""
        return sum(answer.leaves[1] - answer.leaves[0] for answer in self.found)

    @property
    def worth(self) -> ExitCode:
        """What the log is worth: rejected where it is false; what a policy says of its periods is an answer."""
        counts = dict(self.report.counts)
        if counts.get(Severity.FALSE):
            return ExitCode.REJECTED
        whole = self.report.complete and not counts.get(Severity.COULD_NOT)
        return ExitCode.OK if whole else ExitCode.NOT_CHECKED

    @property
    def exit_code(self) -> ExitCode:
        """What the answer is worth."""
        return ExitCode.NOT_CHECKED if self.worth is ExitCode.OK and self.unlogged else self.worth

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in the result."""
        return {
            "log": self.source,
            "origin": None if self.report.log is None else self.report.log.origin,
            "exit": int(self.exit_code),
            "said": headline(self.report),
            "leaves": self.leaves,
            "unlogged_boots": list(self.unlogged),
            "matches": [answer.as_json() for answer in self.found],
            "outputs": [
                {"record": name, "output_id": known, "leaf": leaf} for name, known, leaf in self.outputs
            ],
        }


@click.command()
@click.argument("sources", metavar="LOG...", nargs=-1, required=True)
@policy_options
@click.option("--between", nargs=2, metavar="FROM TO", help="Commits of this time, by the host's clock.")
@click.option("--pcr", multiple=True, metavar="N=HEX", help="A PCR had this value. Of one PCR's values any.")
@click.option(
    "--measured",
    multiple=True,
    metavar="HEX",
    help="The boot's replayed logs have this digest: a boot application's (Authenticode), a file's that ran (IMA).",
)
@click.option("--model", multiple=True, metavar="NAME", help="This model may have served.")
@click.option("--weights", multiple=True, metavar="HEX", help="A model with these weights may have served.")
@click.option("--engine", multiple=True, metavar="NAME", help="This engine may have served.")
@click.option(
    "--status",
    multiple=True,
    type=click.Choice(STATUSES),
    help="What the policy, as it is today, says of it.",
)
@click.option(
    "--records",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Attestations: a folder, an archive, or one file. Those whose leaves fit are listed.",
)
@click.option("--at", metavar="TIME", help="Judge as of this time (default: now).")
@click.option("--explain", is_flag=True, help="Cut no list.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def query(
    sources: tuple[str, ...],
    policy: PolicyFile,
    between: tuple[str, str] | None,
    pcr: tuple[str, ...],
    measured: tuple[str, ...],
    model: tuple[str, ...],
    weights: tuple[str, ...],
    engine: tuple[str, ...],
    status: tuple[str, ...],
    records: tuple[Path, ...],
    at: str | None,
    explain: bool,
    as_json: bool,
) -> int:
    """Audit each LOG, and say of which of its commits all conditions hold.

    The policy says whom to trust, and judges every period again as it is today: to re-appraise a month, ask with
    --between and --status rejected. Of one option that is given several times any value will do.

    Exit code 0 where every log could be read whole and nothing in it is false, whatever the answer; 3 also where
    --measured is asked of a boot whose logs are not there.
    """
    question = Question(
        _pcrs(pcr),
        frozenset(bytes.fromhex(_digest("--measured", text)) for text in measured),
        frozenset(model),
        frozenset(_digest("--weights", text.removeprefix("sha256:")) for text in weights),
        frozenset(engine),
        frozenset(status),
        None if between is None else _between(between),
    )
    moment = parse_time(at)
    rules = policy.read(moment)
    asked = [_ask(source, question, rules, moment, records, progress=not as_json) for source in sources]
    code = worst(item.exit_code for item in asked)
    if as_json:
        logs = [item.as_json() for item in asked]
        print_json({"schema": SCHEMA, "exit": int(code), "clock": CLOCK, "logs": logs})
    else:
        for item in asked:
            for line in _lines(item, everything=explain):
                click.echo(line)
    return code


def worst(codes: Iterator[ExitCode]) -> ExitCode:
    """Return which exit code counts of several: 1, 3, 0 (design section 7)."""
    found = set(codes)
    return next((code for code in (ExitCode.REJECTED, ExitCode.NOT_CHECKED) if code in found), ExitCode.OK)


def _ask(
    source: str, question: Question, policy: Policy, at: int, records: tuple[Path, ...], *, progress: bool
) -> Asked:
    report = audit_source(Wanted(source, policy, at, records, progress=progress, listed=MAX_GIVEN))
    if report.log is None:
        return Asked(source, report, (), ())
    with open_source(source) as opened:
        try:
            host = open_again(report, reading(opened)).host
            found = tuple(answers(question, report, opened, host))
        except QuotaryError as error:
            raise Failure(
                f"{source}: not the log that was audited: {error}", code=ExitCode.REJECTED
            ) from None
    outputs = tuple(outputs_in([answer.leaves for answer in found], report, records))
    return Asked(source, report, found, outputs, unlogged(question, report))


def outputs_in(
    ranges: list[tuple[int, int]], report: AuditReport, records: tuple[Path, ...]
) -> Iterator[tuple[str, str, int]]:
    """Yield (name, output id or nothing, leaf) of the given records that an audit found in ranges of leaves."""
    if report.records is None:
        return
    ids = _ids(records)
    for name, leaf in report.records.places:
        if any(start <= leaf < end for start, end in ranges):
            yield name, ids.get(name, ""), leaf


def _ids(records: tuple[Path, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for place in records:
        for name, load in named_files(place):
            try:
                output = Output.decode(Attestation.decode(load()).record)
            except QuotaryError:
                continue
            found[name] = format_output_id(output.output_id)
    return found


def _lines(asked: Asked, *, everything: bool) -> Iterator[str]:
    origin = asked.source if asked.report.log is None else asked.report.log.origin
    yield f"{clean(origin)}  {plural(asked.leaves, 'leaf fits', 'leaves fit')}, times by the host's clock in UTC"
    if asked.worth != ExitCode.OK:
        hint = hint_of(asked.report)
        yield f"  note     {headline(asked.report)} {hint or '`attest audit` tells more'}"
    if asked.unlogged:
        boots = ", ".join(str(number) for number in asked.unlogged[:_SHOWN])
        more = f" and {len(asked.unlogged) - _SHOWN} more" if len(asked.unlogged) > _SHOWN else ""
        yield f"  note     no log of boot {boots}{more} replays, so nothing tells what was measured there"
    shown = asked.found if everything else asked.found[:_SHOWN]
    for answer in shown:
        names = ", ".join(clean(model.name) for model in answer.stretch.models)
        yield (
            f"  boot {answer.stretch.boot:<4} {lasting(answer.time_ms):<36}  leaves "
            f"{run_of(answer.leaves[0], answer.leaves[1] - 1)}, commits {run_of(answer.first, answer.last)}, "
            f"{clean(answer.stretch.status)}{': ' + names if names else ''}"
        )
        for _, _, message in answer.stretch.first.findings[: None if everything else 2]:
            yield f"            {clean(message)}"
    yield from _rest(len(asked.found) - len(shown), "more stretches")
    listed = asked.outputs if everything else asked.outputs[:_SHOWN]
    for name, known, leaf in listed:
        yield f"  {known or 'record':<52}  leaf {number(leaf)}  {clean(name)}"
    yield from _rest(len(asked.outputs) - len(listed), "more records")


def _rest(count: int, what: str) -> Iterator[str]:
    if count > 0:
        yield f"  {number(count)} {what} (--explain shows all)"


def _pcrs(texts: tuple[str, ...]) -> dict[int, frozenset[str]]:
    found: dict[int, frozenset[str]] = {}
    for text in texts:
        register, equals, value = text.partition("=")
        if not equals or not register.isdecimal() or not 0 <= int(register) <= 15:
            raise Failure(
                f"--pcr {text}: a PCR from 0 to 15, =, and its value are needed", code=ExitCode.USAGE
            )
        if int(register) == IMA_PCR:
            raise Failure(
                f"PCR {IMA_PCR} has another value after every program that runs",
                code=ExitCode.USAGE,
                hint="ask for a digest that IMA measured with --measured",
            )
        found[int(register)] = found.get(int(register), frozenset()) | {_digest("--pcr", value)}
    return found


def _digest(option: str, text: str) -> str:
    if len(text) != _DIGEST or set(text) - set("0123456789abcdef"):
        raise Failure(f"{option} {text}: not 64 lower-case hexadecimal digits", code=ExitCode.USAGE)
    return text


def _between(texts: tuple[str, str]) -> tuple[int, int]:
    begin, end = (1000 * parse_time(text, "--between") for text in texts)
    if end < begin:
        raise Failure("--between takes the earlier time first", code=ExitCode.USAGE)
    return begin, end
