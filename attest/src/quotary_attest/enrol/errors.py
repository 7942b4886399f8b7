# SPDX-License-Identifier: Apache-2.0
"""What enrolment refuses, and what keeps it from working. Messages are lower case, without a secret.

That something in a file is false is an `EvidenceError` or `MalformedError` of the verifier (exit code 1).
"""

from __future__ import annotations

from quotary_verifier.errors import EvidenceError


class Refused(EvidenceError):  # noqa: N818 - the state reads as itself where it is caught
    """The file is well formed, but this enrolment does not go on. `hint` says what an operator can do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class EnrolmentUsageError(Exception):
    """What was asked for cannot be done with these arguments or this folder (exit code 2)."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
