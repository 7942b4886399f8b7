# SPDX-License-Identifier: Apache-2.0
"""Checks every answer of a model server as it comes (docs/howto/consumer.md).

::

    from quotary import verdict
    from quotary.openai import OpenAI

    client = OpenAI(base_url="https://gpu-07.example.net/v1", policy="policy.toml")
    answer = client.chat.completions.create(model="smollm2", messages=[...])
    verdict(answer).claims

An answer that is not attested as the policy demands is not handed out: an `AttestationError` is raised. For other HTTP
clients there are `quotary.httpx2`, `quotary.httpx` and `quotary.aiohttp`. The verification itself, for outputs that
came otherwise, is `quotary_verifier`.
"""

from quotary.answers import exchange, verdict
from quotary.checks import Checks, Limits
from quotary.errors import (
    AttestationError,
    AttestationMissing,
    AttestationNotChecked,
    AttestationRejected,
)
from quotary.exchanges import Exchange
from quotary.policyfile import PolicyTrust
from quotary_verifier import Claim, ClaimSource, Policy, PolicyError, Report, Verdict

__all__ = [
    "AttestationError",
    "AttestationMissing",
    "AttestationNotChecked",
    "AttestationRejected",
    "Checks",
    "Claim",
    "ClaimSource",
    "Exchange",
    "Limits",
    "Policy",
    "PolicyError",
    "PolicyTrust",
    "Report",
    "Verdict",
    "exchange",
    "verdict",
]
