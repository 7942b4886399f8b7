# SPDX-License-Identifier: Apache-2.0
"""Boots on their way through the history: their quotes, their periods, and the boot logs that their commits name."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from quotary_verifier.audit.commits import CheckedCommit, Quoted
from quotary_verifier.audit.report import Span
from quotary_verifier.logs.ima import IMA_PCR
from quotary_verifier.wire.attestation import BOOT_LOG_IMA
from quotary_verifier.wire.bindings import ZERO

MAX_PERIODS: Final = 4096
"""Periods of one boot that are told apart."""

MAX_PREFIXES: Final = 65_536
"""Prefixes of one boot log that are checked."""


@dataclass(slots=True)
class Stretch:
    """Commits and leaves that belong together, as they come; clocks are milliseconds of the TPM."""

    first_commit: int
    first_leaf: int
    last_commit: int = -1
    size: int = 0
    first_clock: int | None = None
    last_clock: int | None = None

    def add(self, commit: CheckedCommit) -> None:
        """Take the next commit."""
        self.last_commit, self.size = commit.number, commit.size
        if commit.quoted is not None:
            clock = commit.quoted.attest.clock.clock
            self.first_clock = clock if self.first_clock is None else self.first_clock
            self.last_clock = clock

    def span(self, clock: int | None, time_ms: int | None) -> Span:
        """Return it as it stands in the report; at TPM clock `clock` of this boot a start said `time_ms`."""
        clocks = times = None
        if self.first_clock is not None and self.last_clock is not None:
            clocks = (self.first_clock, self.last_clock)
            if clock is not None and time_ms is not None:
                times = (time_ms + clocks[0] - clock, time_ms + clocks[1] - clock)
        return Span(self.first_commit, self.last_commit, self.first_leaf, self.size, clocks, times)


@dataclass(slots=True)
class OpenPeriod:
    """A stretch of one boot with the same quoted values, workload log and certificates."""

    stretch: Stretch
    attest: bytes
    pcrs: dict[int, bytes]
    workload: tuple[bytes, int] | None
    certificates: tuple[bytes, ...]
    safe: bool
    ima: bytes = ZERO

    def same(self, commit: CheckedCommit, quoted: Quoted, pcrs: dict[int, bytes]) -> bool:
        """Tell whether a commit belongs to it."""
        return (
            self.workload == commit.workload
            and self.pcrs == pcrs
            and self.certificates == commit.certificates
            and self.safe == quoted.attest.clock.safe
        )


@dataclass(slots=True)
class OpenLog:
    """A boot log of one boot: the prefixes named so far, by their lengths, with IMA's PCR as it was quoted with each.

    `commits` are those that named them first, `quoted` the values quoted with the longest.
    """

    prefixes: dict[int, bytes] = field(default_factory=dict)
    ima: dict[int, bytes] = field(default_factory=dict)
    commits: dict[int, int] = field(default_factory=dict)
    quoted: dict[int, bytes] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """The length of the longest prefix."""
        return max(self.prefixes)

    def forget(self, size: int) -> None:
        """Let go of a prefix."""
        for kept in (self.prefixes, self.ima, self.commits):
            kept.pop(size, None)


@dataclass(slots=True)
class OpenBoot:
    """The boot that the history is in. `clock` and `time_ms` are those of the last start in it."""

    number: int
    reset_count: int
    restart_count: int
    chain: str
    firmware_version: int
    stretch: Stretch
    safe: bool = True
    clock: int | None = None
    time_ms: int | None = None
    periods: list[OpenPeriod] = field(default_factory=list)
    logs: dict[str, OpenLog] = field(default_factory=dict)
    quoted: dict[int, bytes] = field(default_factory=dict)
    cut: bool = False

    def add(self, commit: CheckedCommit, moving: frozenset[int]) -> str:
        """Take a commit of this boot whose quote holds; returns what is contradictory in it, empty if nothing is.

        `moving` are the PCRs that move by themselves: chain and workload PCR, and IMA's unless the policy fixes it.
        """
        self.stretch.add(commit)
        quoted = commit.quoted
        if quoted is None:
            return ""
        self.safe &= quoted.attest.clock.safe
        if quoted.pcrs is None:
            return ""
        self.quoted = dict(quoted.pcrs)
        pcrs = {pcr: value for pcr, value in quoted.pcrs.items() if pcr not in moving and any(value)}
        if self.periods and (self.periods[-1].same(commit, quoted, pcrs) or len(self.periods) >= MAX_PERIODS):
            self.cut |= not self.periods[-1].same(commit, quoted, pcrs)
        else:
            stretch = Stretch(commit.number, commit.first)
            self.periods.append(
                OpenPeriod(
                    stretch,
                    quoted.attest.raw,
                    pcrs,
                    commit.workload,
                    commit.certificates,
                    quoted.attest.clock.safe,
                )
            )
        self.periods[-1].stretch.add(commit)
        self.periods[-1].ima = quoted.pcrs[IMA_PCR]
        return self._logs(commit, dict(quoted.pcrs))

    def _logs(self, commit: CheckedCommit, pcrs: dict[int, bytes]) -> str:
        for name, (digest, size) in commit.boot_logs.items():
            log = self.logs.setdefault(name, OpenLog())
            if size < next(
                reversed(log.prefixes), 0
            ):  # the longest, as none that is shorter is kept behind it
                return f"the boot log {name[:64]} shrank within the boot"
            if log.prefixes.setdefault(size, digest) != digest:
                return f"two digests are named for the first {size} bytes of the boot log {name[:64]}"
            log.commits.setdefault(size, commit.number)
            if name == BOOT_LOG_IMA and log.ima.setdefault(size, pcrs[IMA_PCR]) != pcrs[IMA_PCR]:
                return f"PCR {IMA_PCR} moved, and the boot log {name[:64]} that is named did not"
            log.quoted = pcrs
            if len(log.prefixes) > MAX_PREFIXES:  # the longest is kept, and one before it is not checked
                log.forget(next(islice(reversed(log.prefixes), 1, None)))
                self.cut = True
        return ""
