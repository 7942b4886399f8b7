# SPDX-License-Identifier: Apache-2.0
"""`attest log affected`: which leaves and outputs rest on a key that was revoked, stolen or withdrawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from quotary_cli.auditing import Wanted, audit_source
from quotary_cli.auditview.facts import headline, hint_of, instant, number, plural, run_of
from quotary_cli.auditworkers import reading
from quotary_cli.keys_lost import Affected, LostKey, affected, read_key
from quotary_cli.log_query import outputs_in, worst
from quotary_cli.logsource import open_source
from quotary_cli.moments import parse_time
from quotary_cli.output import ExitCode, Failure, clean, print_json
from quotary_cli.policyfile import PolicyFile, policy_options, read_bytes
from quotary_verifier.audit.again import open_again
from quotary_verifier.audit.findings import Severity
from quotary_verifier.audit.given import MAX_GIVEN
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.errors import QuotaryError
from quotary_verifier.policy.model import Policy

SCHEMA = "quotary-log-affected/v1"
CLOCK = "witnesses"
_MAX_KEY = 64 * 1024


@dataclass(frozen=True, slots=True)
class Found:
    """What one log has that rests on the key, None where nothing does; and the given records among it."""

    source: str
    report: AuditReport
    found: Affected | None
    outputs: tuple[tuple[str, str, int], ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """What the log is worth: rejected where it is false, not checked where it could not be read whole."""
        counts = dict(self.report.counts)
        if counts.get(Severity.FALSE):
            return ExitCode.REJECTED
        # a certificate that is withheld hides what rests on its key
        whole = self.report.complete and not counts.get(Severity.COULD_NOT)
        return ExitCode.OK if whole else ExitCode.NOT_CHECKED

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in the result."""
        return {
            "log": self.source,
            "origin": None if self.report.log is None else self.report.log.origin,
            "exit": int(self.exit_code),
            "role": None if self.found is None else self.found.role,
            "said": "" if self.found is None else self.found.said,
            "leaves": 0 if self.found is None else self.found.leaves,
            "ranges": [] if self.found is None else [list(part) for part in self.found.ranges],
            "outputs": [
                {"record": name, "output_id": known, "leaf": leaf} for name, known, leaf in self.outputs
            ],
        }


@click.command("affected")
@click.argument("sources", metavar="LOG...", nargs=-1, required=True)
@policy_options
@click.option(
    "--key",
    "file",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A certificate or public key (of an attestation key or a CA), or a note's or witness's key as text.",
)
@click.option("--since", required=True, metavar="TIME", help="From when on the key is not trusted.")
@click.option(
    "--records",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Attestations: a folder, an archive, or one file. Those that rest on the key are listed.",
)
@click.option("--at", metavar="TIME", help="Judge as of this time (default: now).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def affected_command(
    sources: tuple[str, ...],
    policy: PolicyFile,
    file: Path,
    since: str,
    records: tuple[Path, ...],
    at: str | None,
    as_json: bool,
) -> int:
    """Audit each LOG, and say which of its leaves rest on a key that is not to be trusted since a time.

    Times are witnesses' alone: whoever has a key states any time he likes. What a quorum of them saw before stands;
    without witnesses in the policy everything that the key speaks for is affected.
    """
    key = read_key(read_bytes(file, _MAX_KEY))
    if key is None:
        raise Failure(
            f"{file}: neither a certificate nor a public key",
            code=ExitCode.USAGE,
            hint="PEM or DER, or the one line of text by which notes name a key",
        )
    begin, moment = parse_time(since, "--since"), parse_time(at)
    rules = policy.read(moment)
    made = []
    for source in sources:
        report = audit_source(Wanted(source, rules, moment, records, progress=not as_json, listed=MAX_GIVEN))
        found = None if report.log is None else _affected(source, key, begin, report, rules)
        outputs = () if found is None else tuple(outputs_in(list(found.ranges), report, records))
        made.append(Found(source, report, found, outputs))
    code = worst(item.exit_code for item in made)
    if as_json:
        print_json(
            {"schema": SCHEMA, "exit": int(code), "clock": CLOCK, "logs": [item.as_json() for item in made]}
        )
    else:
        for item in made:
            for line in _lines(item, begin):
                click.echo(line)
    return code


def _affected(source: str, key: LostKey, since: int, report: AuditReport, policy: Policy) -> Affected | None:
    with open_source(source) as opened:
        try:
            return affected(key, since, report, policy, opened, open_again(report, reading(opened)).host)
        except QuotaryError as error:
            raise Failure(
                f"{source}: not the log that was audited: {error}", code=ExitCode.REJECTED
            ) from None


def _lines(item: Found, since: int) -> Iterator[str]:
    origin = item.source if item.report.log is None else item.report.log.origin
    found = item.found
    if found is None:
        yield f"{clean(origin)}  nothing rests on this key"
    else:
        count = plural(found.leaves, "leaf", "leaves")
        yield f"{clean(origin)}  {found.role}: {count} not seen by witnesses before {instant(since * 1000)} UTC"
        yield f"  {clean(found.said)}"
        for start, end in found.ranges:
            yield f"  leaves {run_of(start, end - 1)}"
        for name, known, leaf in item.outputs:
            yield f"  {known or 'record':<52}  leaf {number(leaf)}  {clean(name)}"
    if item.exit_code != ExitCode.OK:
        yield f"  note: {headline(item.report)} {hint_of(item.report) or '`attest audit` tells more'}"
