# SPDX-License-Identifier: Apache-2.0
"""What the vTPM of an Azure confidential VM holds: the paravisor's report, which endorses the vTPM's own key."""

from __future__ import annotations

from typing import Final

from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.errors import TpmMissing
from quotary_attest.tpm.reading import read_nv
from quotary_attest.tpm.tss import lib
from quotary_verifier.errors import QuotaryError
from quotary_verifier.evidence.tee.azure_hcl import parse_hcl_report

HCL_REPORT: Final = 0x01400001
"""NV index of the report, made by the paravisor at boot; readable by the owner."""


def read_hcl_report(connection: Connection, *, owner: bytes = b"") -> bytes:
    """Return the HCL report as it stands; `owner` authorises the owner hierarchy, which is empty on such VMs.

    Raises TpmMissing where this is no confidential VM of Azure's, another TpmError where the index may not be read.
    """
    connection.authorize(lib.ESYS_TR.OWNER, owner)
    report = read_nv(connection, HCL_REPORT, reader=lib.ESYS_TR.OWNER)
    hint = "is this a confidential vm on azure? other vms there have a vtpm without this report"
    if report is None:
        raise TpmMissing(f"the tpm has no nv index 0x{HCL_REPORT:08x}", hint=hint)
    try:
        parse_hcl_report(report)
    except QuotaryError as error:
        raise TpmMissing(f"nv index 0x{HCL_REPORT:08x} holds something else: {error}", hint=hint) from None
    return report
