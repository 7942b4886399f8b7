# SPDX-License-Identifier: Apache-2.0
"""`attest inspect`: show what a file holds. Nothing it shows is verified, and it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quotary_cli.output import ExitCode, Failure, clean, print_json, style
from quotary_verifier import MalformedError, QuotaryError, UnsupportedError

SCHEMA = "quotary-inspect/v1"
MAX_FILE = 64 * 1024 * 1024
UNVERIFIED = "parsed, not verified"


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--cel-json", "as_cel", is_flag=True, help="Print an event log in the JSON encoding of the TCG's CEL."
)
def inspect(file: Path, as_json: bool, as_cel: bool) -> None:
    """Show what FILE holds, without verifying it.

    Knows attestations, records, signed notes, TPM quotes, fresh quotes, workload logs, event logs of firmware (TCG,
    CCEL), IMA logs, history files, certificates, enrolment files, policies (also signed ones), response bodies that
    carry an attestation, archives of logs, the evidence of confidential hardware (SEV-SNP, TDX, Nitro, Azure,
    NVIDIA, Arm CCA), and what was fetched to vouch for it.
    """
    if as_json and as_cel:
        raise click.UsageError("--json and --cel-json are two forms of output: give one")
    from quotary_cli.kinds import describe
    from quotary_cli.logkinds import log_lines

    with file.open("rb") as opened:
        data = opened.read(MAX_FILE + 1)
    if data[257:262] == b"ustar":
        _archive(file, as_json)
        return
    if len(data) > MAX_FILE:
        raise Failure(f"{file}: larger than {MAX_FILE >> 20} MiB", code=ExitCode.REJECTED)
    try:
        kind, content = describe(data, file.parent)
        if as_cel:
            from quotary_cli.celjson import print_cel_json

            print_cel_json(kind, data)
            return
    except UnsupportedError as error:
        raise Failure(f"{file}: {error}", code=ExitCode.NOT_CHECKED) from None
    except (MalformedError, QuotaryError) as error:
        raise Failure(f"{file}: {error}", code=ExitCode.REJECTED) from None
    if as_json:
        print_json({"schema": SCHEMA, "kind": kind, "status": UNVERIFIED, "content": content})
        return
    click.echo(f"{style(kind, 'white')}  {clean(str(file))}  ({UNVERIFIED})")
    content, lines = log_lines(kind, content)
    _show(content, 1)
    for line in lines:
        click.echo(f"  {line}")


def _archive(file: Path, as_json: bool) -> None:
    from quotary_cli.log_show import archive_contents

    content = archive_contents(file)
    if as_json:
        print_json({"schema": SCHEMA, "kind": "archive", "status": UNVERIFIED, "content": content})
        return
    click.echo(f"{style('archive', 'white')}  {clean(str(file))}  ({UNVERIFIED})")
    _show(content, 1)


def _show(value: Any, depth: int) -> None:
    pad = "  " * depth
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, (dict, list)) and item:
                click.echo(f"{pad}{clean(str(key))}:")
                _show(item, depth + 1)
            else:
                click.echo(f"{pad}{clean(str(key))}: {_scalar(item)}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            if isinstance(item, (dict, list)):
                click.echo(f"{pad}[{number}]")
                _show(item, depth + 1)
            else:
                click.echo(f"{pad}- {_scalar(item)}")


def _scalar(value: Any) -> str:
    if value in ({}, []):
        return "none"
    if value is None:
        return "absent"
    return clean(str(value))
