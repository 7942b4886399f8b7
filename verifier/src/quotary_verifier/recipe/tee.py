# SPDX-License-Identifier: Apache-2.0
"""Step `tee`: what the note's TEE lines show, and whether it is what the policy accepts (docs/spec/verification.md).

Loaded only where a note has such a line, or a policy asks for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final

from quotary_verifier.errors import (
    EvidenceError,
    MalformedError,
    OutOfTimeError,
    StaleCollateralError,
    UnsupportedError,
)
from quotary_verifier.evidence.tee.azure_support import verify_azure_ak
from quotary_verifier.evidence.tee.lines import Bound, TeeRoots, verify_tee_line
from quotary_verifier.evidence.tee.shape import Finding, Severity, TeeClaims, enforce
from quotary_verifier.policy.model import Policy
from quotary_verifier.policy.tee import AZURE, TEE_NAMES, WHOLE_MACHINES, TeeRules, appraise_tee, staged
from quotary_verifier.recipe.endorsement import moment
from quotary_verifier.recipe.run import Run
from quotary_verifier.recipe.steps import Step
from quotary_verifier.tlog.hardware import IDENTIFIER_CCA, HardwareLine
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tee_support import Endorsements, TeeSupport
from quotary_verifier.wire.tpm_public import Public

ONE_AGENT: Final = (
    "several roots on one note show that one agent saw them all, and not that they are of one machine"
)
ONE_MACHINE: Final = "the confidential vm's hardware endorses the key of its vtpm: the two are one machine"
ANY_PARAVISOR: Final = (
    "whatever ran as paravisor is trusted with saying that hardware and vtpm are one machine"
)

NO_PLATFORM_KEY: Final = "note: a line of cca, as the policy brings no key of its platform ([tee.cca])"


@frozen
class TeeLine:
    """A TEE line of a note and the support that goes with it; nothing is verified."""

    line: HardwareLine
    support: TeeSupport

    @property
    def name(self) -> str:
        """Name of the kind, as policies have it."""
        return TEE_NAMES[self.line.identifier]

    def verify(self, bound: Bound, at: datetime, roots: TeeRoots) -> tuple[TeeClaims, ...]:
        """Verify it. Raises as `verify_tee_line`."""
        return verify_tee_line(self.line.evidence, self.support, bound, at, roots)


@frozen
class EndorsedAk:
    """The AK of the genesis record, and what its support has to show that hardware endorses it; nothing is verified."""

    public: Public
    endorsements: Endorsements

    @property
    def name(self) -> str:
        """Name of the kind, as policies have it: there is one."""
        return AZURE

    def verify(self, _: Bound, at: datetime, roots: TeeRoots) -> tuple[TeeClaims, ...]:
        """Verify it; it is of the key, and binds no commit. Raises as `verify_azure_ak`."""
        return (verify_azure_ak(self.endorsements, self.public, at, roots),)


@frozen
class JudgedTee:
    """What a line that holds shows: claims for each device, and whether the policy has rules that they keep.

    `tolerated` are the rules that they break and that only warn, in words. A line of a kind without rules whose
    certificates are of another time has no claims: nothing of it counts. `any_guest`: it endorses the AK, and no rule
    names the paravisor, so that any guest of such hardware could have made it.
    """

    name: str
    claims: tuple[TeeClaims, ...]
    appraised: bool
    warnings: tuple[Finding, ...] = ()
    tolerated: tuple[str, ...] = ()
    any_guest: bool = False

    @property
    def endorses_ak(self) -> bool:
        """Whether it is no line of the commit, but endorses the key that quotes it."""
        return self.name == AZURE


def judge_line(
    one: TeeLine | EndorsedAk,
    bound: Bound,
    at: int,
    rules: TeeRules,
    warned: Mapping[str, int] = MappingProxyType({}),
    now: int = 0,
) -> JudgedTee:
    """Verify one line and appraise it, where the policy has rules for its kind; `at` in seconds since the epoch.

    `warned` are the policy's rules that only warn, and until when; `now` is the time that this is compared with.

    Raises:
        MalformedError: evidence or endorsements are not of their form.
        EvidenceError: the evidence does not hold, binds something else, or breaks a rule.
        UnsupportedError: something in it is not known, or a rule could not be judged.
    """
    appraised = rules.has_rules(one.name)
    try:
        claims = one.verify(bound, moment(at), rules.roots)
    except (OutOfTimeError, StaleCollateralError):
        if appraised:
            raise
        return JudgedTee(one.name, (), appraised=False)
    found = [finding for device in claims for finding in appraise_tee(device, rules)]
    kept = [staged(finding, warned, now) for finding in found]
    tolerated = [
        new.message for old, new in zip(found, kept, strict=True) if old.severity is not new.severity
    ]
    warnings = [old for old in found if old.severity is Severity.WARN]
    enforce(kept)
    any_guest = one.name == AZURE and (rules.azure is None or rules.azure.any_paravisor)
    return JudgedTee(one.name, claims, appraised, tuple(warnings), tuple(tolerated), any_guest)


def judge_tees(
    run: Run,
    policy: Policy,
    lines: Iterable[TeeLine | EndorsedAk],
    bound: Bound,
    at: int,
    now: int | None = None,
    *,
    beside_tpm: bool = True,
) -> tuple[JudgedTee, ...]:
    """Do the step: every line is judged, and the first false one is named with the number of the others.

    `at` is the time at which certificates are judged, `now` that of verification, where they differ. `beside_tpm` tells
    that an AK binds the commit too. A line of a kind
    that the policy does not mention is verified, too, and not appraised.

    Raises:
        Stopped: a line is false, breaks a rule, or one that the policy requires is not there.
    """
    rules = policy.tee or TeeRules()
    judged: list[JudgedTee] = []
    false: list[str] = []
    unjudged: list[str] = []
    missing = set(rules.required)
    for one in lines:
        missing.discard(one.name)
        try:
            found = judge_line(one, bound, at, rules, policy.warnings, at if now is None else now)
            if _keyless(one, rules):
                raise UnsupportedError("no platform key")
        except (MalformedError, EvidenceError) as error:
            false.append(_named(one.name, error))
            continue
        except UnsupportedError as error:
            if _keyless(one, rules):
                run.not_understood.append(NO_PLATFORM_KEY)
                continue
            unjudged.append(_named(one.name, error))
            continue
        judged.append(found)
    false += [_missing(name) for name in sorted(missing)]
    if false:
        run.fail(Step.TEE, _first(false))
    if unjudged:
        run.could_not(Step.TEE, _first(unjudged))
    else:
        said = "; ".join(f"{one.name} {said_of(one)}" for one in judged)
        done = run.passed if any(one.claims for one in judged) else run.skip
        done(Step.TEE, said or "the note carries none, and the policy requires none")
    run.notices += _notices(judged, rules, policy.warnings)
    if sum(bool(one.claims) and not one.endorses_ak for one in judged) + beside_tpm > 1:
        run.notices.append(ONE_AGENT)
    run.tolerances += [text for one in judged for text in one.tolerated]
    return tuple(judged)


def said_of(line: JudgedTee) -> str:
    """Say in words how far a line was judged."""
    if not line.claims:
        return "could not be dated: nothing of it counts"
    if not line.appraised:
        return "verified, not appraised"
    return "accepted, with tolerances" if line.tolerated else "accepted"


def _notices(judged: list[JudgedTee], rules: TeeRules, warned: Mapping[str, int]) -> list[str]:
    notices = []
    for one in judged:
        if not one.claims:
            notices.append(
                f"the certificates of {one.name} are not valid at that time, and the policy has no rules for it:"
                " its line could not be dated, and nothing of it counts"
            )
            continue
        if not one.appraised:
            notices.append(
                f"the evidence of {one.name} holds, but the policy has no rules for it: nothing of it was appraised"
            )
        elif one.name in WHOLE_MACHINES and not rules.launch_named(one.name, warned):
            notices.append(
                f"the policy's rules on {one.name} do not name what was launched:"
                " other guests of such hardware keep them, too"
            )
        if rules.own_root(one.name):
            notices.append(
                f"the evidence of {one.name} was verified under a root of the policy's own, not its maker's"
            )
        notices += [warning.message for warning in one.warnings]
    if rules.azure is not None and any(one.endorses_ak for one in judged):
        notices.append(ANY_PARAVISOR if rules.azure.any_paravisor else ONE_MACHINE)
    return notices


def _missing(name: str) -> str:
    if name == AZURE:
        return "the policy requires that azure's hardware endorses the ak, and its support has no such endorsement"
    return f"the policy requires evidence of {name}, and the note has none"


def _keyless(one: TeeLine | EndorsedAk, rules: TeeRules) -> bool:
    """Whether it is of the kind that has no maker's root, and the policy brings no keys: nothing of it can count."""
    return one.name == TEE_NAMES[IDENTIFIER_CCA] and not rules.has_rules(one.name)


def _named(name: str, error: Exception) -> str:
    text = str(error)
    return text if text.startswith(f"{name}: ") else f"{name}: {text}"


def _first(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{texts[0]} (and {len(texts) - 1} more)"
