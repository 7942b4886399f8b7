# SPDX-License-Identifier: Apache-2.0
"""Step `tee`: what the note's TEE lines show, and whether it is what the policy accepts (docs/spec/verification.md).

Loaded only where a note has such a line, or a policy asks for one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.lines import Bound, verify_tee_line
from quotary_verifier.evidence.tee.shape import Finding, TeeClaims, enforce
from quotary_verifier.policy.model import Policy
from quotary_verifier.policy.tee import TEE_NAMES, TeeRules, appraise_tee
from quotary_verifier.recipe.endorsement import moment
from quotary_verifier.recipe.run import Run
from quotary_verifier.recipe.steps import Step
from quotary_verifier.tlog.hardware import HardwareLine
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tee_support import TeeSupport

ONE_AGENT: Final = (
    "several roots on one note show that one agent saw them all, and not that they are of one machine"
)


@frozen
class TeeLine:
    """A TEE line of a note and the support that goes with it; nothing is verified."""

    line: HardwareLine
    support: TeeSupport

    @property
    def name(self) -> str:
        """Name of the kind, as policies have it."""
        return TEE_NAMES[self.line.identifier]


@frozen
class JudgedTee:
    """What a line that holds shows: claims for each device, and whether the policy has rules that they keep."""

    name: str
    claims: tuple[TeeClaims, ...]
    appraised: bool
    warnings: tuple[Finding, ...] = ()


def judge_line(one: TeeLine, bound: Bound, at: int, rules: TeeRules) -> JudgedTee:
    """Verify one line and appraise it, where the policy has rules for its kind; `at` in seconds since the epoch.

    Raises:
        MalformedError: evidence or endorsements are not of their form.
        EvidenceError: the evidence does not hold, binds something else, or breaks a rule.
        UnsupportedError: something in it is not known, or a rule could not be judged.
    """
    claims = verify_tee_line(one.line.evidence, one.support, bound, moment(at), rules.roots)
    appraised = rules.has_rules(one.name)
    warnings = enforce(finding for device in claims for finding in appraise_tee(device, rules))
    return JudgedTee(one.name, claims, appraised, warnings)


def judge_tees(
    run: Run, policy: Policy, lines: Iterable[TeeLine], bound: Bound, at: int
) -> tuple[JudgedTee, ...]:
    """Do the step: every line is judged, and the first false one is named with the number of the others.

    That holds for a line of a kind that the policy does not mention, too: it is verified, and not appraised.

    Raises:
        Stopped: a line is false, breaks a rule, or one that the policy requires is not there.
    """
    rules = policy.tee or TeeRules()
    judged: list[JudgedTee] = []
    false: list[str] = []
    unjudged: list[str] = []
    said: list[str] = []
    missing = set(rules.required)
    for one in lines:
        missing.discard(one.name)
        try:
            found = judge_line(one, bound, at, rules)
        except (MalformedError, EvidenceError) as error:
            false.append(_named(one.name, error))
            continue
        except UnsupportedError as error:
            unjudged.append(_named(one.name, error))
            continue
        judged.append(found)
        said.append(f"{one.name} {'accepted' if found.appraised else 'verified, not appraised'}")
    false += [f"the policy requires evidence of {name}, and the note has none" for name in sorted(missing)]
    if false:
        run.fail(Step.TEE, _first(false))
    if unjudged:
        run.could_not(Step.TEE, _first(unjudged))
    elif judged:
        run.passed(Step.TEE, "; ".join(said))
    else:
        run.skip(Step.TEE, "the note carries none, and the policy requires none")
    run.notices += _notices(judged, rules)
    return tuple(judged)


def _notices(judged: list[JudgedTee], rules: TeeRules) -> list[str]:
    notices = []
    for one in judged:
        if not one.appraised:
            notices.append(
                f"the evidence of {one.name} holds, but the policy has no rules for it: nothing of it was appraised"
            )
        if rules.own_root(one.name):
            notices.append(
                f"the evidence of {one.name} was verified under a root of the policy's own, not its maker's"
            )
        notices += [warning.message for warning in one.warnings]
    if judged:
        notices.append(ONE_AGENT)
    return notices


def _named(name: str, error: Exception) -> str:
    text = str(error)
    return text if text.startswith(f"{name}: ") else f"{name}: {text}"


def _first(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{texts[0]} (and {len(texts) - 1} more)"
