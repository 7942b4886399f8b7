# SPDX-License-Identifier: Apache-2.0
"""Where findings go: all are counted, the first of them are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from quotary_verifier.audit.findings import Code, Finding, Place, Severity

MAX_FINDINGS: Final = 1000
"""Findings that are kept of each severity: a log can have more false commits than anybody reads."""


@dataclass(slots=True)
class Sink:
    """The findings of an audit. What is missing at one path, and is wanted again and again, is found once."""

    kept: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Take a finding."""
        count = self.counts.get(finding.severity, 0)
        if finding.severity is Severity.COULD_NOT and any(self._same(finding, kept) for kept in self.kept):
            return
        self.counts[finding.severity] = count + 1
        if count < MAX_FINDINGS:
            self.kept.append(finding)

    def extend(self, findings: Iterable[Finding]) -> None:
        """Take several."""
        for finding in findings:
            self.add(finding)

    def tell(self, code: Code, severity: Severity, where: Place, message: str) -> None:
        """Take a finding by its parts."""
        self.add(Finding(code, severity, where, message))

    def absorb(self, other: Sink) -> None:
        """Take what another sink took, also what it did not keep."""
        for finding in other.kept:
            self.add(finding)
        for severity in other.counts:
            kept = sum(finding.severity == severity for finding in other.kept)
            self.counts[severity] = self.counts.get(severity, 0) + other.counts[severity] - kept

    @staticmethod
    def _same(one: Finding, other: Finding) -> bool:
        return (
            one.where.path is not None
            and one.where.path == other.where.path
            and (one.code, one.severity, one.message) == (other.code, other.severity, other.message)
        )

    def by_severity(self) -> tuple[tuple[Severity, int], ...]:
        """Return the numbers of findings, the gravest first; none that is zero."""
        return tuple((severity, self.counts[severity]) for severity in Severity if self.counts.get(severity))
