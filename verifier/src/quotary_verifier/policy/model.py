# SPDX-License-Identifier: Apache-2.0
"""What a relying party accepts (docs/spec/policy.md). There is no verification without a policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography.x509 import CertificateRevocationList

from quotary_verifier.errors import PolicyError
from quotary_verifier.pki.chain import TrustAnchors
from quotary_verifier.tlog.note import VerifierKey
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.records import Link, State

if TYPE_CHECKING:
    from quotary_verifier.policy.rules import BootRules, ClockRules, ImaRules, SecureBootRules, WorkloadRules
    from quotary_verifier.policy.tee import TeeRules

_STARTED_PCR = 4


@frozen
class Authority:
    """A CA whose certificates vouch for AKs. `hosts` narrows the host names: exact, or `*.` and a suffix.

    `crls` are lists that the relying party brings; with `revocation_required` they must cover a certificate.
    """

    name: str
    anchors: TrustAnchors
    hosts: tuple[str, ...] = ()
    crls: tuple[CertificateRevocationList, ...] = ()
    revocation_required: bool = False

    def speaks_for(self, host: str) -> bool:
        """Tell whether this authority may endorse a host name."""
        if not self.hosts:
            return True
        return any(
            host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:]))
            for pattern in self.hosts
        )


@frozen
class AllowedModel:
    """One model that may have served. `weights` None allows any weights of that name."""

    name: str | None
    weights: bytes | None
    link: Link = Link.CONFIGURED


@frozen
class Freshness:
    """What shows that an output is not older than it should be.

    `nonce`: the caller must give a nonce and the record must carry it; `expected_nonce` is that nonce, where the policy
    was written for one exchange and the caller need not give it. `max_age` in seconds is measured from the
    earliest time that a witness quorum shows, or from the record's own time if `trust_host_clock`.
    """

    nonce: bool = False
    expected_nonce: bytes | None = None
    max_age: int | None = None
    trust_host_clock: bool = False


@frozen
class Witnesses:
    """The witnesses whose cosignatures count, and how many of them a quorum takes (0: none required)."""

    keys: tuple[VerifierKey, ...] = ()
    threshold: int = 0


@frozen
class PlatformRules:
    """What must have booted and run: exact PCR values, and rules on what the boot logs show (`policy.rules`).

    `tolerate` has the names of the departures from the specification that are accepted in a firmware's log.
    """

    pcrs: Mapping[int, frozenset[bytes]] = field(default_factory=dict)
    secure_boot: SecureBootRules | None = None
    boot: BootRules | None = None
    ima: ImaRules | None = None
    clock: ClockRules | None = None
    tolerate: frozenset[str] = frozenset()

    @property
    def empty(self) -> bool:
        """Whether nothing is asked of what booted and ran; a rule on clocks says nothing of that."""
        return not (self.pcrs or self.secure_boot or self.boot or self.ima)

    def pins_the_writer(self, warned: Mapping[str, int]) -> bool:
        """Whether these rules say on which kernel the workload log was written; those that only warn do not count.

        They do where they fix PCR 4, or the images that were started. Another system can extend all that loaders,
        kernels and IMA measure (PCR 8 to 15) just as the right one would, as its logs are public; but the firmware
        measures what it starts before that runs. Who signed it says less: many systems have the same.
        """
        value = self.pcrs.get(_STARTED_PCR)
        if value and ZERO not in value and not _warned(warned, f"platform.pcrs.{_STARTED_PCR}"):
            return True
        applications = None if self.boot is None else self.boot.applications
        return applications is not None and not _warned(warned, "platform.boot.applications")


def _warned(warned: Mapping[str, int], rule: str) -> bool:
    return any(rule == code or rule.startswith(code + ".") for code in warned)


@frozen
class ReferenceSet:
    """The reference values of one kind of host in a fleet."""

    name: str
    rules: PlatformRules


@frozen
class Policy:
    """A parsed policy. `digest` is the SHA-256 of its bytes.

    The common rules `platform` and those of one of `references`, where there are any, must hold. `warnings` has the
    codes of rules (`policy.rules.RULES`) that only warn, and until when; `expires` is when the policy ends; both in
    seconds since the epoch.

    Raises:
        PolicyError: on construction, if it trusts nobody: no authority, no pinned origin, and no image that a TEE of a
            whole machine shows.
    """

    digest: bytes
    description: str
    authorities: tuple[Authority, ...]
    pins: frozenset[str]
    software_tpm: bool = False
    unauthenticated_ak: bool = False
    safe_clock: bool = False
    platform: PlatformRules = PlatformRules()
    references: tuple[ReferenceSet, ...] = ()
    warnings: Mapping[str, int] = field(default_factory=dict)
    models: tuple[AllowedModel, ...] = ()
    opaque_events: bool = True
    workload: WorkloadRules | None = None
    states: frozenset[State] = frozenset({State.COMPLETE})
    freshness: Freshness = Freshness()
    witnesses: Witnesses = Witnesses()
    version: int | None = None
    expires: int | None = None
    tee: TeeRules | None = None

    @property
    def pcrs(self) -> Mapping[int, frozenset[bytes]]:
        """The PCR values that hold for every host."""
        return self.platform.pcrs

    @property
    def has_pcrs_only(self) -> bool:
        """Whether nothing but PCR values, or nothing at all, is asked of platform, counts and workload events."""
        rules = self.platform
        on_logs = rules.secure_boot or rules.boot or rules.ima or rules.clock
        return on_logs is None and not self.references and self.workload is None

    @property
    def pins_the_writer(self) -> bool:
        """Whether the policy says which kernel or programs wrote the workload log: its common rules do, or every
        reference set does. A rule that only warns does not count, whether or not its date has passed."""
        if self.platform.pins_the_writer(self.warnings):
            return True
        if not self.references or _warned(self.warnings, "reference"):
            return False
        return all(item.rules.pins_the_writer(self.warnings) for item in self.references)

    def require_current(self, at: int) -> None:
        """Check that the policy has not ended at a time in seconds since the epoch.

        Raises:
            PolicyError: it has.
        """
        if self.expires is not None and at >= self.expires:
            ended = datetime.fromtimestamp(self.expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            raise PolicyError(f"the policy ended at {ended}; get its newest version")

    def __post_init__(self) -> None:
        launched = self.tee is not None and self.tee.names_launch(self.warnings)
        if not self.authorities and not self.pins and not launched:
            raise PolicyError(
                "the policy names no authority and pins no origin, nor does it require a TEE of a whole machine and"
                " name what was launched in it: it would accept nothing"
            )
