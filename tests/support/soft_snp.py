# SPDX-License-Identifier: Apache-2.0
"""A faithful SEV-SNP processor in software, as a root beside a TPM: real reports under a test's own ARK."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from amd_pki import NOW, AmdForge

from quotary_attest.agent import World
from quotary_attest.roots import RootError, TeeEvidence
from quotary_verifier.evidence.tee.lines import TeeRoots, snp_support
from quotary_verifier.tlog.hardware import IDENTIFIER_SEV_SNP
from quotary_verifier.wire.tee_support import TeeSupport

_REPORT_DATA = 0x50


@dataclass
class SoftSnp:
    """Makes a report for each call and remembers what it was asked to bind.

    `error` is raised in place of an answer; `gate` is waited for first; `twist` changes what it binds.
    """

    forge: AmdForge = field(default_factory=AmdForge)
    identifier: str = IDENTIFIER_SEV_SNP
    error: Exception | None = None
    gate: asyncio.Event | None = None
    twist: Callable[[bytes], bytes] = bytes
    asked: list[bytes] = field(default_factory=list)
    closed: int = 0

    @cached_property
    def support(self) -> TeeSupport:
        """What vouches for its reports."""
        return snp_support(self.forge.endorsements())

    @property
    def roots(self) -> TeeRoots:
        """The roots that trust it."""
        return TeeRoots(amd=self.forge.roots())

    async def bind(self, report_data: bytes) -> TeeEvidence:
        """Return a report over these 64 bytes."""
        self.asked.append(report_data)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        report = self.forge.report({_REPORT_DATA: self.twist(report_data)})
        return TeeEvidence(report, self.support.endorsements)

    def describe(self) -> str:
        """Say what it is."""
        return "synthetic SEV-SNP processor"

    async def close(self) -> None:
        """Count how often it was closed."""
        self.closed += 1


def gone() -> RootError:
    """What a root raises whose device does not answer."""
    return RootError("/dev/sev-guest does not answer", hint="look at the hypervisor")


def in_its_time(**options: object) -> World:
    """A world whose clock stands in the time of the certificates."""
    return World(now=lambda: int(NOW.timestamp() * 1000), **options)  # type: ignore[arg-type]
