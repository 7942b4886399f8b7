# SPDX-License-Identifier: Apache-2.0
"""A device as a root of the commit engine: asked in a thread, and believed only once a verifier's code has taken it.

A line whose evidence is false rejects the whole note for everyone, so none is handed out that does not verify here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from quotary_attest.roots import TeeEvidence
from quotary_attest.tee.archive import stored
from quotary_attest.tee.calls import Calls
from quotary_attest.tee.errors import TeeWrong
from quotary_verifier.errors import MalformedError, QuotaryError
from quotary_verifier.evidence.tee.lines import Bound, TeeRoots, verify_tee_line
from quotary_verifier.tlog.hardware import IDENTIFIER_CCA, IDENTIFIER_SEV_SNP, IDENTIFIER_TDX
from quotary_verifier.wire.tee_support import TeeSupport

REPORT_DATA_BYTES: Final = 64
_COLLATERAL: Final = frozenset({IDENTIFIER_SEV_SNP, IDENTIFIER_TDX})
_DIGEST_BYTES: Final = 32


class Device(Protocol):
    """What makes evidence. `collect` blocks, runs in one thread at a time, and raises TeeError."""

    @property
    def identifier(self) -> str:
        """The identifier of its hardware line."""

    def describe(self) -> str:
        """Say what it is and where it is reached."""

    def collect(self, report_data: bytes) -> TeeEvidence:
        """Return evidence over D ‖ SHA-256(genesis record), with the endorsements that come with it."""


def utc_now() -> datetime:
    """The host's clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class TeeOptions:
    """How a device is used. `deadline`: seconds for one evidence.

    `collateral`: a folder of `attest tee fetch-collateral`, for what does not come with the evidence.
    `roots`: in place of the makers', for tests; for CCA, which has none, the platform's keys. `now`: the host's clock.
    """

    deadline: float = 30.0
    collateral: Path | None = None
    roots: TeeRoots | None = None
    now: Callable[[], datetime] = field(default=utc_now)


class DeviceRoot:
    """Implements `quotary_attest.roots.EvidenceRoot` for a device."""

    def __init__(self, device: Device, options: TeeOptions | None = None) -> None:
        self._device = device
        self._options = options or TeeOptions()
        self._calls = Calls(device.describe(), self._options.deadline)
        self._last: TeeSupport | None = None

    @property
    def identifier(self) -> str:
        """The identifier of its hardware line."""
        return self._device.identifier

    def describe(self) -> str:
        """Say in a few words what this is and where it is reached; no I/O."""
        return self._device.describe()

    async def bind(self, report_data: bytes) -> TeeEvidence:
        """Return verified evidence over 64 bytes; see `EvidenceRoot.bind`.

        Raises the TeeErrors of the device, TeeGone where it does not answer, TeeWrong where no endorsement that is
        there makes the evidence verify.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise ValueError(f"a root binds {REPORT_DATA_BYTES} bytes, not {len(report_data)}")
        return await self._calls.run(lambda: self._bind(report_data))

    async def close(self) -> None:
        """Nothing is held between two calls."""

    def _bind(self, report_data: bytes) -> TeeEvidence:
        collected = self._device.collect(report_data)
        bound = Bound(report_data[:_DIGEST_BYTES], report_data[_DIGEST_BYTES:])
        at, first = self._options.now(), None
        for support in self._supports(collected):
            try:
                verify_tee_line(collected.evidence, support, bound, at, self._options.roots)
            except QuotaryError as error:
                first = first or error
                continue
            self._last = support
            return TeeEvidence(collected.evidence, support.endorsements)
        raise _refusal(self.identifier, self.describe(), first)

    def _supports(self, collected: TeeEvidence) -> Iterator[TeeSupport]:
        """What may vouch for it: what came with it, what did so last, what is stored."""
        own = TeeSupport(self.identifier, collected.endorsements)
        folder = self._options.collateral
        if own.endorsements or folder is None:
            yield own
        if folder is not None:
            if self._last is not None:
                yield self._last
            yield from stored(folder, self.identifier)


def _refusal(identifier: str, name: str, error: QuotaryError | None) -> TeeWrong:
    if error is None:
        return TeeWrong(
            f"{name}: nothing stored vouches for its evidence",
            hint="run `attest tee fetch-collateral` for evidence of this machine",
        )
    if identifier == IDENTIFIER_CCA:
        hint = "are the keys in `platform_keys` those of this platform?"
    elif identifier not in _COLLATERAL:
        hint = "is the clock right, and the driver as new as the device?"
    elif isinstance(error, MalformedError):
        hint = "run `attest tee fetch-collateral` for its evidence, and name the folder in the configuration"
    else:
        hint = "is the clock right? new firmware takes new certificates: `attest tee fetch-collateral`"
    return TeeWrong(f"{name}: its evidence does not verify: {error}", hint=hint)
