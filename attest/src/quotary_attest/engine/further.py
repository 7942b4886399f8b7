# SPDX-License-Identifier: Apache-2.0
"""Roots that stand beside the TPM, or in its place: their hardware lines on commits that they bind (design section 3).

A root that every commit needs and that fails is as a TPM that is gone: the commit does not come about. Another one
leaves out its line, which is logged and counted. A line that is false would spoil the whole note, so what a root hands
out is verified here, by the verifier's own code, before a commit carries it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from quotary_attest.roots import EvidenceRoot, RequiredRootFailed, RootError, TeeEvidence
from quotary_attest.state import HostIdentity, StateError
from quotary_verifier.errors import QuotaryError
from quotary_verifier.evidence.tee.lines import Bound, TeeRoots, verify_tee_line
from quotary_verifier.tlog.hardware import (
    IDENTIFIER_NVIDIA,
    TEE_IDENTIFIERS,
    HardwareLine,
    encode_hardware_line,
    tee_name,
)
from quotary_verifier.tlog.note import SignatureLine
from quotary_verifier.wire.history import CommitTeeSupport
from quotary_verifier.wire.limits import MAX_NOTE
from quotary_verifier.wire.tee_support import TeeSupport

_LOG = logging.getLogger("quotary.agent")
_LATE_HINT = "see the kernel's log (`dmesg`); where a driver never answers, only a restart helps"

MAX_EVIDENCE: Final = (MAX_NOTE - 8192) * 3 // 4
"""Bytes that all these lines of a note may have together: it leaves room for the TPM's, and for cosignatures."""

WHOLE_MACHINE: Final = frozenset(TEE_IDENTIFIERS) - {IDENTIFIER_NVIDIA}
"""Lines that say what a whole machine was started from: an origin without a TPM needs one of them."""


@dataclass(frozen=True, slots=True)
class FurtherRoot:
    """A root beside the TPM. Every commit needs it (`required`), or every Nth one carries its line where it can.

    `deadline` is how many seconds a commit waits for it.
    """

    root: EvidenceRoot
    required: bool = False
    every: int = 1
    deadline: float = 30.0

    def __post_init__(self) -> None:
        """Raise ValueError for what contradicts itself."""
        if self.every < 1 or (self.required and self.every != 1):
            raise ValueError("a root that every commit needs binds every commit")


@dataclass(frozen=True, slots=True)
class FurtherLine:
    """A line of a commit and what vouches for it."""

    line: SignatureLine
    support: TeeSupport

    def stored(self, put: Callable[[bytes], bytes]) -> CommitTeeSupport:
        """Return the support as the history has it; `put` stores a blob and returns its SHA-256."""
        named = {name: tuple(map(put, parts)) for name, parts in self.support.endorsements.items()}
        return CommitTeeSupport(self.support.identifier, named)


class _Watched:
    """A root, the call to it that may still run, and what became of the last one."""

    __slots__ = ("bound", "calling", "error", "failed", "further")

    def __init__(self, further: FurtherRoot) -> None:
        self.further = further
        self.calling: asyncio.Task[TeeEvidence] | None = None
        self.error: RootError | None = None
        self.bound = self.failed = 0

    @property
    def identifier(self) -> str:
        return self.further.root.identifier

    def note(self, result: FurtherLine | RootError) -> None:
        """Count what became of a call, and log it where that is new."""
        known, self.error = self.error, result if isinstance(result, RootError) else None
        if self.error is None:
            self.bound += 1
            if known is not None:
                _LOG.info("%s binds commits again", self.identifier)
            return
        self.failed += 1
        if not self.further.required and str(known) != str(self.error):
            _LOG.warning("commits go on without %s: %s", self.identifier, self.error)

    def shown(self) -> dict[str, Any]:
        """Return what an operator wants to see."""
        further, error = self.further, self.error
        return {
            "identifier": self.identifier,
            "what": further.root.describe(),
            "required": further.required,
            "every": further.every,
            "bound": self.bound,
            "failed": self.failed,
            "error": "" if error is None else str(error),
            "hint": "" if error is None else error.hint,
        }


class FurtherRoots:
    """All roots beside the TPM of one origin."""

    def __init__(
        self,
        roots: Sequence[FurtherRoot],
        identity: HostIdentity,
        now: Callable[[], int],
        trusted: TeeRoots | None = None,
    ) -> None:
        """`now` is the wall clock in milliseconds; `trusted` replaces the makers' roots, as the verifier takes them.

        Raises ValueError where two roots have one identifier.
        """
        self._roots = tuple(map(_Watched, roots))
        if len({each.identifier for each in self._roots}) < len(self._roots):
            raise ValueError("a note has one line for each identifier, so there is one root for each")
        self._origin = identity.origin
        self._genesis = sha256(identity.genesis_record).digest()
        self._now, self._trusted = now, trusted

    def due(self, number: int) -> bool:
        """Whether a root is to bind commit `number` of the history, which counts from 0."""
        return any(number % each.further.every == 0 for each in self._roots)

    async def bind(self, number: int, first: int, digest: bytes) -> tuple[FurtherLine, ...]:
        """Let all roots that are due bind a commit by its D, at once, and return their lines.

        Raises:
            RequiredRootFailed: a root that every commit needs did not.
        """
        due = [each for each in self._roots if number % each.further.every == 0]
        found = await asyncio.gather(*(self._bind_one(each, first, digest) for each in due))
        lines = _fitting(found)
        for watched, line in zip(due, lines, strict=True):
            watched.note(line)
        for watched in due:
            if watched.further.required and (error := watched.error) is not None:
                raise RequiredRootFailed(
                    f"{watched.identifier}, which every commit needs: {error}", hint=error.hint
                ) from error
        return tuple(line for line in lines if isinstance(line, FurtherLine))

    async def _bind_one(self, watched: _Watched, first: int, digest: bytes) -> FurtherLine | RootError:
        try:
            evidence = await self._ask(watched, digest)
            return await asyncio.to_thread(self._line, watched.identifier, evidence, first, digest)
        except RootError as error:
            return error
        except Exception as error:  # whatever a driver does, a commit that can stand without it has to
            _LOG.exception("%s failed", watched.identifier)
            return RootError(f"it failed: {error}", hint="please report this")

    async def _ask(self, watched: _Watched, digest: bytes) -> TeeEvidence:
        """Ask for evidence, in time. A call that is late goes on by itself, and is not joined by a second one."""
        further, calling = watched.further, watched.calling
        if calling is not None and not calling.done():
            raise RootError("it has not answered an earlier call yet", hint=_LATE_HINT)
        calling = watched.calling = asyncio.ensure_future(further.root.bind(digest + self._genesis))
        calling.add_done_callback(_heard)
        try:
            done, _ = await asyncio.wait({calling}, timeout=further.deadline)
        except asyncio.CancelledError:
            calling.cancel()
            raise
        if not done:
            raise RootError(f"it did not answer within {further.deadline:g} seconds", hint=_LATE_HINT)
        if calling.cancelled():  # by the root itself: as a cancellation it would end the engine, too
            raise RootError("it broke its own call off")
        return calling.result()

    def _line(self, identifier: str, evidence: TeeEvidence, first: int, digest: bytes) -> FurtherLine:
        """Verify evidence as whoever gets an attestation does, and make a line of it. Raises RootError."""
        support = TeeSupport(identifier, evidence.endorsements)
        at = datetime.fromtimestamp(self._now() / 1000, UTC)
        try:
            TeeSupport.read(support.fields())
            verify_tee_line(evidence.evidence, support, Bound(digest, self._genesis), at, self._trusted)
            line = HardwareLine(identifier, first, evidence.evidence)
            return FurtherLine(encode_hardware_line(self._origin, b"", line), support)
        except QuotaryError as error:
            raise RootError(
                f"its evidence would not verify: {error}",
                hint="see whether the certificates and collateral of this root are there and new, "
                "and whether the host's clock is right",
            ) from error

    def status(self) -> list[dict[str, Any]]:
        """Return what an operator wants to see of each root, as JSON can hold it."""
        return [each.shown() for each in self._roots]

    async def close(self) -> None:
        """Stop what is running and give back all roots."""
        running = [each.calling for each in self._roots if each.calling is not None]
        for call in running:
            call.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await close_all([each.further for each in self._roots])


def check_anchored(roots: Sequence[FurtherRoot]) -> None:
    """Raise StateError unless an origin without a TPM can live on these roots: every commit needs one of a machine."""
    if not any(each.required and each.root.identifier in WHOLE_MACHINE for each in roots):
        names = ", ".join(sorted(map(tee_name, WHOLE_MACHINE)))
        raise StateError(
            "this origin has no tpm, and no root of a whole machine is required for every commit",
            hint=f"configure a [[root]] with required = true, of one of {names} (docs/howto/tee.md)",
        )


async def close_all(roots: Sequence[FurtherRoot]) -> None:
    """Give back roots that no agent runs on, or no more."""
    for each in roots:
        await each.root.close()


def _heard(calling: asyncio.Task[TeeEvidence]) -> None:
    """Take note of how a call ended, so that one which nobody awaits any more raises nowhere."""
    if not calling.cancelled():
        calling.exception()


def _fitting(found: Sequence[FurtherLine | RootError]) -> list[FurtherLine | RootError]:
    """Return the lines, in place of those for which a note has no room an error."""
    fitting: list[FurtherLine | RootError] = []
    size = 0
    for line in found:
        if isinstance(line, FurtherLine):
            size += len(line.line.payload)
        full = isinstance(line, FurtherLine) and size > MAX_EVIDENCE
        fitting.append(RootError("its evidence makes the note too long") if full else line)
    return fitting
