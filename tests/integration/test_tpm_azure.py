# SPDX-License-Identifier: Apache-2.0
"""The paravisor's report in the vTPM of an Azure confidential VM, read by the agent's own connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from amd_pki import NOW
from azure_forge import AzureForge
from tpms import Tpm

from quotary_attest.tpm.azure import HCL_REPORT, read_hcl_report
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.errors import TpmError, TpmMissing
from quotary_attest.tpm.reading import read_nv
from quotary_attest.tpm.tss import lib
from quotary_verifier.evidence.tee.azure import verify_azure


@pytest.fixture
def connection(tpm: Tpm) -> Iterator[Connection]:
    with Connection(tpm.tcti) as opened:
        yield opened


def write_report(connection: Connection, data: bytes) -> None:
    """Define the index as the paravisor does: the owner alone reads it."""
    flags = lib.TPMA_NV.OWNERWRITE | lib.TPMA_NV.OWNERREAD | lib.TPMA_NV.NO_DA
    area = lib.TPMS_NV_PUBLIC(
        nvIndex=HCL_REPORT, nameAlg=lib.TPM2_ALG.SHA256, attributes=flags, authPolicy=b"", dataSize=len(data)
    )
    handle = connection.commands.nv_define_space(b"", lib.TPM2B_NV_PUBLIC(nvPublic=area))
    for start in range(0, len(data), 256):
        piece = data[start : start + 256]
        connection.commands.nv_write(handle, piece, start, auth_handle=lib.ESYS_TR.OWNER)


def test_the_report_is_read_by_the_owner_and_is_what_a_verifier_takes(connection: Connection) -> None:
    forge = AzureForge(tail=b"")
    report = forge.report()
    write_report(connection, report)
    assert read_hcl_report(connection) == report
    claims = verify_azure(report, forge.amd.endorsements(), NOW, amd=forge.amd.roots())
    assert "ak-binding" in claims.shown
    with pytest.raises(TpmError):
        read_nv(connection, HCL_REPORT)


def test_a_tpm_without_such_a_report_is_told_with_a_hint(connection: Connection) -> None:
    with pytest.raises(TpmMissing, match="no nv index 0x01400001") as caught:
        read_hcl_report(connection)
    assert "azure" in caught.value.hint
    write_report(connection, b"HCLA" + bytes(60))
    with pytest.raises(TpmMissing, match="holds something else"):
        read_hcl_report(connection)
