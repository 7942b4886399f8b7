# SPDX-License-Identifier: Apache-2.0
"""The four kinds of record: genesis, output, boot and statement (docs/spec/records.md, design section 3).

A record is deterministic CBOR. The log holds `SHA-256(record)` as its entry and nothing else of it; every record
carries 16 random bytes, so that an entry reveals nothing about its record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Any

from quotary_verifier.errors import MalformedError
from quotary_verifier.wire import cbor
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import (
    MAX_CONTEXT_ENTRIES,
    MAX_EVIDENCE,
    MAX_NONCE,
    MAX_OUTPUT_DIGESTS,
    MAX_RECORD,
    MAX_TEXT,
    MIN_NONCE,
)
from quotary_verifier.wire.names import OUTPUT_ID_BYTES, check_host, origin_of

KIND_GENESIS = 0
KIND_OUTPUT = 1
KIND_BOOT = 2
KIND_STATEMENT = 3

SALT_BYTES = 16
_MAX_TIME = (1 << 53) - 1
_HANDLE_BYTES = 4


class State(IntEnum):
    """How an output ended (output record, field 5)."""

    COMPLETE = 0
    ENGINE_ERROR = 1
    ENGINE_TRUNCATED = 2
    CLIENT_GONE = 3


class Link(IntEnum):
    """How the agent knows that the engine serves the files it measured (output record, field 9)."""

    CONFIGURED = 0
    CHECKED = 1
    STARTED = 2


class Source(IntEnum):
    """How the agent got the output (output record, field 11)."""

    RELAYED = 0
    MIDDLEWARE = 1
    SUBMITTED = 2


_STATES, _LINKS, _SOURCES = tuple(State), tuple(Link), tuple(Source)


def entry_of(record: bytes) -> bytes:
    """Return the log entry of a record: its SHA-256, 32 bytes."""
    return hashlib.sha256(record).digest()


@frozen
class TpmIdentity:
    """What a genesis record says about its TPM: all of it or nothing (TEE-only origins have none).

    `ak` is a TPMT_PUBLIC, `ak_parent` the name of the AK's parent (for foreign AKs its qualified name, or the
    4-byte handle of the hierarchy of a primary key), `counter` a TPMS_NV_PUBLIC after the first increment.
    """

    ak: bytes
    ak_parent: bytes
    chain_pcr: int
    workload_pcr: int
    counter: bytes


@frozen
class Genesis:
    """The record of leaf 0; its digest makes the origin. `time` is in milliseconds since the epoch."""

    salt: bytes
    time: int
    host: str
    note_key: bytes
    tpm: TpmIdentity | None
    not_understood: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return the record's bytes."""
        fields: dict[int, Any] = {0: KIND_GENESIS, 1: 1, 2: self.salt, 3: self.time, 4: self.host}
        if self.tpm is not None:
            fields |= {5: self.tpm.ak, 6: self.tpm.ak_parent}
        fields[7] = self.note_key
        if self.tpm is not None:
            fields |= {8: self.tpm.chain_pcr, 9: self.tpm.workload_pcr, 10: self.tpm.counter}
        return cbor.encode(fields)

    @classmethod
    def decode(cls, record: bytes) -> Genesis:
        """Read a genesis record.

        Raises:
            MalformedError: it is none.
            UnsupportedError: its version is unknown.
        """
        fields = cbor.Fields.artefact(
            cbor.decode(record, max_bytes=MAX_RECORD, what="genesis record"), "genesis record", KIND_GENESIS
        )
        return cls(
            salt=fields.octets(2, SALT_BYTES),
            time=fields.uint(3, _MAX_TIME),
            host=check_host(fields.text(4, 255)),
            note_key=fields.octets(7, 32),
            tpm=_tpm_identity(fields),
            not_understood=fields.finish(),
        )

    def origin(self, record: bytes) -> str:
        """Return the origin; `record` is the bytes this object was read from or written to."""
        return origin_of(self.host, record)


def _tpm_identity(fields: cbor.Fields) -> TpmIdentity | None:
    present = [fields.has(key) for key in (5, 6, 8, 9, 10)]
    if not any(present):
        return None
    if not all(present):
        raise MalformedError("genesis record: the fields 5, 6, 8, 9 and 10 stand together or not at all")
    identity = TpmIdentity(
        ak=fields.octets(5, 1, 1024),
        ak_parent=fields.octets(6, _HANDLE_BYTES, 66),
        chain_pcr=fields.uint(8, 15),
        workload_pcr=fields.uint(9, 15),
        counter=fields.octets(10, 14, 128),
    )
    if identity.chain_pcr == identity.workload_pcr:
        raise MalformedError("genesis record: the chain PCR and the workload PCR are the same")
    return identity


@frozen
class ModelClaim:
    """Which model an output came from, by the workload-log event that measured it (output record, field 9).

    `event` is the event's record number, `event_digest` its SHA-256 digest in the log, `weights` the digest of the
    weights as the event states it. Both are None in records of an origin without a TPM, which has no register that a
    workload log could be extended into.
    """

    name: str
    weights: bytes
    event: int | None
    event_digest: bytes | None
    link: Link

    def fields(self) -> dict[int, Any]:
        """Return the map as it stands in the record."""
        fields: dict[int, Any] = {1: self.name, 2: self.weights}
        if self.event is not None:
            fields |= {3: self.event, 4: self.event_digest}
        fields[5] = int(self.link)
        return fields


ContextValue = str | int | bool | bytes


@frozen
class Output:
    """The record of one output. `time` is the host's clock in milliseconds; digests are SHA-256, 32 bytes each."""

    salt: bytes
    time: int
    output_id: bytes
    state: State
    digests: Mapping[str, bytes]
    request: bytes | None
    nonce: bytes | None
    model: ModelClaim | None
    context: Mapping[str, ContextValue]
    source: Source
    not_understood: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return the record's bytes. The one caller that makes thousands a second is the commit engine."""
        fields: dict[int, Any] = {
            0: KIND_OUTPUT,
            1: 1,
            2: self.salt,
            3: self.time,
            4: self.output_id,
            5: int(self.state),
            6: _in_order(self.digests),
        }
        if self.request is not None:
            fields[7] = self.request
        if self.nonce is not None:
            fields[8] = self.nonce
        if self.model is not None:
            fields[9] = self.model.fields()
        if self.context:
            fields[10] = _in_order(self.context)
        fields[11] = int(self.source)
        return cbor.encode_ordered(fields)

    @classmethod
    def decode(cls, record: bytes) -> Output:
        """Read an output record.

        Raises:
            MalformedError: it is none, or claims a model although a local caller submitted the output.
            UnsupportedError: its version is unknown.
        """
        fields = cbor.Fields.artefact(
            cbor.decode(record, max_bytes=MAX_RECORD, what="output record"), "output record", KIND_OUTPUT
        )
        output = cls(
            salt=fields.octets(2, SALT_BYTES),
            time=fields.uint(3, _MAX_TIME),
            output_id=fields.octets(4, OUTPUT_ID_BYTES),
            state=_STATES[fields.uint(5, len(_STATES) - 1)],
            digests=_digests(fields.mapping(6, MAX_OUTPUT_DIGESTS)),
            request=fields.maybe_octets(7, 32),
            nonce=fields.maybe_octets(8, MIN_NONCE, MAX_NONCE),
            model=_model(fields.mapping(9, 8)) if fields.has(9) else None,
            context=_context(fields.mapping(10, MAX_CONTEXT_ENTRIES)) if fields.has(10) else {},
            source=_SOURCES[fields.uint(11, len(_SOURCES) - 1)],
            not_understood=fields.finish(),
        )
        if output.model is not None and output.source is Source.SUBMITTED:
            raise MalformedError("output record: a submitted output cannot claim a model")
        return output


def _in_order(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a map with its keys in deterministic order; the orders of few sets of keys are remembered."""
    if len(value) < 2:
        return value
    return {key: value[key] for key in _key_order(tuple(value))}


@lru_cache(maxsize=256)
def _key_order(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(keys, key=_text_order))


def _text_order(key: str) -> tuple[int, bytes]:
    encoded = key.encode()
    return len(encoded), encoded


def _digests(value: dict[Any, Any]) -> dict[str, bytes]:
    cbor.texts(value, "output digests")
    if not value:
        raise MalformedError("output record: no output digest")
    for digest in value.values():
        if type(digest) is not bytes or len(digest) != 32:
            raise MalformedError("output record: a digest does not have 32 bytes")
    return value


def _model(value: dict[Any, Any]) -> ModelClaim:
    fields = cbor.Fields(value, "model of an output record")
    cited = fields.has(3)
    if cited != fields.has(4):
        raise MalformedError("output record: the fields 3 and 4 of a model stand together or not at all")
    claim = ModelClaim(
        name=fields.text(1, 512),
        weights=fields.octets(2, 32),
        event=fields.uint(3) if cited else None,
        event_digest=fields.octets(4, 32) if cited else None,
        link=_LINKS[fields.uint(5, len(_LINKS) - 1)],
    )
    if fields.finish():
        raise MalformedError("output record: unknown field in the model")
    return claim


def _context(value: dict[Any, Any]) -> dict[str, ContextValue]:
    cbor.texts(value, "context")
    for item in value.values():
        if type(item) not in (str, int, bool, bytes):
            raise MalformedError("output record: a context value is neither text, number, boolean nor bytes")
        if type(item) in (str, bytes) and len(item) > MAX_TEXT:
            raise MalformedError("output record: a context value is too long")
    return value


@frozen
class BootTpm:
    """What a boot record says about its TPM: the counts and chain PCR as found, and the start counter's evidence.

    `counter_evidence` is laid out like a quote's: u16, TPMS_ATTEST, u16, TPMT_SIGNATURE.
    """

    reset_count: int
    restart_count: int
    chain_before: bytes
    counter_evidence: bytes


@frozen
class Boot:
    """The record that every start of the agent commits. `last_commit` is D of the last commit, or zeros."""

    salt: bytes
    time: int
    last_commit: bytes
    tpm: BootTpm | None
    not_understood: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return the record's bytes."""
        fields: dict[int, Any] = {0: KIND_BOOT, 1: 1, 2: self.salt, 3: self.time}
        if self.tpm is not None:
            fields |= {4: [self.tpm.reset_count, self.tpm.restart_count], 5: self.tpm.chain_before}
        fields[6] = self.last_commit
        if self.tpm is not None:
            fields[7] = self.tpm.counter_evidence
        return cbor.encode(fields)

    @classmethod
    def decode(cls, record: bytes) -> Boot:
        """Read a boot record.

        Raises:
            MalformedError: it is none.
            UnsupportedError: its version is unknown.
        """
        fields = cbor.Fields.artefact(
            cbor.decode(record, max_bytes=MAX_RECORD, what="boot record"), "boot record", KIND_BOOT
        )
        return cls(
            salt=fields.octets(2, SALT_BYTES),
            time=fields.uint(3, _MAX_TIME),
            tpm=_boot_tpm(fields),
            last_commit=fields.octets(6, 32),
            not_understood=fields.finish(),
        )


def _boot_tpm(fields: cbor.Fields) -> BootTpm | None:
    present = [fields.has(key) for key in (4, 5, 7)]
    if not any(present):
        return None
    if not all(present):
        raise MalformedError("boot record: the fields 4, 5 and 7 stand together or not at all")
    counts = fields.array(4, 2)
    if len(counts) != 2 or any(type(n) is not int or not 0 <= n < 1 << 32 for n in counts):
        raise MalformedError("boot record: field 4 is not a pair of 32-bit counts")
    return BootTpm(
        reset_count=counts[0],
        restart_count=counts[1],
        chain_before=fields.octets(5, 32),
        counter_evidence=fields.octets(7, 1, MAX_EVIDENCE),
    )


@frozen
class Statement:
    """A promise of the host, in machine-readable text."""

    salt: bytes
    time: int
    text: str
    not_understood: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Return the record's bytes."""
        return cbor.encode({0: KIND_STATEMENT, 1: 1, 2: self.salt, 3: self.time, 4: self.text})

    @classmethod
    def decode(cls, record: bytes) -> Statement:
        """Read a statement.

        Raises:
            MalformedError: it is none.
            UnsupportedError: its version is unknown.
        """
        fields = cbor.Fields.artefact(
            cbor.decode(record, max_bytes=MAX_RECORD, what="statement"), "statement", KIND_STATEMENT
        )
        return cls(
            salt=fields.octets(2, SALT_BYTES),
            time=fields.uint(3, _MAX_TIME),
            text=fields.text(4, MAX_TEXT),
            not_understood=fields.finish(),
        )
