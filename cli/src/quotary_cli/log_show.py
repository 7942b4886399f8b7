# SPDX-License-Identifier: Apache-2.0
"""`attest log show`: what a log or an archive holds, or one file of it. Nothing is verified."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from quotary_cli.enrolment import show as show_table
from quotary_cli.enrolment import write_file
from quotary_cli.logsource import OpenSource, open_source
from quotary_cli.output import ExitCode, Failure, print_json
from quotary_cli.sources.archive import ArchiveSource
from quotary_cli.sources.paths import Part, parse_path
from quotary_cli.sources.reuse import checkpoint_of
from quotary_verifier.errors import MalformedError

SCHEMA = "quotary-log-show/v1"


@click.command()
@click.argument("source", metavar="LOG")
@click.argument("path", required=False)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the file there (default: stdout).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(source: str, path: str | None, out: Path | None, as_json: bool) -> None:
    """Say what LOG holds, or print the file at PATH of it, such as checkpoint or policy/policy.toml.

    Nothing is verified: `attest audit` does that. A policy out of an archive is what its maker put there, and no
    reason to accept it.
    """
    with open_source(source) as opened:
        if path is None:
            _summary(opened, as_json)
            return
        if as_json:
            raise Failure("--json does not go with a path", code=ExitCode.USAGE)
        try:
            data = opened.read(path, parse_path(path).most)
        except MalformedError as error:
            raise Failure(f"{path}: {error}", code=ExitCode.USAGE) from None
    if out is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        write_file(out, data)


def archive_contents(file: Path) -> dict[str, Any]:
    """Return what an archive holds. Raises SourceFailed where it is none."""
    with ArchiveSource.open(file) as archive:
        return _held(archive)


def _summary(source: OpenSource, as_json: bool) -> None:
    held = _held(source)
    if as_json:
        print_json({"schema": SCHEMA, "log": source.name, **held})
        return
    policies = held.pop("policy", [])
    shown = {"log": source.name, **{key: str(value) for key, value in held.items()}}
    show_table({**shown, "policy": policies}, as_json=False)


def _held(source: OpenSource) -> dict[str, Any]:
    _, checkpoint = checkpoint_of(source, source.name)
    head = {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}
    return head | (_contents(source) if isinstance(source, ArchiveSource) else {})


def _contents(archive: ArchiveSource) -> dict[str, Any]:
    files = dict.fromkeys((part.folder for part in Part), 0)
    for path in archive.paths(""):
        files[path.partition("/")[0]] += 1
    return {
        "history_files": files["history"],
        "cosigned_notes": files["cosigned"],
        "blobs": files["blob"],
        "tiles": files["tile"],
        "attestations": files["attestations"],
        "policy": [path.removeprefix("policy/") for path in archive.paths("policy")],
    }
