# SPDX-License-Identifier: Apache-2.0
"""Drives an audit: opens the source, shares the work out, keeps the state on disk, shows progress."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click

from quotary_cli.auditworkers import OwnProcess, Processes, reading
from quotary_cli.given import given_attestations, is_archive, read_most, taken_out
from quotary_cli.logsource import OpenSource, open_source
from quotary_cli.output import ExitCode, Failure
from quotary_verifier.audit.engine import Audit, Extras, Progress, cannot_audit, new_state
from quotary_verifier.audit.given import MAX_GIVEN, MAX_LISTED, GivenRecord, read_given
from quotary_verifier.audit.opening import CannotOpen, Opened, open_log
from quotary_verifier.audit.report import AuditReport
from quotary_verifier.audit.state import MAX_STATE, AuditState, decode_state, encode_state
from quotary_verifier.audit.tees import TeeTerms
from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.policy.model import Policy
from quotary_verifier.wire.history import COMMITS_PER_FILE

SAVED_EVERY: Final = 1024
"""Commits after which the state is written again."""

_ALONE: Final = 1 << 15
"""Leaves below which this process does everything: others take a third of a second to start."""

_MAX_BLOBS: Final = 1_000_000
_MAX_PROCESSES: Final = 8
_SUFFIX: Final = ".attestation"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of an audit: the source as text, the policy, the time; records beside it, state file, processes."""

    source: str
    policy: Policy
    at: int
    records: tuple[Path, ...] = ()
    state: Path | None = None
    processes: int | None = None
    progress: bool = False
    listed: int = MAX_LISTED


def audit_source(wanted: Wanted) -> AuditReport:
    """Audit a log.

    Raises:
        Failure: the source, the state file or a record cannot be read.
    """
    given = tuple(record for place in wanted.records for record in read_records(place))
    with open_source(wanted.source) as source:
        read = reading(source)
        try:
            opened = open_log(read)
        except CannotOpen as error:
            return cannot_audit(error.finding, wanted.policy, wanted.at)
        state = _state(wanted, opened)
        extras = Extras(given, _public(source), wanted.listed)
        looked_for = (extras.public or frozenset[bytes]()) | {record.entry for record in given}
        left = opened.checkpoint.size - state.history.position.size
        terms = TeeTerms(wanted.policy.tee, wanted.policy.warnings, wanted.at)
        workers: OwnProcess | Processes = OwnProcess(opened.record, read, looked_for, terms)
        count = wanted.processes or min(len(os.sched_getaffinity(0)), _MAX_PROCESSES)
        if left >= _ALONE and count > 1:
            workers = Processes(wanted.source, opened.record, looked_for, count, terms)
        with workers:
            audit = Audit(opened, wanted.policy, state, read, workers, wanted.at, extras)
            _run(audit, wanted)
            return audit.report()


def _run(audit: Audit, wanted: Wanted) -> None:
    """Do the steps of an audit, writing its state down now and then."""
    saved = _judged(audit)
    for _ in _shown(audit.run(), wanted.progress):
        if _judged(audit) >= saved + SAVED_EVERY:
            _save(audit, wanted)
            saved = _judged(audit)
    if _judged(audit) > saved:
        _save(audit, wanted)


def _judged(audit: Audit) -> int:
    """Return how much was judged for good, in commits; those with TEE lines count twice, by whole files."""
    return audit.state.history.position.commits + COMMITS_PER_FILE * audit.state.tees.judged


def _save(audit: Audit, wanted: Wanted) -> None:
    if wanted.state is not None and audit.resumable:
        write_state(wanted.state, audit.state)


def _shown(steps: Iterator[Progress], progress: bool) -> Iterator[Progress]:
    """Yield the steps; with `progress` show on stderr how far they are."""
    if not progress or not sys.stderr.isatty():
        yield from steps
        return
    first = next(steps, None)
    if first is None:
        return
    with click.progressbar(length=first.published, label="auditing", file=sys.stderr, show_pos=True) as bar:
        bar.update(first.leaves)
        yield first
        at = first.leaves
        for step in steps:
            bar.update(step.leaves - at)
            at = step.leaves
            yield step


def _public(source: OpenSource) -> frozenset[bytes] | None:
    """Return the digests of all blobs; None where the source cannot list them, or has too many."""
    paths = source.paths("blob")
    if paths is None:
        return None
    found: set[bytes] = set()
    for path in paths:
        if len(found) >= _MAX_BLOBS:
            return None
        with contextlib.suppress(ValueError):
            found.add(bytes.fromhex(path.removeprefix("blob/")))
    return frozenset(found)


def _state(wanted: Wanted, opened: Opened) -> AuditState:
    """Return the state to go on from: that of the file, or a new one."""
    path = wanted.state
    if path is None or not path.exists():
        return new_state(opened, wanted.policy, wanted.at)
    try:
        if path.stat().st_size > MAX_STATE:
            raise MalformedError(f"it has more than {MAX_STATE} bytes")
        state = decode_state(path.read_bytes())
    except OSError as error:
        raise Failure(f"{path}: {(error.strerror or '').lower()}", code=ExitCode.USAGE) from None
    except MalformedError as error:
        raise _unusable(path, str(error)) from None
    if state.origin != opened.host.origin:
        raise _unusable(path, f"it is of the log {state.origin}, and this is {opened.host.origin}")
    if state.policy != wanted.policy.digest.hex():
        raise _unusable(path, "it is of another policy")
    return state


def _unusable(path: Path, why: str) -> Failure:
    hint = "name another file with --resume, or delete it to audit from the first leaf on"
    return Failure(f"{path}: {why}", code=ExitCode.USAGE, hint=hint)


def write_state(path: Path, state: AuditState) -> None:
    """Put a state in place whole, durably.

    Raises:
        Failure: it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(encode_state(state))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise Failure(f"{path}: {(error.strerror or '').lower()}", code=ExitCode.FAILURE) from None


def read_records(place: Path) -> Iterator[GivenRecord]:
    """Yield the attestations and records of a folder (by their paths in it), an archive, or one file.

    Files of a folder that are neither are left out, unless they are called attestations.

    Raises:
        Failure: one cannot be read, or is called an attestation and is none; or there are too many, or none.
    """
    count = 0
    for name, load in named_files(place):
        try:
            record = read_given(name, load())
        except (MalformedError, UnsupportedError) as error:
            if name.endswith(_SUFFIX):
                raise Failure(f"{name}: {error}", code=ExitCode.USAGE) from None
            continue
        count += 1
        if count > MAX_GIVEN:
            raise Failure(f"{place}: more than {MAX_GIVEN} records", code=ExitCode.USAGE)
        yield record
    if not count:
        raise Failure(f"{place}: no records and no attestations are there", code=ExitCode.USAGE)


def named_files(place: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the name and what reads it of each file that may be a record."""
    if place.is_file() and is_archive(place):
        with contextlib.ExitStack() as opened:
            for given in given_attestations([place], opened):
                yield given.name, given.load
        return
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    for file in files:
        yield file.name if file == place else str(file.relative_to(place)), partial(_read, file)


def _read(file: Path) -> bytes:
    return taken_out(read_most(file))
