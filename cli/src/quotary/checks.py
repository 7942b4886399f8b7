# SPDX-License-Identifier: Apache-2.0
"""What a client checks: a policy, and how it is applied to the answers that come."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from quotary.policyfile import PolicyTrust, load_trusted, read_limited
from quotary_verifier import Policy

PolicySource: TypeAlias = Policy | str | bytes | os.PathLike[str]
"""A policy, the path of one, or its text (a `str` of more than one line, or `bytes`)."""

_NO_TRUST = PolicyTrust()

DOOR = "/quotary/v1/attestations/"
"""Where a host hands out attestations by output id (docs/spec/serving.md)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes that a client takes from a host before it knows who that is.

    `held`: an answer that is not a stream, or one event of a stream. `attestation`: one that is fetched. `kept`: of
    an answer, for `Exchange.output`; of a longer one only the digest is kept. `log`: a boot log that is fetched.
    """

    held: int = 64 * 1024 * 1024
    attestation: int = 1024 * 1024
    kept: int = 16 * 1024 * 1024
    log: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Checks:
    """A policy and how it is applied. Wherever a policy can be given, `Checks` can.

    Attributes:
        policy: What is accepted.
        origin: The log that answers must come from, besides what the policy says of origins.
        on_failure: `raise` an error in place of the answer, or `attach` it: then the answer is handed out as it came,
            and asking for its verdict raises.
        unattested: Paths whose answers need no attestation, such as `/v1/models`; a final `*` stands for any rest. An
            attestation that such an answer has all the same is checked.
        request: Whether the attestation must be for the request's very bytes. Only a gateway that rewrites requests
            makes it necessary to do without.
        door: Where attestations are fetched by output id, relative to the request's URL or absolute.
        limits: Bounds on what is taken from a host.
        logs: Whether boot logs that attestations name by digest are fetched from their host, once for each boot and as
            much as the host measures meanwhile. A policy with rules for what booted needs them.
        clock: The time of verification, in seconds since the epoch.
        randomness: Makes nonces.
        policy_trust: Whose signed policies are taken, and how old ones may be; with keys, `policy` must be signed.
    """

    policy: PolicySource
    origin: str | None = None
    on_failure: Literal["raise", "attach"] = "raise"
    unattested: tuple[str, ...] = ()
    request: bool = True
    door: str = DOOR
    limits: Limits = Limits()
    logs: bool = False
    clock: Callable[[], float] = time.time
    randomness: Callable[[int], bytes] = secrets.token_bytes
    policy_trust: PolicyTrust = _NO_TRUST

    def allows_unattested(self, path: str) -> bool:
        """Tell whether answers of a path need no attestation."""
        return any(
            path.startswith(rule[:-1]) if rule.endswith("*") else path == rule for rule in self.unattested
        )


def read_policy(
    source: PolicySource, trust: PolicyTrust = _NO_TRUST, clock: Callable[[], float] = time.time
) -> Policy:
    """Return the policy that `source` is, names or spells out, signed as `trust` says.

    Raises:
        PolicyError: it cannot be read or used.
    """
    if isinstance(source, Policy):
        return source
    if isinstance(source, str) and "\n" in source:
        source = source.encode()
    at = int(clock()) if trust.keys else 0
    if isinstance(source, bytes):
        return load_trusted(source, trust, at)
    path = Path(source)
    return load_trusted(read_limited(path), trust, at, path.parent)
