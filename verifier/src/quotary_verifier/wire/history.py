# SPDX-License-Identifier: Apache-2.0
"""A commit as the published history holds it (docs/spec/history.md, design section 3, "Log").

A history file is a CBOR sequence (RFC 8742) of commits. Certificates and the workload log are named by the
SHA-256 of a blob, so that a commit repeats nothing that did not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from quotary_verifier.errors import MalformedError
from quotary_verifier.wire import cbor
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_BOOT_LOGS, MAX_CERTIFICATES, MAX_COMMIT, MAX_NOTE, MAX_SUPPORTS
from quotary_verifier.wire.tee_support import (
    MAX_NAMES,
    Endorsements,
    TeeSupport,
    endorsement_fields,
    read_endorsements,
    require_names,
)

KIND_COMMIT = 17
COMMITS_PER_FILE = 256
_DIGEST = 32
_SUPPORT = "support of a commit"
_PCR_VALUES, _ENDORSEMENTS = 2, 6


@frozen
class CommitSupport:
    """A TPM support whose certificates, endorsements and workload log are named by digest.

    `workload_log` is the blob that holds the log as CEL-TLV and the number of its leading bytes that this quote
    covers: the log only grows within a boot, so one blob can serve many commits.
    """

    identifier: str
    pcrs: Mapping[int, bytes]
    chain_before: bytes
    certificates: tuple[bytes, ...]
    workload_log: tuple[bytes, int] | None
    endorsements: Endorsements = field(default_factory=dict)

    def fields(self) -> dict[int, Any]:
        """Return the map as it stands in a commit."""
        fields: dict[int, Any] = {
            1: self.identifier,
            2: {pcr: self.pcrs[pcr] for pcr in sorted(self.pcrs)},
            3: self.chain_before,
        }
        if self.certificates:
            fields[4] = list(self.certificates)
        if self.workload_log is not None:
            fields[5] = list(self.workload_log)
        if self.endorsements:
            fields[_ENDORSEMENTS] = endorsement_fields(self.endorsements)
        return fields

    @classmethod
    def read(cls, value: Any) -> CommitSupport:
        """Read one support of a commit.

        Raises:
            MalformedError: it is not one.
        """
        fields = cbor.Fields(value, "support of a commit")
        pcrs = fields.mapping(2, 16)
        for pcr, digest in pcrs.items():
            if (
                type(pcr) is not int
                or not 0 <= pcr <= 15
                or type(digest) is not bytes
                or len(digest) != _DIGEST
            ):
                raise MalformedError("support of a commit: a PCR entry is not a number and 32 bytes")
        certificates = fields.array(4, MAX_CERTIFICATES) if fields.has(4) else []
        if any(type(item) is not bytes or len(item) != _DIGEST for item in certificates):
            raise MalformedError("support of a commit: a certificate is not named by 32 bytes")
        support = cls(
            identifier=fields.text(1, 255),
            pcrs=pcrs,
            chain_before=fields.octets(3, _DIGEST),
            certificates=tuple(certificates),
            workload_log=_named_blob(fields.array(5, 2)) if fields.has(5) else None,
            endorsements=_named_endorsements(fields) if fields.has(_ENDORSEMENTS) else {},
        )
        fields.finish()
        return support


@frozen
class CommitTeeSupport:
    """A TEE support whose endorsements are named by digest: name → SHA-256s of blobs."""

    identifier: str
    endorsements: Mapping[str, tuple[bytes, ...]]

    def fields(self) -> dict[int, Any]:
        """Return the map as it stands in a commit."""
        return TeeSupport(self.identifier, self.endorsements).fields()

    @classmethod
    def read(cls, value: Any) -> CommitTeeSupport:
        """Read one support of a commit.

        Raises:
            MalformedError: it is not one.
        """
        support = TeeSupport.read(value)
        require_names(support.endorsements, _SUPPORT)
        return cls(support.identifier, support.endorsements)


def _named_endorsements(fields: cbor.Fields) -> Endorsements:
    endorsements = read_endorsements(fields.mapping(_ENDORSEMENTS, MAX_NAMES), _SUPPORT)
    require_names(endorsements, _SUPPORT)
    if not endorsements:
        raise MalformedError(f"{_SUPPORT}: endorsements that are empty must be left out")
    return endorsements


def _named_blob(value: list[Any]) -> tuple[bytes, int]:
    if (
        len(value) != 2
        or type(value[0]) is not bytes
        or len(value[0]) != _DIGEST
        or type(value[1]) is not int
    ):
        raise MalformedError("a blob is not named by a digest and a number of leading bytes")
    if value[1] < 0:
        raise MalformedError("a blob's number of leading bytes is negative")
    return value[0], value[1]


@frozen
class Commit:
    """One commit of the history: `first` is the index from which it claims, `note` has no cosignatures.

    `supports` are those of a TPM, `tees` those of other hardware lines. Together they are field 4, in this order.
    """

    first: int
    note: bytes
    supports: tuple[CommitSupport, ...]
    boot_logs: Mapping[str, tuple[bytes, int]] = field(default_factory=dict)
    tees: tuple[CommitTeeSupport, ...] = ()

    def encode(self) -> bytes:
        """Return the commit's bytes."""
        fields: dict[int, Any] = {
            0: KIND_COMMIT,
            1: 1,
            2: self.first,
            3: self.note,
            4: [*(support.fields() for support in self.supports), *(tee.fields() for tee in self.tees)],
        }
        if self.boot_logs:
            fields[5] = {name: list(blob) for name, blob in self.boot_logs.items()}
        return cbor.encode(fields)

    @classmethod
    def decode(cls, data: bytes) -> Commit:
        """Read one commit.

        Raises:
            MalformedError: it is none.
            UnsupportedError: its version is unknown.
        """
        fields = cbor.Fields.artefact(
            cbor.decode(data, max_bytes=MAX_COMMIT, what="commit"), "commit", KIND_COMMIT
        )
        logs = fields.mapping(5, MAX_BOOT_LOGS) if fields.has(5) else {}
        cbor.texts(logs, "boot logs of a commit")
        for blob in logs.values():
            if type(blob) is not list:
                raise MalformedError("a boot log of a commit is not named by a digest and a number of bytes")
        supports, tees = _supports(fields.array(4, MAX_SUPPORTS))
        commit = cls(
            first=fields.uint(2, (1 << 63) - 1),
            note=fields.octets(3, 1, MAX_NOTE),
            supports=supports,
            boot_logs={name: _named_blob(blob) for name, blob in logs.items()},
            tees=tees,
        )
        fields.finish()
        return commit


def _supports(items: list[Any]) -> tuple[tuple[CommitSupport, ...], tuple[CommitTeeSupport, ...]]:
    """Read the supports: those of a TPM, then the others, which have endorsements and no PCRs."""
    count = sum(type(item) is not dict or _ENDORSEMENTS not in item or _PCR_VALUES in item for item in items)
    first = tuple(CommitSupport.read(item) for item in items[:count])
    tees = tuple(CommitTeeSupport.read(item) for item in items[count:])
    if len({support.identifier for support in tees}) < len(tees):
        raise MalformedError("the commit has two tee supports of one identifier")
    return first, tees


def split(data: bytes) -> Iterator[bytes]:
    """Yield the bytes of each commit of a history file in order; `Commit.decode` reads one.

    Raises:
        MalformedError: the file is not a sequence of deterministic CBOR items, ends within one, or holds too many.
    """
    position = count = 0
    while position < len(data):
        count += 1
        if count > COMMITS_PER_FILE:
            raise MalformedError(f"a history file holds more than {COMMITS_PER_FILE} commits")
        end = cbor.item_end(data, position, max_bytes=MAX_COMMIT, what="history file")
        yield data[position:end]
        position = end
