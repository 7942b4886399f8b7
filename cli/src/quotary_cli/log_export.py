# SPDX-License-Identifier: Apache-2.0
"""`attest log export`: a log in one file, for a verifier that has no network."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from quotary_cli.enrolment import show
from quotary_cli.exporting import Exporter, Tell
from quotary_cli.given import given_attestations
from quotary_cli.logsource import LogSource, OpenSource, open_source
from quotary_cli.output import ExitCode, Failure, note, print_json
from quotary_cli.policyfile import read_bytes
from quotary_cli.sources.archive import ArchiveSource
from quotary_cli.sources.paths import SUFFIX, parse_path
from quotary_cli.sources.reuse import Reusing, check_continues, checkpoint_of
from quotary_cli.sources.writer import ArchiveWriter, unfinished
from quotary_verifier.errors import QuotaryError
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.records import Genesis, Output, Statement

SCHEMA = "quotary-log-export/v1"
_NONE = "no output"


@click.command()
@click.argument("source", metavar="LOG")
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--attestations",
    "-a",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Attestations to take along: a file, a folder of them, or an archive. May be given again.",
)
@click.option(
    "--policy",
    "-p",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A policy, or a list that stands beside one, to take along. May be given again.",
)
@click.option(
    "--since",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An earlier archive of this log: what is in it is not read again, and the log must continue it.",
)
@click.option("--force", is_flag=True, help="Replace ARCHIVE where it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(
    source: str,
    archive: Path,
    attestations: tuple[Path, ...],
    policy: tuple[Path, ...],
    since: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Copy all that LOG publishes, up to its checkpoint, into the file ARCHIVE.

    Nothing is verified: that is for `attest audit ARCHIVE`. The file is in place once it is whole; an export that
    was interrupted goes on when the same command runs again, up to the checkpoint at which it began.
    A file that exists is left as it is: with an earlier archive nobody could show that a host has two histories.
    """
    _check_free(archive, force=force)
    with ExitStack() as stack:
        beside = [*_attestations(attestations, stack), *_policies(policy)]
        opened = stack.enter_context(open_source(source))
        head, checkpoint = checkpoint_of(opened, opened.name)
        usable: LogSource = opened
        if since is not None:
            earlier = stack.enter_context(ArchiveSource.open(since))
            usable = _continued(opened, earlier, checkpoint)
        writer, part = _begun(archive, opened, checkpoint, stack)
        if part is not None:
            head, checkpoint = checkpoint_of(part, str(archive))
            usable = Reusing(part, usable, everything=True)
        with _progress(as_json) as tell:
            exporter = Exporter(usable, opened.name, writer, tell)
            exporter.copy(head, checkpoint)
        left_out = _add_beside(writer, beside, checkpoint.origin)
        _check_free(archive, force=force)  # a long export may have been overtaken by another
        writer.finish()
    for remark in exporter.remarks:
        note(f"note: {remark}")
    result = {
        "schema": SCHEMA,
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "commits": exporter.commits,
        "files": writer.files,
        "bytes": archive.stat().st_size,
        "archive": str(archive),
        "resumed": part is not None,
        "missing": exporter.missing,
        "left_out": left_out,
        "remarks": exporter.remarks,
    }
    _show(result, as_json)


def _check_free(archive: Path, *, force: bool) -> None:
    """Refuse to write over a file, unless that was asked for."""
    if not force and os.path.lexists(archive):
        raise Failure(
            f"{archive}: it exists, and may be the only copy of an earlier history",
            code=ExitCode.USAGE,
            hint="name another file (--since takes from the earlier one what it has), or replace it with --force",
        )


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    for path in result["missing"]:
        note(f"note: the history names {path}, which the log does not have")
    if result["left_out"]:
        note(f"note: left out {result['left_out']} attestations that are of no output of this log")
    texts = {key: str(result[key]) for key in ("origin", "size", "commits", "files", "bytes", "archive")}
    show({"schema": SCHEMA, **texts}, as_json=False)


def _continued(source: OpenSource, earlier: ArchiveSource, now: Checkpoint) -> LogSource:
    """Return a source that takes from an earlier archive what is there, if the log continues it."""
    _, before = checkpoint_of(earlier, earlier.name)
    check_continues(source, source.name, before, now)
    return Reusing(earlier, source)


def _begun(
    archive: Path, source: LogSource, now: Checkpoint, stack: ExitStack
) -> tuple[ArchiveWriter, ArchiveSource | None]:
    """Begin an archive, or go on with one that was cut off; then also give what is there of it."""
    part = _unfinished(archive, source, now)
    writer = ArchiveWriter.begin(archive) if part is None else ArchiveWriter.go_on(archive)
    stack.callback(writer.close)
    if part is not None:
        stack.enter_context(part)
    return writer, part


def _unfinished(archive: Path, source: LogSource, now: Checkpoint) -> ArchiveSource | None:
    place = unfinished(archive)
    if not place.exists():
        return None
    try:
        part = ArchiveSource.open(place, cut_off=True)
        try:
            _, begun = checkpoint_of(part, str(place))
            check_continues(source, str(place), begun, now)
        except BaseException:
            part.close()
            raise
    except Failure as error:
        if error.code == ExitCode.FAILURE:
            raise  # the log could not be read, and says nothing of what was written
        note(f"note: {place} is no beginning of an export of this log, and is written anew")
        return None
    note(f"note: going on with the export that was interrupted, of {begun.size} leaves")
    return part


@dataclass(frozen=True, slots=True)
class Beside:
    """A file that goes with the log. `of` is the log that an attestation is of, empty for what is of none."""

    path: str
    load: Callable[[], bytes]
    of: str = ""


def _attestations(places: tuple[Path, ...], stack: ExitStack) -> list[Beside]:
    """Return the attestations of outputs, each output once, in the order of an archive."""
    found: dict[str, Beside] = {}
    for given in given_attestations(places, stack):
        try:
            attestation = Attestation.decode(given.load())
            origin = Genesis.decode(attestation.genesis).origin(attestation.genesis)
            name = _name_of(attestation.record)
        except QuotaryError as error:
            raise Failure(f"{given.name}: not an attestation: {error}", code=ExitCode.USAGE) from None
        path = f"attestations/{name}{SUFFIX}"
        # an output may have several forms, with and without the request key: the least counts, whatever came first
        other = found.get(path)
        if other is None or given.load() < other.load():
            found[path] = Beside(path, given.load, origin if name else _NONE)
    return [found[path] for path in sorted(found)]


def _name_of(record: bytes) -> str:
    """Return the id of an output, or nothing for the record of a statement, which no archive takes."""
    try:
        return format_output_id(Output.decode(record).output_id)
    except QuotaryError:
        Statement.decode(record)
        return ""


def _policies(files: tuple[Path, ...]) -> list[Beside]:
    found: dict[str, bytes] = {}
    for file in files:
        path = f"policy/{file.name}"
        try:
            most = parse_path(path).most
        except QuotaryError:
            raise Failure(
                f"{file}: no file of this name stands in an archive",
                code=ExitCode.USAGE,
                hint="a name has up to 80 letters, digits and ._-, and begins with a letter or digit",
            ) from None
        data = read_bytes(file, most)
        if len(data) > most or found.get(path, data) != data:
            raise Failure(f"{file}: too large, or another file has its name", code=ExitCode.USAGE)
        found[path] = data
    return [Beside(path, partial(bytes, found[path])) for path in sorted(found)]


def _add_beside(writer: ArchiveWriter, beside: list[Beside], origin: str) -> int:
    """Add what goes with the log; return how many attestations were left out as of none of its outputs."""
    left_out = 0
    for item in beside:
        if item.of in ("", origin):
            writer.add(item.path, item.load())
        else:
            left_out += 1
    return left_out


@contextmanager
def _progress(as_json: bool) -> Iterator[Tell]:
    if as_json or not sys.stderr.isatty():
        yield lambda _done, _all: None
        return
    with click.progressbar(length=1, label="copying", file=sys.stderr, width=0) as bar:

        def tell(done: int, whole: int) -> None:
            bar.length = max(whole, done)
            bar.update(done - bar.pos)

        yield tell
