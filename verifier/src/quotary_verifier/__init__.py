# SPDX-License-Identifier: Apache-2.0
"""Offline verification of Quotary attestations.

::

    policy = load_policy(policy_bytes)
    verdict = verify(attestation_bytes, Question(output_bytes, at=unix_time), policy)
    verdict.claims

`verify` returns a `Verdict`, which nothing else can make, or raises `Rejected` or `NotChecked`, whose `report` lists
every step. The package does no input or output, reads no clock, and needs cryptography, cbor2 and PyNaCl only.
What is not listed here carries no promise of stability.
"""

from typing import TYPE_CHECKING

from quotary_verifier.errors import (
    EvidenceError,
    MalformedError,
    NotChecked,
    PolicyError,
    QuotaryError,
    Rejected,
    UnsupportedError,
    VerificationError,
)
from quotary_verifier.policy.load import load_policy
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.given_logs import GivenLogs
from quotary_verifier.recipe.outputs import HashedBody
from quotary_verifier.recipe.steps import Step
from quotary_verifier.recipe.verdict import Check, CheckState, Claim, ClaimSource, Outcome, Report, Verdict
from quotary_verifier.recipe.verify import Question, VerifiedCommit, verify, verify_in
from quotary_verifier.wire.inband import strip

if TYPE_CHECKING:
    from quotary_verifier.recipe.fresh import verify_fresh
    from quotary_verifier.recipe.statement import VerifiedStatement, verify_statement
else:
    _LATE = {"VerifiedStatement": "statement", "verify_statement": "statement", "verify_fresh": "fresh"}

    def __getattr__(name: str) -> object:
        """Import what the verification of an output does not need where it is first asked for."""
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"quotary_verifier.recipe.{_LATE[name]}"), name)


__all__ = [
    "Check",
    "CheckState",
    "Claim",
    "ClaimSource",
    "EvidenceError",
    "GivenLogs",
    "HashedBody",
    "MalformedError",
    "NotChecked",
    "Outcome",
    "Policy",
    "PolicyError",
    "Question",
    "QuotaryError",
    "Rejected",
    "Report",
    "Step",
    "UnsupportedError",
    "Verdict",
    "VerificationError",
    "VerifiedCommit",
    "VerifiedStatement",
    "load_policy",
    "strip",
    "verify",
    "verify_fresh",
    "verify_in",
    "verify_statement",
]
