# SPDX-License-Identifier: Apache-2.0
"""An attester without hardware, for tests of serving alone: it keeps what it is handed and can be told to fail."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from dataclasses import dataclass, field
from typing import Any

from quotary_attest.engine.errors import Unavailable, UnknownOutput
from quotary_attest.engine.outputs import NewOutput, make_output_id, wall_clock
from quotary_attest.log.errors import NotFound


@dataclass(frozen=True)
class Held:
    """What `submit` returns: as the agent's `Delivered`."""

    output_id: bytes
    encoded: bytes


@dataclass
class MemoryLog:
    """Published files by path."""

    files: dict[str, bytes] = field(default_factory=dict)

    def serve(self, path: str) -> bytes:
        """Return a file or raise NotFound."""
        try:
            return self.files[path]
        except KeyError:
            raise NotFound("nothing is published at this path") from None


@dataclass
class MemoryAttester:
    """Keeps outputs by id. `gate` holds commits back while it is cleared; `failure` makes everything fail."""

    outputs: dict[bytes, NewOutput] = field(default_factory=dict)
    attestations: dict[bytes, bytes] = field(default_factory=dict)
    aliases: dict[bytes, bytes] = field(default_factory=dict)
    reserved: set[bytes] = field(default_factory=set)
    abandoned: set[bytes] = field(default_factory=set)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    failure: Exception | None = None
    store: MemoryLog = field(default_factory=MemoryLog)
    size: int = 48
    submitted: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def outage(self) -> Exception | None:
        """What submit would raise."""
        return self.failure

    def new_output_id(self) -> bytes:
        """Return a fresh id."""
        return make_output_id(wall_clock(), os.urandom)

    def reserve(self, output_id: bytes) -> None:
        """Announce an output."""
        self.reserved.add(output_id)

    def abandon(self, output_id: bytes) -> None:
        """Take an announcement back."""
        self.reserved.discard(output_id)
        self.abandoned.add(output_id)

    @property
    def alias_secret(self) -> bytes:
        """Some secret."""
        return bytes(range(32))

    def announce_alias(self, alias: bytes, output_id: bytes) -> None:
        """Know an output by an alias."""
        self.aliases[alias] = output_id

    async def resolve(self, alias: bytes) -> bytes | None:
        """Return what an alias was announced for."""
        return self.aliases.get(alias)

    async def submit(self, output: NewOutput) -> Held:
        """Keep an output once the gate is open."""
        async with self.changed:
            self.submitted += 1
            self.changed.notify_all()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        attestation = hashlib.shake_128(output.output_id).digest(self.size)
        async with self.changed:
            self.outputs[output.output_id] = output
            if output.alias is not None:
                self.aliases[output.alias] = output.output_id
            self.attestations[output.output_id] = attestation
            self.reserved.discard(output.output_id)
            self.changed.notify_all()
        return Held(output.output_id, attestation)

    async def fetch(self, output_id: bytes, timeout: float) -> bytes:  # noqa: ASYNC109
        """Return an attestation, waiting for one that is announced."""
        async with asyncio.timeout(timeout), self.changed:
            while output_id not in self.attestations:
                if output_id not in self.reserved:
                    raise UnknownOutput("unknown")
                await self.changed.wait()
        return self.attestations[output_id]

    async def fresh_quote(self, nonce: bytes, *, model: str | None = None) -> bytes:
        """Return bytes that carry the nonce."""
        if self.failure is not None:
            raise self.failure
        return b"quote over " + nonce

    def status(self) -> dict[str, Any]:
        """Return some state."""
        return {"outputs": len(self.outputs), "time": time.time_ns()}

    async def recorded(self, output_id: bytes) -> NewOutput:
        """Wait for an output and return it."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: output_id in self.outputs)
        return self.outputs[output_id]

    async def until_submitted(self, count: int) -> None:
        """Wait until so many outputs were handed in."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: self.submitted >= count)


GONE = Unavailable("the tpm does not answer")
