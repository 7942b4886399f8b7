# SPDX-License-Identifier: Apache-2.0
"""What a TPM support has beside a vTPM's AK (docs/spec/tee.md, "Azure confidential VMs"): form, and verification.

`hcl` is the HCL report. With SNP hardware, `leaf`, `issuer` and maybe `crls` vouch for the report inside, named as in
the support of an SNP line. With TDX it is `quote`, and maybe its collateral under the names of a TDX line's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from quotary_verifier.errors import MalformedError
from quotary_verifier.evidence.tee.azure import (
    AzureClaims,
    AzureTdxEndorsements,
    require_endorsed,
    verify_azure,
)
from quotary_verifier.evidence.tee.azure_hcl import SNP, parse_hcl_report
from quotary_verifier.evidence.tee.lines import TeeRoots, snp_support, tdx_support
from quotary_verifier.evidence.tee.snp import SnpEndorsements
from quotary_verifier.evidence.tee.tdx_collateral import TdxCollateral
from quotary_verifier.wire.tee_support import Endorsements
from quotary_verifier.wire.tpm_public import Public

HCL: Final = "hcl"
QUOTE: Final = "quote"
_LEAF, _ISSUER, _CRLS = "leaf", "issuer", "crls"
_COLLATERAL: Final = frozenset(TdxCollateral.__dataclass_fields__)

Hardware = SnpEndorsements | AzureTdxEndorsements


def azure_endorsements(report: bytes, hardware: Hardware) -> Endorsements:
    """Return the endorsements of a TPM support: an HCL report, and what vouches for the hardware's report in it."""
    if isinstance(hardware, SnpEndorsements):
        return {HCL: (report,), **snp_support(hardware).endorsements}
    return {HCL: (report,), QUOTE: (hardware.quote,), **tdx_support(hardware.collateral).endorsements}


def verify_azure_ak(
    endorsements: Endorsements, public: Public, at: datetime, roots: TeeRoots | None = None
) -> AzureClaims:
    """Verify the endorsements of an AK at a time with a time zone.

    Raises:
        MalformedError: a part is not of its form, is missing or too much.
        OutOfTimeError: all of it holds, but a certificate is not valid at that time.
        EvidenceError: it endorses another key, or does not hold.
        UnsupportedError: something inside is not known.
    """
    roots = roots or TeeRoots()
    report = parse_hcl_report(_one(endorsements, HCL))
    hardware = _snp(endorsements) if report.hardware_type == SNP else _tdx(endorsements)
    require_endorsed(report, public)
    return verify_azure(_one(endorsements, HCL), hardware, at, amd=roots.amd, intel=roots.intel)


def _snp(endorsements: Endorsements) -> SnpEndorsements:
    _require(endorsements, {HCL, _LEAF, _ISSUER}, {_CRLS})
    crls = endorsements.get(_CRLS, ())
    return SnpEndorsements(_one(endorsements, _LEAF), _one(endorsements, _ISSUER), crls)


def _tdx(endorsements: Endorsements) -> AzureTdxEndorsements:
    collateral = None
    if endorsements.keys() != {HCL, QUOTE}:
        _require(endorsements, {HCL, QUOTE} | _COLLATERAL, set())
        collateral = TdxCollateral(**{name: _one(endorsements, name) for name in _COLLATERAL})
    return AzureTdxEndorsements(_one(endorsements, QUOTE), collateral)


def _require(given: Mapping[str, object], needed: set[str] | frozenset[str], allowed: set[str]) -> None:
    if not needed <= given.keys() <= needed | allowed:
        differing = sorted((needed - given.keys()) | (given.keys() - needed - allowed))
        raise MalformedError(f"endorsements of the ak are missing or too many: {', '.join(differing)}")


def _one(endorsements: Endorsements, name: str) -> bytes:
    parts = endorsements.get(name, ())
    if len(parts) != 1:
        raise MalformedError(f"the ak has {len(parts)} endorsements {name!r}, one is expected")
    return parts[0]
