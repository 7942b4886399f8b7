# SPDX-License-Identifier: Apache-2.0
"""The doctor's look at what endorses the AK of an Azure confidential VM: is it there, and does it verify?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from quotary_attest.doctor import SOON, Finding, Health, good
from quotary_attest.roots import RootError
from quotary_attest.state import HostIdentity
from quotary_verifier.evidence.tee.azure_support import verify_azure_ak
from quotary_verifier.wire.tpm_public import parse_public

if TYPE_CHECKING:
    from quotary_attest.tpm.hcl import HclEndorser

_WHAT = "azure"


def examine_azure(
    identity: HostIdentity, tcti: str, endorser: HclEndorser, *, required: bool, now: datetime
) -> Iterator[Finding]:
    """Read the report and find what vouches for it, as the agent does at its start."""
    from quotary_attest.tpm.azure import read_hcl_report
    from quotary_attest.tpm.connection import Connection

    ak = parse_public(identity.tpm_keys.ak_public)
    try:
        with Connection(tcti) as connection:
            report = read_hcl_report(connection)
        claims = verify_azure_ak(endorser.found(report, ak), ak, now, endorser.roots)
    except RootError as error:
        yield Finding(_WHAT, Health.WRONG if required else Health.WARNING, str(error), error.hint)
        return
    end = claims.signer.not_after
    text = f"{claims.hardware.kind} endorses the attestation key, by certificates until {end:%Y-%m-%d}"
    if (end - now).total_seconds() < SOON:
        yield Finding(_WHAT, Health.WARNING, text, "`attest tee fetch-collateral`, then reload the agent")
        return
    yield good(_WHAT, text)
