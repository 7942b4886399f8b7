# SPDX-License-Identifier: Apache-2.0
"""Records and attestations that an auditor was given beside the log, and what the log says of each.

A record belongs to the leaf that has its SHA-256. An attestation says more: its note is that of a commit which the AK
quoted, so one that is not in the history shows another history of the same origin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from quotary_verifier.audit.commits import CheckedCommit
from quotary_verifier.audit.findings import Code, Place, Severity
from quotary_verifier.audit.opening import read_origin
from quotary_verifier.audit.report import MatchedRecords
from quotary_verifier.audit.sink import Sink
from quotary_verifier.errors import EvidenceError, MalformedError, QuotaryError, UnsupportedError
from quotary_verifier.evidence.tpm_keys import AttestationKey
from quotary_verifier.evidence.tpm_quote import check_extra_data, check_qualified_signer, verify_signature
from quotary_verifier.recipe.platform import Host
from quotary_verifier.tlog.checkpoint import Checkpoint, parse_checkpoint
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, hardware_lines
from quotary_verifier.tlog.note import TYPE_ED25519, key_id, parse_note, verify_ed25519
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.bindings import commit_digest
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_RECORD
from quotary_verifier.wire.records import Boot, Genesis, Output, Statement, entry_of
from quotary_verifier.wire.tpm import parse_attest, parse_signature, unpack_evidence

if TYPE_CHECKING:
    from quotary_verifier.recipe.platform import TeeHost

MAX_GIVEN: Final = 1_000_000
"""Records that one audit takes: each is kept by name and digest."""

MAX_LISTED: Final = 1000
"""Places, names and ranges that a report lists."""

_KINDS: Final = (Output, Boot, Statement, Genesis)


@frozen
class GivenRecord:
    """A record by the name under which it was given; `attestation` is the rest of it, where it came in one."""

    name: str
    entry: bytes
    index: int | None = None
    origin: str | None = None
    size: int | None = None
    text: bytes = b""
    note: bytes = b""
    genesis: bytes = b""


def read_given(name: str, data: bytes) -> GivenRecord:
    """Read a file as an attestation or a bare record.

    Raises:
        MalformedError: it is neither.
        UnsupportedError: it is of an unknown version.
    """
    try:
        attestation = Attestation.decode(data)
    except MalformedError:
        if len(data) > MAX_RECORD:
            raise MalformedError(f"{name} is no attestation, and too long for a record") from None
        _check_record(name, data)
        return GivenRecord(name, entry_of(data))
    note = parse_note(attestation.note)
    checkpoint = parse_checkpoint(note.text)
    return GivenRecord(
        name,
        entry_of(attestation.record),
        attestation.index,
        checkpoint.origin,
        checkpoint.size,
        note.text,
        attestation.note,
        attestation.genesis,
    )


def _check_record(name: str, data: bytes) -> None:
    for kind in _KINDS:
        try:
            kind.decode(data)
        except MalformedError:
            continue
        return
    raise MalformedError(f"{name} is neither an attestation nor a record")


def _names(names: list[str]) -> str:
    """Name a few of them."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(slots=True)
class Matching:
    """What was matched so far: the leaf of each entry, ranges of leaves without a record, and how many they are."""

    leaves: dict[bytes, int] = field(default_factory=dict)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    omitted: int = 0
    met: int = 0


class Records:
    """Matches given records to a log, commit by commit."""

    def __init__(
        self,
        given: tuple[GivenRecord, ...],
        host: Host | TeeHost,
        key: AttestationKey | None,
        sink: Sink,
        listed: int = MAX_LISTED,
    ) -> None:
        self._given = given
        self._listed = listed
        self._host, self._key, self._sink = host, key, sink
        self._matching = Matching()
        self._by_size: dict[int, list[GivenRecord]] = {}
        for record in given:
            if record.origin == host.origin and record.size is not None:
                self._by_size.setdefault(record.size, []).append(record)
        self._other_origins()

    @property
    def entries(self) -> frozenset[bytes]:
        """The entries to look for."""
        return frozenset(record.entry for record in self._given)

    def found(self, leaf: int, entry: bytes) -> None:
        """Take note that a leaf has one of the entries."""
        self._matching.leaves.setdefault(entry, leaf)

    def commit(self, commit: CheckedCommit, known: list[int]) -> None:
        """Take a commit of the history; `known` are the leaves of it that have a given or public record, ascending."""
        self._matching.met += 1
        text = Checkpoint(self._host.origin, commit.size, commit.root).text
        for record in self._by_size.pop(commit.size, ()):
            if record.text != text:
                self._elsewhere(record, f"the history has another tree of {commit.size} leaves")
        start = commit.first
        for leaf in (*known, commit.size):
            if leaf > start:
                self._omit(start, leaf)
            start = leaf + 1

    def _omit(self, start: int, end: int) -> None:
        matching = self._matching
        matching.omitted += end - start
        if matching.ranges and matching.ranges[-1][1] == start:
            matching.ranges[-1] = (matching.ranges[-1][0], end)
        elif len(matching.ranges) < self._listed:
            matching.ranges.append((start, end))

    def finish(self, complete: bool, sink: Sink) -> MatchedRecords:
        """Say what became of the records; only a complete audit tells that one is not in the log."""
        self._sink = sink
        if complete:
            for records in self._by_size.values():
                for record in records:
                    self._elsewhere(record, "the history has no commit with this checkpoint")
        matching = self._matching
        places: list[tuple[str, int]] = []
        unmatched: list[str] = []
        elsewhere: list[str] = []
        missing: list[str] = []
        for record in self._given:
            leaf = matching.leaves.get(record.entry)
            if leaf is not None:
                places.append((record.name, leaf))
                continue
            unmatched.append(record.name)
            (missing if record.origin in (None, self._host.origin) else elsewhere).append(record.name)
        given = len(self._given)
        if missing and complete:
            message = (
                f"{len(missing)} of {given} records that were given are not in the log: {_names(missing)}"
            )
            sink.tell(Code.RECORD_UNMATCHED, Severity.FALSE, Place(), message)
        if elsewhere and complete:
            message = (
                f"{len(elsewhere)} of {given} attestations that were given say that they are of other logs, which show"
                f" whether they hold: {_names(elsewhere)}"
            )
            sink.tell(Code.RECORD_UNMATCHED, Severity.COULD_NOT, Place(), message)
        if matching.omitted:
            message = f"{matching.omitted} leaves that commits claim have no record among those given"
            first = matching.ranges[0][0] if matching.ranges else None
            sink.tell(Code.RECORD_OMITTED, Severity.NOTICE, Place(leaf=first), message)
        return MatchedRecords(
            len(self._given),
            len(places),
            matching.omitted,
            tuple(places[: self._listed]),
            tuple(unmatched[: self._listed]),
            tuple(matching.ranges),
        )

    def _elsewhere(self, record: GivenRecord, how: str) -> None:
        """Judge an attestation whose commit is not in the history: the AK's quote makes it evidence."""
        where = Place(path=record.name, leaf=record.index)
        try:
            self._quoted(record)
        except (MalformedError, EvidenceError) as error:
            message = (
                f"{record.name}: its commit is not of this history, and what binds it does not hold: {error}"
            )
            self._sink.tell(Code.RECORD, Severity.NOTICE, where, message)
        except UnsupportedError as error:
            message = f"{record.name}: its commit is not of this history, and could not be checked: {error}"
            self._sink.tell(Code.RECORD, Severity.COULD_NOT, where, message)
        else:
            who = "the key of this origin signed" if self._key is None else "the AK of this origin quoted"
            message = f"{record.name}: {who} a commit that is not in the history: {how}"
            self._sink.tell(Code.RECORD_OTHER_HISTORY, Severity.FALSE, where, message)

    def _quoted(self, record: GivenRecord) -> None:
        """Check the quote of a commit; without a TPM, that the genesis key signed it. Raises as its parts."""
        host, note = self._host, parse_note(record.note)
        if self._key is None or not isinstance(host, Host):
            key = host.genesis.note_key
            line = note.line(host.origin, key_id(host.origin, TYPE_ED25519, key))
            if line is None:
                raise EvidenceError("its note has no Ed25519 line of the genesis record's key")
            verify_ed25519(note.text, line.payload, key)
            return
        lines = hardware_lines(note, host.origin, {IDENTIFIER_TPM2_QUOTE: host.spki})
        if not lines:
            raise EvidenceError("its note has no line of the AK")
        attest_bytes, signature = unpack_evidence(lines[0].evidence)
        attest = parse_attest(attest_bytes)
        attest.require_quote()
        verify_signature(host.public, attest_bytes, parse_signature(signature))
        check_qualified_signer(attest, self._key.qualified_name)
        check_extra_data(attest, commit_digest(host.origin, lines[0].first, record.text))

    def _other_origins(self) -> None:
        """Show attestations of other origins under the very same AK, or without a TPM the same genesis key."""
        own = _root_key(self._host)
        for record in self._given:
            if record.origin in (None, self._host.origin):
                continue
            try:
                other, _ = read_origin(record.genesis)
            except QuotaryError:
                continue
            if _root_key(other) == own and other.origin == record.origin:
                message = f"{record.name}: the key of this origin is also that of {other.origin}: two logs of one host"
                self._sink.tell(Code.SPLIT, Severity.GAP, Place(path=record.name), message)


def _root_key(host: Host | TeeHost) -> bytes:
    return host.spki if isinstance(host, Host) else host.genesis.note_key
