# SPDX-License-Identifier: Apache-2.0
"""Attestations as evidence of a boot: read from files, folders and archives with their boot logs, and verified."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import click

from quotary_cli.bootlogs import BootLogFiles
from quotary_cli.given import Given, given_attestations, is_archive
from quotary_cli.output import ExitCode, Failure
from quotary_cli.render import HINTS, NO_TPM
from quotary_verifier import NotChecked, Policy, PolicyError, Rejected, Step
from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.policy.findings import PlatformEvidence
from quotary_verifier.wire.attestation import DIGEST_BYTES, Attestation

_MANY: Final = 2
_LOGS_HINT: Final = (
    "name the folder or archive that has the logs with --with-logs; folders within a folder are not searched"
)

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

    @property
    def boot(self) -> tuple[str, int, int]:
        """The boot that it is of: origin and counts."""
        clock = self.evidence.clock
        return self.evidence.origin, clock.reset_count, clock.restart_count


def read_evidence(
    places: Sequence[Path],
    log_places: Sequence[Path],
    policy: Policy,
    at: int,
    *,
    quiet: bool,
    choose: Callable[[Iterable[Given]], list[Given]] = list,
    hints: Mapping[Step, str] = MappingProxyType({}),
) -> list[Verified]:
    """Read and verify attestations; `policy` says whom to trust, and its rules on platforms are not asked.

    `choose` says which of them; by default all. `hints` says what to do where a step does not pass.

    Raises:
        Failure: one of them is false (1) or could not be checked (3).
    """
    logs = BootLogFiles([*log_places, *(place for place in places if _is_archive(place))])
    with ExitStack() as opened:
        opened.callback(logs.close)
        given = choose(given_attestations(places, opened))
        return [_verify(one, policy, at, logs, hints) for one in _with_progress(given, quiet)]


def _verify(
    given: Given, policy: Policy, at: int, files: BootLogFiles, hints: Mapping[Step, str]
) -> Verified:
    from quotary_verifier.recipe.evidence import evidence_of

    data = given.load()
    logs = files.for_attestation(data)
    try:
        parsed = Attestation.decode(data)
        evidence = evidence_of(data, at, policy, logs)
    except (Rejected, MalformedError) as error:
        hint = _hint(error, hints)
        raise Failure(f"{given.name}: {error}", code=ExitCode.REJECTED, hint=hint) from None
    except (NotChecked, UnsupportedError) as error:
        hint = _hint(error, hints)
        raise Failure(f"{given.name}: {error}", code=ExitCode.NOT_CHECKED, hint=hint) from None
    except PolicyError as error:
        raise Failure(str(error), code=ExitCode.USAGE) from None
    for name, value in parsed.boot_logs.items():
        if len(value) == DIGEST_BYTES and value not in logs:
            why = f"{given.name}: its boot log {name[:64]} ({value.hex()}) is not there"
            raise Failure(why, code=ExitCode.NOT_CHECKED, hint=_LOGS_HINT)
    return Verified(given.name, evidence, parsed.record)


_NEVER: Final = (
    "evidence that does not verify shows nothing; `attest verify --explain` goes through every step"
)


_ALONE: Final = (
    "nothing was booted into pcrs: `attest verify` and `attest audit` apply [tee] to what was launched "
    "(docs/howto/tee.md)"
)


def _hint(error: Exception, hints: Mapping[Step, str]) -> str:
    """Return what to do about the step that did not pass; else that nothing can be made of such evidence."""
    step = error.report.failing if isinstance(error, Rejected | NotChecked) else None
    if step is Step.QUOTE_PCRS and NO_TPM in str(error):
        return _ALONE
    return _NEVER if step is None else hints.get(step) or HINTS.get(step, _NEVER)


def _is_archive(place: Path) -> bool:
    return place.is_file() and is_archive(place)


def _with_progress(given: list[Given], quiet: bool) -> Iterator[Given]:
    if len(given) < _MANY or quiet or not sys.stderr.isatty():
        yield from given
        return
    with click.progressbar(given, label="verifying", file=sys.stderr) as bar:
        yield from bar
