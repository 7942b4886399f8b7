# SPDX-License-Identifier: Apache-2.0
"""What an appraisal is of and what it finds: every departure from a policy, each naming what departs.

Paths, labels and texts in a finding come from whoever wrote the log. They stand here without characters that a
terminal or a page would obey.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from quotary_verifier.wire.frozen import frozen

if TYPE_CHECKING:
    from quotary_verifier.logs.ima import ReplayedIma
    from quotary_verifier.logs.tcg import ReplayedLog
    from quotary_verifier.logs.workload import WorkloadLog
    from quotary_verifier.wire.tpm import ClockInfo

MAX_FINDINGS: Final = 1000
"""Findings of one rule and severity that are listed; a last one says that there are more."""
_SHOWN: Final = 240
_NAMED: Final = 3


@frozen
class PlatformEvidence:
    """What a verified quote and the logs that replay to it show; `evidence_of` and the recipe make it.

    `pcrs` are the sixteen quoted values, `moving` the numbers of the origin's chain and workload PCR. `own_key` tells
    that the AK's counts are not obfuscated. `missing` says why a log (`tcg`, `ima`) is not there.
    """

    origin: str
    pcrs: Mapping[int, bytes]
    moving: frozenset[int]
    clock: ClockInfo
    own_key: bool
    workload: WorkloadLog | None = None
    firmware: ReplayedLog | None = None
    ima: ReplayedIma | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


class Severity(StrEnum):
    """What a finding comes to: the evidence departs from a rule, does so while the rule only warns, or does not say."""

    FAIL = "fail"
    WARN = "warn"
    COULD_NOT = "could-not"


@frozen
class Finding:
    """One departure. `rule` is its code (`policy.rules.RULES`), `message` says all of it in words.

    Where they apply: `pcr`, the `event` by its number in the firmware's or IMA log, the `path` or label as the log has
    it, what was `found` (a digest in hexadecimal, a text) and what is `allowed` in its place. `until` is the time in
    seconds up to which the rule only warns.
    """

    rule: str
    message: str
    severity: Severity = Severity.FAIL
    pcr: int | None = None
    event: int | None = None
    path: str | None = None
    found: str | None = None
    allowed: tuple[str, ...] = ()
    until: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the finding as it stands in JSON outputs."""
        return {
            "rule": self.rule,
            "severity": str(self.severity),
            "message": self.message,
            "pcr": self.pcr,
            "event": self.event,
            "path": self.path,
            "found": self.found,
            "allowed": list(self.allowed),
            "until": self.until,
        }


@frozen
class Appraisal:
    """Every finding, the worst first, and the name of the reference set that fits, where the policy has any.

    `tolerances` say in words what was passed over because the policy says so.
    """

    findings: tuple[Finding, ...]
    reference: str | None = None
    tolerances: tuple[str, ...] = ()

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings that come to this."""
        return tuple([finding for finding in self.findings if finding.severity is severity])


def limited(rule: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the first findings, and at the end say that there are more.

    What could not be judged does not keep what is false from being found: only the latter ends the search.
    """
    left = dict.fromkeys(Severity, MAX_FINDINGS)
    for finding in findings:
        left[finding.severity] -= 1
        if left[finding.severity] >= 0:
            yield finding
        elif finding.severity is Severity.FAIL:
            yield Finding(rule, f"and more: the list ends after {MAX_FINDINGS}")
            return
    if left[Severity.COULD_NOT] < 0:
        why = f"and {-left[Severity.COULD_NOT]} more that could not be judged"
        yield Finding(rule, why, Severity.COULD_NOT)


def shown(text: str | bytes) -> str:
    """Return a text from a log so that it can be shown: one line, bounded, nothing in it that is obeyed."""
    if isinstance(text, bytes):
        text = text[: 4 * _SHOWN].decode("utf-8", "backslashreplace")
    text = text[: 4 * _SHOWN]  # no megabytes are escaped only to be cut
    if not text.isprintable():
        text = "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in text])
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def listed(allowed: Iterable[str]) -> str:
    """Return a few of the allowed values in words."""
    values = sorted(allowed)
    if not values:
        return "nothing"
    more = len(values) - _NAMED
    return ", ".join(values[:_NAMED]) + (f" and {more} more" if more > 0 else "")
