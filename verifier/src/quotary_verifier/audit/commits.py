# SPDX-License-Identifier: Apache-2.0
"""What can be said of a commit by itself: its note, its quote, the values that were quoted (docs/spec/history.md).

How commits follow each other is judged in `chain`. A file of commits is one job, and needs nothing of any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.audit.reading import Absent, Blobs, Read, blob_path
from quotary_verifier.audit.teematching import tee_lines
from quotary_verifier.audit.workloads import Workloads
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tpm_keys import AttestationKey, attestation_key
from quotary_verifier.evidence.tpm_quote import (
    OWN_SELECTION,
    check_extra_data,
    check_pcr_digest,
    check_qualified_signer,
    check_selection,
    verify_signature,
)
from quotary_verifier.recipe.platform import Host
from quotary_verifier.tlog.checkpoint import Checkpoint, parse_checkpoint
from quotary_verifier.tlog.hardware import (
    IDENTIFIER_TPM2_QUOTE,
    hardware_key_id,
    hardware_lines_by_id,
    tee_key_ids,
    tee_name,
)
from quotary_verifier.tlog.note import TYPE_ED25519, Note, key_id, parse_note, verify_ed25519
from quotary_verifier.tlog.tiles import numbered_path
from quotary_verifier.wire.bindings import ZERO, chain_extend, commit_digest
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.history import COMMITS_PER_FILE, Commit, split
from quotary_verifier.wire.limits import MAX_COMMIT
from quotary_verifier.wire.tpm import Attest, parse_attest, parse_signature, unpack_evidence

MAX_HISTORY_FILE: Final = COMMITS_PER_FILE * MAX_COMMIT
AZURE: Final = "azure"
"""The kind of what is no line: hardware that endorses the AK of a vTPM, in the support of the TPM's line."""

_QUOTED_PCRS: Final = range(16)


@frozen
class Quoted:
    """What a quote that holds says; `pcrs` are all sixteen values, None where they could not be established."""

    attest: Attest
    pcrs: Mapping[int, bytes] | None


@frozen
class CheckedCommit:
    """A commit that could be taken apart. `quoted` is None where its quote is false or could not be checked.

    `digest` is D, `before` the chain PCR before it as the support states it: the quoted values prove it. `tees` are
    the kinds of its TEE lines, of which nothing is verified here, None where they and the supports do not fit each
    other; `sha256` is of its bytes.
    """

    number: int
    first: int
    size: int
    root: bytes
    digest: bytes
    before: bytes
    quoted: Quoted | None
    workload: tuple[bytes, int] | None
    certificates: tuple[bytes, ...]
    boot_logs: Mapping[str, tuple[bytes, int]]
    findings: tuple[Finding, ...]
    tees: tuple[str, ...] | None = ()
    sha256: bytes = b""

    @property
    def after(self) -> bytes:
        """The chain PCR after the commit."""
        return chain_extend(self.before, self.digest)


@frozen
class CommitsJob:
    """Check the commits of history file `number`, leaving out the first `skip` of it."""

    number: int
    skip: int = 0


@frozen
class CheckedFile:
    """The commits of a file that could be taken apart, in order; `problem` says why there are no more of them."""

    number: int
    commits: tuple[CheckedCommit, ...]
    problem: Finding | None


class CommitChecker:
    """Checks the commits of one origin."""

    __slots__ = (
        "_host", "_key", "_known_tees", "_lines", "_note_id", "_note_key", "_origin", "_read", "_workloads",
    )  # fmt: skip

    def __init__(self, host: Host, read: Read) -> None:
        """Take an origin whose AK may attest. Raises as `attestation_key`."""
        self._begin(host.origin, host.genesis.note_key, read)
        self._host = host
        self._key: AttestationKey = attestation_key(host.public, host.identity.ak_parent)
        identifier = IDENTIFIER_TPM2_QUOTE
        self._lines = {hardware_key_id(host.origin, identifier, host.spki): identifier}
        self._workloads = Workloads(Blobs(read), host.identity.workload_pcr)

    def _begin(self, origin: str, note_key: bytes, read: Read) -> None:
        """Take what every origin has."""
        self._origin, self._note_key, self._read = origin, note_key, read
        self._known_tees = tee_key_ids(origin)
        self._note_id = key_id(origin, TYPE_ED25519, note_key)

    def file(self, job: CommitsJob) -> CheckedFile:
        """Read and check a history file."""
        path = f"history/{numbered_path(job.number)}"
        commits: list[CheckedCommit] = []
        number = job.number * COMMITS_PER_FILE
        problem = None
        try:
            for item in split(self._read(path, MAX_HISTORY_FILE)):
                if number >= job.number * COMMITS_PER_FILE + job.skip:
                    commits.append(self.check(item, number))
                number += 1
        except Absent as error:
            problem = _finding(Code.HISTORY, number, str(error), Severity.COULD_NOT, path)
        except (MalformedError, EvidenceError) as error:
            problem = _finding(Code.HISTORY, number, f"{path}: {error}", Severity.FALSE, path)
        except UnsupportedError as error:
            problem = _finding(Code.HISTORY, number, f"{path}: {error}", Severity.COULD_NOT, path)
        return CheckedFile(job.number, tuple(commits), problem)

    def check(self, data: bytes, number: int) -> CheckedCommit:
        """Take a commit apart and check it.

        Raises:
            MalformedError, EvidenceError: not even its place in the history can be told.
            UnsupportedError: it is of an unknown version.
        """
        commit = Commit.decode(data)
        note = parse_note(commit.note)
        checkpoint = parse_checkpoint(note.text, origin=self._origin)
        if len(commit.supports) != 1 or commit.supports[0].identifier != IDENTIFIER_TPM2_QUOTE:
            raise MalformedError(
                "there must be one support for each known hardware line of a commit, and no other"
            )
        support = commit.supports[0]
        digest = commit_digest(self._host.origin, commit.first, note.text)
        findings = list(self._note(note, number))
        quoted, problems = self._quote(commit, note, checkpoint, digest, number)
        tees, unmatched = self._tee_lines(commit, note, number)
        problems += unmatched
        return CheckedCommit(
            number,
            commit.first,
            checkpoint.size,
            checkpoint.root,
            digest,
            support.chain_before,
            quoted,
            support.workload_log,
            support.certificates,
            commit.boot_logs,
            (*findings, *problems),
            tees,
            hashlib.sha256(data).digest(),
        )

    def _tee_lines(
        self, commit: Commit, note: Note, number: int
    ) -> tuple[tuple[str, ...] | None, list[Finding]]:
        """Return the kinds of a commit's TEE lines and of what endorses its AK.

        None where lines and supports do not fit each other.
        """
        try:
            matched = tee_lines(commit, note, self._origin, self._known_tees)
        except (MalformedError, EvidenceError) as error:
            return None, [_finding(Code.TEE, number, str(error))]
        kinds = [tee_name(line.identifier) for line, _ in matched]
        kinds += [AZURE for support in commit.supports if support.endorsements]
        return tuple(sorted(kinds)), []

    def _note(self, note: Note, number: int) -> Iterator[Finding]:
        """Check the Ed25519 line, which every commit of a history has."""
        try:
            line = note.line(self._origin, self._note_id)
            if line is None:
                raise EvidenceError("the note has no Ed25519 line of the genesis record's key")
            verify_ed25519(note.text, line.payload, self._note_key)
        except (MalformedError, EvidenceError) as error:
            yield _finding(Code.NOTE, number, str(error))

    def _quote(
        self, commit: Commit, note: Note, checkpoint: Checkpoint, digest: bytes, number: int
    ) -> tuple[Quoted | None, list[Finding]]:
        """Check the quote and what it covers; what could not be established is left out of the result."""
        try:
            lines = hardware_lines_by_id(note, self._host.origin, self._lines)
            if not lines:
                raise EvidenceError("the genesis record names an AK, and the note has no line of it")
            if lines[0].first != commit.first or commit.first >= checkpoint.size:
                raise EvidenceError(
                    f"the commit says that it claims from leaf {commit.first}, its quote from {lines[0].first}, "
                    f"and its tree has {checkpoint.size}"
                )
            attest_bytes, signed = unpack_evidence(lines[0].evidence)
            attest, signature = parse_attest(attest_bytes), parse_signature(signed)
            attest.require_quote()
            verify_signature(self._host.public, attest_bytes, signature)
            check_qualified_signer(attest, self._key.qualified_name)
            check_extra_data(attest, digest)
            check_selection(attest.require_quote(), OWN_SELECTION)
        except (MalformedError, EvidenceError) as error:
            return None, [_finding(Code.QUOTE, number, str(error))]
        except UnsupportedError as error:
            return None, [_finding(Code.QUOTE, number, str(error), Severity.COULD_NOT)]
        return self._values(commit, attest, signature.hash_alg, digest, number)

    def _values(
        self, commit: Commit, attest: Attest, hash_alg: int, digest: bytes, number: int
    ) -> tuple[Quoted | None, list[Finding]]:
        """Put the PCR values together and hold them against the quoted digest."""
        support, identity = commit.supports[0], self._host.identity
        given = support.pcrs
        try:
            log = self._workloads.get(support.workload_log)
            if identity.chain_pcr in given or identity.workload_pcr in given or ZERO in given.values():
                raise MalformedError("the support gives the chain PCR, the workload PCR or one that is zero")
            pcrs = {pcr: given.get(pcr, ZERO) for pcr in _QUOTED_PCRS}
            pcrs[identity.chain_pcr] = chain_extend(support.chain_before, digest)
            pcrs[identity.workload_pcr] = log.value
            check_pcr_digest(attest.require_quote(), pcrs, hash_alg)
        except Absent as error:
            problem = Finding(
                Code.WORKLOAD, Severity.COULD_NOT, Place(path=error.path, commit=number), str(error)
            )
            return Quoted(attest, None), [problem]
        except (MalformedError, EvidenceError) as error:
            path = None if support.workload_log is None else blob_path(support.workload_log[0])
            return None, [_finding(Code.PCRS, number, str(error), path=path)]
        return Quoted(attest, pcrs), []


def _finding(
    code: Code, number: int, message: str, severity: Severity = Severity.FALSE, path: str | None = None
) -> Finding:
    return Finding(code, severity, Place(path=path, commit=number), message)
