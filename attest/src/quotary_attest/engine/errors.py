# SPDX-License-Identifier: Apache-2.0
"""What the agent's callers can meet. Messages are for operators: lower case, no full stop, no secret."""

from __future__ import annotations


class AgentError(Exception):
    """The agent could not do what it was asked to do. `hint` says what an operator can do (may be empty)."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Unavailable(AgentError):  # noqa: N818 - the state reads as itself where it is caught
    """Nothing can be attested now: TPM gone, disk full, stopped. Callers answer 503 and may try again later."""


class StartRefused(AgentError):  # noqa: N818
    """The agent must not start, or go on, before an operator has looked."""


class Busy(AgentError):  # noqa: N818
    """The queue is full: the caller is to slow down. Callers answer 503."""


class UnknownOutput(AgentError):  # noqa: N818
    """There is no attestation of this output id: never there, abandoned, or its time of keeping is over."""


class NotQuotable(AgentError):  # noqa: N818
    """The origin lives on hardware that fresh quotes are not made with. Callers answer 501."""


class NotServed(AgentError):  # noqa: N818
    """The output names a model that the epoch in force does not list."""
