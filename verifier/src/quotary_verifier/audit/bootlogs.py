# SPDX-License-Identifier: Apache-2.0
"""The boot logs of one boot: fetched once, replayed once, and every prefix that a commit named held against it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from quotary_verifier.audit.boots import OpenBoot, OpenLog
from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.audit.reading import Absent, Blobs, blob_path
from quotary_verifier.audit.report import AuditedBootLog
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs.ima import IMA_PCR, ReplayedIma, parse_ima_binary
from quotary_verifier.logs.tcg import BOOT_REGISTERS, ReplayedLog, parse_tcg_log
from quotary_verifier.wire.attestation import BOOT_LOG_FIRMWARE, BOOT_LOG_IMA
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_NAMED_BOOT_LOG

_VIOLATION: Final = b"\xff" * 32
_SHOWN: Final = 64
REPLAYED, NOT_REPLAYED, MISSING, UNKNOWN = "replayed", "not-replayed", "missing", "unknown"


@frozen
class ReplayedLogs:
    """The logs of a boot that replayed, what is to be said of each that was named, and what is wrong with them.

    `booted` are the values that the firmware's log explains, `ran` those of the wanted values of IMA's PCR to which
    its log leads.
    """

    firmware: ReplayedLog | None
    ima: ReplayedIma | None
    logs: tuple[AuditedBootLog, ...]
    findings: tuple[Finding, ...]
    booted: Mapping[int, bytes]
    ran: frozenset[bytes]

    def of(self, pcrs: Mapping[int, bytes]) -> tuple[ReplayedLog | None, ReplayedIma | None, dict[str, str]]:
        """Return the logs that explain what was quoted in a period, and why one does not, by its name.

        Commits need not name logs, and a host that was reset can look like one that slept: so a log that replays to the
        quotes of the commits that name it says nothing of another commit until its values are those of the log too.
        """
        missing = {item.name: item.said for item in self.logs if item.state != REPLAYED}
        firmware, ima = self.firmware, self.ima
        wrong = [pcr for pcr, value in sorted(self.booted.items()) if pcrs.get(pcr) != value]
        if firmware is not None and wrong:
            firmware = None
            missing[BOOT_LOG_FIRMWARE] = (
                f"the one of this boot does not lead to PCR {wrong[0]} as it was quoted then"
            )
        if ima is not None and pcrs.get(IMA_PCR) not in self.ran:
            ima = None
            missing[BOOT_LOG_IMA] = (
                f"the one of this boot does not lead to PCR {IMA_PCR} as it was quoted then"
            )
        return firmware, ima, missing


def replay_logs(
    boot: OpenBoot, blobs: Blobs, own: frozenset[int], wanted: Collection[bytes] = ()
) -> ReplayedLogs:
    """Replay what the commits of a boot named; `own` are the chain PCR and the workload PCR.

    `wanted` are values of IMA's PCR of which the result says whether its log leads to them.
    """
    ran: set[bytes] = set()
    found: dict[str, ReplayedLog | ReplayedIma] = {}
    logs, findings = [], []
    for name, log in sorted(boot.logs.items()):
        digest, size = log.prefixes[log.longest], log.longest
        where = Place(path=blob_path(digest), boot=boot.number, commit=log.commits[size])
        shown = name[:_SHOWN]
        try:
            found[name], said = _replay(name, log, blobs, own, frozenset(wanted), ran)
            state = REPLAYED
        except Absent as error:
            state, said = MISSING, f"the boot log {shown} is not published: {error}"
            findings.append(Finding(Code.BOOT_LOG, Severity.COULD_NOT, where, said))
        except UnsupportedError as error:
            state, said = UNKNOWN, f"the boot log {shown} could not be read: {error}"
            findings.append(Finding(Code.BOOT_LOG, Severity.NOTICE, where, said))
        except (MalformedError, EvidenceError) as error:
            state, said = NOT_REPLAYED, f"the boot log {shown} does not hold: {error}"
            findings.append(Finding(Code.BOOT_LOG, Severity.FALSE, where, said))
        logs.append(AuditedBootLog(shown, state, digest.hex(), size, said))
    firmware, ima = found.get(BOOT_LOG_FIRMWARE), found.get(BOOT_LOG_IMA)
    booted: dict[int, bytes] = {}
    if isinstance(firmware, ReplayedLog):
        quoted = boot.logs[BOOT_LOG_FIRMWARE].quoted
        exact = BOOT_REGISTERS[firmware.registers] - own
        booted = {pcr: value for pcr, value in quoted.items() if pcr in exact} | dict(firmware.values)
    return ReplayedLogs(
        firmware if isinstance(firmware, ReplayedLog) else None,
        ima if isinstance(ima, ReplayedIma) else None,
        tuple(logs),
        tuple(findings),
        booted,
        frozenset(ran),
    )


def _replay(
    name: str,
    log: OpenLog,
    blobs: Blobs,
    own: frozenset[int],
    wanted: frozenset[bytes],
    ran: set[bytes],
) -> tuple[ReplayedLog | ReplayedIma, str]:
    if name not in (BOOT_LOG_FIRMWARE, BOOT_LOG_IMA):
        raise UnsupportedError("it is of no known name")
    data = blobs.get(log.prefixes[log.longest], MAX_NAMED_BOOT_LOG)
    if len(data) < log.longest:
        raise EvidenceError(f"{log.longest} leading bytes are named, and it has {len(data)} in all")
    data = data[: log.longest]
    _check_prefixes(log.prefixes, data)
    quoted = {pcr: value for pcr, value in log.quoted.items() if pcr not in own}
    if name == BOOT_LOG_FIRMWARE:
        firmware = parse_tcg_log(data).replay(quoted)
        return firmware, f"{len(firmware.events)} events"
    ima = parse_ima_binary(data).replay(quoted)
    if ima.unconfirmed:
        raise EvidenceError(f"its last {ima.unconfirmed} bytes were not measured into PCR {IMA_PCR}")
    ran |= _check_values(data, log.ima, wanted)
    return ima, f"{ima.count} records, {len(ima.violations)} violations, {len(log.prefixes)} prefixes"


def _check_prefixes(prefixes: Mapping[int, bytes], data: bytes) -> None:
    """Hold every prefix that was named against the whole log."""
    running, at = hashlib.sha256(), 0
    for size, digest in sorted(prefixes.items()):
        running.update(data[at:size])
        at = size
        if running.copy().digest() != digest:
            raise EvidenceError(f"its first {size} bytes are not those that a commit of this boot names")


def _check_values(data: bytes, quoted: Mapping[int, bytes], wanted: frozenset[bytes]) -> set[bytes]:
    """Hold the value of IMA's PCR after each prefix against the one that was quoted with it.

    Returns those of the `wanted` values that it has after any record.
    """
    left, met = dict(quoted), set()
    left.pop(0, None)
    for end, value in _values(data):
        if value in wanted:
            met.add(value)
        if left.pop(end, value) != value:
            raise EvidenceError(f"its first {end} bytes do not replay to the PCR {IMA_PCR} quoted with them")
    if left:
        raise EvidenceError(f"its first {min(left)} bytes end within a record")
    return met


def _values(data: bytes) -> Iterator[tuple[int, bytes]]:
    value = ZERO
    for record, end in parse_ima_binary(data).read():
        if record.pcr == IMA_PCR:
            digest = _VIOLATION if record.violation else hashlib.sha256(record.data).digest()
            value = hashlib.sha256(value + digest).digest()
        yield end, value
