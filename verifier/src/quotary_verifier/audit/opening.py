# SPDX-License-Identifier: Apache-2.0
"""The first step of an audit: the published checkpoint and the genesis record, from which everything else follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quotary_verifier.audit.commits import CommitChecker
from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.audit.reading import Absent, Blobs, Read
from quotary_verifier.audit.subtrees import ENTRY_BYTES
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tpm_keys import AttestationKey, attestation_key
from quotary_verifier.recipe.platform import Host, read_host
from quotary_verifier.tlog.checkpoint import Checkpoint, parse_checkpoint
from quotary_verifier.tlog.merkle import HASH_SIZE
from quotary_verifier.tlog.note import TYPE_ED25519, Note, key_id, parse_note, verify_ed25519
from quotary_verifier.tlog.tiles import ENTRIES, TILE_WIDTH, Tile
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_NOTE, MAX_RECORD
from quotary_verifier.wire.records import Genesis

if TYPE_CHECKING:
    from quotary_verifier.recipe.platform import TeeHost


@frozen
class Opened:
    """A log whose genesis record, `record`, makes the origin of its checkpoint, which the genesis key signed.

    `key` is the AK, None where the origin has no TPM.
    """

    host: Host | TeeHost
    key: AttestationKey | None
    checkpoint: Checkpoint
    record: bytes


class CannotOpen(Exception):  # noqa: N818 - carries the finding that ends the audit
    """The log cannot be audited at all; `finding` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


def open_log(read: Read) -> Opened:
    """Read checkpoint and genesis record.

    Raises:
        CannotOpen: they are missing, false, or of an unknown kind.
    """
    code, path = Code.CHECKPOINT, "checkpoint"
    try:
        note = parse_note(read(path, MAX_NOTE))
        checkpoint = parse_checkpoint(note.text)
        if checkpoint.size < 1:
            raise MalformedError("the checkpoint is of an empty tree, which no log publishes")
        code, path = Code.GENESIS, Tile(ENTRIES, 0, min(TILE_WIDTH, checkpoint.size)).path
        entry = read(path, ENTRY_BYTES * TILE_WIDTH)[2 : 2 + HASH_SIZE]
        path = f"blob/{entry.hex()}"
        record = Blobs(read).get(entry, MAX_RECORD)
        host, key = read_origin(record)
        if host.origin != checkpoint.origin:
            raise EvidenceError("the genesis record makes another origin than the checkpoint states")
        code, path = Code.CHECKPOINT, "checkpoint"
        _check_signature(note, host)
    except Absent as error:
        raise _cannot(code, Severity.COULD_NOT, error.path, str(error)) from None
    except UnsupportedError as error:
        raise _cannot(code, Severity.COULD_NOT, path, f"{path}: {error}") from None
    except (MalformedError, EvidenceError) as error:
        raise _cannot(code, Severity.FALSE, path, f"{path}: {error}") from None
    return Opened(host, key, checkpoint, record)


def read_origin(record: bytes) -> tuple[Host | TeeHost, AttestationKey | None]:
    """Return what a genesis record says, and its AK, if it has one. Raises as `read_host` and `attestation_key`."""
    if Genesis.decode(record).tpm is None:
        from quotary_verifier.audit.alone import tee_host  # few logs are of such an origin

        return tee_host(record), None
    host = read_host(record)
    return host, attestation_key(host.public, host.identity.ak_parent)


def commit_checker(record: bytes, read: Read) -> CommitChecker:
    """Return what checks the commits of the origin that a genesis record makes. Raises as `read_origin`."""
    host, _ = read_origin(record)
    if isinstance(host, Host):
        return CommitChecker(host, read)
    from quotary_verifier.audit.alone import TeeCommitChecker

    return TeeCommitChecker(host, read)


def _check_signature(note: Note, host: Host | TeeHost) -> None:
    key = host.genesis.note_key
    line = note.line(host.origin, key_id(host.origin, TYPE_ED25519, key))
    if line is None:
        raise EvidenceError("the checkpoint has no Ed25519 line of the genesis record's key")
    verify_ed25519(note.text, line.payload, key)


def _cannot(code: Code, severity: Severity, path: str, message: str) -> CannotOpen:
    return CannotOpen(Finding(code, severity, Place(path=path), message))
