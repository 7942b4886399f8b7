# SPDX-License-Identifier: Apache-2.0
"""The TEE lines of a history: which commits have them, which lack one, and over which commits they say the same.

What they say is verified later than the rest, in `teejobs`: a certificate has to be judged at the time of its commit,
which only witnesses of that or a later checkpoint show. Until then a history file is remembered by the digest of its
commits, so that the lines that are verified are those of the commits that were judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from quotary_verifier.audit.commits import AZURE, CheckedCommit
from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.audit.report import AuditedTee
from quotary_verifier.audit.sink import Sink
from quotary_verifier.audit.witnessing import WitnessFold
from quotary_verifier.policy.model import Policy
from quotary_verifier.tlog.hardware import TEE_IDENTIFIERS, tee_name
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.history import COMMITS_PER_FILE

if TYPE_CHECKING:
    from quotary_verifier.policy.tee import TeeRules

MAX_TEES: Final = 4096
"""Stretches of equal TEE evidence that a report lists."""

REQUIRED: Final = "tee.required"
"""The rule that a line of a kind stands on every commit."""

_KINDS: Final = frozenset({AZURE, *map(tee_name, TEE_IDENTIFIERS)})
_SEVERITIES: Final = {"fail": Severity.POLICY, "could-not": Severity.COULD_NOT}


@frozen
class TeeTerms:
    """What a policy asks of TEE lines: its rules, None where it has none, and those that only warn, and until when.

    `now` is the time that this is compared with, in seconds since the epoch.
    """

    rules: TeeRules | None = None
    warned: Mapping[str, int] = field(default_factory=dict)
    now: int = 0


@dataclass(slots=True)
class Unjudged:
    """The commits of one history file that have TEE lines, none of which is judged for good yet.

    `digest` is chained over the SHA-256s of these commits as they stood in the file.
    """

    number: int
    first: int
    last: int
    digest: bytes


@frozen
class TeeJob:
    """Verify the TEE lines of commits `first` to `last` of history file `number`, whose commits have this digest.

    `times` are pairs of a commit and seconds since the epoch: that time is asked for commits up to that one.
    """

    number: int
    first: int
    last: int
    digest: bytes
    times: tuple[tuple[int, int], ...]

    def at(self, commit: int) -> int:
        """Return the time at which the lines of a commit are judged."""
        return next(time for last, time in self.times if commit <= last)


@frozen
class VerifiedTees:
    """What a job came to: stretches of equal evidence in the order of their first commits, and what is false."""

    stretches: tuple[AuditedTee, ...]
    findings: tuple[Finding, ...]


@dataclass(slots=True)
class Tees:
    """What is known of the TEE lines so far: commits with each kind by its name, and files whose lines wait.

    `open` has the stretch of equal evidence that each kind is in, `missing` that of commits without a required kind,
    `listed` those that ended; `more` are those that ended beyond what is listed. `judged` counts files whose lines were
    judged for good.
    """

    counts: dict[str, int] = field(default_factory=dict)
    waiting: list[Unjudged] = field(default_factory=list)
    open: dict[str, AuditedTee] = field(default_factory=dict)
    missing: dict[str, AuditedTee] = field(default_factory=dict)
    listed: list[AuditedTee] = field(default_factory=list)
    more: int = 0
    judged: int = 0


def chained(digest: bytes, commit: bytes) -> bytes:
    """Return the digest over commits after one more, by the SHA-256 of its bytes."""
    return sha256(digest + commit).digest()


class TeeFold:
    """Takes the commits of a history in order, and later, in the same order, what was verified of their lines."""

    def __init__(self, state: Tees, policy: Policy, sink: Sink) -> None:
        self.state = state
        self._sink = sink
        self._required = sorted(_KINDS & policy.tee.required) if policy.tee is not None else []

    def commit(self, commit: CheckedCommit) -> None:
        """Take a commit, whose lines were matched and nothing more."""
        if self._required:
            self._miss(commit)
        if not commit.tees:
            return
        for name in commit.tees:
            self.state.counts[name] = self.state.counts.get(name, 0) + 1
        number, waiting = commit.number // COMMITS_PER_FILE, self.state.waiting
        if not waiting or waiting[-1].number != number:
            waiting.append(Unjudged(number, commit.number, commit.number, ZERO))
        waiting[-1].last = commit.number
        waiting[-1].digest = chained(waiting[-1].digest, commit.sha256)

    def _miss(self, commit: CheckedCommit) -> None:
        """Note which required kinds a commit lacks; where its lines are false, that was said."""
        found = self._required if commit.tees is None else commit.tees
        for name in self._required:
            run = self.state.missing.get(name)
            if name in found:
                if run is not None:
                    self._close(self.state.missing.pop(name))
            elif run is not None:
                self.state.missing[name] = replace(run, last_commit=commit.number, size=commit.size)
            else:
                said = f"the policy requires evidence of {name}, and these commits have none"
                found_here = ((REQUIRED, "fail", said),)
                self.state.missing[name] = AuditedTee(
                    name,
                    commit.number,
                    commit.number,
                    commit.first,
                    commit.size,
                    0,
                    "missing",
                    found_here,
                    (),
                )

    def jobs(self, witnesses: WitnessFold, at: int, *, good: bool) -> Iterator[TeeJob]:
        """Yield the jobs for the lines that wait: those to be judged for good, or the others.

        Lines are judged at the time of the first quorum that covers their commit, else at `at`. The latter is for good
        only where the policy has no witnesses.
        """
        for file in tuple(self.state.waiting):
            times = witnesses.times(file.first, file.last)
            covered = not witnesses.expected or (bool(times) and times[-1][0] >= file.last)
            if covered is good:
                yield TeeJob(file.number, file.first, file.last, file.digest, (*times, (file.last, at)))

    def take(self, verified: VerifiedTees, *, good: bool) -> None:
        """Take what the next job came to."""
        self._sink.extend(verified.findings)
        for found in verified.stretches:
            before = self.state.open.get(found.kind)
            if before is not None and before.same(found):
                self.state.open[found.kind] = before.joined(found)
                continue
            if before is not None:
                self._close(before)
            self.state.open[found.kind] = found
        if good:
            del self.state.waiting[0]
            self.state.judged += 1

    def _close(self, tee: AuditedTee) -> None:
        """Say what is to be said of a stretch that ended."""
        if len(self.state.listed) < MAX_TEES:
            self.state.listed.append(tee)
        else:
            self.state.more += 1
        where = Place(commit=tee.first_commit, leaf=tee.first_leaf)
        commits = f"commits {tee.first_commit} to {tee.last_commit}"
        for _, severity, message in tee.findings:
            self._sink.tell(
                Code.TEE_RULES, _SEVERITIES.get(severity, Severity.NOTICE), where, f"{commits}: {message}"
            )

    def finish(self) -> tuple[AuditedTee, ...]:
        """End all stretches and return them in the order of their first commits."""
        for kept in (self.state.open, self.state.missing):
            for tee in kept.values():
                self._close(tee)
        if self.state.more:
            message = (
                f"evidence of TEEs changed so often that {self.state.more} stretches of it are not listed"
            )
            self._sink.tell(Code.TEE_RULES, Severity.NOTICE, Place(), message)
        return tuple(sorted(self.state.listed, key=lambda tee: (tee.first_commit, tee.kind)))
