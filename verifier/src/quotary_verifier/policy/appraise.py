# SPDX-License-Identifier: Apache-2.0
"""Holds verified evidence against the rules of a policy, and tells every departure (docs/spec/policy.md).

Nothing here decides what is authentic: evidence comes from `recipe`, which did every step before. This module and the
appraisers are imported only where a policy has rules or someone asks for all findings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from quotary_verifier.logs.workload import TYPE_MODEL, LoggedEvent, WorkloadEvent, WorkloadLog
from quotary_verifier.policy.findings import Appraisal, Finding, PlatformEvidence, Severity, listed, shown
from quotary_verifier.policy.model import PlatformRules, Policy, ReferenceSet
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.frozen import frozen

if TYPE_CHECKING:
    from quotary_verifier.policy.rules import AllowedEvent, ClockRules

BOOT_PCRS: Final = (0, 4, 7)
"""PCRs into which every measured boot of firmware extends: its code, the boot loader, the Secure Boot policy."""
_WORST_FIRST: Final = (Severity.FAIL, Severity.COULD_NOT, Severity.WARN)


def appraise_platform(policy: Policy, evidence: PlatformEvidence, at: int) -> Appraisal:
    """Hold evidence against a policy's rules on platform and workload, at a time in seconds since the epoch."""
    used: list[str] = []
    common = policy.platform
    findings = list(_platform(common, common, evidence, used))
    findings += _workload(policy, evidence.workload)
    reference = None
    if policy.references:
        trial = _best(policy, evidence, at)
        reference = trial.name
        findings += trial.findings
        used += trial.tolerances
    elif not common.empty:
        findings += _measured(common.pcrs, evidence)
    judged = [_staged(policy, finding, at) for finding in findings]
    judged.sort(key=lambda finding: _WORST_FIRST.index(finding.severity))
    return Appraisal(tuple(judged), reference, tuple(dict.fromkeys(used)))


def _platform(
    rules: PlatformRules, tolerant: PlatformRules, evidence: PlatformEvidence, used: list[str]
) -> Iterator[Finding]:
    """Yield the departures from some rules; `tolerant` has the tolerances, `used` gets those that were needed."""
    yield from _pcrs(rules, evidence)
    if rules.secure_boot is not None or rules.boot is not None:
        from quotary_verifier.policy.appraise_firmware import appraise_firmware

        yield from appraise_firmware(rules, tolerant.tolerate, evidence, used)
    if rules.ima is not None:
        from quotary_verifier.policy.appraise_ima import appraise_ima

        yield from appraise_ima(rules.ima, evidence, used)
    if rules.clock is not None:
        yield from _clock(rules.clock, evidence)


def _pcrs(rules: PlatformRules, evidence: PlatformEvidence) -> Iterator[Finding]:
    for pcr, allowed in sorted(rules.pcrs.items()):
        rule, value = f"platform.pcrs.{pcr}", evidence.pcrs[pcr]
        if pcr in evidence.moving:
            why = f"the policy fixes PCR {pcr}, which this origin extends with every commit"
            yield Finding(rule, f"{why} or measurement", pcr=pcr)
        elif value not in allowed:
            values = tuple(sorted(item.hex() for item in allowed))
            message = (
                f"PCR {pcr} is {value.hex()}, which the policy does not allow (allowed: {listed(values)})"
            )
            yield Finding(rule, message, pcr=pcr, found=value.hex(), allowed=values)


def _measured(named: Collection[int], evidence: PlatformEvidence) -> Iterator[Finding]:
    """Yield a finding for each boot PCR that is zero and not among those `named`, which may list zero."""
    for pcr in BOOT_PCRS:
        if pcr not in named and evidence.pcrs[pcr] == ZERO:
            why = f"PCR {pcr} is zero, so this boot was never measured, and the policy does not list zero for it"
            yield Finding("platform.measured", why, pcr=pcr, found=ZERO.hex())


def _clock(rules: ClockRules, evidence: PlatformEvidence) -> Iterator[Finding]:
    clock = evidence.clock
    windows = [window for window in rules.boots if window.origin == evidence.origin]
    if not evidence.own_key and (windows or rules.restarts is not None):
        why = "the TPM gives its reset and restart counts to this kind of AK with a constant added"
        yield Finding("platform.clock", why, Severity.COULD_NOT)
        return
    if rules.restarts is not None and clock.restart_count > rules.restarts:
        message = (
            f"the host slept or hibernated: its TPM was restarted {clock.restart_count} times since the last"
            f" reset, and the policy allows {rules.restarts}"
        )
        yield Finding("platform.clock.restarts", message, found=str(clock.restart_count))
    for window in windows:
        if clock.reset_count < window.first or (window.last is not None and clock.reset_count > window.last):
            last = "" if window.last is None else f" to {window.last}"
            message = f"this boot is number {clock.reset_count} by the TPM's reset count, and the policy"
            message += f" accepts {'those from ' if window.last is None else ''}{window.first}{last}"
            yield Finding("platform.clock.boots", message, found=str(clock.reset_count))


def _workload(policy: Policy, log: WorkloadLog | None) -> Iterator[Finding]:
    """Yield the events of the epoch in force that the policy does not allow."""
    rules = policy.workload
    if rules is None or log is None:
        return
    for logged in log.current:
        event = logged.event
        if event is None:
            why = f"workload event {logged.number} is given by its digest only, so what it measured is not shown"
            yield Finding("workload", why, Severity.COULD_NOT, event=logged.number, found=logged.digest.hex())
            continue
        if rules.types is not None and event.type not in rules.types:
            why = f"{_named(logged, event)} is of a type that the policy does not allow"
            yield _event("workload.types", why, logged, event, sorted(rules.types))
        entries = [entry for entry in rules.events if entry.type == event.type]
        if entries and not any(_allows(entry, event) for entry in entries):
            allowed = [f"{item.name or 'any'} {item.digest.hex() if item.digest else ''}" for item in entries]
            why = f"{_named(logged, event)} is not one that the policy allows"
            yield _event("workload.events", why, logged, event, [item.strip() for item in allowed])
        if rules.only_models and event.type == TYPE_MODEL and not _is_model(policy, event):
            why = f"{_named(logged, event)} may serve beside the models that the policy allows"
            yield _event("workload.models", why, logged, event, [])


def _named(logged: LoggedEvent, event: WorkloadEvent) -> str:
    what = f"{shown(event.type)} '{shown(event.name)}' with digest {event.digest.hex()}"
    return f"workload event {logged.number}, {what},"


def _event(rule: str, why: str, logged: LoggedEvent, event: WorkloadEvent, allowed: Iterable[str]) -> Finding:
    found = event.digest.hex()
    return Finding(
        rule, why, event=logged.number, path=shown(event.name), found=found, allowed=tuple(allowed)
    )


def _allows(entry: AllowedEvent, event: WorkloadEvent) -> bool:
    return entry.name in (None, event.name) and entry.digest in (None, event.digest)


def _is_model(policy: Policy, event: WorkloadEvent) -> bool:
    return any(
        model.name in (None, event.name) and model.weights in (None, event.digest) for model in policy.models
    )


@frozen
class _Trial:
    """How evidence fits the reference sets: the name of the one that does, or what keeps the nearest from it."""

    name: str | None
    findings: tuple[Finding, ...]
    tolerances: tuple[str, ...]


def _best(policy: Policy, evidence: PlatformEvidence, at: int) -> _Trial:
    """Hold evidence against each reference set, and return the first that fits, or that comes nearest."""
    trials = []
    for number, reference in enumerate(policy.references):
        used: list[str] = []
        findings = tuple(_of_reference(policy, reference, evidence, used))
        severities = [_staged(policy, finding, at).severity for finding in findings]
        counts = tuple(severities.count(severity) for severity in _WORST_FIRST)
        trials.append((counts, number, reference.name, findings, tuple(used)))
    counts, _, name, findings, tolerances = min(trials)
    if not any(counts[:2]):
        return _Trial(name, findings, tolerances)
    return _Trial(None, tuple(_no_reference(policy, name, counts, findings, at)), ())


def _of_reference(
    policy: Policy, reference: ReferenceSet, evidence: PlatformEvidence, used: list[str]
) -> Iterator[Finding]:
    yield from _platform(reference.rules, reference.rules, evidence, used)
    yield from _measured({*policy.platform.pcrs, *reference.rules.pcrs}, evidence)


def _no_reference(
    policy: Policy, name: str, counts: tuple[int, ...], findings: Iterable[Finding], at: int
) -> Iterator[Finding]:
    """Say that no reference set fits, and what is in the way of the nearest."""
    fails, could_nots, _ = counts
    names = tuple(item.name for item in policy.references)
    those = (
        "the reference set does not fit" if len(names) == 1 else f"none of {len(names)} reference sets fits"
    )
    why = f"{those}; the nearest is {name!r}, from which the host departs in {fails or could_nots} points"
    severity = Severity.FAIL if fails else Severity.COULD_NOT
    head = _staged(policy, Finding("reference", why, severity, allowed=names), at)
    yield head
    for finding in findings:
        said = f"reference set {name!r}: {finding.message}"
        if head.severity is Severity.WARN:
            yield _changed(finding, said, Severity.WARN, head.until)
        else:
            yield _changed(finding, said, finding.severity)


def _changed(finding: Finding, message: str, severity: Severity, until: int | None = None) -> Finding:
    return Finding(
        finding.rule,
        message,
        severity,
        finding.pcr,
        finding.event,
        finding.path,
        finding.found,
        finding.allowed,
        until,
    )


def _staged(policy: Policy, finding: Finding, at: int) -> Finding:
    """Turn a finding into a warning where its rule, or the nearest one above it, only warns at this time."""
    if finding.severity is Severity.WARN:
        return finding
    code = finding.rule
    while code not in policy.warnings:
        code, dot, _ = code.rpartition(".")
        if not dot:
            return finding
    until = policy.warnings[code]
    if at >= until:
        return finding
    date = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return _changed(finding, f"{finding.message}; rejected from {date}", Severity.WARN, until)
