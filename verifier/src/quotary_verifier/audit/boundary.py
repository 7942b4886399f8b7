# SPDX-License-Identifier: Apache-2.0
"""Closing a boot: its logs are replayed, and the policy is applied to each of its periods."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from quotary_verifier.audit.appraise import COULD_NOT, FAIL, Appraised, Appraiser
from quotary_verifier.audit.bootlogs import ReplayedLogs, replay_logs
from quotary_verifier.audit.boots import OpenBoot, OpenPeriod
from quotary_verifier.audit.findings import Code, Place, Severity
from quotary_verifier.audit.reading import Absent, Blobs
from quotary_verifier.audit.report import AuditedBoot, Period, Span
from quotary_verifier.audit.sink import Sink
from quotary_verifier.audit.witnessing import WitnessFold
from quotary_verifier.audit.workloads import Workloads
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs.workload import WorkloadLog
from quotary_verifier.policy.findings import shown
from quotary_verifier.wire.frozen import frozen

_NAMED: Final = 3
_SEVERITIES = {FAIL: Severity.POLICY, COULD_NOT: Severity.COULD_NOT}


@frozen
class ClosedBoot:
    """Boots with the same registers and logs, and their periods, as they stand in the report."""

    boots: tuple[AuditedBoot, ...]
    periods: tuple[Period, ...]


class BootCloser:
    """Closes the boots of one origin under one policy."""

    def __init__(self, appraiser: Appraiser, blobs: Blobs, workloads: Workloads, own: frozenset[int]) -> None:
        self._appraiser = appraiser
        self._blobs = blobs
        self._workloads = workloads
        self._own = own

    def close(self, boots: list[OpenBoot], witnesses: WitnessFold, sink: Sink) -> ClosedBoot:
        """Judge boots whose commits are all there: one, or several with nothing but sleep between them."""
        quoted = {period.ima for boot in boots for period in boot.periods}
        logs = replay_logs(boots[-1], self._blobs, self._own, quoted)
        sink.extend(logs.findings)
        periods = [self._periods(boot, logs, witnesses, sink) for boot in boots]
        self._between([(boot.number, period) for boot in boots for period in boot.periods], sink)
        return ClosedBoot(
            tuple(_boot(boot, logs) for boot in boots), tuple(period for part in periods for period in part)
        )

    def _periods(
        self, boot: OpenBoot, logs: ReplayedLogs, witnesses: WitnessFold, sink: Sink
    ) -> list[Period]:
        if boot.cut:
            message = (
                "this boot has more periods or boot log prefixes than are told apart: not all are checked"
            )
            sink.tell(Code.PLATFORM, Severity.COULD_NOT, Place(boot=boot.number), message)
        periods: list[Period] = []
        if not boot.safe:
            message = "the TPM says that its clock may have gone back before this boot, as after a power cut"
            sink.tell(Code.UNSAFE_CLOCK, Severity.NOTICE, Place(boot=boot.number), message)
        for period in boot.periods:
            seen = witnesses.covering(period.stretch.first_commit)
            log = self._workload(period)
            appraised = self._appraiser.appraise(period, log, logs, seen)
            made = _period(boot, period, appraised)
            if periods and _merges(periods[-1], made):
                periods[-1] = replace(periods[-1], span=_joined(periods[-1], made))
                continue
            periods.append(made)
            self._tell(boot, period, appraised, sink)
        return periods

    def _workload(self, period: OpenPeriod) -> WorkloadLog | None:
        """Return the log of a period; where it cannot be had, its commits were reported."""
        try:
            return self._workloads.get(period.workload)
        except (Absent, MalformedError, EvidenceError, UnsupportedError):
            return None

    def _between(self, periods: list[tuple[int, OpenPeriod]], sink: Sink) -> None:
        """Tell of models that were listed in a boot only while nothing was committed."""
        reached, known = -1, set[str]()
        for boot, period in periods:
            log = self._workload(period)
            if log is None or log.epoch == reached:
                continue
            known.update(self._workloads.models(period.workload, log.epoch, log.epoch))
            passed = self._workloads.models(period.workload, reached + 1, log.epoch - 1)
            if others := [shown(name) for name in passed if name not in known]:
                names = f"{', '.join(others[:_NAMED])}{' and others' if len(others) > _NAMED else ''}"
                message = f"between two commits models were in force that no commit tells of: {names}"
                stretch = period.stretch
                where = Place(commit=stretch.first_commit, leaf=stretch.first_leaf, boot=boot)
                sink.tell(Code.EPOCHS, Severity.GAP, where, message)
            reached = log.epoch

    def _tell(self, boot: OpenBoot, period: OpenPeriod, appraised: Appraised, sink: Sink) -> None:
        stretch = period.stretch
        where = Place(commit=stretch.first_commit, leaf=stretch.first_leaf, boot=boot.number)
        for item in appraised.judged:
            severity = _SEVERITIES.get(item.severity, Severity.NOTICE)
            message = f"commits {stretch.first_commit} to {stretch.last_commit}: {item.message}"
            sink.tell(item.code, severity, where, message)


def _boot(boot: OpenBoot, logs: ReplayedLogs) -> AuditedBoot:
    return AuditedBoot(
        boot.number,
        boot.reset_count,
        boot.restart_count,
        boot.stretch.span(boot.clock, boot.time_ms),
        boot.chain,
        boot.safe,
        f"{boot.firmware_version:016x}",
        logs.logs,
    )


def _period(boot: OpenBoot, period: OpenPeriod, appraised: Appraised) -> Period:
    return Period(
        boot.number,
        period.stretch.span(boot.clock, boot.time_ms),
        appraised.status,
        tuple((item.rule, str(item.severity), item.message) for item in appraised.judged),
        appraised.reference,
        tuple((pcr, value.hex()) for pcr, value in sorted(period.pcrs.items())),
        appraised.software,
        appraised.endorsed_by,
        appraised.epoch,
        appraised.engine,
        appraised.models,
        appraised.tolerances,
    )


def _merges(one: Period, other: Period) -> bool:
    """Tell whether two periods say the same, so that one can stand for both."""
    return replace(one, span=other.span) == other


def _joined(one: Period, other: Period) -> Span:
    clocks = times = None
    if one.span.clock and other.span.clock:
        clocks = (one.span.clock[0], other.span.clock[1])
    if one.span.time_ms and other.span.time_ms:
        times = (one.span.time_ms[0], other.span.time_ms[1])
    return replace(
        one.span, last_commit=other.span.last_commit, size=other.span.size, clock=clocks, time_ms=times
    )
