# SPDX-License-Identifier: Apache-2.0
"""The audit of one log: every leaf hashed, every commit judged, every rule of docs/spec/history.md applied.

The engine asks its caller for what is published and for the hashing of subtrees and checking of commits, which any
number of processes may do. What it keeps between two commits is small whatever the size of the log, and can be written
down, so that an audit can be stopped and go on. docs/spec/audit.md says what it finds, and what no audit can.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import takewhile

from quotary_verifier.audit.appraise import Appraiser
from quotary_verifier.audit.boundary import BootCloser
from quotary_verifier.audit.commits import CheckedCommit
from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.audit.given import MAX_LISTED, GivenRecord, Records
from quotary_verifier.audit.history import HistoryFold
from quotary_verifier.audit.opening import Opened
from quotary_verifier.audit.reading import Blobs, Read
from quotary_verifier.audit.report import AuditedLog, AuditedTee, AuditReport
from quotary_verifier.audit.sink import Sink
from quotary_verifier.audit.starts import Starts
from quotary_verifier.audit.state import AuditState
from quotary_verifier.audit.statements import Statements
from quotary_verifier.audit.stream import CommitStream, JobStream, Queued, Workers
from quotary_verifier.audit.subtrees import Subtree
from quotary_verifier.audit.tees import TeeFold, Tees
from quotary_verifier.audit.tree import TreeFold
from quotary_verifier.audit.unknown import unknowable
from quotary_verifier.audit.witnessing import WitnessFold
from quotary_verifier.audit.workloads import Workloads
from quotary_verifier.errors import PolicyError
from quotary_verifier.logs.ima import IMA_PCR
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.platform import Host
from quotary_verifier.wire.frozen import frozen


@frozen
class Progress:
    """How far an audit is: commits and leaves judged, of `published` leaves."""

    commits: int
    leaves: int
    published: int


@frozen
class Extras:
    """What an audit may have besides the log: given records, and the digests of all blobs where they are known.

    `listed` is how many of the records, and of the ranges of leaves without one, the report lists.
    """

    given: tuple[GivenRecord, ...] = ()
    public: frozenset[bytes] | None = None
    listed: int = MAX_LISTED


def new_state(opened: Opened, policy: Policy, at: int) -> AuditState:
    """Return the state of an audit that begins at the first leaf."""
    return AuditState(opened.host.origin, policy.digest.hex(), at)


class Audit:
    """One audit on its way. `run` does it; `state` may be written down at every step of it; `report` ends it."""

    def __init__(
        self,
        opened: Opened,
        policy: Policy,
        state: AuditState,
        read: Read,
        workers: Workers,
        at: int,
        extras: Extras = Extras(),  # noqa: B008 - immutable
    ) -> None:
        """Go on from `state`, which `new_state` or an earlier audit made. `at` is the time in seconds.

        Raises:
            PolicyError: the state is of another log or another policy.
        """
        if (state.origin, state.policy) != (opened.host.origin, policy.digest.hex()):
            raise PolicyError("the state is of another log or of another policy than this audit")
        self.state = state
        self.resumable = True
        """Whether the state may be written down: not after the tree could not be hashed on."""
        self._opened, self._policy, self._at, self._read = opened, policy, at, read
        host, blobs = opened.host, Blobs(read)
        sink = state.sink
        self._tree = TreeFold(read, state.tiles, state.rows)
        self._history, self._closer = self._rules(blobs)
        self._witnesses = WitnessFold(state.witnesses, policy, host.origin, read, sink)
        self._tees = TeeFold(state.tees, policy, sink)
        self._undecided: tuple[Tees, Sink] | None = None
        self._statements = Statements(state.statements, blobs, sink, searched=extras.public is not None)
        self._records = Records(extras.given, host, opened.key, sink, extras.listed) if extras.given else None
        self._searched = extras.public is not None
        position = state.history.position
        self._begun = position.size
        self._stream = CommitStream(workers, opened.checkpoint, position.commits, position.size)
        self._commits = iter(self._stream)
        self._jobs = JobStream(self._commits, state.tiles, position.size, opened.checkpoint.size)
        self._workers = workers
        self._entries: dict[int, bytes] = {}
        self._found: dict[int, bytes] = {}
        self._roots: dict[int, bytes] = {}
        self._ending: list[Finding] = []

    def _rules(self, blobs: Blobs) -> tuple[HistoryFold, BootCloser | None]:
        """Return what applies the rules of a history, and what judges boots where the origin has a TPM."""
        state, opened = self.state, self._opened
        host, key = opened.host, opened.key
        if key is None or not isinstance(host, Host):
            from quotary_verifier.audit.alone import TeeHistoryFold  # few logs are of such an origin

            return TeeHistoryFold(state.history, blobs, state.sink), None
        own = frozenset({host.identity.chain_pcr, host.identity.workload_pcr})
        ima = frozenset() if _fixes_ima(self._policy) else frozenset({IMA_PCR})
        fold = HistoryFold(state.history, Starts(host, key, blobs), state.sink, own | ima)
        appraiser = Appraiser(self._policy, host, key, blobs, self._at)
        workloads = Workloads(blobs, host.identity.workload_pcr)
        return fold, BootCloser(appraiser, blobs, workloads, own)

    def run(self) -> Iterator[Progress]:
        """Audit the log up to its published checkpoint; after every step some more commits are judged for good."""
        self._check_checkpoint()
        recheck = self._begun
        for subtree in self._workers.subtrees(iter(self._jobs)):
            self._tree.take(subtree)
            if recheck % 256 and recheck <= subtree.end:
                self._recheck(recheck)
            recheck = 0
            self._take(subtree)
            if subtree.stopped is not None:
                self._stop(subtree.stopped)
                break
            yield self._progress()
        self._without_tree()
        yield self._progress()
        for verified in self._workers.tees(self._tees.jobs(self._witnesses, self._at, good=True)):
            self._tees.take(verified, good=True)
            yield self._progress()
        self._judge_uncovered()

    def _judge_uncovered(self) -> None:
        """Judge the TEE lines that no witnesses cover yet as of this audit's time, for this audit's report alone."""
        tees, sink = copy.deepcopy(self.state.tees), Sink()
        fold = TeeFold(tees, self._policy, sink)
        for verified in self._workers.tees(self._tees.jobs(self._witnesses, self._at, good=False)):
            fold.take(verified, good=False)
        self._undecided = tees, sink

    def _progress(self) -> Progress:
        position = self.state.history.position
        self.state.tiles, self.state.rows = self._tree.tiles, list(self._tree.rows)
        return Progress(position.commits, position.size, self._opened.checkpoint.size)

    def _check_checkpoint(self) -> None:
        """Hold the published checkpoint against what an earlier audit saw."""
        position, published = self.state.history.position, self._opened.checkpoint
        if published.size < position.size or (
            published.size == position.size and published.root != position.root
        ):
            message = (
                f"an earlier audit saw a tree of {position.size} leaves, and the published checkpoint of"
                f" {published.size} leaves does not continue it: the log was rolled back or split"
            )
            self._ending.append(Finding(Code.CHECKPOINT, Severity.FALSE, Place(path="checkpoint"), message))

    def _recheck(self, size: int) -> None:
        """Hold the leaves of the tile in which an earlier audit ended against that audit."""
        if self._tree.root_at(size) != self.state.history.position.root:
            message = f"the first {size} leaves are not those of the earlier audit"
            self.state.sink.tell(Code.ROOT, Severity.FALSE, Place(leaf=size - 1), message)

    def _take(self, subtree: Subtree) -> None:
        """Judge the commits whose leaves are all hashed."""
        self._entries.update(subtree.entries)
        self._found.update(subtree.found)
        queue = self._jobs.queue
        while queue:
            self._extra_roots(queue[0], subtree)
            if queue[0].commit.size > subtree.end:
                break
            queued = queue.popleft()
            grows = queued.commit.size > self.state.history.position.size
            self._judge(queued.commit)
            if grows:
                commit = queued.commit
                self.state.sink.extend(self._tree.check(commit.number, commit.size, commit.root))
            self._forget(queued.commit.size)

    def _extra_roots(self, queued: Queued, subtree: Subtree) -> None:
        for size in queued.extra:
            if size not in self._roots and size <= subtree.end:
                self._roots[size] = self._tree.root_at(size)

    def _judge(self, commit: CheckedCommit) -> None:
        if self._history.resets(commit):
            self._close()
        start = self.state.history.position.size
        self._tees.commit(commit)
        self._history.add(commit, self._entries, self._roots.get)
        boot = self.state.history.open
        self._witnesses.commit(commit, None if boot is None else boot.number)
        found = {leaf: entry for leaf, entry in self._found.items() if leaf < commit.size}
        self._statements.commit(commit, start, self._entries, found, self.state.history.position.since_start)
        if self._records is not None:
            known = sorted({leaf for leaf in found if leaf >= commit.first} | self._public_leaves(commit))
            for leaf, entry in sorted(found.items()):
                self._records.found(leaf, entry)
            self._records.commit(commit, known)

    def _public_leaves(self, commit: CheckedCommit) -> set[int]:
        """Return the leaves of a commit whose public records were read, also where no source could list them."""
        starts = {start.leaf for start in self.state.history.starts[-1:] if start.commit == commit.number}
        return starts | {said.leaf for said in self.state.statements[-1:] if said.commit == commit.number}

    def _forget(self, size: int) -> None:
        """Let go of what was kept of leaves below `size`."""
        for kept in (self._entries, self._found):
            for leaf in list(takewhile(lambda leaf: leaf < size, kept)):  # they came in ascending order
                del kept[leaf]
        self._roots.clear()

    def _close(self) -> None:
        """Close the boot that the history was in, and those that ended in sleep before it."""
        history = self.state.history
        if history.open is not None and self._closer is not None:
            closed = self._closer.close([*history.asleep, history.open], self._witnesses, self.state.sink)
            self.state.boots += closed.boots
            self.state.periods += closed.periods
            history.open, history.asleep = None, []

    def _stop(self, finding: Finding) -> None:
        """Give up hashing: neither bundle nor hash tile of some leaves can be had."""
        self.resumable = False
        self.state.sink.add(finding)
        leaf = finding.where.leaf
        message = f"the tree is not checked from leaf {leaf} on, and no checkpoint of a larger size"
        self.state.sink.tell(Code.TREE_UNCHECKED, Severity.COULD_NOT, Place(leaf=leaf), message)

    def _without_tree(self) -> None:
        """Judge the commits whose leaves could not be hashed, by all other rules."""
        queue = self._jobs.queue
        while queue:
            self._judge(queue.popleft().commit)
        for commit in self._commits:
            self._judge(commit)

    def report(self) -> AuditReport:
        """End the audit and say what was found. The state is not changed: the log may grow, and the audit go on."""
        kept, self.state = self.state, copy.deepcopy(self.state)
        try:
            return self._report()
        finally:
            self.state = kept

    def _report(self) -> AuditReport:
        state, opened = self.state, self._opened
        sink, position = state.sink, state.history.position
        self._close()
        sink.extend(self._ending)
        complete = self.resumable and position.size == opened.checkpoint.size
        if self._stream.problem is not None:
            sink.add(self._stream.problem)
        elif complete and position.root != opened.checkpoint.root and not self._ending:
            message = "the published checkpoint states another root than the history's commit of its size"
            sink.tell(Code.CHECKPOINT, Severity.FALSE, Place(path="checkpoint"), message)
        if complete:
            sink.extend(self._tree.finish())
        if not isinstance(opened.host, Host):
            from quotary_verifier.audit.alone import policy_findings

            sink.extend(policy_findings(self._policy, opened.host))
        witnesses = WitnessFold(state.witnesses, self._policy, opened.host.origin, self._read, sink)
        witnesses.finish(position.commits)
        tees = self._listed_tees(sink)
        records = None
        if self._records is not None:
            records = self._records.finish(complete and not self._begun, sink)
        return AuditReport(
            self._at,
            self._policy.digest.hex(),
            complete,
            self._log(),
            tuple(state.boots),
            tuple(state.history.starts),
            tuple(state.periods),
            tuple(state.statements),
            tuple(state.witnesses.listed),
            records,
            tuple(sink.kept),
            sink.by_severity(),
            unknowable(
                state,
                self._policy,
                self._at,
                searched=self._searched,
                begun=self._begun,
                alone=opened.key is None,
            ),
            tees,
            tuple(state.history.files),
        )

    def _listed_tees(self, sink: Sink) -> tuple[AuditedTee, ...]:
        """Return the stretches of TEE evidence, and say what is to be said of those that end here."""
        tees, found = self._undecided or (self.state.tees, Sink())
        sink.absorb(found)
        return TeeFold(copy.deepcopy(tees), self._policy, sink).finish()

    def _log(self) -> AuditedLog:
        opened, position = self._opened, self.state.history.position
        profile = None if opened.key is None else opened.key.profile
        return AuditedLog(
            opened.host.origin,
            opened.host.genesis.host,
            position.size,
            position.root.hex(),
            opened.checkpoint.size,
            position.commits,
            opened.host.genesis.time,
            None if profile is None else profile.algorithm,
            profile is not None and profile.own,
            self._begun or None,
        )


def _fixes_ima(policy: Policy) -> bool:
    rules = (policy.platform, *(item.rules for item in policy.references))
    return any(IMA_PCR in item.pcrs for item in rules)


def cannot_audit(finding: Finding, policy: Policy, at: int) -> AuditReport:
    """Return the report on a log of which not even checkpoint and genesis record could be used."""
    sink = Sink()
    sink.add(finding)
    nothing: tuple[()] = ()
    return AuditReport(
        at,
        policy.digest.hex(),
        False,
        None,
        nothing,
        nothing,
        nothing,
        nothing,
        nothing,
        None,
        tuple(sink.kept),
        sink.by_severity(),
        nothing,
    )
