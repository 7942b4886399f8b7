# SPDX-License-Identifier: Apache-2.0
"""Verifying the TEE lines of a history file, each at the time of its commit (docs/spec/audit.md, "TEE lines").

Loaded only where a history has such lines. A job needs nothing of any other, so that processes can share them.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime
from typing import Final

from quotary_verifier.audit.findings import Code, Finding, Place, Severity
from quotary_verifier.audit.reading import Absent, Blobs, Read
from quotary_verifier.audit.report import AuditedTee
from quotary_verifier.audit.teematching import tee_lines
from quotary_verifier.audit.tees import TeeJob, TeeTerms, VerifiedTees, chained
from quotary_verifier.errors import (
    EvidenceError,
    MalformedError,
    OutOfTimeError,
    StaleCollateralError,
    UnsupportedError,
)
from quotary_verifier.evidence.tee.amd_certs import amd_roots
from quotary_verifier.evidence.tee.lines import Bound
from quotary_verifier.evidence.tee.shape import Finding as Rule
from quotary_verifier.evidence.tee.shape import Severity as RuleSeverity
from quotary_verifier.evidence.tee.shape import TeeClaims
from quotary_verifier.policy.tee import AZURE, TeeRules, appraise_tee, staged
from quotary_verifier.recipe.endorsement import moment
from quotary_verifier.recipe.tee import EndorsedAk, TeeLine
from quotary_verifier.recipe.tee_claims import device_claims
from quotary_verifier.tlog.checkpoint import parse_checkpoint
from quotary_verifier.tlog.hardware import IDENTIFIER_CCA, HardwareLine, tee_key_ids, tee_name
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.tlog.tiles import numbered_path
from quotary_verifier.wire.bindings import ZERO, commit_digest
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.history import COMMITS_PER_FILE, Commit, split
from quotary_verifier.wire.limits import MAX_COMMIT
from quotary_verifier.wire.records import Genesis
from quotary_verifier.wire.tee_support import MAX_PART, Endorsements, TeeSupport
from quotary_verifier.wire.tpm_public import parse_public

MAX_ENDORSEMENTS: Final = 16 * 1024 * 1024
"""Bytes that vouch for one line: certificates, CRLs and collateral have some ten thousand."""

_CCA: Final = tee_name(IDENTIFIER_CCA)
_KEPT: Final = 4
_AGE: Final = "nitro.age"
_MOVING: Final = frozenset({"signed_time_ms"})
"""Claims that are another in every commit."""


@frozen
class _Line:
    """What is to be verified of a commit: a TEE line, or what endorses the AK (`line` is None)."""

    number: int
    first: int
    size: int
    digest: bytes
    at: int
    kind: str
    line: HardwareLine | None
    endorsements: Endorsements


class TeeChecker:
    """Verifies the TEE lines of one origin and holds them to a policy's rules."""

    __slots__ = (
        "_blobs",
        "_endorsed",
        "_genesis",
        "_kept",
        "_known",
        "_now",
        "_origin",
        "_public",
        "_read",
        "_roots",
        "_rules",
        "_warned",
    )

    def __init__(self, genesis: bytes, read: Read, terms: TeeTerms) -> None:
        """Take an origin by its genesis record, how its log is read, and what the policy asks."""
        record = Genesis.decode(genesis)
        self._origin = record.origin(genesis)
        self._genesis = hashlib.sha256(genesis).digest()
        self._public = None if record.tpm is None else parse_public(record.tpm.ak)
        self._known = tee_key_ids(self._origin)
        self._read, self._blobs = read, Blobs(read, keep=1)
        self._rules = terms.rules or TeeRules()
        # A path of RSA-4096 takes as long as the report's own signature, and a history has few chips.
        self._roots = replace(self._rules.roots, amd=(self._rules.roots.amd or amd_roots()).remembering())
        self._warned, self._now = terms.warned, terms.now
        self._kept: dict[tuple[tuple[str, tuple[bytes, ...]], ...], Endorsements] = {}
        self._endorsed: tuple[tuple[Endorsements, datetime] | None, tuple[TeeClaims, ...]] = (None, ())

    def file(self, job: TeeJob) -> VerifiedTees:
        """Read a history file again and verify the lines of its commits."""
        path = f"history/{numbered_path(job.number)}"
        findings: list[Finding] = []
        stretches: list[AuditedTee] = []
        last: dict[str, int] = {}
        digest = ZERO
        try:
            for number, data in enumerate(
                split(self._read(path, COMMITS_PER_FILE * MAX_COMMIT)), job.number * COMMITS_PER_FILE
            ):
                if not job.first <= number <= job.last:
                    continue
                lines = self._lines(data, number, job.at(number))
                if lines:
                    digest = chained(digest, hashlib.sha256(data).digest())
                for line in lines:
                    found = self._judge(line)
                    if isinstance(found, Finding):
                        findings.append(found)
                    elif line.kind in last and stretches[last[line.kind]].same(found):
                        stretches[last[line.kind]] = stretches[last[line.kind]].joined(found)
                    else:
                        last[line.kind] = len(stretches)
                        stretches.append(found)
        except Absent as error:
            return _unread(job, path, Severity.COULD_NOT, str(error))
        except (MalformedError, EvidenceError, UnsupportedError) as error:
            return _unread(job, path, Severity.FALSE, f"{path}: {error}")
        if digest != job.digest:
            return _unread(
                job, path, Severity.FALSE, f"{path} has other commits than it had earlier in this audit"
            )
        return VerifiedTees(tuple(stretches), tuple(findings))

    def _lines(self, data: bytes, number: int, at: int) -> list[_Line]:
        """Return the lines of a commit; none where they do not fit it, which was found before."""
        commit = Commit.decode(data)
        note = parse_note(commit.note)
        try:
            matched = tee_lines(commit, note, self._origin, self._known)
        except (MalformedError, EvidenceError):
            return []
        size = parse_checkpoint(note.text, origin=self._origin).size
        digest = commit_digest(self._origin, commit.first, note.text)
        found: list[tuple[str, HardwareLine | None, Endorsements]] = [
            (tee_name(line.identifier), line, support.endorsements) for line, support in matched
        ]
        found += [(AZURE, None, support.endorsements) for support in commit.supports if support.endorsements]
        return [_Line(number, commit.first, size, digest, at, *parts) for parts in found]

    def _judge(self, line: _Line) -> AuditedTee | Finding:
        """Verify a line and hold it to the rules; a finding where it is false."""
        kind = line.kind
        keyless = kind == _CCA and not self._rules.has_rules(kind)
        try:
            claims = self._verify(line)
        except (OutOfTimeError, StaleCollateralError) as error:
            severity = "could-not" if kind in self._rules.required else "notice"
            said = f"the evidence of {kind} could not be dated, so nothing of it counts: {_valid(error)}"
            return _stretch(line, "undated", (("tee.time", severity, said),))
        except Absent as error:
            said = f"what vouches for the evidence of {kind} is not published: {error}"
            return _stretch(line, "could-not", (("tee", "could-not", said),))
        except UnsupportedError as error:
            if not keyless:
                return _stretch(line, "could-not", (("tee", "could-not", _named(kind, error)),))
        except (MalformedError, EvidenceError) as error:
            where = Place(commit=line.number, leaf=line.first)
            return Finding(Code.TEE, Severity.FALSE, where, _named(kind, error))
        if keyless:
            said = f"lines of {kind} count for nothing, as the policy brings no key of its platform"
            return _stretch(line, "not-appraised", (("tee", "notice", said),))
        return self._appraise(line, claims)

    def _verify(self, line: _Line) -> tuple[TeeClaims, ...]:
        parts, roots, at = self._endorsements(line.endorsements), self._roots, moment(line.at)
        bound = Bound(line.digest, self._genesis)
        if line.line is not None:
            return TeeLine(line.line, TeeSupport(line.line.identifier, parts)).verify(bound, at, roots)
        assert self._public is not None  # a support with endorsements is that of a TPM
        known, claims = self._endorsed
        if known != (line.endorsements, at):  # it binds no commit, so commits of one time need it but once
            claims = EndorsedAk(self._public, parts).verify(bound, at, roots)
            self._endorsed = (line.endorsements, at), claims
        return claims

    def _endorsements(self, named: Endorsements) -> Endorsements:
        """Return the endorsements that a support names; those of the last supports are kept."""
        key = tuple(named.items())
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        left = MAX_ENDORSEMENTS
        parts: dict[str, tuple[bytes, ...]] = {}
        for name, digests in named.items():
            found = []
            for digest in digests:
                found.append(self._blobs.get(digest, min(left, MAX_PART)))
                left -= len(found[-1])
            parts[name] = tuple(found)
        if len(self._kept) >= _KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = parts
        return parts

    def _appraise(self, line: _Line, claims: tuple[TeeClaims, ...]) -> AuditedTee:
        kind, rules = line.kind, self._rules
        broken = [rule for device in claims for rule in appraise_tee(device, rules)]
        findings = [_judged(staged(rule, self._warned, self._now)) for rule in broken]
        if rules.own_root(kind):
            said = f"the evidence of {kind} was verified under a root of the policy's own, not its maker's"
            findings.append(("tee.roots", "notice", said))
        if not rules.has_rules(kind):
            said = f"the evidence of {kind} holds, but the policy has no rules for it: nothing of it was appraised"
            findings.append(("tee", "notice", said))
        status = _status({severity for _, severity, _ in findings}, rules.has_rules(kind))
        devices = tuple(self._device(kind, device, shows=status == "accepted") for device in claims)
        return _stretch(line, status, tuple(dict.fromkeys(findings)), devices)

    def _device(self, kind: str, device: TeeClaims, *, shows: bool) -> tuple[tuple[str, str], ...]:
        """Return what a device's evidence says, and which weights the image serves by the policy if it `shows` that."""
        said = [
            (claim.name, str(claim.value)) for claim in device_claims("", device) if claim.name not in _MOVING
        ]
        weights = self._rules.served(kind, device) if shows else ()
        return (
            (*said, ("serves", ", ".join(value.hex() for value in sorted(weights))))
            if weights
            else tuple(said)
        )


def _judged(found: Rule) -> tuple[str, str, str]:
    """Return what a rule found. How old a document was at its commit, a time after the commit does not tell."""
    if found.rule == _AGE and found.severity is RuleSeverity.FAIL:
        return found.rule, "could-not", f"{found.message}, or were when it was made"
    return found.rule, str(found.severity.value), found.message


def _status(severities: set[str], appraised: bool) -> str:
    for severity, status in (("fail", "rejected"), ("could-not", "could-not"), ("warn", "warned")):
        if severity in severities:
            return status
    return "accepted" if appraised else "not-appraised"


def _stretch(
    line: _Line,
    status: str,
    findings: tuple[tuple[str, str, str], ...],
    devices: tuple[tuple[tuple[str, str], ...], ...] = (),
) -> AuditedTee:
    number = line.number
    return AuditedTee(line.kind, number, number, line.first, line.size, 1, status, findings, devices)


def _valid(error: OutOfTimeError | StaleCollateralError) -> str:
    begin, end = (f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in (error.not_before, error.not_after))
    return f"what vouches for it is valid from {begin} to {end}, and no witnesses saw the commits then"


def _named(kind: str, error: Exception) -> str:
    text = str(error)
    return text if text.startswith(f"{kind}: ") else f"{kind}: {text}"


def _unread(job: TeeJob, path: str, severity: Severity, message: str) -> VerifiedTees:
    where = Place(path=path, commit=job.first)
    return VerifiedTees((), (Finding(Code.HISTORY, severity, where, message),))
