# SPDX-License-Identifier: Apache-2.0
"""What a relying party asks of TEE lines (docs/spec/policy.md, "Rules on TEEs"), and how their claims are held to it.

Loaded only where a note has such a line, or a policy asks for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from quotary_verifier.errors import PolicyError
from quotary_verifier.evidence.tee.azure import AzureClaims, AzureRules, appraise_azure
from quotary_verifier.evidence.tee.cca import CcaClaims, CcaRules, appraise_cca
from quotary_verifier.evidence.tee.cca_token import Lifecycle
from quotary_verifier.evidence.tee.lines import TeeRoots
from quotary_verifier.evidence.tee.nitro import (
    KIND_ENCLAVE,
    KIND_TPM,
    NitroClaims,
    NitroRules,
    appraise_nitro,
    names_image,
)
from quotary_verifier.evidence.tee.nvidia import NvidiaClaims, NvidiaRules, appraise_nvidia
from quotary_verifier.evidence.tee.shape import Finding, Severity, TeeClaims, named
from quotary_verifier.evidence.tee.snp import SnpClaims
from quotary_verifier.evidence.tee.snp_report import Policy as GuestPolicy
from quotary_verifier.evidence.tee.snp_rules import SnpRules, appraise_snp
from quotary_verifier.evidence.tee.tdx import TdxClaims
from quotary_verifier.evidence.tee.tdx_rules import TdxRules, appraise_tdx
from quotary_verifier.policy.tee_rules import WARNABLE
from quotary_verifier.tlog.hardware import TEE_IDENTIFIERS, tee_name
from quotary_verifier.wire.frozen import frozen

TEE_NAMES: Final[Mapping[str, str]] = {identifier: tee_name(identifier) for identifier in TEE_IDENTIFIERS}
"""Every identifier that this verifier knows, and the name that policies and verdicts have for it."""

AZURE: Final = "azure"
"""The name of what is no line: hardware that endorses the AK of a vTPM."""


WHOLE_MACHINES: Final = frozenset({"sev-snp", "tdx", "nitro", "cca"})
"""The kinds whose evidence speaks of a whole machine, so that they can bind the commits of one without a TPM."""

_LAUNCH_RULES: Final[Mapping[str, tuple[str, ...]]] = {
    "sev-snp": ("measurement", "id-key", "debug", "migration-agent"),
    "tdx": ("mrtd", "debug", "service-td"),
    "nitro": ("pcr", "debug", "kind"),
    "cca": ("rim", "debug", "lifecycle"),
}
"""The rules by which a kind says what was launched, and that it stayed so."""

_NITRO_IMAGES: Final[Mapping[str, str]] = {KIND_ENCLAVE: "pcr0", KIND_TPM: "pcr4"}
"""The register of what was started. Another one of the same number is an instance's firmware, or an enclave's host."""

_OPEN: Final = GuestPolicy.DEBUG | GuestPolicy.MIGRATION_AGENT


@frozen
class Image:
    """What a launched image serves, by the policy: these weights and no others.

    `kind`: of the line. `registers`: name, as claims have it, → the values that the image gives it.
    """

    kind: str
    weights: bytes
    registers: Mapping[str, frozenset[bytes]]


@frozen
class TeeRules:
    """The table `[tee]`. `required` has the names of the lines that every note must have; each needs rules.

    A kind without rules is verified and not appraised. `roots` stand in place of the makers' own; for "cca", which has
    none, they are the keys that the policy brings.

    Raises:
        PolicyError: on construction, if a line is required of which nothing is asked.
    """

    required: frozenset[str] = frozenset()
    snp: SnpRules | None = None
    tdx: TdxRules | None = None
    nitro: NitroRules | None = None
    nvidia: NvidiaRules | None = None
    cca: CcaRules | None = None
    azure: AzureRules | None = None
    roots: TeeRoots = TeeRoots()
    images: tuple[Image, ...] = ()

    def __post_init__(self) -> None:
        for name in sorted(self.required):
            if not self.has_rules(name):
                raise PolicyError(
                    f"policy: tee.required names {name}, and there is no table tee.{name} that says which is accepted"
                )
        started = {_NITRO_IMAGES[kind] for kind in self.nitro.kinds} if self.nitro else set()
        for image in self.images:
            if image.kind == "nitro" and started.isdisjoint(image.registers):
                raise PolicyError(
                    f"policy: tee.nitro.image must name {' or '.join(sorted(started))}, as what the kinds have started"
                )

    def has_rules(self, name: str) -> bool:
        """Whether the policy says which evidence of this kind is accepted."""
        rules = {
            "sev-snp": self.snp,
            "tdx": self.tdx,
            "nitro": self.nitro,
            "nvidia": self.nvidia,
            "cca": self.cca,
            AZURE: self.azure,
        }
        return rules.get(name) is not None

    def own_root(self, name: str) -> bool:
        """Whether evidence of this kind is verified under a root of the policy's own."""
        roots = self.roots
        if name == AZURE:
            return roots.amd is not None or roots.intel is not None
        own = {"sev-snp": roots.amd, "tdx": roots.intel, "nitro": roots.nitro, "nvidia": roots.nvidia}
        return own.get(name) is not None

    def names_launch(self, warned: Mapping[str, int]) -> bool:
        """Whether a kind of a whole machine is required whose rules name what was launched."""
        return any(self.launch_named(kind, warned) for kind in self.required & WHOLE_MACHINES)

    def launch_named(self, kind: str, warned: Mapping[str, int]) -> bool:
        """Whether the rules on a kind of a whole machine name what was launched.

        Rules that only warn do not count, whether or not their date has passed.
        """
        snp, tdx, nitro, cca = self.snp, self.tdx, self.nitro, self.cca
        launched = {
            "sev-snp": snp is not None and snp.names_launch,
            "tdx": tdx is not None and tdx.names_launch,
            "nitro": nitro is not None and not nitro.debug and names_image(nitro),
            "cca": cca is not None and not cca.debug and named(cca.rims),
        }
        return launched[kind] and not any(
            _warned(warned, f"tee.{kind}.{rule}") for rule in _LAUNCH_RULES[kind]
        )

    def served(self, kind: str, claims: TeeClaims) -> frozenset[bytes]:
        """Return the weights that images serve whose registers evidence of a kind has."""
        launched, measurements = launch_register(claims), claims.measurements
        return frozenset(
            image.weights
            for image in self.images
            if image.kind == kind
            and launched in image.registers
            and all(measurements.get(name) in values for name, values in image.registers.items())
        )


def launch_register(claims: TeeClaims) -> str | None:
    """Return the register of what was launched; None where others can write to what runs, so that it says nothing.

    A policy may accept such a guest all the same.
    """
    if isinstance(claims, SnpClaims):
        return None if claims.report.policy & _OPEN else "launch"
    if isinstance(claims, NitroClaims):
        return None if claims.debug else _NITRO_IMAGES[claims.kind]
    if isinstance(claims, CcaClaims):
        return "rim" if claims.token.state is Lifecycle.SECURED else None
    return "mrtd" if isinstance(claims, TdxClaims) else None  # of a td under debug no line is accepted


def _warned(warned: Mapping[str, int], rule: str) -> bool:
    return any(rule == code or rule.startswith(code + ".") for code in warned)


def staged(finding: Finding, warned: Mapping[str, int], now: int) -> Finding:
    """Turn a finding into a warning where its rule, or the nearest one above it, only warns at this time.

    `warned`: codes as `[[warn]]` has them, and until when, in seconds since the epoch.
    """
    code = f"tee.{finding.rule}"
    if finding.severity is Severity.WARN or code not in WARNABLE:
        return finding
    while code not in warned:
        code, dot, _ = code.rpartition(".")
        if not dot:
            return finding
    until = warned[code]
    if now >= until:
        return finding
    date = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    message = f"tee.{finding.rule} only warns: {finding.message}; rejected from {date}"
    return Finding(finding.rule, Severity.WARN, message)


def appraise_tee(claims: TeeClaims, rules: TeeRules) -> tuple[Finding, ...]:
    """Return every rule that the claims break; none where the policy has no rules for their kind."""
    if isinstance(claims, SnpClaims) and rules.snp is not None:
        return appraise_snp(claims, rules.snp)
    if isinstance(claims, TdxClaims) and rules.tdx is not None:
        return appraise_tdx(claims, rules.tdx)
    if isinstance(claims, NitroClaims) and rules.nitro is not None:
        return appraise_nitro(claims, rules.nitro)
    if isinstance(claims, NvidiaClaims) and rules.nvidia is not None:
        return appraise_nvidia(claims, rules.nvidia)
    if isinstance(claims, CcaClaims) and rules.cca is not None:
        return appraise_cca(claims, rules.cca)
    if isinstance(claims, AzureClaims) and rules.azure is not None:
        return appraise_azure(claims, rules.azure)
    return ()
