# SPDX-License-Identifier: Apache-2.0
"""Step `platform`: what booted and runs is what the policy accepts (docs/spec/policy.md).

The rules are judged in `quotary_verifier.policy.appraise`, which is loaded only where a policy has any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from quotary_verifier.errors import EvidenceError, UnsupportedError
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.platform import BOOT_PCRS, Host, PlatformFacts
from quotary_verifier.recipe.run import Run
from quotary_verifier.recipe.steps import Step
from quotary_verifier.wire.attestation import BOOT_LOG_FIRMWARE, BOOT_LOG_IMA
from quotary_verifier.wire.bindings import ZERO

if TYPE_CHECKING:
    from quotary_verifier.logs.workload import WorkloadLog
    from quotary_verifier.policy.findings import Appraisal, Finding, PlatformEvidence
    from quotary_verifier.recipe.boot_logs import BootLogs
    from quotary_verifier.wire.tpm import Attest

_ABSENT: Final = "the log did not come along"
_BY_DIGEST: Final = "the log is given by its digest only, and was not handed in beside it"
_UNREAD: Final = "the log could not be read"


def judge_platform_rules(
    run: Run,
    policy: Policy,
    host: Host,
    attest: Attest,
    facts: PlatformFacts | None,
    log: WorkloadLog | None,
    named: Mapping[str, bytes],
    boot: BootLogs | None,
    at: int,
) -> Appraisal | None:
    """Do the step with what the steps before it established; `named` are the boot logs that came, in either form.

    None where the policy has none but PCR values and they are kept, or a rule could not be judged.

    Raises:
        Stopped: the evidence departs from a rule that counts.
    """
    if run.quoted is None:
        run.skip(Step.PLATFORM, "the quoted PCR values could not be established")
        return None
    if policy.platform.empty and not policy.references:
        run.notices.append("the policy fixes no PCR: nothing is said of what booted and runs on the host")
    elif any(run.quoted[pcr] == ZERO for pcr in BOOT_PCRS if pcr in policy.pcrs):
        run.notices.append("a boot PCR that the policy fixes is zero: that boot was never measured")
    if policy.has_pcrs_only and _kept(policy, host, run.quoted):
        return run.do(Step.PLATFORM, _nothing_departs)
    evidence = platform_evidence(host, attest, run.quoted, facts, log, named, boot)
    return run.do(Step.PLATFORM, _judge, run, policy, evidence, at)


def _kept(policy: Policy, host: Host, pcrs: Mapping[int, bytes]) -> bool:
    """Tell whether a policy of PCR values is kept, as most are: then the appraiser need not be loaded."""
    named, identity = policy.pcrs, host.identity
    if not named:
        return True
    if identity.chain_pcr in named or identity.workload_pcr in named:
        return False
    unmeasured = any(pcrs[pcr] == ZERO and pcr not in named for pcr in BOOT_PCRS)
    return not unmeasured and all(pcrs[pcr] in allowed for pcr, allowed in named.items())


def _nothing_departs() -> None:
    return None


def _judge(run: Run, policy: Policy, evidence: PlatformEvidence, at: int) -> Appraisal:
    """Appraise; EvidenceError for a departure that counts, UnsupportedError for a rule that could not be judged."""
    from quotary_verifier.policy.appraise import appraise_platform
    from quotary_verifier.policy.findings import Severity

    appraisal = appraise_platform(policy, evidence, at)
    failed, unjudged = appraisal.of(Severity.FAIL), appraisal.of(Severity.COULD_NOT)
    if failed:
        raise EvidenceError(_first(failed))
    if unjudged:
        raise UnsupportedError(_first(unjudged))
    warned = appraisal.of(Severity.WARN)
    run.notices += [f"{finding.rule} only warns: {finding.message}" for finding in warned]
    run.tolerances += appraisal.tolerances
    return appraisal


def platform_evidence(
    host: Host,
    attest: Attest,
    pcrs: Mapping[int, bytes],
    facts: PlatformFacts | None,
    log: WorkloadLog | None,
    named: Mapping[str, bytes],
    boot: BootLogs | None,
) -> PlatformEvidence:
    """Put together what an appraisal is of. Only steps that passed may stand behind what is given."""
    from quotary_verifier.policy.findings import PlatformEvidence

    firmware, ima = (None, None) if boot is None else (boot.firmware, boot.ima)
    missing = {}
    for name, found in ((BOOT_LOG_FIRMWARE, firmware), (BOOT_LOG_IMA, ima)):
        if found is None:
            missing[name] = _ABSENT if name not in named else _UNREAD if boot is None else _BY_DIGEST
    return PlatformEvidence(
        origin=host.origin,
        pcrs=pcrs,
        moving=frozenset({host.identity.chain_pcr, host.identity.workload_pcr}),
        clock=attest.clock,
        own_key=facts is not None and facts.key.profile.own,
        workload=log,
        firmware=firmware,
        ima=ima,
        missing=missing,
    )


def _first(findings: tuple[Finding, ...]) -> str:
    """Return the first finding in words, and how many more there are."""
    more = len(findings) - 1
    said = findings[0].message
    if more:
        said += f" (and {more} more {'finding' if more == 1 else 'findings'})"
    return said
