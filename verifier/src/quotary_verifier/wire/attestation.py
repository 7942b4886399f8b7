# SPDX-License-Identifier: Apache-2.0
"""The attestation: the file a consumer gets (docs/spec/attestation.md, design section 3).

Reading one authenticates nothing; `quotary_verifier.verify` does. The classes here only carry bytes of the right
form, and the field names say so where it could be mistaken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from quotary_verifier.errors import MalformedError
from quotary_verifier.wire import cbor
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import (
    MAX_ATTESTATION,
    MAX_BOOT_LOG,
    MAX_BOOT_LOGS,
    MAX_CERTIFICATE,
    MAX_CERTIFICATES,
    MAX_EVENT,
    MAX_EVENTS,
    MAX_LATER_CHECKPOINTS,
    MAX_NOTE,
    MAX_PATH,
    MAX_RECORD,
    MAX_SUPPORTS,
)

if TYPE_CHECKING:
    from quotary_verifier.wire.tee_support import Endorsements, TeeSupport

KIND_ATTESTATION = 16
MEDIA_TYPE = "application/vnd.quotary.attestation+cbor"
REQUEST_KEY_BYTES = 32
DIGEST_BYTES = 32

BOOT_LOG_FIRMWARE = "tcg"
"""Name of the firmware's event log: the bytes of the kernel's `binary_bios_measurements`."""
BOOT_LOG_IMA = "ima"
"""Name of the IMA log: the bytes of the kernel's `binary_runtime_measurements`, or of its file for another hash."""

_PCRS = frozenset(range(16))
_PCR_VALUES, _ENDORSEMENTS = 2, 6
"""A TPM support has PCR values, and may have endorsements of its AK; a TEE support has endorsements alone."""
_MAX_ENDORSEMENTS = 32
_MAX_INDEX = (1 << 63) - 1


@frozen
class TpmSupport:
    """What a TPM line of the note needs to be checked.

    `pcrs` maps a PCR of 0-15 to its SHA-256 value and leaves out exactly the zero values, the chain PCR and the
    workload PCR. `certificates` are DER, leaf first, the root left out. An item of `workload_log` of 32 bytes is an
    event's digest (opaque), a longer one the content of an event in full. `endorsements` vouch for the AK by hardware
    that it lives in (docs/spec/tee.md, "Azure confidential VMs").
    """

    identifier: str
    pcrs: Mapping[int, bytes]
    chain_before: bytes
    certificates: tuple[bytes, ...] = ()
    workload_log: tuple[bytes, ...] = ()
    endorsements: Endorsements = field(default_factory=dict)

    def fields(self) -> dict[int, Any]:
        """Return the map as it stands in an attestation."""
        fields: dict[int, Any] = {
            1: self.identifier,
            2: {pcr: self.pcrs[pcr] for pcr in sorted(self.pcrs)},
            3: self.chain_before,
        }
        if self.certificates:
            fields[4] = list(self.certificates)
        if self.workload_log:
            fields[5] = list(self.workload_log)
        if self.endorsements:
            fields[_ENDORSEMENTS] = {name: list(parts) for name, parts in self.endorsements.items()}
        return fields

    @classmethod
    def read(cls, value: Any) -> TpmSupport:
        """Read one support.

        Raises:
            MalformedError: it is not one.
        """
        fields = cbor.Fields(value, "TPM support")
        support = cls(
            identifier=fields.text(1, 255),
            pcrs=_pcrs(fields.mapping(2, 16)),
            chain_before=fields.octets(3, DIGEST_BYTES),
            certificates=_certificates(fields.array(4, MAX_CERTIFICATES)) if fields.has(4) else (),
            workload_log=_events(fields.array(5, MAX_EVENTS)) if fields.has(5) else (),
            endorsements=_endorsements(fields) if fields.has(_ENDORSEMENTS) else {},
        )
        fields.finish()
        return support


def _pcrs(value: dict[Any, Any]) -> dict[int, bytes]:
    if not _PCRS.issuperset(value):
        raise MalformedError("TPM support: a PCR is not a number from 0 to 15")
    for digest in value.values():
        if type(digest) is not bytes or len(digest) != DIGEST_BYTES:
            raise MalformedError("TPM support: a PCR value does not have 32 bytes")
    return value


def _certificates(items: list[Any]) -> tuple[bytes, ...]:
    for item in items:
        if type(item) is not bytes or not 1 <= len(item) <= MAX_CERTIFICATE:
            raise MalformedError("TPM support: a certificate is not a byte string of allowed length")
    return tuple(items)


def _endorsements(fields: cbor.Fields) -> Endorsements:
    """Read what vouches for the AK; the code is loaded only where there is something."""
    from quotary_verifier.wire.tee_support import read_endorsements

    endorsements = read_endorsements(fields.mapping(_ENDORSEMENTS, _MAX_ENDORSEMENTS), "TPM support")
    if not endorsements:
        raise MalformedError("TPM support: endorsements that are empty must be left out")
    return endorsements


def _events(items: list[Any]) -> tuple[bytes, ...]:
    for item in items:
        if type(item) is not bytes or not DIGEST_BYTES <= len(item) <= MAX_EVENT:
            raise MalformedError("TPM support: a workload event is neither a digest nor an event's content")
    return tuple(items)


@frozen
class LaterCheckpoint:
    """A note of a later, larger tree and the leaf's path in it; it adds to the commit's note, never replaces it."""

    note: bytes
    path: bytes


@frozen
class Attestation:
    """An attestation as read: of the right form, and not authenticated by anything yet.

    `supports` are those of a TPM, `tees` those of other hardware lines. Together they are field 7, in this order.
    """

    record: bytes
    genesis: bytes
    index: int
    path: bytes
    note: bytes
    supports: tuple[TpmSupport, ...]
    request_key: bytes | None = None
    boot_logs: Mapping[str, bytes] = field(default_factory=dict)
    later: tuple[LaterCheckpoint, ...] = ()
    not_understood: tuple[int, ...] = ()
    tees: tuple[TeeSupport, ...] = ()

    def encode(self) -> bytes:
        """Return the file's bytes."""
        fields: dict[int, Any] = {
            0: KIND_ATTESTATION,
            1: 1,
            2: self.record,
            3: self.genesis,
            4: self.index,
            5: self.path,
            6: self.note,
            7: self.support_fields(),
        }
        if self.request_key is not None:
            fields[8] = self.request_key
        if self.boot_logs:
            fields[9] = dict(self.boot_logs)
        if self.later:
            fields[10] = [[later.note, later.path] for later in self.later]
        return cbor.encode(fields)

    def support_fields(self) -> list[dict[int, Any]]:
        """Return field 7 as it stands in the file."""
        own, others = self.supports, self.tees
        return [support.fields() for support in own] + [support.fields() for support in others]

    @classmethod
    def decode(cls, data: bytes) -> Attestation:
        """Read an attestation.

        Raises:
            MalformedError: it is none.
            UnsupportedError: its version is unknown.
        """
        fields = cbor.Fields.artefact(
            cbor.decode(data, max_bytes=MAX_ATTESTATION, what="attestation"), "attestation", KIND_ATTESTATION
        )
        supports, tees = _read_supports(fields.array(7, MAX_SUPPORTS))
        return cls(
            record=fields.octets(2, 1, MAX_RECORD),
            genesis=fields.octets(3, 1, MAX_RECORD),
            index=fields.uint(4, _MAX_INDEX),
            path=_path(fields.octets(5, 0, MAX_PATH)),
            note=fields.octets(6, 1, MAX_NOTE),
            supports=supports,
            request_key=fields.maybe_octets(8, REQUEST_KEY_BYTES),
            boot_logs=_boot_logs(fields.mapping(9, MAX_BOOT_LOGS)) if fields.has(9) else {},
            later=_later(fields.array(10, MAX_LATER_CHECKPOINTS)) if fields.has(10) else (),
            not_understood=fields.finish(),
            tees=tees,
        )


def _read_supports(items: list[Any]) -> tuple[tuple[TpmSupport, ...], tuple[TeeSupport, ...]]:
    """Read the supports of an attestation: those of a TPM, then the others, which have endorsements and no PCRs.

    Raises:
        MalformedError: one is not of its form or place, or two others have one identifier.
    """
    count = 0
    for item in items:
        if type(item) is not dict or _ENDORSEMENTS not in item or _PCR_VALUES in item:
            count += 1
    supports = tuple([TpmSupport.read(item) for item in items[:count]])
    if count == len(items):
        return supports, ()
    from quotary_verifier.wire.tee_support import TeeSupport

    tees = tuple([TeeSupport.read(item) for item in items[count:]])
    if len({tee.identifier for tee in tees}) < len(tees):
        raise MalformedError("two supports have one identifier")
    return supports, tees


def _path(path: bytes) -> bytes:
    if len(path) % DIGEST_BYTES:
        raise MalformedError("an inclusion path is not a whole number of 32-byte hashes")
    return path


def _boot_logs(value: dict[Any, Any]) -> dict[str, bytes]:
    cbor.texts(value, "boot logs")
    for log in value.values():
        if type(log) is not bytes or not DIGEST_BYTES <= len(log) <= MAX_BOOT_LOG:
            raise MalformedError("a boot log is neither a digest nor a log")
    return value


def _later(items: list[Any]) -> tuple[LaterCheckpoint, ...]:
    checkpoints = []
    for item in items:
        if type(item) is not list or len(item) != 2 or any(type(part) is not bytes for part in item):
            raise MalformedError("a later checkpoint is not a pair of a note and a path")
        note, path = item
        if not 1 <= len(note) <= MAX_NOTE or len(path) > MAX_PATH:
            raise MalformedError("a later checkpoint is too long")
        checkpoints.append(LaterCheckpoint(note, _path(path)))
    return tuple(checkpoints)
