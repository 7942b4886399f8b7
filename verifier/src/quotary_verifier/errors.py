# SPDX-License-Identifier: Apache-2.0
"""Every error the verifier raises.

::

    QuotaryError
    ├── MalformedError      the bytes are not of the form the specification demands       (exit code 1)
    ├── EvidenceError       well formed, but false: a hash, signature or rule does not hold (exit code 1)
    │   └── OutOfTimeError      all of it holds, but a certificate is of another time
    ├── UnsupportedError    neither true nor false: unknown version or algorithm           (exit code 3)
    │   └── StaleCollateralError    all else holds, but what a maker published is of another time
    ├── PolicyError         the policy does not parse, is empty or contradicts itself      (exit code 2)
    └── VerificationError   the outcome of a whole verification that did not succeed; has a report
        ├── Rejected            something is malformed, false, or lacks what the policy requires (1)
        └── NotChecked          nothing is false, but a required check could not be done        (3)

"Rejected" and "could not check" are never the same error, and no function of the verifier returns a bool
that stands for a verdict. The messages are for people: lower case, no final full stop, never a secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from quotary_verifier.recipe.verdict import Report


class QuotaryError(Exception):
    """Base of all errors of the verifier."""


class MalformedError(QuotaryError):
    """The bytes do not have the form that the specification demands. Nothing in them may be used."""


class EvidenceError(QuotaryError):
    """The bytes are well formed but what they claim does not hold."""


class OutOfTimeError(EvidenceError):
    """Every signature and value holds, but not all certificates are valid at the time that was asked for.

    `not_before`, `not_after`: when all of them are, with a time zone; at some time between, the same bytes verify.
    """

    def __init__(self, message: str, not_before: datetime, not_after: datetime) -> None:
        super().__init__(message)
        self.not_before = not_before
        self.not_after = not_after


class UnsupportedError(QuotaryError):
    """The bytes use a version or an algorithm that this verifier does not know: it cannot say yes or no."""


class StaleCollateralError(UnsupportedError):
    """Everything else holds, but what a maker publishes of a platform is of another time, and decides nothing.

    `not_before`, `not_after`: when it decides, with a time zone; the latter is no longer included.
    """

    def __init__(self, message: str, not_before: datetime, not_after: datetime) -> None:
        super().__init__(message)
        self.not_before = not_before
        self.not_after = not_after


class PolicyError(QuotaryError):
    """The policy cannot be used: it does not parse, demands nothing, or contradicts itself."""


class VerificationError(QuotaryError):
    """A verification that did not end in a verdict. `report` lists every check and its state."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class Rejected(VerificationError):  # noqa: N818 - it is an outcome, and reads as one where it is caught
    """The evidence is malformed, false, or lacks something that the policy requires."""


class NotChecked(VerificationError):  # noqa: N818 - as above
    """Nothing is false, but a check that the policy requires could not be done."""
