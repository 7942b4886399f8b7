# SPDX-License-Identifier: Apache-2.0
"""Azure confidential VMs: the hardware's report endorses the vTPM's attestation key, which then quotes like any TPM's.

The vTPM runs in the paravisor, inside the confidential VM and above the guest. At boot the paravisor puts the key into
the text whose digest the hardware's report binds. So this report is no evidence of a commit: it stands for the AK's
certificate, and the TPM line over the commit is what `quotary_verifier.evidence.tpm_quote` verifies.

Any guest of such hardware that has no paravisor over it can bind a text of its own that looks like this one. That it
was Azure's paravisor follows from what the hardware measured at launch, and from nothing else: rules have to name it.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from quotary_verifier.errors import EvidenceError
from quotary_verifier.evidence.tee.amd_certs import AmdRoots
from quotary_verifier.evidence.tee.azure_hcl import SNP, HclReport, parse_hcl_report
from quotary_verifier.evidence.tee.intel_pki import IntelRoot
from quotary_verifier.evidence.tee.shape import Finding, Severity, Signer
from quotary_verifier.evidence.tee.snp import SnpClaims, SnpEndorsements, verify_snp
from quotary_verifier.evidence.tee.snp_rules import SnpRules, appraise_snp
from quotary_verifier.evidence.tee.tdx import TdxClaims, verify_tdx
from quotary_verifier.evidence.tee.tdx_collateral import TdxCollateral
from quotary_verifier.evidence.tee.tdx_rules import TdxRules, appraise_tdx
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tpm_public import Public

KIND: Final = "azure-vtpm"

_AK_BINDING: Final = "ak-binding"
_SECURE_BOOT, _CONSOLE, _TPM, _VM = "secure-boot", "console-enabled", "tpm-enabled", "vmUniqueId"

AZURE_SETTINGS: Final[Mapping[str, str]] = {"vm": _VM, "secure_boot": _SECURE_BOOT, "console": _CONSOLE}
"""The settings that rules are about: the name that policies and verdicts have for each, and the report's."""


@frozen
class AzureTdxEndorsements:
    """What vouches for a TDREPORT: the quote that the host made of it, and collateral for the quote, if any."""

    quote: bytes
    collateral: TdxCollateral | None = None


@frozen
class AzureClaims:
    """What a verified HCL report says. `hardware`: what the SNP report or TDX quote below it says."""

    report: HclReport
    hardware: SnpClaims | TdxClaims
    shown: tuple[str, ...]
    not_shown: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Name of the kind."""
        return KIND

    @property
    def signer(self) -> Signer:
        """Who vouches for the hardware."""
        return self.hardware.signer

    @property
    def device(self) -> bytes | None:
        """The processor or platform, as the hardware's report names it."""
        return self.hardware.device

    @property
    def measurements(self) -> Mapping[str, bytes]:
        """What the hardware measured: the paravisor, and with TDX what was loaded after it."""
        return self.hardware.measurements

    @property
    def signed_time(self) -> None:
        """No part of it has a time."""
        return None

    def require_ak(self, public: Public) -> None:
        """EvidenceError unless `public`, the AK of the genesis record, is the key that the hardware endorses."""
        require_endorsed(self.report, public)


def require_endorsed(report: HclReport, public: Public) -> None:
    """EvidenceError unless `public` is the attestation key that a report names, whatever the report is worth."""
    if not hmac.compare_digest(public.to_spki_der(), report.ak):
        raise EvidenceError("the attestation key is not the one that the confidential vm's report endorses")


def verify_azure(
    evidence: bytes,
    endorsements: SnpEndorsements | AzureTdxEndorsements,
    at: datetime,
    *,
    amd: AmdRoots | None = None,
    intel: IntelRoot | None = None,
) -> AzureClaims:
    """Verify an HCL report; `at`: with a time zone. `AzureClaims.require_ak` then ties it to a key.

    Raises:
        MalformedError: the report, the hardware's report in it or a certificate is not of its form.
        EvidenceError: the hardware's report binds another text, or does not hold.
        UnsupportedError: a version, algorithm or kind of hardware is not known.
    """
    report = parse_hcl_report(evidence)
    expected = report.expected_report_data
    if not hmac.compare_digest(report.report_data, expected):
        raise EvidenceError("the text of the hcl report is not what its hardware's report binds")
    snp = report.hardware_type == SNP
    if snp != isinstance(endorsements, SnpEndorsements):
        raise EvidenceError("the endorsements are of another kind of hardware than the hcl report")
    hardware: SnpClaims | TdxClaims
    if isinstance(endorsements, SnpEndorsements):
        hardware = verify_snp(report.hardware, endorsements, at, report_data=expected, roots=amd)
    else:
        quote, collateral = endorsements.quote, endorsements.collateral
        hardware = verify_tdx(quote, collateral, at, report_data=expected, root=intel)
    return AzureClaims(report, hardware, (_AK_BINDING, *hardware.shown), hardware.not_shown)


@frozen
class AzureRules:
    """What is accepted. `snp`, `tdx`: rules for that hardware, which is not accepted without.

    The hardware's rules have to name the paravisor: launch measurements or id keys with SNP, MRTDs with TDX; with
    `any_paravisor` whatever ran there is trusted with the key. `secure_boot`: it has to be on. `console`: the serial
    console may be on, as it is on Azure by default. `vms`: `vmUniqueId`s in lower case, None for any.
    """

    snp: SnpRules | None = None
    tdx: TdxRules | None = None
    any_paravisor: bool = False
    secure_boot: bool = True
    console: bool = True
    vms: frozenset[str] | None = None


def appraise_azure(claims: AzureClaims, rules: AzureRules) -> tuple[Finding, ...]:
    """Return every rule that the claims break, those of the hardware included; `shape.enforce` raises for them."""
    return (*_of_hardware(claims.hardware, rules), *_of_vm(claims.report, rules))


def names_paravisor(rules: SnpRules | TdxRules) -> bool:
    """Whether rules for the hardware say what was launched in the paravisor's place."""
    return rules.names_launch


def _of_hardware(hardware: SnpClaims | TdxClaims, rules: AzureRules) -> Iterator[Finding]:
    wanted = rules.snp if isinstance(hardware, SnpClaims) else rules.tdx
    if wanted is None:
        message = f"azure: hardware of the kind {hardware.kind} is not accepted"
        yield Finding("azure.hardware", Severity.FAIL, message)
        return
    if not rules.any_paravisor and not names_paravisor(wanted):
        message = "azure: no rule names the paravisor, and any other guest could have made this report"
        yield Finding("azure.paravisor", Severity.FAIL, message)
    if isinstance(hardware, SnpClaims):
        assert isinstance(wanted, SnpRules)
        found = appraise_snp(hardware, wanted)
    else:
        assert isinstance(wanted, TdxRules)
        found = appraise_tdx(hardware, wanted)
    for (
        one
    ) in found:  # under names of their own: what only warns of a line of this hardware does not reach here
        yield Finding(f"azure.{one.rule}", one.severity, f"azure: {one.message}")


def _of_vm(report: HclReport, rules: AzureRules) -> Iterator[Finding]:
    settings = report.settings
    if settings.get(_TPM) is not True:
        yield Finding("azure.tpm", Severity.FAIL, "azure: the report does not say that the vm has a tpm")
    if rules.secure_boot and settings.get(_SECURE_BOOT) is not True:
        yield Finding(
            "azure.secure-boot", Severity.FAIL, "azure: the report does not say that secure boot is on"
        )
    if not rules.console and settings.get(_CONSOLE) is not False:
        yield Finding(
            "azure.console", Severity.FAIL, "azure: the report does not say that the console is off"
        )
    if rules.vms is not None and str(settings.get(_VM)).lower() not in rules.vms:
        yield Finding("azure.vm", Severity.FAIL, f"azure: the vm {settings.get(_VM)!r} is not accepted")
