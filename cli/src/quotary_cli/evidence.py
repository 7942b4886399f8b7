# SPDX-License-Identifier: Apache-2.0
"""Attestations as evidence of a boot: read from files, folders and archives with their boot logs, and verified."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from quotary_cli.given import Given, given_attestations
from quotary_cli.output import ExitCode, Failure
from quotary_verifier import NotChecked, Policy, PolicyError, Rejected
from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.policy.findings import PlatformEvidence
from quotary_verifier.wire.attestation import DIGEST_BYTES, Attestation
from quotary_verifier.wire.limits import MAX_NAMED_BOOT_LOG

_MANY: Final = 8
_LOGS_HINT: Final = "name the folder or archive that has the logs with --with-logs"

EVIDENCE = click.Path(path_type=Path, exists=True)
logs_option = click.option(
    "--with-logs",
    "log_places",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Boot logs that attestations name by digest: a file, a folder, or an archive. May be given again.",
)


@dataclass(frozen=True, slots=True)
class Verified:
    """One attestation whose every step but the rules on the platform was done; `record` is in the log."""

    name: str
    evidence: PlatformEvidence
    record: bytes


def read_evidence(
    places: Sequence[Path], log_places: Sequence[Path], policy: Policy, at: int, *, quiet: bool
) -> list[Verified]:
    """Read and verify attestations; `policy` says whom to trust, and its rules on platforms are not asked.

    Raises:
        Failure: one of them is false (1) or could not be checked (3).
    """
    logs = {hashlib.sha256(data).digest(): data for data in _logs([*log_places, *_beside(places)])}
    with ExitStack() as opened:
        given = list(given_attestations(places, opened))
        return [_verify(one, policy, at, logs) for one in _with_progress(given, quiet)]


def _verify(given: Given, policy: Policy, at: int, logs: dict[bytes, bytes]) -> Verified:
    from quotary_verifier.recipe.evidence import evidence_of

    data = given.load()
    try:
        _check_logs(given.name, data, logs)
        evidence = evidence_of(data, at, policy, logs)
        return Verified(given.name, evidence, Attestation.decode(data).record)
    except (Rejected, MalformedError) as error:
        raise Failure(f"{given.name}: {error}", code=ExitCode.REJECTED, hint=_NEVER) from None
    except (NotChecked, UnsupportedError) as error:
        raise Failure(f"{given.name}: {error}", code=ExitCode.NOT_CHECKED, hint=_NEVER) from None
    except PolicyError as error:
        raise Failure(str(error), code=ExitCode.USAGE) from None


_NEVER: Final = (
    "evidence that does not verify shows nothing; `attest verify --explain` goes through every step"
)


def _check_logs(name: str, data: bytes, logs: dict[bytes, bytes]) -> None:
    """Say which log is missing, where an attestation names one that was not given."""
    for log, value in Attestation.decode(data).boot_logs.items():
        if len(value) == DIGEST_BYTES and value not in logs:
            raise Failure(
                f"{name}: its boot log {log[:64]} ({value.hex()}) is not there",
                code=ExitCode.NOT_CHECKED,
                hint=_LOGS_HINT,
            )


def _beside(places: Iterable[Path]) -> Iterator[Path]:
    """Yield the archives among some places: they have the logs of the attestations in them."""
    for place in places:
        if place.is_file() and place.stat().st_size >= DIGEST_BYTES and _is_tar(place):
            yield place


def _is_tar(place: Path) -> bool:
    with place.open("rb") as file:
        return file.read(262)[257:] == b"ustar"


def _logs(places: Iterable[Path]) -> Iterator[bytes]:
    for place in places:
        if place.is_dir():
            for file in sorted(one for one in place.rglob("*") if one.is_file()):
                if file.stat().st_size <= MAX_NAMED_BOOT_LOG:
                    yield _read(file)
        elif _is_tar(place):
            from quotary_cli.sources.archive import ArchiveSource
            from quotary_cli.sources.paths import Part

            with ArchiveSource.open(place) as archive:
                for path in archive.paths(Part.BLOB.folder):
                    yield archive.read(path, MAX_NAMED_BOOT_LOG)
        else:
            yield _read(place)


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_NAMED_BOOT_LOG + 1)
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}".lower(), code=ExitCode.USAGE) from None


def _with_progress(given: list[Given], quiet: bool) -> Iterator[Given]:
    if len(given) < _MANY or quiet or not sys.stderr.isatty():
        yield from given
        return
    with click.progressbar(given, label="verifying", file=sys.stderr) as bar:
        yield from bar
