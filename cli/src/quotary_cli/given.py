# SPDX-License-Identifier: Apache-2.0
"""Attestations that people hold beside a log: single files, answers that carry one, folders of both, archives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quotary_cli.output import ExitCode, Failure
from quotary_cli.sources.archive import ArchiveSource
from quotary_cli.sources.paths import SUFFIX, Part
from quotary_verifier.errors import MalformedError
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.limits import MAX_ATTESTATION

_TAR = 262
"""Bytes of a file that show whether it is a tar archive."""


@dataclass(frozen=True, slots=True)
class Given:
    """An attestation by its name for people; `load` reads it, and raises Failure where that fails."""

    name: str
    load: Callable[[], bytes]


def given_attestations(places: Iterable[Path], opened: ExitStack | None = None) -> Iterator[Given]:
    """Yield each attestation: a file itself or the one in it, those below a folder, those of an archive.

    Below a folder that is `*.attestation`, and what answers carry in their body; other files are left out.

    Archives are kept open by `opened`; without it what they hold is read at once.

    Raises:
        Failure: a place cannot be read or has none.
    """
    for place in places:
        if place.is_dir():
            yield from _folder(place)
        elif is_archive(place):
            yield from _archive(place, opened)
        else:
            yield Given(str(place), partial(_read, place))


def _folder(folder: Path) -> Iterator[Given]:
    found = False
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.name.endswith(SUFFIX) or _carries(file):
            found = True
            yield Given(str(file), partial(_read, file))
    if not found:
        raise Failure(
            f"{folder}: the folder holds no attestations (*{SUFFIX}, or answers that carry one)",
            code=ExitCode.USAGE,
        )


def _carries(file: Path) -> bool:
    if file.stat().st_size > MAX_ATTESTATION:
        return False
    data = read_most(file)
    return taken_out(data) is not data


def taken_out(data: bytes) -> bytes:
    """Return the attestation that an answer carries in its body, or the bytes themselves where they are none."""
    try:
        embedded = strip(data)[1]
    except MalformedError:
        return data
    return data if embedded is None else embedded


def _archive(place: Path, opened: ExitStack | None) -> Iterator[Given]:
    with ExitStack() as own:
        archive = (own if opened is None else opened).enter_context(ArchiveSource.open(place))
        for path in archive.paths(Part.ATTESTATION.folder):
            load = partial(archive.read, path, MAX_ATTESTATION)
            yield Given(f"{place}:{path}", load if opened is not None else partial(bytes, load()))


def is_archive(place: Path) -> bool:
    """Tell whether a file calls itself a tar archive. Raises Failure where it cannot be read."""
    try:
        with place.open("rb") as file:
            return file.read(_TAR)[257:] == b"ustar"
    except OSError as error:
        raise _unreadable(place, error) from None


def read_most(file: Path) -> bytes:
    """Return a file's bytes, or no more of them than show that it is longer than any attestation."""
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_ATTESTATION + 1)
    except OSError as error:
        raise _unreadable(file, error) from None


def _read(file: Path) -> bytes:
    data = read_most(file)
    if len(data) > MAX_ATTESTATION:
        raise Failure(f"{file}: larger than any attestation", code=ExitCode.USAGE)
    return taken_out(data)


def _unreadable(file: Path, error: OSError) -> Failure:
    return Failure(f"{file}: {(error.strerror or '').lower()}", code=ExitCode.USAGE)
