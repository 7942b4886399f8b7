# SPDX-License-Identifier: Apache-2.0
"""What the commit engine asks of a root of trust, without naming any hardware.

`Root` is the root that an origin with an AK lives on (a TPM): it has a chain PCR that only a reboot resets, a
workload PCR and a start counter. `EvidenceRoot` is a TEE or a GPU: it binds a commit and hands out evidence, beside a
`Root`, or in its place where an origin has no AK. The engine and its journal know only this module;
`quotary_attest.tpm` implements the first.

Specification: design section 2 (chain PCR), section 3 (hardware line, TPM), section 4 (order and recovery).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from quotary_verifier.wire.tee_support import Endorsements
    from quotary_verifier.wire.tpm_public import Public

QUOTED_PCRS = tuple(range(16))
"""Every quote covers these PCRs of the SHA-256 bank: all that only a reboot resets."""


class RootError(Exception):
    """A root of trust did not do what it was asked to do.

    The message says what happened, `hint` what an operator can do about it (may be empty). Neither holds a
    secret. The command line exits with 4 on any of these.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class RootGone(RootError):  # noqa: N818 - the state reads as itself where it is caught
    """The root cannot be reached. What the last command did is unknown: reconnect, then recover."""


class PlatformUnknown(RootError):  # noqa: N818
    """An earlier command failed half way, so the PCR values are not known: call `platform` and recover."""


class PlatformReset(RootError):  # noqa: N818
    """The platform was reset or hibernated under the running agent: this boot is over, a start is due.

    `clock` is the reading that shows it.
    """

    def __init__(self, message: str, clock: ClockReading, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.clock = clock


class RequiredRootFailed(RootError):  # noqa: N818
    """A root of evidence that every commit needs did not bind one. The batch stays staged; it is bound again."""


class ForeignExtend(RootError):  # noqa: N818
    """Somebody else extended the chain or the workload PCR: the chain is broken until a new start.

    `pcr` is its number, `expected` and `found` are its 32-byte values.
    """

    def __init__(self, pcr: int, expected: bytes, found: bytes) -> None:
        super().__init__(
            f"pcr {pcr} was extended by somebody else: it is {found.hex()}, it should be {expected.hex()}",
            hint="find the other program that extends this pcr; a resumed origin shows auditors a gap",
        )
        self.pcr = pcr
        self.expected = expected
        self.found = found


@dataclass(frozen=True, slots=True)
class ClockReading:
    """TPMS_CLOCK_INFO: `clock` in milliseconds, `(reset_count, restart_count)` names the boot."""

    clock: int
    reset_count: int
    restart_count: int
    safe: bool

    @property
    def boot(self) -> tuple[int, int]:
        """The pair that names a boot (design section 4)."""
        return (self.reset_count, self.restart_count)


@dataclass(frozen=True, slots=True)
class PlatformState:
    """What the root says of the platform now, unsigned: clock and SHA-256 bank, PCR number → 32 bytes."""

    clock: ClockReading
    pcrs: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class LogPrefix:
    """The first `size` bytes of a log that only grows: their SHA-256 names them."""

    digest: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Quote:
    """Signed evidence over PCRs 0-15.

    `attest` is TPMS_ATTEST, `signature` TPMT_SIGNATURE, `evidence` the two as they stand in a hardware line
    (`u16 ‖ attest ‖ u16 ‖ signature`). `pcrs` are the 16 values of 32 bytes that were shown to hash to the
    quoted digest. `clock` and `firmware_version` are read from `attest`. `ima` is the part of the kernel's IMA log that
    leads to these values; where there is none that a verifier would take, `ima_flaw` says why, unless there is no log.
    """

    attest: bytes
    signature: bytes
    evidence: bytes
    pcrs: Mapping[int, bytes]
    clock: ClockReading
    firmware_version: int
    ima: LogPrefix | None = None
    ima_flaw: str = ""


class CommitSteps:
    """What is done about the two commands of a commit, on the root's own thread: it saves the way to others and back.

    A step that raises ends the job there. These do nothing.
    """

    def before(self) -> None:
        """Come before the extend."""

    def between(self) -> None:
        """Come after the extend and before the quote."""

    def after(self, quote: Quote) -> None:
        """Come after the quote."""


@dataclass(frozen=True, slots=True)
class TeeEvidence:
    """What a root hands out for one commit.

    `evidence` stands in the hardware line behind `first`. `endorsements` (name → byte strings) vouch for it and are
    archived beside it: which names there are is the kind's to say (docs/spec/tee.md, "Hardware lines").
    """

    evidence: bytes
    endorsements: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)


@runtime_checkable
class EvidenceRoot(Protocol):
    """A root that adds a line of its own to a commit: SEV-SNP, TDX, Nitro, NVIDIA devices.

    One line for each identifier, so one root for all devices of a kind. The engine asks for one evidence at a time.
    """

    @property
    def identifier(self) -> str:
        """The identifier of its hardware line, such as `quotary/sev-snp/v1`."""
        ...

    async def bind(self, report_data: bytes) -> TeeEvidence:
        """Return evidence that binds 64 bytes: D of the commit ‖ SHA-256 of the genesis record.

        SNP and TDX take all 64 as report data; a Nitro document takes the first half as user data and the second as
        nonce, an NVIDIA device the first half as nonce. Nothing is padded or cut. The root makes sure that the
        evidence is of this very request (generation, report data). It does not block the event loop.

        Raises RootError, with a hint where an operator can act; the engine decides whether a commit can stand without
        this root's line. A caller who is cancelled leaves nothing behind that keeps the next call from working.
        """
        ...

    def describe(self) -> str:
        """Say in a few words what this is and where it is reached, for status and doctor; no I/O."""
        ...

    async def close(self) -> None:
        """Give back whatever is held. Never raises; calling it twice is fine."""
        ...


@runtime_checkable
class AkEndorser(Protocol):
    """Finds what hardware says of the AK that a `Root` quotes with: Azure's paravisor and the processor under it.

    It binds no commit. The line over each commit is the AK's own, `Root.commit` its only `bind`.
    """

    async def endorse(self, root: Root, ak: Public) -> Endorsements:
        """Return what vouches for `ak` now, by name, as it stands in the TPM's support (docs/spec/tee.md).

        Raises RootError, with a hint where an operator can act.
        """
        ...

    def describe(self) -> str:
        """Say in a few words what this is and where it is reached, for status and doctor; no I/O."""
        ...


@runtime_checkable
class Root(Protocol):
    """The root of an origin with an AK: chain PCR, workload PCR, quote and start counter.

    Every method raises RootGone when the hardware does not answer, and another RootError otherwise. The
    methods may be called from several tasks; the hardware does one job at a time, in the order of the calls.
    """

    @property
    def identifier(self) -> str:
        """The identifier of its hardware line, such as `quotary/tpm2-quote/v1`."""
        ...

    async def close(self) -> None:
        """Give back whatever is held. Never raises; calling it twice is fine."""
        ...

    @property
    def chain_pcr(self) -> int:
        """Number of the PCR that chains the commits."""
        ...

    @property
    def workload_pcr(self) -> int:
        """Number of the PCR that the workload log extends."""
        ...

    async def platform(self) -> PlatformState:
        """Read clock and PCRs from the hardware; what was predicted before is forgotten."""
        ...

    async def extend_chain(self, digest: bytes) -> None:
        """Extend the chain PCR alone: the step of recovery where a staged commit was not yet extended."""
        ...

    async def extend_workload(self, digest: bytes) -> None:
        """Extend the workload PCR by the 32-byte digest of an event that is on disk already."""
        ...

    async def quote(self, extra_data: bytes) -> Quote:
        """Quote PCRs 0-15 over 32 bytes, without any extend.

        Raises ForeignExtend when chain or workload PCR are not as this root left them, PlatformReset when the
        boot changed.
        """
        ...

    async def commit(self, digest: bytes, steps: CommitSteps | None = None) -> Quote:
        """Extend the chain PCR by `digest` and quote the same digest, as one job: two commands.

        Raises as `quote`, and what a step raises. When it raises after the extend, `platform` shows whether the
        extend took place.
        """
        ...

    async def read_counter(self) -> int:
        """The start counter's value."""
        ...

    async def increment_counter(self) -> int:
        """Add one to the start counter and return the value read back."""
        ...

    async def certify_counter(self, extra_data: bytes) -> bytes:
        """NV_Certify of the counter by the AK over 32 bytes; evidence in the layout of a quote."""
        ...

    async def reconnect(self) -> PlatformState:
        """Leave the old connection and make a fresh one, load the keys again, and read the platform."""
        ...
