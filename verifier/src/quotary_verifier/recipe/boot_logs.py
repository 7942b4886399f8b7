# SPDX-License-Identifier: Apache-2.0
"""Step `boot-logs`: the logs that came with an attestation replay to the quoted PCRs (docs/spec/verification.md).

This module is imported only where an attestation carries logs: reading them is most of the verifier's code, and most
attestations carry none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs.ima import ImaRecord, ReplayedIma, parse_ima_binary
from quotary_verifier.logs.ima_fields import check_boot_aggregate, decode
from quotary_verifier.logs.tcg import ReplayedLog, parse_tcg_log
from quotary_verifier.recipe.given_logs import GivenLogs
from quotary_verifier.recipe.platform import BOOT_PCRS
from quotary_verifier.recipe.run import Run
from quotary_verifier.recipe.steps import Step
from quotary_verifier.wire.attestation import BOOT_LOG_FIRMWARE, BOOT_LOG_IMA, DIGEST_BYTES
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.records import TpmIdentity

T = TypeVar("T")

_FIRMWARE = range(8)
_AGGREGATE = range(8, 10)
_SHOWN = 64
"""Characters of an unknown name that are repeated."""


@frozen
class BootLogs:
    """The logs that replayed, None for each that did not come or could not be checked; `findings` say so in words."""

    firmware: ReplayedLog | None
    ima: ReplayedIma | None
    findings: tuple[tuple[str, str], ...]


def judge_boot_logs(
    run: Run, logs: Mapping[str, bytes], given: GivenLogs, identity: TpmIdentity, pcrs: Mapping[int, bytes]
) -> BootLogs | None:
    """Do the step with the sixteen quoted values; None where a log is of an unknown version.

    `logs` are those of the attestation, `given` has the bytes of what it names by a digest.

    Raises:
        Stopped: a log is malformed or does not replay.
    """
    moving = {identity.chain_pcr, identity.workload_pcr}
    quoted = {pcr: value for pcr, value in pcrs.items() if pcr not in moving}
    reading = _Reading(run, logs, given, quoted)
    try:
        firmware = reading.firmware()
        ima = reading.ima(firmware)
    except (MalformedError, EvidenceError) as error:
        run.fail(Step.BOOT_LOGS, str(error))
    except UnsupportedError as error:
        run.skip(Step.BOOT_LOGS, f"not checked: {error}")
        return None
    reading.close()
    return BootLogs(firmware, ima, tuple(reading.replayed))


class _Reading:
    """Reads one log after the other, and keeps what is to be said of them."""

    __slots__ = ("_given", "_left", "_logs", "_quoted", "_run", "replayed")

    def __init__(
        self, run: Run, logs: Mapping[str, bytes], given: GivenLogs, quoted: Mapping[int, bytes]
    ) -> None:
        self._run, self._logs, self._given, self._quoted = run, logs, given, quoted
        self._left: list[str] = []
        self.replayed: list[tuple[str, str]] = []

    def firmware(self) -> ReplayedLog | None:
        """Replay the firmware's event log."""
        data = self._bytes(BOOT_LOG_FIRMWARE)
        if data is None:
            return None
        log = self._replay(BOOT_LOG_FIRMWARE, lambda: replay_firmware(data, self._quoted))
        self.replayed.append((BOOT_LOG_FIRMWARE, f"{len(log.events)} events, {_pcrs(log.values)}"))
        if log.unconfirmed:
            self._run.notices.append(
                f"boot log {BOOT_LOG_FIRMWARE}: {_pcrs(log.unconfirmed)} holds something else than the log says,"
                " and its events are not considered"
            )
        return log

    def ima(self, firmware: ReplayedLog | None) -> ReplayedIma | None:
        """Replay the IMA log to the prefix that fits, and hold its boot aggregate against the boot PCRs."""
        data = self._bytes(BOOT_LOG_IMA)
        if data is None:
            return None
        log = self._replay(BOOT_LOG_IMA, lambda: parse_ima_binary(data).replay(self._quoted))
        said = [f"{log.count} records, {_pcrs(log.values)}"]
        if log.violations:
            said.append(f"{len(log.violations)} violations")
        if log.unconfirmed:
            said.append(f"{log.unconfirmed} later bytes not considered")
        first = next(log.records(), None)
        if first is not None:
            said.append(check_aggregate(first, self._quoted, firmware))
        self.replayed.append((BOOT_LOG_IMA, ", ".join(said)))
        return log

    def close(self) -> None:
        """Say what came of the step: it passed only if every log that came was replayed."""
        for name in sorted(self._logs.keys() - {BOOT_LOG_FIRMWARE, BOOT_LOG_IMA}):
            self._run.not_understood.append(f"boot log: {name[:_SHOWN]}")
            self._left.append(f"{name[:_SHOWN]} is of no known name")
        said = "; ".join([f"{name}: {what}" for name, what in self.replayed] + self._left)
        if self._left:
            self._run.skip(Step.BOOT_LOGS, said)
        else:
            self._run.passed(Step.BOOT_LOGS, said)

    def _bytes(self, name: str) -> bytes | None:
        """Return a log's bytes; None where the attestation has none of this name, or only a digest of what nobody
        gave."""
        value = self._logs.get(name)
        if value is None or len(value) != DIGEST_BYTES:
            return value
        data = self._given.find(value)
        if data is None:
            self._left.append(f"{name} is given by its digest only")
        return data

    def _replay(self, name: str, replay: Callable[[], T]) -> T:
        return self._given.replayed(name, self._logs[name], self._quoted, replay)


def replay_firmware(data: bytes, quoted: Mapping[int, bytes]) -> ReplayedLog:
    """Replay the firmware's event log as the step does.

    Raises:
        MalformedError: it is none.
        EvidenceError: it does not replay, or no firmware measured this boot.
        UnsupportedError: it is of an unknown version.
    """
    log = parse_tcg_log(data).replay(quoted)
    for pcr in BOOT_PCRS:
        if quoted.get(pcr) == ZERO:
            raise EvidenceError(
                f"PCR {pcr} is zero, so no firmware measured this boot, and yet there is a log"
            )
    return log


def check_aggregate(first: ImaRecord, quoted: Mapping[int, bytes], firmware: ReplayedLog | None) -> str:
    """Say how far the boot aggregate was checked; raises EvidenceError where it is of other boot PCRs.

    PCR 8 and 9 may have moved since the kernel read them. What they were, the firmware's log says: only where it was
    replayed does an aggregate that fits nothing show that it is foreign.
    """
    then = dict.fromkeys(_AGGREGATE, ZERO) | {pcr: quoted[pcr] for pcr in _FIRMWARE if pcr in quoted}
    if firmware is not None:
        then |= {pcr: value for pcr, value in firmware.values.items() if pcr in _AGGREGATE}
    if not then.keys() >= set(_FIRMWARE):
        return "its boot aggregate is not checked: it is over a PCR that each commit extends"
    try:
        last = check_boot_aggregate(decode(first.template, first.data), then)
    except UnsupportedError as error:
        return f"its boot aggregate is not checked: {error}"
    except EvidenceError:
        if firmware is None or not set(_AGGREGATE).isdisjoint(firmware.unconfirmed):
            return "its boot aggregate is not checked: no log says what PCR 8 and 9 were at boot"
        raise
    return f"its boot aggregate is of PCR 0-{last}"


def _pcrs(numbers: Mapping[int, bytes] | tuple[int, ...]) -> str:
    """Return PCR numbers as a short list of ranges."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "PCR " + ", ".join([str(low) if low == high else f"{low}-{high}" for low, high in runs])
