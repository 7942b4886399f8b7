# SPDX-License-Identifier: Apache-2.0
"""What a client gets instead of an answer that is not attested as its policy demands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quotary.exchanges import Exchange
    from quotary_verifier import Report


class AttestationError(Exception):
    """An answer without a verdict. `exchange` is what is known of it, `report` every step that was done, if any."""

    def __init__(self, message: str, exchange: Exchange | None = None, report: Report | None = None) -> None:
        super().__init__(message)
        self.exchange = exchange
        self.report = report


class AttestationMissing(AttestationError):  # noqa: N818 - it is an outcome, as in the verifier
    """The answer has no attestation, says that it has none, or its host knows of none."""


class AttestationRejected(AttestationError):  # noqa: N818 - it is an outcome, as in the verifier
    """The attestation is malformed, false, or lacks something that the policy requires."""


class AttestationNotChecked(AttestationError):  # noqa: N818 - it is an outcome, as in the verifier
    """Nothing is false, but a required check could not be done: not fetched, not read to the end, not understood."""
