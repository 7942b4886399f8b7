# SPDX-License-Identifier: Apache-2.0
"""Questions to audited histories: in which commits did a host boot this, run that, serve those models, and when.

An answer is made of what an audit authenticated; `docs/howto/questions.md` says what each condition rests on. Times
are the host's clock: the time that a start stated, and the TPM's milliseconds since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from quotary_cli.auditview.facts import Stretch, stretches
from quotary_cli.auditworkers import reading
from quotary_cli.logsource import LogSource
from quotary_cli.sources.paths import MAX_BLOB
from quotary_verifier.audit.again import commits_again
from quotary_verifier.audit.reading import Absent, Blobs
from quotary_verifier.audit.report import AuditedBoot, AuditReport, Period, Span
from quotary_verifier.errors import EvidenceError
from quotary_verifier.logs.ima import IMA_PCR, parse_ima_binary
from quotary_verifier.logs.ima_fields import decode
from quotary_verifier.logs.tcg import parse_tcg_log
from quotary_verifier.recipe.platform import Host, TeeHost
from quotary_verifier.tlog.checkpoint import parse_checkpoint
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, hardware_lines
from quotary_verifier.tlog.note import Note, parse_note
from quotary_verifier.wire.attestation import BOOT_LOG_FIRMWARE, BOOT_LOG_IMA
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.history import COMMITS_PER_FILE, Commit
from quotary_verifier.wire.tpm import parse_attest, unpack_evidence

_REPLAYED = "replayed"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked; every condition that is given must hold, and of one condition's values any.

    `pcrs` maps a PCR to values in hexadecimal, `measured` are digests of what booted or ran, `between` milliseconds.
    """

    pcrs: Mapping[int, frozenset[str]] = field(default_factory=dict)
    measured: frozenset[bytes] = frozenset()
    models: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()
    engines: frozenset[str] = frozenset()
    statuses: frozenset[str] = frozenset()
    between: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A stretch of a history that fits: all conditions hold of commits `first` to `last`, which added these leaves."""

    stretch: Stretch
    first: int
    last: int
    leaves: tuple[int, int]
    time_ms: tuple[int, int] | None

    def as_json(self) -> dict[str, Any]:
        """Return the object as it stands in an answer."""
        first = self.stretch.first
        return {
            "boot": self.stretch.boot,
            "commits": [self.first, self.last],
            "leaves": list(self.leaves),
            "host_time_ms": None if self.time_ms is None else list(self.time_ms),
            "status": self.stretch.status,
            "reference": first.reference,
            "models": [model.as_json() for model in self.stretch.models],
            "findings": [list(item) for item in first.findings],
        }


def answers(
    question: Question, report: AuditReport, source: LogSource, host: Host | TeeHost
) -> Iterator[Answer]:
    """Yield, in order, the stretches of an audited history that fit. `source` is where the audit of `host` read.

    Raises as `LogSource.read`, and MalformedError, EvidenceError where the source now gives something else.
    """
    ran = _Measured(question.measured, report, source)
    for stretch in stretches([period for period in report.periods if _fits(question, period)]):
        if ran.in_boot(stretch.boot):
            cut = _within(question.between, stretch, report, source, host)
            if cut is not None:
                yield cut


def unlogged(question: Question, report: AuditReport) -> tuple[int, ...]:
    """Return the boots of which no log replays, where something measured is asked for: nobody knows what ran there."""
    if not question.measured:
        return ()
    return tuple(boot.number for boot in report.boots if not any(log.state == _REPLAYED for log in boot.logs))


def _fits(question: Question, period: Period) -> bool:
    pcrs = dict(period.pcrs)
    wanted = all(pcrs.get(pcr, ZERO.hex()) in values for pcr, values in question.pcrs.items())
    names, weights = {model.name for model in period.models}, {model.digest for model in period.models}
    return (
        wanted
        and (not question.models or bool(names & question.models))
        and (not question.weights or bool(weights & question.weights))
        and (not question.engines or period.engine in question.engines)
        and (not question.statuses or period.status in question.statuses)
    )


class _Measured:
    """Tells in which boots something with one of some digests was measured, by the logs that the audit replayed."""

    def __init__(self, digests: frozenset[bytes], report: AuditReport, source: LogSource) -> None:
        self._digests, self._report, self._source = digests, report, source
        self._known: dict[int, bool] = {}

    def in_boot(self, number: int) -> bool:
        """Tell whether any of the digests was measured in a boot; true where none was asked for."""
        if not self._digests:
            return True
        if number not in self._known:
            (boot,) = (boot for boot in self._report.boots if boot.number == number)
            self._known[number] = any(digest in self._digests for digest in self._of(boot))
        return self._known[number]

    def _of(self, boot: AuditedBoot) -> Iterator[bytes]:
        readers: dict[str, Callable[[bytes], Iterator[bytes]]] = {
            BOOT_LOG_FIRMWARE: lambda data: self._booted(data, boot.number),
            BOOT_LOG_IMA: _executed,
        }
        for log in boot.logs:
            if log.state == _REPLAYED and log.name in readers:
                try:  # a server may answer a second time with another log than it was audited with
                    data = Blobs(reading(self._source)).get(bytes.fromhex(log.digest), MAX_BLOB)
                except Absent as error:
                    raise EvidenceError(str(error)) from None
                yield from readers[log.name](data[: log.size])

    def _booted(self, data: bytes, number: int) -> Iterator[bytes]:
        period = next(period for period in self._report.periods if period.boot == number)
        quoted = {pcr: bytes.fromhex(value) for pcr, value in period.pcrs}
        for event in parse_tcg_log(data).replay(quoted, required=()).events:
            yield event.digest


def _executed(data: bytes) -> Iterator[bytes]:
    """Yield the digests of files in an IMA log, all of which the audit found to be measured."""
    for record in parse_ima_binary(data).unverified_records_do_not_trust():
        if record.pcr == IMA_PCR and not record.violation:
            digest = decode(record.template, record.data).digest
            if digest is not None:
                yield digest.value


def _within(
    between: tuple[int, int] | None,
    stretch: Stretch,
    report: AuditReport,
    source: LogSource,
    host: Host | TeeHost,
) -> Answer | None:
    """Return the part of a stretch that lies in a time; the commits at its ends are read for their clocks."""
    span = stretch.span
    whole = Answer(stretch, span.first_commit, span.last_commit, (span.first_leaf, span.size), span.time_ms)
    if between is None:
        return whole
    if span.time_ms is None or span.clock is None:
        return None
    if between[0] <= span.time_ms[0] and span.time_ms[1] <= between[1]:
        return whole
    if span.time_ms[1] < between[0] or between[1] < span.time_ms[0]:
        return None
    kept = [item for item in _clocks(span, report, source, host) if between[0] <= item[1] <= between[1]]
    if not kept:
        return None
    return Answer(stretch, kept[0][0], kept[-1][0], (kept[0][2], kept[-1][3]), (kept[0][1], kept[-1][1]))


def _clocks(
    span: Span, report: AuditReport, source: LogSource, host: Host | TeeHost
) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, host's time, first leaf, size) of each commit of a span."""
    assert span.time_ms is not None
    assert span.clock is not None
    for number in range(span.first_commit // COMMITS_PER_FILE, span.last_commit // COMMITS_PER_FILE + 1):
        commits = commits_again(number, report, reading(source))
        for place, item in enumerate(commits, number * COMMITS_PER_FILE):
            if span.first_commit <= place <= span.last_commit:
                commit = Commit.decode(item)
                note = parse_note(commit.note)
                moment = span.time_ms[0] + _clock_of(note, host) - span.clock[0]
                yield place, moment, commit.first, parse_checkpoint(note.text).size


def _clock_of(note: Note, host: Host | TeeHost) -> int:
    assert isinstance(host, Host)  # a span of an origin without a TPM has no clock
    (line,) = hardware_lines(note, host.origin, {IDENTIFIER_TPM2_QUOTE: host.spki})
    return parse_attest(unpack_evidence(line.evidence)[0]).clock.clock
