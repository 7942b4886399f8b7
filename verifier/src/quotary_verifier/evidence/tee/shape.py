# SPDX-License-Identifier: Apache-2.0
"""What the kinds of TEE evidence have in common.

Each kind has

- a parser, which raises MalformedError for whatever is not exactly of the form, and UnsupportedError for a version or
  algorithm that it does not know;
- `verify(evidence, endorsements, at, roots, …) -> claims`: EvidenceError where something does not hold. It decides
  nothing that a relying party may see otherwise: a debug guest's report verifies, and its claims say so;
- a frozen class of rules, whose defaults refuse what is unsafe, and `appraise(claims, rules) -> findings`.

Claims have no flag that stands for a verdict. `shown` and `not_shown` name, by stable codes, what `verify` checked and
what it could not; a code stands in one of the two.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Final, Protocol

from quotary_verifier.errors import EvidenceError, OutOfTimeError, UnsupportedError
from quotary_verifier.pki.revocation import Revocation
from quotary_verifier.wire.frozen import frozen

REPORT_DATA_BYTES: Final = 64
"""Bytes that a guest may choose in an SNP report, a TDX quote and a CCA token."""

_DIGEST_BYTES: Final = 32


@frozen
class Signer:
    """Who vouches for the key that signed the evidence.

    `root`: the anchor's name (RFC 4514), `root_sha256`: the digest of its DER. `not_before`, `not_after`: when the
    whole path is valid. `revocation`: of the path, from the CRLs that were given, at the time of verification.
    """

    root: str
    root_sha256: bytes
    not_before: datetime
    not_after: datetime
    revocation: Revocation


class TeeClaims(Protocol):
    """What the claims of every kind say. Lengths and names of measurements are the kind's own."""

    @property
    def kind(self) -> str:
        """Name of the kind, such as "sev-snp"."""

    @property
    def signer(self) -> Signer:
        """Who vouches for the evidence."""

    @property
    def device(self) -> bytes | None:
        """What tells this device from others of its model, or None where the evidence does not say."""

    @property
    def measurements(self) -> Mapping[str, bytes]:
        """What the hardware measured, by name."""

    @property
    def signed_time(self) -> datetime | None:
        """The time inside the evidence, or None: most kinds have none, and are fresh only by what they bind."""

    @property
    def shown(self) -> tuple[str, ...]:
        """Codes of what was checked and holds."""

    @property
    def not_shown(self) -> tuple[str, ...]:
        """Codes of what could not be checked."""


class Severity(enum.Enum):
    """What follows from a finding: rejection, a warning, or that the question stays open."""

    FAIL = "fail"
    WARN = "warn"
    COULD_NOT = "could-not"


@frozen
class Finding:
    """One rule that does not hold. `rule`: its stable code, such as "sev-snp.debug"; `message`: for people."""

    rule: str
    severity: Severity
    message: str


def enforce(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the warnings among the findings, where nothing is worse than that.

    Raises:
        EvidenceError: a rule is broken; the message is that of the first, and says how many more there are.
        UnsupportedError: none is broken, but one could not be judged.
    """
    listed = tuple(findings)
    for severity, error in ((Severity.FAIL, EvidenceError), (Severity.COULD_NOT, UnsupportedError)):
        found = [finding for finding in listed if finding.severity is severity]
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise error(f"{found[0].message}{more}")
    return listed


def named(values: Collection[bytes] | None) -> bool:
    """Whether a rule names something. A register or key that is zero is that of everybody who has none."""
    return bool(values) and all(any(value) for value in values or ())


def report_data(digest: bytes, genesis_sha256: bytes) -> bytes:
    """Return the 64 bytes that a commit's SNP report, TDX quote or CCA token carries (design, section 3).

    `digest`: D of the commit; `genesis_sha256`: SHA-256 of the genesis record. ValueError unless both are 32 bytes.
    """
    if len(digest) != _DIGEST_BYTES or len(genesis_sha256) != _DIGEST_BYTES:
        raise ValueError("the report data are two digests of 32 bytes")
    return digest + genesis_sha256


def require_time(at: datetime) -> None:
    """ValueError unless the time has a time zone."""
    if at.tzinfo is None:
        raise ValueError("a time without a time zone is ambiguous")


def require_valid(what: str, not_before: datetime, not_after: datetime, at: datetime) -> None:
    """Check that a path of certificates is valid at a time: the last thing that a verification asks.

    Raises:
        OutOfTimeError: it is not; `what` was verified in every other respect before.
    """
    if not not_before <= at <= not_after:
        raise OutOfTimeError(
            f"{what} is not valid at {at:%Y-%m-%dT%H:%M:%SZ}, but from {not_before:%Y-%m-%dT%H:%M:%SZ}"
            f" to {not_after:%Y-%m-%dT%H:%M:%SZ}",
            not_before,
            not_after,
        )
