# SPDX-License-Identifier: Apache-2.0
"""Witnesses' cosignatures on the checkpoints of a history, where the policy names witnesses."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

from quotary_verifier.audit.commits import CheckedCommit
from quotary_verifier.audit.findings import Code, Place, Severity
from quotary_verifier.audit.reading import Absent, Read
from quotary_verifier.audit.report import Witnessing
from quotary_verifier.audit.sink import Sink
from quotary_verifier.errors import EvidenceError, MalformedError, PolicyError
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.witness import Witnessed
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.cosignature import Cosignature, quorum_time, verify_cosignatures
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.limits import MAX_NOTE

MAX_WITNESSED: Final = 10_000
"""Cosigned checkpoints that a report lists."""

MAX_QUORUMS: Final = 16_384
"""Quorums whose times are kept apart; of more, every second one is, which is as true a bound."""


@dataclass(slots=True)
class Witnesses:
    """What witnesses showed so far: listed checkpoints, the last quorum, and each witness's last time.

    `quorums` are commits with a quorum and its time, but for those that a later commit had as early: both rise.
    """

    listed: list[Witnessing] = field(default_factory=list)
    last_quorum: Witnessing | None = None
    times: dict[str, int] = field(default_factory=dict)
    quorums: list[tuple[int, int]] = field(default_factory=list)


class WitnessFold:
    """Reads `cosigned/<size>` of each checkpoint."""

    def __init__(self, state: Witnesses, policy: Policy, origin: str, read: Read, sink: Sink) -> None:
        self.state = state
        self._rule = policy.witnesses
        self._origin, self._read, self._sink = origin, read, sink

    def commit(self, commit: CheckedCommit, boot: int | None) -> None:
        """Look for cosignatures on the checkpoint of a commit whose root holds."""
        if not self._rule.keys:
            return
        path = f"cosigned/{commit.size}"
        where = Place(path=path, commit=commit.number, boot=boot)
        try:
            note = parse_note(self._read(path, MAX_NOTE))
            found = verify_cosignatures(note, self._rule.keys)
        except Absent:
            return
        except (MalformedError, EvidenceError) as error:
            self._sink.tell(Code.WITNESS, Severity.FALSE, where, f"{path}: {error}")
            return
        if note.text != Checkpoint(self._origin, commit.size, commit.root).text:
            self._other(found, where)
            return
        self._take(commit, found, where)

    def _other(self, found: tuple[Cosignature, ...], where: Place) -> None:
        """Report a cosigned note of another text than the history's checkpoint."""
        names = ", ".join(sorted({item.witness.name for item in found}))
        if names:
            message = (
                f"{names} cosigned another tree of this size than the history has: the log was shown two ways"
            )
            self._sink.tell(Code.WITNESS_SPLIT, Severity.FALSE, where, message)
        else:
            message = f"{where.path} is not a note of the checkpoint of this size"
            self._sink.tell(Code.WITNESS, Severity.FALSE, where, message)

    def _take(self, commit: CheckedCommit, found: tuple[Cosignature, ...], where: Place) -> None:
        if not found:
            return
        names = tuple(sorted({item.witness.name for item in found}))
        try:
            time = quorum_time(found, self._rule.threshold)
        except (EvidenceError, PolicyError):
            time = None
        for item in found:
            name = item.witness.name
            if item.time < self.state.times.get(name, 0):
                message = f"the witness {name} cosigned this tree at {item.time}, and a smaller one later"
                self._sink.tell(Code.WITNESS, Severity.NOTICE, where, message)
            self.state.times[name] = max(item.time, self.state.times.get(name, 0))
        seen = Witnessing(commit.number, commit.size, time, names)
        if len(self.state.listed) < MAX_WITNESSED:
            self.state.listed.append(seen)
        if time is not None:
            self.state.last_quorum = seen
            self._quorum(commit.number, time)

    def _quorum(self, commit: int, time: int) -> None:
        quorums = self.state.quorums
        while quorums and quorums[-1][1] >= time:  # what a later checkpoint shows as early covers more
            quorums.pop()
        quorums.append((commit, time))
        if len(quorums) > MAX_QUORUMS:
            quorums[:-1] = quorums[1:-1:2]

    @property
    def expected(self) -> bool:
        """Whether the policy asks for witnesses, so that a time may yet be shown that is not known now."""
        return self._rule.threshold > 0

    def times(self, first: int, last: int) -> tuple[tuple[int, int], ...]:
        """Return the times of the quorums that cover commits `first` to `last`: each holds up to its commit.

        Commits above the last pair's are covered by none.
        """
        found = []
        for commit, time in self.state.quorums[bisect_left(self.state.quorums, (first,)) :]:
            found.append((commit, time))
            if commit >= last:
                break
        return tuple(found)

    def covering(self, commit: int) -> Witnessed | None:
        """Return the earliest quorum on the checkpoint of a commit or a later one; None where there is none yet."""
        times = self.times(commit, commit)
        return Witnessed(times[0][1], None, ()) if times else None

    def finish(self, commits: int) -> None:
        """Say how far a quorum reaches."""
        if not self._rule.threshold:
            return
        last = self.state.last_quorum
        if last is None:
            message = f"no checkpoint has the {self._rule.threshold} cosignatures that the policy asks for"
            self._sink.tell(Code.WITNESS, Severity.COULD_NOT, Place(), message)
        elif last.commit + 1 < commits:
            message = f"no quorum of witnesses covers what follows commit {last.commit}"
            self._sink.tell(
                Code.WITNESS, Severity.NOTICE, Place(commit=last.commit + 1, leaf=last.size), message
            )
