# SPDX-License-Identifier: Apache-2.0
"""The rules on logs, clocks and workload events that a policy may have (docs/spec/policy.md).

This module is imported only where a policy has such a rule: most consumers' policies name a few PCRs at most.
Entries of signature databases and authorities are named by texts, which `quotary_verifier.policy.names` makes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import field
from typing import Final

from quotary_verifier.logs.ima_signature import PublicKey
from quotary_verifier.policy.patterns import Pattern
from quotary_verifier.policy.tee_rules import TEE_RULES
from quotary_verifier.wire.frozen import frozen

LINE_PCRS: Final = frozenset({8, 12})
"""PCRs into which GRUB and systemd-boot measure command lines."""
FILE_PCRS: Final = frozenset({9})
"""The PCR into which GRUB and the kernel's EFI stub measure the files that they read."""
LOADER_PCRS: Final = LINE_PCRS | FILE_PCRS
"""PCRs of boot loaders and kernel stubs, which no running system extends."""
IMA_TEMPLATES: Final = frozenset({"ima-ng", "ima-sig", "ima-ngv2", "ima-sigv2", "ima-buf", "ima-modsig"})
"""Templates that may be accepted unless a policy says otherwise: `ima` has nothing but SHA-1 digests."""


@frozen
class SecureBootRules:
    """What PCR 7 must show. A set that is None is not looked at.

    `enabled`: Secure Boot must be on. Every entry of the databases `pk`, `kek` and `db` must be among those given;
    `dbx` must have all those given, and may have more. Every authority that verified an image must be among
    `authorities`.
    """

    enabled: bool = True
    pk: frozenset[str] | None = None
    kek: frozenset[str] | None = None
    db: frozenset[str] | None = None
    dbx: frozenset[str] = frozenset()
    authorities: frozenset[str] | None = None


@frozen
class BootRules:
    """What was started on the way to the kernel. A set that is None is not looked at.

    `applications` are the Authenticode digests (SHA-256) that images in PCR 4 may have. `files` are digests that the
    loader PCRs `pcrs` may have been extended with, `command_lines` patterns of which each covered text in them must
    fit one. With either, an event that does neither is refused.
    """

    applications: frozenset[bytes] | None = None
    files: frozenset[bytes] | None = None
    command_lines: tuple[Pattern, ...] | None = None
    pcrs: frozenset[int] = LOADER_PCRS


@frozen
class ImaRules:
    """Which files the kernel may have measured.

    `files`: digest (SHA-256, -384 or -512) → the paths at which it may lie, None for any path. A file may instead lie
    at a path that fits one of the globs `ignore` (`*` stands for any bytes, also `/`), or have a signature by one of
    `keys`. `violations`: measurements that the kernel could not make are accepted. `boot_aggregate`: the first record
    must be shown to be of this boot.
    """

    files: Mapping[bytes, Collection[bytes] | None] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    keys: tuple[PublicKey, ...] = ()
    violations: bool = False
    templates: frozenset[str] = IMA_TEMPLATES
    boot_aggregate: bool = True


@frozen
class BootWindow:
    """Reset counts of one origin's TPM between which evidence counts, both included; `last` None for no end."""

    origin: str
    first: int
    last: int | None = None


@frozen
class ClockRules:
    """What the quote's counts must be.

    `restarts`: how often the TPM may have been restarted since its last reset, which sleep and hibernation do; None for
    any number. `boots`: windows for some origins.
    """

    restarts: int | None = None
    boots: tuple[BootWindow, ...] = ()


@frozen
class AllowedEvent:
    """A workload event that may stand in the epoch in force; `name` or `digest` None stands for any."""

    type: str
    name: str | None = None
    digest: bytes | None = None


@frozen
class WorkloadRules:
    """What the epoch in force may hold.

    `types`: no event of another type. `events`: of each type that is named here, no event that none of them allows.
    `only_models`: no model that no `[[model]]` of the policy allows.
    """

    types: frozenset[str] | None = None
    events: tuple[AllowedEvent, ...] = ()
    only_models: bool = False


RULES: Final = TEE_RULES | frozenset(
    {
        *(f"platform.pcrs.{pcr}" for pcr in range(16)),
        "platform.pcrs",
        "platform.measured",
        "platform.secure_boot",
        "platform.secure_boot.state",
        "platform.secure_boot.pk",
        "platform.secure_boot.kek",
        "platform.secure_boot.db",
        "platform.secure_boot.dbx",
        "platform.secure_boot.authorities",
        "platform.boot",
        "platform.boot.order",
        "platform.boot.applications",
        "platform.boot.loader",
        "platform.ima",
        "platform.ima.files",
        "platform.ima.templates",
        "platform.ima.violations",
        "platform.ima.aggregate",
        "platform.clock",
        "platform.clock.restarts",
        "platform.clock.boots",
        "reference",
        "workload",
        "workload.types",
        "workload.events",
        "workload.models",
    }
)
"""The codes of all rules; one stands for those that go on behind a dot, too."""
