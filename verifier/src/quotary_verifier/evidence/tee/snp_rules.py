# SPDX-License-Identifier: Apache-2.0
"""Appraisal of SEV-SNP claims: what a relying party accepts, and every rule that a report breaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field

from quotary_verifier.errors import PolicyError
from quotary_verifier.evidence.tee.amd_certs import Generation, SigningKey
from quotary_verifier.evidence.tee.shape import Finding, Severity, named
from quotary_verifier.evidence.tee.snp import SnpClaims
from quotary_verifier.evidence.tee.snp_report import PlatformInfo, Policy, Tcb
from quotary_verifier.pki.revocation import Revocation
from quotary_verifier.wire.frozen import frozen


@frozen
class SnpRules:
    """What is accepted. Whatever is None is not asked; the defaults of the rest refuse what is unsafe.

    `generations`: at least one. `versions`: of the report; 2 does not name its processor, and is an opt-in.
    `reported`, `committed`, `launch`: least TCB by generation, component by component; the host chooses what is
    reported, so `committed` has its own. `measurements`: launch digests of 48 bytes. `devices`: chip ids.
    `masked_chip`: a VCEK's report may leave the chip's id out. `provisional`: firmware that is not committed is
    accepted. `alias_check`: the platform has to have checked its memory for aliases (AMD-SB-3015).
    `revocation`: there has to be a CRL of that time.
    """

    generations: frozenset[Generation]
    versions: frozenset[int] = frozenset({3, 4, 5})
    signing_keys: frozenset[SigningKey] = frozenset(SigningKey)
    debug: bool = False
    migration_agent: bool = False
    vmpls: frozenset[int] = frozenset({0})
    masked_chip: bool = False
    provisional: bool = False
    alias_check: bool = False
    revocation: bool = False
    smt: bool = True
    measurements: frozenset[bytes] | None = None
    host_data: frozenset[bytes] | None = None
    id_keys: frozenset[bytes] | None = None
    author_keys: frozenset[bytes] | None = None
    devices: frozenset[bytes] | None = None
    providers: frozenset[str] | None = None
    guest_svn: int = 0
    reported: Mapping[Generation, Tcb] = field(default_factory=dict)
    committed: Mapping[Generation, Tcb] = field(default_factory=dict)
    launch: Mapping[Generation, Tcb] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.generations:
            raise PolicyError("the sev-snp rules accept no generation")

    @property
    def names_launch(self) -> bool:
        """Whether they say what was launched, of guests that nobody writes to: no debugger, and no migration agent,
        which can put another guest's memory under any measurement."""
        closed = not self.debug and not self.migration_agent
        return closed and (named(self.measurements) or named(self.id_keys))


def appraise_snp(claims: SnpClaims, rules: SnpRules) -> tuple[Finding, ...]:
    """Return every rule that the claims break, with what follows from it; `shape.enforce` raises for them."""
    found = [
        *_of_platform(claims, rules),
        *_of_tcb(claims, rules),
        *_of_guest(claims, rules),
        *_of_identity(claims, rules),
    ]
    return tuple(
        Finding(f"sev-snp.{rule}", severity, f"sev-snp: {message}") for rule, severity, message in found
    )


_Found = Iterator[tuple[str, Severity, str]]


def _of_platform(claims: SnpClaims, rules: SnpRules) -> _Found:
    report = claims.report
    if claims.generation not in rules.generations:
        yield "generation", Severity.FAIL, f"the generation {claims.generation.value} is not accepted"
    elif claims.generation is Generation.MILAN:
        yield (
            "generation",
            Severity.WARN,
            "keys of Milan processors are said to have been extracted by software, so that anyone may have made "
            "this report (arXiv 2605.12990)",
        )
    if report.version not in rules.versions:
        yield "version", Severity.FAIL, f"reports of version {report.version} are not accepted"
    if report.signing_key not in rules.signing_keys:
        yield "signing-key", Severity.FAIL, f"reports signed by a {report.signing_key.value} are not accepted"
    if rules.alias_check and not report.platform_info & PlatformInfo.ALIAS_CHECK_COMPLETE:
        yield (
            "alias-check",
            Severity.FAIL,
            "the platform has not checked its memory for aliases (AMD-SB-3015)",
        )
    if not rules.smt and report.platform_info & PlatformInfo.SMT:
        yield "smt", Severity.FAIL, "the platform runs with simultaneous multithreading"
    if rules.revocation and claims.signer.revocation is not Revocation.GOOD:
        yield "revocation", Severity.COULD_NOT, "no crl of that time says that the issuer was not revoked"


def _of_tcb(claims: SnpClaims, rules: SnpRules) -> _Found:
    above = claims.current.below(claims.reported)
    if above:
        yield "tcb-order", Severity.FAIL, f"the reported tcb is above the current one: {', '.join(above)}"
    if claims.committed != claims.current and not rules.provisional:
        yield "provisional", Severity.FAIL, "the current firmware is not committed and may be taken back"
    for name, tcb, least in (
        ("reported", claims.reported, rules.reported),
        ("committed", claims.committed, rules.committed),
        ("launch", claims.launch, rules.launch),
    ):
        wanted = least.get(claims.generation)
        lower = () if wanted is None else tcb.below(wanted)
        if lower:
            yield f"{name}-tcb", Severity.FAIL, f"the {name} tcb is below the least: {', '.join(lower)}"


def _of_guest(claims: SnpClaims, rules: SnpRules) -> _Found:
    report = claims.report
    if report.policy & Policy.DEBUG and not rules.debug:
        yield "debug", Severity.FAIL, "the guest may be debugged: the host can read and change its memory"
    if report.policy & Policy.MIGRATION_AGENT and not rules.migration_agent:
        yield "migration-agent", Severity.FAIL, "the guest may be moved by a migration agent"
    if report.vmpl not in rules.vmpls:
        yield "vmpl", Severity.FAIL, f"the report was requested at vmpl {report.vmpl}"
    if report.guest_svn < rules.guest_svn:
        yield "guest-svn", Severity.FAIL, f"the guest's version {report.guest_svn} is below {rules.guest_svn}"
    for rule, value, accepted in (
        ("measurement", report.measurement, rules.measurements),
        ("host-data", report.host_data, rules.host_data),
        ("id-key", report.id_key_digest, rules.id_keys),
        ("author-key", report.author_key_digest, rules.author_keys),
    ):
        if accepted is not None and value not in accepted:
            yield rule, Severity.FAIL, f"the {rule.replace('-', ' ')} {value.hex()} is not accepted"


def _of_identity(claims: SnpClaims, rules: SnpRules) -> _Found:
    vcek = claims.report.signing_key is SigningKey.VCEK
    if claims.device is None and vcek and not rules.masked_chip:
        yield "chip-id", Severity.FAIL, "the report of a vcek leaves out the chip's id"
    if rules.devices is not None and claims.device not in rules.devices:
        named = "no chip" if claims.device is None else claims.device.hex()
        yield "device", Severity.FAIL, f"the report names {named}, which is not accepted"
    if rules.providers is not None and not vcek and claims.csp not in rules.providers:
        yield "provider", Severity.FAIL, f"the vlek was made for {claims.csp!r}, which is not accepted"
