# SPDX-License-Identifier: Apache-2.0
"""Histories of origins without a TPM (docs/spec/audit.md, "Origins without a TPM").

Such a history has no quotes, no chain, no clocks and no counter. Its commits are bound by TEE lines, which say nothing
of each other; that one follows the other is said by the tree, which the genesis key signs, and by boot records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256

from quotary_verifier.audit.commits import CheckedCommit, CommitChecker
from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.audit.history import History, HistoryFold, RootAt
from quotary_verifier.audit.reading import Absent, Blobs, Read, blob_path
from quotary_verifier.audit.report import AuditedStart
from quotary_verifier.audit.sink import Sink
from quotary_verifier.audit.starts import MAX_LOST
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.platform import TeeHost
from quotary_verifier.tlog.checkpoint import parse_checkpoint
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.bindings import ZERO, commit_digest
from quotary_verifier.wire.history import Commit
from quotary_verifier.wire.limits import MAX_RECORD
from quotary_verifier.wire.records import Boot, Genesis

NO_TPM = "the genesis record names no TPM"


class TeeCommitChecker(CommitChecker):
    """Checks the commits of one origin without a TPM, but for what its TEE lines say."""

    __slots__ = ()

    def __init__(self, host: TeeHost, read: Read) -> None:
        """Take an origin and how its log is read."""
        self._begin(host.origin, host.genesis.note_key, read)

    def check(self, data: bytes, number: int) -> CheckedCommit:
        """Take a commit apart and check its note; see `CommitChecker.check`."""
        commit = Commit.decode(data)
        note = parse_note(commit.note)
        checkpoint = parse_checkpoint(note.text, origin=self._origin)
        findings = list(self._note(note, number))
        tees, problems = self._tee_lines(commit, note, number)
        where = Place(commit=number)
        if commit.supports or commit.boot_logs:
            message = f"{NO_TPM}, and the commit has what only a TPM's quote could speak for"
            problems.append(Finding(Code.TEE, Severity.FALSE, where, message))
        if tees == ():
            message = (
                f"{NO_TPM}, and the note has no line of a TEE: nothing but a key on disk binds this commit"
            )
            problems.append(Finding(Code.TEE, Severity.FALSE, where, message))
        return CheckedCommit(
            number,
            commit.first,
            checkpoint.size,
            checkpoint.root,
            commit_digest(self._origin, commit.first, note.text),
            ZERO,
            None,
            None,
            (),
            {},
            (*findings, *problems),
            tees,
            sha256(data).digest(),
        )


class TeeHistoryFold(HistoryFold):
    """Takes the commits of an origin without a TPM in order."""

    def __init__(self, state: History, blobs: Blobs, sink: Sink) -> None:
        self._begin(state, sink)
        self._blobs = blobs

    def resets(self, commit: CheckedCommit) -> bool:
        """No commit shows that the registers were set to zero."""
        del commit
        return False

    def add(self, commit: CheckedCommit, entries: Mapping[int, bytes], root_at: RootAt) -> None:
        """Take the next commit."""
        del root_at
        self._sink.extend(commit.findings)
        start = self._start_record(commit, entries)
        self._range(commit, Place(commit=commit.number))
        if start is not None:
            lost = self._lost_records(commit, entries)
            self.state.starts.append(
                AuditedStart(
                    commit.number,
                    commit.first,
                    -1,
                    None,
                    0,
                    start.time,
                    self._unclaimed(commit, len(lost)),
                    lost,
                )
            )
            self.state.position.since_start = 0
        self._advance(commit)

    def _start_record(self, commit: CheckedCommit, entries: Mapping[int, bytes]) -> Boot | None:
        """Return the boot record of a commit that is that of a start.

        A start claims its boot record alone; where leaves stand before it, or nothing, there must be one.
        """
        position = self.state.position
        due = not position.commits or commit.first > position.size
        if not due and commit.size - commit.first != 1:
            return None
        entry = entries.get(commit.first)
        where = Place(None if entry is None else blob_path(entry), commit.number, commit.first)
        severity, message = Severity.COULD_NOT, "the entry of a boot record is not known"
        try:
            if entry is not None:
                return self._read(entry)
        except Absent as error:
            message = f"the boot record of a start is not published: {error}"
        except UnsupportedError as error:
            message = str(error)
        except MalformedError as error:
            severity, message = Severity.FALSE, f"leaf {commit.first} is not a boot record: {error}"
        except EvidenceError as error:  # it is one, whether or not a start was due
            due, severity, message = True, Severity.FALSE, str(error)
        if due:
            self._sink.tell(Code.START, severity, where, message)
        return None

    def _read(self, entry: bytes) -> Boot:
        """Return a boot record that names the last commit. Raises Absent, and as `Boot.decode`."""
        record = Boot.decode(self._blobs.get(entry, MAX_RECORD))
        if record.tpm is not None:
            raise EvidenceError(f"{NO_TPM}, and the boot record says what one counted")
        if record.last_commit != self.state.position.digest:
            raise EvidenceError("the boot record names another commit than the one before it as the last")
        return record

    def _lost_records(self, commit: CheckedCommit, entries: Mapping[int, bytes]) -> tuple[int, ...]:
        """Return the leaves of boot records right before that of a start: starts that died before their commit."""
        found: list[int] = []
        for leaf in range(commit.first - 1, max(self.state.position.size, commit.first - MAX_LOST) - 1, -1):
            try:
                self._read(entries.get(leaf, b""))
            except (Absent, MalformedError, EvidenceError, UnsupportedError):
                break
            found.append(leaf)
        return tuple(found[::-1])


def tee_host(record: bytes) -> TeeHost:
    """Return what the genesis record of an origin without a TPM says. Raises as `Genesis.decode`."""
    genesis = Genesis.decode(record)
    return TeeHost(genesis, genesis.origin(record))


def policy_findings(policy: Policy, host: TeeHost) -> Iterator[Finding]:
    """Say why the policy does not accept an origin without a TPM, whatever its lines show."""
    from quotary_verifier.policy.tee import WHOLE_MACHINES
    from quotary_verifier.recipe.alone import require_trusted

    try:
        require_trusted(policy, host)
    except EvidenceError as error:
        yield Finding(Code.ENDORSEMENT, Severity.POLICY, Place(), str(error))
    platform = policy.platform
    asked = {
        "a safe clock of a TPM": policy.safe_clock,
        "workload events": policy.workload is not None or not policy.opaque_events,
        "a platform that PCRs show": not platform.empty or platform.clock is not None or policy.references,
    }
    for what, rules in asked.items():
        if rules:
            said = f"the policy has rules on {what}, and {NO_TPM}"
            yield Finding(Code.PLATFORM, Severity.POLICY, Place(), said)
    if policy.tee is None or not policy.tee.required & WHOLE_MACHINES:
        names = ", ".join(sorted(WHOLE_MACHINES))
        said = f"{NO_TPM}, and the policy requires no TEE of a whole machine (tee.required: {names})"
        yield Finding(Code.TEE_RULES, Severity.POLICY, Place(), said)
