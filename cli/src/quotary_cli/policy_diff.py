# SPDX-License-Identifier: Apache-2.0
"""`attest policy diff`: what differs between two hosts or two boots, down to the event."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click

from quotary_cli.bootchoice import choose
from quotary_cli.bootdiff import Change, Side, compare
from quotary_cli.bootsides import unverified_side_do_not_trust, verified_side
from quotary_cli.enrolment import json_option
from quotary_cli.evidence import EVIDENCE, logs_option, read_evidence
from quotary_cli.moments import parse_time
from quotary_cli.output import ExitCode, Failure, clean, note, print_json
from quotary_cli.policyfile import PolicyFile, optional_policy
from quotary_verifier import Policy

SCHEMA = "quotary-policy-diff/v1"
UNVERIFIED: Final = "UNVERIFIED: nothing proves what is compared here, do not trust it"
_SHOWN: Final = 20
_MEMBERS: Final = 10


@click.command()
@click.argument("before", type=EVIDENCE)
@click.argument("after", type=EVIDENCE)
@optional_policy
@logs_option
@click.option("--at", metavar="TIME", help="Verify as of this time (default: now).")
@click.option(
    "--unverified-do-not-trust",
    is_flag=True,
    help="Compare raw logs (an event log, an IMA log, or a folder with both), which nothing proves.",
)
@click.option("--all", "everything", is_flag=True, help=f"Show all files that differ, not only {_SHOWN}.")
@json_option
def diff(
    before: Path,
    after: Path,
    policy: PolicyFile | None,
    log_places: tuple[Path, ...],
    at: str | None,
    unverified_do_not_trust: bool,
    everything: bool,
    as_json: bool,
) -> None:
    """Compare the boots that BEFORE and AFTER show: attestations with their boot logs, verified under a policy.

    The policy says whom to trust; its rules on platforms are not asked. A difference is no failure: the exit code is 0.
    One boot is compared with one, each by the newest attestation that is given of it; `attest policy check` holds any
    number of boots against a policy.
    """
    if unverified_do_not_trust == (policy is not None):
        raise Failure(
            "--policy or --unverified-do-not-trust must be given, and not both",
            code=ExitCode.USAGE,
            hint="attestations are verified under a policy; raw logs cannot be",
        )
    if policy is None:
        sides = [unverified_side_do_not_trust(path) for path in (before, after)]
    else:
        moment = parse_time(at)
        rules = policy.read(moment)
        sides = [_verified(path, log_places, rules, moment) for path in (before, after)]
    changes = tuple(compare(*sides))
    if as_json:
        print_json(_as_json(sides, changes))
    else:
        _show(sides, changes, everything=everything)


def _verified(path: Path, log_places: tuple[Path, ...], policy: Policy, at: int) -> Side:
    found = read_evidence([path], log_places, policy, at, quiet=True, choose=choose)
    boots = {one.boot for one in found}
    if len(boots) != 1:
        raise Failure(
            f"{path}: it shows {len(boots)} boots, and one boot is compared with one",
            code=ExitCode.USAGE,
            hint="name an attestation, or a folder with those of one boot",
        )
    last = max(found, key=lambda one: one.evidence.clock.clock)
    return verified_side(last.name, last.evidence)


def _show(sides: list[Side], changes: tuple[Change, ...], *, everything: bool) -> None:
    if not all(side.verified for side in sides):
        note(UNVERIFIED)
    for side in sides:
        missing = [name for name, part in (("firmware", side.events), ("IMA", side.files)) if part is None]
        if missing:
            note(f"{side.name}: no {' and no '.join(missing)} log; that part is not compared")
    if not changes:
        click.echo("no difference")
    files = 0
    for change in changes:
        files += change.area == "ima"
        if change.area == "ima" and files > _SHOWN and not everything:
            continue
        click.echo(clean(change.text))
        _members("+", change.added, change)
        _members("-", change.removed, change)
    if files > _SHOWN and not everything:
        click.echo(f"IMA: {files - _SHOWN} more files differ (--all shows them)")


def _members(sign: str, entries: Iterable[str], change: Change) -> None:
    """Show entries of a database one by one; words of a command line stand in the line above."""
    if change.what.startswith("the command"):
        return
    listed = list(entries)
    for entry in listed[:_MEMBERS]:
        click.echo(f"    {sign} {clean(entry)}")
    if len(listed) > _MEMBERS:
        click.echo(f"    {sign} {len(listed) - _MEMBERS} more (--json shows them)")


def _as_json(sides: list[Side], changes: tuple[Change, ...]) -> dict[str, Any]:
    before, after = sides
    return {
        "schema": SCHEMA,
        "verified": all(side.verified for side in sides),
        "before": before.name,
        "after": after.name,
        "compared": {
            "firmware": None not in (before.events, after.events),
            "ima": None not in (before.files, after.files),
        },
        "equal": not changes,
        "changes": [change.as_json() for change in changes],
    }
