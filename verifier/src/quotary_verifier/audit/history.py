# SPDX-License-Identifier: Apache-2.0
"""How the commits of a history follow each other (docs/spec/history.md, "What holds in every history").

One object takes commit after commit, each with its tree already hashed, and keeps what the rules need of the one
before: its D, the chain PCR after it, its boot and clock. What it finds goes to a sink, what it learns into boots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from quotary_verifier.audit.boots import OpenBoot, Stretch
from quotary_verifier.audit.commits import CheckedCommit
from quotary_verifier.audit.findings import Code, Place, Severity
from quotary_verifier.audit.reading import Absent, blob_path
from quotary_verifier.audit.report import AuditedStart
from quotary_verifier.audit.sink import Sink
from quotary_verifier.audit.starts import LostStart, StartRecord, Starts, check_place, explains
from quotary_verifier.audit.tees import chained
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tpm_clock import ClockStep, check_clock_step
from quotary_verifier.evidence.tpm_counter import check_counter_step
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.history import COMMITS_PER_FILE
from quotary_verifier.wire.tpm import ClockInfo

RootAt = Callable[[int], bytes | None]
"""Return the root of the tree of so many leaves, of those that the commit at hand added; None where it is not known."""

_FIRMWARE: Final = range(8)
"""PCRs that nothing extends once the kernel runs."""

_FALSE, _NOTICE, _GAP, _COULD_NOT = Severity.FALSE, Severity.NOTICE, Severity.GAP, Severity.COULD_NOT


@dataclass(slots=True)
class Position:
    """Where the history stands: number of commits, size and root, D, chain PCR and clock after the last of them."""

    commits: int = 0
    size: int = 0
    root: bytes = b""
    digest: bytes = ZERO
    chain: bytes = ZERO
    clock: ClockInfo | None = None
    workload: tuple[bytes, int] | None = None
    counter: int | None = None
    since_start: int = 0


@dataclass(slots=True)
class History:
    """The commits so far. `open` is the boot they are in, `asleep` are those that ended in the sleep before it, whose
    registers and boot logs go on in it; `starts` are those of the agent. `files` has for each history file a digest
    over its commits, by which it can be read again."""

    position: Position = field(default_factory=Position)
    starts: list[AuditedStart] = field(default_factory=list)
    open: OpenBoot | None = None
    asleep: list[OpenBoot] = field(default_factory=list)
    boots: int = 0
    files: list[bytes] = field(default_factory=list)


class HistoryFold:
    """Takes the commits of one origin in order."""

    def __init__(self, state: History, starts: Starts, sink: Sink, moving: frozenset[int]) -> None:
        self._begin(state, sink)
        self._starts = starts
        self._moving = moving

    def _begin(self, state: History, sink: Sink) -> None:
        """Take what every history has."""
        self.state = state
        self._sink = sink

    def resets(self, commit: CheckedCommit) -> bool:
        """Tell whether a commit is the first after the registers were set to zero, so that what was open is over."""
        step = self._step(commit)
        return step is not None and not step.same_boot and not self._slept(commit, step)

    def _slept(self, commit: CheckedCommit, step: ClockStep) -> bool:
        return step.resets == 0 and bool(step.restarts) and commit.before == self.state.position.chain

    def add(self, commit: CheckedCommit, entries: Mapping[int, bytes], root_at: RootAt) -> None:
        """Take the next commit; where it begins a boot, the caller has closed the one before."""
        where = Place(commit=commit.number, boot=self.state.open.number if self.state.open else None)
        self._sink.extend(commit.findings)
        step = self._clock(commit, where)
        start = self._start(commit, entries, step)
        self._range(commit, where)
        lost = self._lost(commit, start, entries, root_at)
        began = self._chain(commit, where, step, start is not None, lost)
        self._boot(commit, step, began)
        if start is not None:
            self._started(commit, start, [item.start for item in lost])
        self._advance(commit)

    def _step(self, commit: CheckedCommit) -> ClockStep | None:
        """Return what lies between the boots of two commits; None where one's clock is not known or they fell."""
        before = self.state.position.clock
        if before is None or commit.quoted is None:
            return None
        try:
            return check_clock_step(before, commit.quoted.attest.clock)
        except EvidenceError:
            return None

    def _clock(self, commit: CheckedCommit, where: Place) -> ClockStep | None:
        before = self.state.position.clock
        if before is None or commit.quoted is None:
            return None
        try:
            step = check_clock_step(before, commit.quoted.attest.clock)
        except EvidenceError as error:
            self._sink.tell(Code.CLOCK, _FALSE, where, str(error))
            return None
        if step.resets > 1:
            between = f"{step.resets} resets lie between this commit and the one before"
            message = f"{between}: of the boots in between the history has no commit"
            self._sink.tell(Code.RESETS, _GAP, where, message)
        return step

    def _start(
        self, commit: CheckedCommit, entries: Mapping[int, bytes], step: ClockStep | None
    ) -> StartRecord | None:
        """Return the boot record of a commit that is, or may be, that of a start; None if it is not."""
        position = self.state.position
        moved = step is not None and not step.same_boot and not self._slept(commit, step)
        broken = commit.before not in (position.chain, ZERO)
        due = not position.commits or commit.first > position.size or moved or broken
        if position.commits and not moved and commit.workload == position.workload:
            self._no_start(commit)  # every start begins a new epoch
            return None
        where = Place(commit=commit.number, leaf=commit.first)
        entry = entries.get(commit.first)
        if entry is None:
            if due:
                self._sink.tell(Code.START, _COULD_NOT, where, "the entry of a boot record is not known")
            return None
        where = Place(blob_path(entry), commit.number, commit.first)
        try:
            start = self._starts.read(commit.first, entry, position.digest)
            clock = None if commit.quoted is None else commit.quoted.attest.clock
            check_place(start, commit.before, clock, position.clock)
        except Absent as error:
            if due:  # else it is a new epoch, and no start
                message = f"the boot record of a start is not published: {error}"
                self._sink.tell(Code.START, _COULD_NOT, where, message)
            return None
        except UnsupportedError as error:
            self._sink.tell(Code.START, _COULD_NOT, where, str(error))
            return None
        except MalformedError as error:
            if due:
                self._sink.tell(
                    Code.START, _FALSE, where, f"leaf {commit.first} is not a boot record: {error}"
                )
            return None
        except EvidenceError as error:
            self._sink.tell(Code.START, _FALSE, where, str(error))
            return None
        return start

    def _no_start(self, commit: CheckedCommit) -> None:
        """Judge the range of a commit that cannot be that of a start: it goes on where the one before ended."""
        size = self.state.position.size
        if commit.first > size:
            message = (
                f"leaves {size} to {commit.first - 1} belong to no commit, and no start begins here:"
                f" a commit between {commit.number - 1} and {commit.number} is missing"
            )
            where = Place(commit=commit.number, leaf=commit.first)
            self._sink.tell(Code.RANGE, _FALSE, where, message)

    def _range(self, commit: CheckedCommit, where: Place) -> None:
        size = self.state.position.size
        if commit.size <= size:
            self._sink.tell(
                Code.RANGE, _FALSE, where, f"the tree has {commit.size} leaves, and had {size} before"
            )
        elif not size <= commit.first < commit.size:
            self._sink.tell(
                Code.RANGE,
                _FALSE,
                where,
                f"the commit claims from leaf {commit.first}, and the one before it ended at {size}",
            )

    def _lost(
        self,
        commit: CheckedCommit,
        start: StartRecord | None,
        entries: Mapping[int, bytes],
        root_at: RootAt,
    ) -> list[LostStart]:
        """Return the starts between the commit before and this one whose own commits are not in the history."""
        position = self.state.position
        if start is None or commit.first <= position.size:
            return []
        found = []
        for record in self._starts.lost(position.size, commit.first, position.digest, entries):
            root = root_at(record.leaf + 1)
            if root is not None:
                found.append(self._starts.lost_commit(record, root))
        return found

    def _chain(
        self,
        commit: CheckedCommit,
        where: Place,
        step: ClockStep | None,
        started: bool,
        lost: list[LostStart],
    ) -> str:
        """Hold the chain PCR before a commit against what the one before left; return how it began here."""
        position, before = self.state.position, commit.before
        same_boot = step is not None and step.same_boot
        if before == position.chain and position.commits and not (step is not None and step.resets):
            if step is not None and step.restarts:
                self._sleep(commit, where)
            return "continued"
        if before == ZERO:
            if position.commits and same_boot:
                message = "the chain PCR began again at zero within a boot, which only a reboot can do"
                self._sink.tell(Code.CHAIN, _FALSE, where, message)
                return "gap"
            return "zero"
        if lost and explains(lost, position.chain, before):
            message = (
                "the agent died between extend and history; the boot record that it left explains the chain"
            )
            self._sink.tell(Code.LOST_COMMIT, _NOTICE, where, message)
            return "explained"
        found = (
            f"the chain PCR was {before.hex()} before the commit; the one before left {position.chain.hex()}"
            if before != position.chain
            else "the TPM was reset since the last quote that holds, and the chain PCR does not begin at zero"
        )
        if started or (step is not None and not step.same_boot) or not position.commits:
            message = f"{found}: what was extended in between, no commit tells"
            self._sink.tell(Code.CHAIN_GAP, _GAP, where, message)
        else:
            self._sink.tell(
                Code.CHAIN, _FALSE, where, f"{found}, and no start of the agent lies between them"
            )
        return "gap"

    def _sleep(self, commit: CheckedCommit, where: Place) -> None:
        """Tell of a sleep, which changes no register: a reset behind TPM2_Shutdown(STATE) is counted alike."""
        boot, quoted = self.state.open, commit.quoted
        moved: list[int] = []
        if boot is not None and boot.quoted and quoted is not None and quoted.pcrs is not None:
            moved = [pcr for pcr in _FIRMWARE if quoted.pcrs[pcr] != boot.quoted[pcr]]
        if moved:
            kept = f"the restart count rose, and the chain goes on as after sleep; PCR {moved[0]} is another"
            self._sink.tell(Code.SLEEP, _GAP, where, f"{kept}: the host may have booted anew")
        else:
            message = "the host slept: its restart count rose, and the chain goes on"
            self._sink.tell(Code.SLEEP, _NOTICE, where, message)

    def _boot(self, commit: CheckedCommit, step: ClockStep | None, began: str) -> None:
        """Take the commit into its boot, which may be a new one."""
        if commit.quoted is None:
            if self.state.open is not None:
                self.state.open.stretch.add(commit)
            return
        clock = commit.quoted.attest.clock
        boot = self.state.open
        if boot is None or (step is not None and not step.same_boot):
            boot = OpenBoot(
                self.state.boots,
                clock.reset_count,
                clock.restart_count,
                began,
                commit.quoted.attest.firmware_version,
                Stretch(commit.number, commit.first),
            )
            if self.state.open is not None:  # it went to sleep, and its logs go on in this one
                boot.logs, self.state.open.logs = self.state.open.logs, {}
                self.state.asleep.append(self.state.open)
            self.state.open = boot
            self.state.boots += 1
        elif began == "gap":
            boot.chain = "gap"
        wrong = boot.add(commit, self._moving)
        if wrong:
            where = Place(commit=commit.number, boot=boot.number)
            self._sink.tell(Code.BOOT_LOG, _FALSE, where, wrong)

    def _started(self, commit: CheckedCommit, start: StartRecord, lost: list[StartRecord]) -> None:
        """Take note of a start: its counter and what it skipped."""
        position, boot = self.state.position, self.state.open
        where = Place(commit=commit.number, leaf=start.leaf, boot=boot.number if boot else None)
        previous, skipped = position.counter, 0
        for record in (*lost, start):
            value = record.reading.value
            try:
                skipped += 0 if previous is None else check_counter_step(previous, value)
            except EvidenceError as error:
                self._sink.tell(Code.START_COUNTER, _FALSE, where, str(error))
            previous = value
        if skipped:
            message = (
                f"the start counter skipped {skipped}, up to {start.reading.value}:"
                " starts that left nothing here, or another history of this origin"
            )
            self._sink.tell(Code.START_SKIPPED, _GAP, where, message)
        history = self._unclaimed(commit, len(lost))
        self.state.starts.append(
            AuditedStart(
                commit.number,
                start.leaf,
                -1 if boot is None else boot.number,
                start.reading.value,
                skipped,
                start.record.time,
                history,
                tuple(record.leaf for record in lost),
            )
        )
        position.counter, position.since_start = start.reading.value, 0
        if boot is not None:
            boot.clock, boot.time_ms = start.reading.clock.clock, start.record.time

    def _unclaimed(self, commit: CheckedCommit, lost: int) -> tuple[int, int] | None:
        """Return the leaves before the commit of a start that no commit claims; `lost` of them are boot records."""
        earlier = max(self.state.position.size, 1)
        if commit.first <= earlier:
            return None
        told = commit.first - earlier == lost
        why = "" if told else ", or claimed by a commit that the history does not have"
        message = f"leaves {earlier} to {commit.first - 1} are history: staged before a crash{why}"
        where = Place(commit=commit.number, leaf=earlier)
        self._sink.tell(Code.HISTORY_LEAVES, _NOTICE if told else _GAP, where, message)
        return (earlier, commit.first)

    def _advance(self, commit: CheckedCommit) -> None:
        position, files = self.state.position, self.state.files
        if commit.number % COMMITS_PER_FILE == 0:
            files.append(ZERO)
        files[-1] = chained(files[-1], commit.sha256)
        position.commits = commit.number + 1
        position.size = max(position.size, commit.size)
        position.root, position.digest, position.chain = commit.root, commit.digest, commit.after
        position.workload = commit.workload
        position.since_start += 1
        if commit.quoted is not None:
            position.clock = commit.quoted.attest.clock
