# SPDX-License-Identifier: Apache-2.0
"""What a verification says: checks by their code, claims by their source, and the verdict that only it can make."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, Final, NoReturn

from quotary_verifier.recipe.steps import ORDER, TITLES, Step
from quotary_verifier.wire.frozen import frozen

SCHEMA: Final = "quotary-verdict/v1"
NOT_REACHED: Final = "not reached"


class CheckState(StrEnum):
    """The state of one check."""

    PASSED = "passed"
    FAILED = "failed"
    COULD_NOT_CHECK = "could-not-check"
    NOT_CHECKED = "not-checked"


class ClaimSource(StrEnum):
    """Where a claim comes from, strongest first (design section 5)."""

    HARDWARE = "hardware"
    MEASURED = "measured"
    ENDORSED = "endorsed"
    HOST = "host"


class Outcome(StrEnum):
    """How a verification ended."""

    VERIFIED = "verified"
    REJECTED = "rejected"
    COULD_NOT_CHECK = "could-not-check"


@frozen
class Check:
    """One step of the recipe: what came of it, and in words why or over what."""

    step: Step
    state: CheckState
    detail: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the check as it stands in the verdict's JSON form."""
        return {
            "number": ORDER[self.step],
            "code": str(self.step),
            "title": TITLES[self.step],
            "state": str(self.state),
            "detail": self.detail,
        }


@frozen
class Claim:
    """One thing that the evidence says, and who says it."""

    name: str
    value: str | int | bool | None
    source: ClaimSource

    def as_json(self) -> dict[str, Any]:
        """Return the claim as it stands in the verdict's JSON form."""
        return {"name": self.name, "value": self.value, "source": str(self.source)}


@frozen
class Report:
    """Every check of a verification in the recipe's order, whatever the outcome, and what it was judged by.

    Claims appear only where the outcome is *verified*: nothing unauthenticated reaches a report. `at` is the time
    argument in seconds since the epoch, `policy` the SHA-256 of the policy's bytes in hexadecimal.
    """

    outcome: Outcome
    checks: tuple[Check, ...]
    at: int
    policy: str
    failing: Step | None = None
    reason: str = ""
    claims: tuple[Claim, ...] = ()
    tolerances: tuple[str, ...] = ()
    not_understood: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the report as one object of the schema `quotary-verdict/v1`; equal inputs give equal bytes."""
        return {
            "schema": SCHEMA,
            "outcome": str(self.outcome),
            "failing": None if self.failing is None else str(self.failing),
            "reason": self.reason,
            "at": self.at,
            "policy": self.policy,
            "checks": [check.as_json() for check in self.checks],
            "claims": [claim.as_json() for claim in self.claims],
            "tolerances": list(self.tolerances),
            "not_understood": list(self.not_understood),
            "notices": list(self.notices),
        }


def in_order(checks: Iterable[Check]) -> tuple[Check, ...]:
    """Return the checks in the recipe's order, with every step that was not reached as *not checked*."""
    by_step = {check.step: check for check in checks}
    return tuple(by_step.get(step) or Check(step, CheckState.NOT_CHECKED, NOT_REACHED) for step in Step)


_TOKEN: Final = object()


class Verdict:
    """Proof, within this process, that an output was verified. Only `quotary_verifier.verify` can make one.

    It is no bool: a verification that does not succeed raises, so there is nothing to test for.
    """

    __slots__ = ("_make", "_report")

    def __init__(self, token: object, make: Callable[[], Report]) -> None:
        if token is not _TOKEN:
            raise TypeError("a verdict is made by verification alone")
        self._make = make
        self._report: Report | None = None

    @property
    def report(self) -> Report:
        """Every check and claim. Put together on first use: most callers of a bulk verification need none."""
        if self._report is None:
            self._report = self._make()
        return self._report

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What was authenticated, each claim with its source."""
        return self.report.claims

    def claim(self, name: str) -> Claim | None:
        """Return the claim of that name, if there is one."""
        return next((claim for claim in self.claims if claim.name == name), None)

    def __bool__(self) -> NoReturn:
        raise TypeError("a verdict is not a bool: verification raises where it does not succeed")

    def __repr__(self) -> str:
        return f"<Verdict {self.report.outcome}>"


def make_verdict(make: Callable[[], Report]) -> Verdict:
    """Make a verdict; for the recipe only, and not exported from the package."""
    return Verdict(_TOKEN, make)
