# SPDX-License-Identifier: Apache-2.0
"""An output on its way into the log: what the caller hands in, the record made of it, and who waits for it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from quotary_attest.engine.errors import NotServed
from quotary_attest.log.journal import StagedBatch
from quotary_attest.log.tree import entry_hashes
from quotary_verifier.tlog.merkle import leaf_hash
from quotary_verifier.wire.limits import (
    MAX_CONTEXT_ENTRIES,
    MAX_NONCE,
    MAX_OUTPUT_DIGESTS,
    MAX_RECORD,
    MAX_TEXT,
    MIN_NONCE,
)
from quotary_verifier.wire.names import OUTPUT_ID_BYTES
from quotary_verifier.wire.records import ContextValue, Link, ModelClaim, Output, Source, State, entry_of

if TYPE_CHECKING:
    from quotary_attest.engine.assemble import Sealed
    from quotary_attest.engine.epochs import Epoch

Random = Callable[[int], bytes]

_DIGEST_BYTES: Final = 32
_CONTEXT_TYPES: Final = (str, int, bool, bytes)
_INTEGERS: Final = 1 << 64
_POOL: Final = 16 * 1024
_VERSION_7: Final = 0x70
_VARIANT: Final = 0x80


class RandomPool:
    """Hands out random bytes of the operating system, drawn in blocks: a system call each would cost a commit of
    thousands a noticeable part of its time. No byte is handed out twice, not even by a fork. One thread."""

    __slots__ = ("_block", "_owner", "_position", "_source")

    def __init__(self, source: Random = os.urandom) -> None:
        self._source = source
        self._block = b""
        self._position = 0
        self._owner = 0

    def __call__(self, count: int) -> bytes:
        """Return `count` bytes, at most a block."""
        start = self._position
        end = start + count
        if end > len(self._block) or self._owner != os.getpid():
            self._block = self._source(_POOL)
            self._owner = os.getpid()
            start, end = 0, count
        self._position = end
        return self._block[start:end]


def make_output_id(milliseconds: int, random: Random) -> bytes:
    """Return 24 bytes: a UUIDv7 (RFC 9562 section 5.7) of that time, and 64 random bits."""
    drawn = random(18)
    version = _VERSION_7 | drawn[0] & 0x0F
    variant = _VARIANT | drawn[2] & 0x3F
    return b"%b%c%c%c%b" % (milliseconds.to_bytes(6), version, drawn[1], variant, drawn[3:])


@dataclass(slots=True)
class NewOutput:
    """An output to be attested. Fields are those of the output record (`quotary_verifier.wire.records.Output`).

    `request` is the commitment to the request body under `request_key`, both 32 bytes; `model` is the name that
    an event of the epoch in force measured, None where no model is claimed. `link` is what was checked of the engine
    that made this output; None leaves what the epoch says of the model, which is *configured* for all that an agent
    measured itself. `model` may also be the exact key of a model (`ServedModel.key`). `alias` is another name under
    which the output is found (`quotary_attest.serving.aliases`); it stays with the host, and is kept as long as the
    record.
    """

    output_id: bytes
    digests: Mapping[str, bytes]
    state: State = State.COMPLETE
    request: bytes | None = None
    request_key: bytes | None = None
    nonce: bytes | None = None
    model: str | None = None
    context: Mapping[str, ContextValue] = field(default_factory=dict)
    source: Source = Source.RELAYED
    alias: bytes | None = None
    link: Link | None = None


class Delivered:
    """A finished output: `encoded` is the attestation file's bytes."""

    __slots__ = ("_parts", "_sealed", "output_id")

    def __init__(self, output_id: bytes, parts: tuple[bytes, int | None, bytes], sealed: Sealed) -> None:
        self.output_id = output_id
        self._parts = parts
        self._sealed = sealed

    @property
    def encoded(self) -> bytes:
        """The attestation's bytes. They are joined here, so that a caller who needs none pays for none."""
        return self._sealed.join(self._parts)


class Pending:
    """An output between its arrival and its place in the log."""

    __slots__ = ("delivered", "entry", "event", "future", "generation", "leaf", "output", "record", "time")

    def __init__(self, output: NewOutput, moment: int, future: asyncio.Future[Delivered]) -> None:
        self.output = output
        self.time = moment
        self.future = future
        self.record = b""
        self.entry = b""
        self.leaf = b""
        self.generation = -1
        self.event: int | None = None
        self.delivered: Delivered | None = None

    def encode(self, epoch: Epoch, generation: int, salt: bytes) -> None:
        """Make the record under an epoch, the `generation`-th that is in force in this process.

        Raises:
            NotServed: the epoch does not list the output's model.
            ValueError: a field has a length that no verifier accepts, or the record would be too long.
        """
        output = self.output
        check_output(output)
        claim = None
        if output.model is not None:
            claim = epoch.claims.get(output.model)
            if claim is None:
                raise NotServed(f"no model {output.model!r} is measured in the epoch in force")
            self.event = claim.event
            link = output.link
            if link is not None and link is not claim.link:  # for most outputs, so without `replace`
                claim = ModelClaim(claim.name, claim.weights, claim.event, claim.event_digest, link)
        self.record = record = Output(
            salt,
            self.time,
            output.output_id,
            output.state,
            output.digests,
            output.request,
            output.nonce,
            claim,
            output.context,
            output.source,
        ).encode()
        if len(record) > MAX_RECORD:
            raise ValueError(f"the record has {len(record)} bytes, {MAX_RECORD} are allowed")
        self.entry = entry_of(record)
        self.leaf = leaf_hash(self.entry)
        self.generation = generation


def check_output(output: NewOutput) -> None:
    """Refuse what a verifier would refuse to read. Raises ValueError."""
    if len(output.output_id) != OUTPUT_ID_BYTES:
        raise ValueError(f"an output id has {OUTPUT_ID_BYTES} bytes")
    if not 1 <= len(output.digests) <= MAX_OUTPUT_DIGESTS:
        raise ValueError(f"an output has 1 to {MAX_OUTPUT_DIGESTS} digests")
    for digest in output.digests.values():
        if len(digest) != _DIGEST_BYTES:
            raise ValueError("an output digest has 32 bytes")
    for value in (output.request, output.request_key, output.alias):
        if value is not None and len(value) != _DIGEST_BYTES:
            raise ValueError("a request commitment, its key and an alias have 32 bytes each")
    if output.nonce is not None and not MIN_NONCE <= len(output.nonce) <= MAX_NONCE:
        raise ValueError(f"a nonce has {MIN_NONCE} to {MAX_NONCE} bytes")
    if output.model is not None and output.source is Source.SUBMITTED:
        raise ValueError("a submitted output cannot claim a model")
    if output.context:
        _check_context(output.context)


def _check_context(context: Mapping[str, ContextValue]) -> None:
    if len(context) > MAX_CONTEXT_ENTRIES:
        raise ValueError(f"the context has more than {MAX_CONTEXT_ENTRIES} entries")
    for item in context.values():
        kind = type(item)
        if kind not in _CONTEXT_TYPES or (kind in (str, bytes) and len(item) > MAX_TEXT):  # type: ignore[arg-type]
            raise ValueError(
                f"a context value is a number, a boolean, or at most {MAX_TEXT} of text or bytes"
            )
        if kind is int and not -_INTEGERS <= item < _INTEGERS:  # type: ignore[operator]
            raise ValueError("a context number has at most 64 bits")


class Leaves:
    """Records on their way into the tree, as columns: what a batch is made of."""

    __slots__ = ("aliases", "entries", "hashes", "output_ids", "records", "request_keys", "times")

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.entries: list[bytes] = []
        self.hashes: list[bytes] = []
        self.output_ids: list[bytes | None] = []
        self.times: list[int] = []
        self.request_keys: list[bytes | None] = []
        self.aliases: list[bytes | None] = []

    @classmethod
    def of_outputs(cls, outputs: Sequence[Pending]) -> Leaves:
        """Return the columns of outputs whose records are made."""
        leaves = cls()
        leaves.records = [pending.record for pending in outputs]
        leaves.entries = [pending.entry for pending in outputs]
        leaves.hashes = [pending.leaf for pending in outputs]
        leaves.output_ids = [pending.output.output_id for pending in outputs]
        leaves.times = [pending.time for pending in outputs]
        leaves.request_keys = [pending.output.request_key for pending in outputs]
        leaves.aliases = [pending.output.alias for pending in outputs]
        return leaves

    def add_batch(self, batch: StagedBatch) -> None:
        """Append the leaves of a batch that was staged before and is history: nobody can ask for them."""
        entries = batch.entries()
        self.records += batch.records
        self.entries += entries
        self.hashes += entry_hashes(entries)
        self.output_ids += batch.output_ids
        self.times += batch.times
        self.request_keys += batch.request_keys
        self.aliases += [None] * len(batch.records)

    def add_public(self, record: bytes, moment: int, alias: bytes | None = None) -> None:
        """Append a record that is public: genesis, boot or statement; the newest of an alias can be found by it."""
        entry = entry_of(record)
        self.records.append(record)
        self.entries.append(entry)
        self.hashes.append(leaf_hash(entry))
        self.output_ids.append(None)
        self.times.append(moment)
        self.request_keys.append(None)
        self.aliases.append(alias)


def wall_clock() -> int:
    """Return milliseconds since the epoch by the host's clock."""
    return time.time_ns() // 1_000_000
