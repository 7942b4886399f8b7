# SPDX-License-Identifier: Apache-2.0
"""Commits of origins without a TPM, which TEEs alone bind (docs/spec/verification.md, "Origins without a TPM").

Loaded only where a genesis record names no TPM. What the lines themselves say is judged where those beside a TPM are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from quotary_verifier.errors import EvidenceError
from quotary_verifier.policy.model import Policy
from quotary_verifier.policy.tee import WHOLE_MACHINES, TeeRules
from quotary_verifier.recipe.leaf import ImageModels
from quotary_verifier.recipe.platform import TeeHost
from quotary_verifier.recipe.run import Run
from quotary_verifier.recipe.steps import Step
from quotary_verifier.recipe.tee import JudgedTee
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.frozen import frozen

NO_TPM: Final = "the genesis record names no TPM"
NO_CHAIN: Final = (
    "the origin has no TPM: only witnesses would catch a host that keeps two histories or takes its log back"
)
_SKIPPED: Final = (
    Step.QUOTE_STRUCTURE,
    Step.QUOTE_CHAIN,
    Step.QUOTE_SIGNATURE,
    Step.QUOTE_PCRS,
    Step.AK_ATTRIBUTES,
    Step.AK_NAME,
    Step.AK_ENDORSEMENT,
    Step.TPM_KIND,
)


@frozen
class TeeFacts:
    """What the steps established of an origin without a TPM; meaningful only together with the checks that led here.

    `pinned` tells whether the policy names the origin, `models` what the quoted registers say of weights.
    """

    host: TeeHost
    pinned: bool
    models: ImageModels


def require_trusted(policy: Policy, host: TeeHost) -> bool:
    """Check that the policy trusts this origin; tell whether it pins it, or names what was launched.

    Raises:
        EvidenceError: it pins or endorses others. Nobody endorses an origin that has no AK.
    """
    if host.origin in policy.pins:
        return True
    if policy.pins or policy.authorities:
        raise EvidenceError(
            f"the policy does not pin the origin {host.origin}, which has no key that an authority could endorse"
        )
    return False  # a policy with neither names what was launched, or it could not have been made


def judge_alone(run: Run, policy: Policy, attestation: Attestation, *, pinned: bool) -> None:
    """Do the steps of which an origin without a TPM has nothing to show; a policy that asks for it rejects it.

    Raises:
        Stopped: the policy does, or requires no TEE of a whole machine; `run` says which step.
    """
    for step in _SKIPPED:
        run.skip(step, NO_TPM)
    rules = policy.platform
    asked = not rules.empty or rules.clock is not None or bool(policy.references)
    _refuse(run, Step.QUOTE_CLOCK, policy.safe_clock, "a safe clock of a TPM")
    _refuse(run, Step.WORKLOAD, policy.workload is not None or not policy.opaque_events, "workload events")
    if attestation.boot_logs:
        run.fail(Step.BOOT_LOGS, f"{NO_TPM}, so there are no PCRs to which boot logs could replay")
    run.skip(Step.BOOT_LOGS, NO_TPM)
    _refuse(run, Step.PLATFORM, asked, "a platform that PCRs show")
    required = frozenset() if policy.tee is None else policy.tee.required
    if not required & WHOLE_MACHINES:
        names = ", ".join(sorted(WHOLE_MACHINES))
        run.fail(
            Step.TEE, f"{NO_TPM}, and the policy requires no TEE of a whole machine (tee.required: {names})"
        )
    run.notices.append(NO_CHAIN)
    if not pinned:
        run.notices.append("the origin is not pinned: that it is of this host is the host's word")


def _refuse(run: Run, step: Step, asked: bool, what: str) -> None:
    if asked:
        run.fail(step, f"the policy has rules on {what}, and {NO_TPM}")
    run.skip(step, NO_TPM)


def image_models(rules: TeeRules | None, judged: Iterable[JudgedTee]) -> ImageModels:
    """Return the weights that the images serve whose registers accepted lines have.

    A line that breaks a rule, even one that only warns, shows nothing; nor does one of a guest that others can write
    to, such as one under debug, where the policy accepts that: its registers are anybody's word.
    """
    weights: set[bytes] = set()
    for line in judged:
        if rules is not None and line.appraised and not line.tolerated:
            for claims in line.claims:
                weights |= rules.served(line.name, claims)
    return ImageModels(frozenset(weights))
