# SPDX-License-Identifier: Apache-2.0
"""`attest audit`: check the whole of a host's history against a policy (docs/spec/audit.md)."""

from __future__ import annotations

from pathlib import Path

import click

from quotary_cli.auditing import Wanted, audit_source
from quotary_cli.auditview.html import audit_page
from quotary_cli.auditview.text import print_audit
from quotary_cli.main import collect_as_usual
from quotary_cli.moments import parse_time
from quotary_cli.output import ExitCode, Failure, print_json
from quotary_cli.policyfile import PolicyFile, policy_options


@click.command()
@click.argument("source", metavar="SOURCE")
@policy_options
@click.option(
    "--records",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Attestations and records to look for in the log: a folder, an archive, or one file. May be given again.",
)
@click.option(
    "--resume",
    "state",
    metavar="STATE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the audit's state in this file, and go on from it: after a stop, or when the log has grown.",
)
@click.option(
    "--at", metavar="TIME", help="Judge as of this time (RFC 3339 or seconds since 1970; default: now)."
)
@click.option("--jobs", metavar="N", type=click.IntRange(1, 64), help="Processes that share the work.")
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the report as one page that needs nothing else.",
)
@click.option("--explain", is_flag=True, help="Cut no list.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit(
    source: str,
    policy: PolicyFile,
    records: tuple[Path, ...],
    state: Path | None,
    at: str | None,
    jobs: int | None,
    html: Path | None,
    explain: bool,
    as_json: bool,
) -> int:
    """Audit the whole history of the host whose log is at SOURCE: a URL, unix:SOCKET, a folder or an archive.

    Every entry, tile, checkpoint, quote and link of the chain is checked, every boot's logs are replayed, and the
    policy is applied to every period. Gaps and what nobody can know are shown.
    """
    collect_as_usual()
    moment = parse_time(at)
    rules = policy.read(moment)
    if html is not None and not html.parent.is_dir():
        raise Failure(f"{html}: there is no folder {html.parent}", code=ExitCode.USAGE)
    report = audit_source(Wanted(source, rules, moment, records, state, jobs, progress=not as_json))
    if html is not None:
        _write(html, audit_page(report, source, policy=str(policy.path)))
    if as_json:
        print_json(report.as_json())
    else:
        print_audit(report, source, everything=explain)
    return report.exit_code


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise Failure(f"{path}: {(error.strerror or '').lower()}", code=ExitCode.FAILURE) from None
