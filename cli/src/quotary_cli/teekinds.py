# SPDX-License-Identifier: Apache-2.0
"""Tells evidence of confidential-computing hardware apart by its first bytes; what reads it is loaded where it is."""

from __future__ import annotations

from typing import Any

from quotary_verifier.errors import MalformedError

Content = dict[str, Any]

_SNP_BYTES = 1184
_SNP_VERSIONS = range(2, 6)
_ECDSA_P384 = b"\x01\0\0\0"
_TDX = (b"\x04\0\x02\0\x81\0\0\0", b"\x05\0\x02\0\x81\0\0\0")
_COSE = b"\x84\x44\xa1\x01\x38\x22"
_SPDM = b"\x11\xe0"
_CCA = (b"\xd9\x01\x8f", b"\xd9\x03\x8b")
_SGX = (b"\x03\0\x02\0\0\0\0\0", b"\x04\0\x02\0\0\0\0\0", b"\x05\0\x02\0\0\0\0\0")


def tee_view(data: bytes) -> tuple[str, Content] | None:
    """Return the kind and content of such evidence; None where the first bytes are of none.

    Raises:
        MalformedError: it begins as one and is none.
        UnsupportedError: it is one of a version that is not known.
    """
    snp = len(data) == _SNP_BYTES and int.from_bytes(data[:4], "little") in _SNP_VERSIONS
    if snp and data[0x34:0x38] == _ECDSA_P384:
        from quotary_cli.teeviews import snp_view

        return "SEV-SNP report", snp_view(data)
    if data[:8] in _TDX:
        from quotary_cli.teeviews import tdx_view

        return "TDX quote", tdx_view(data)
    if data[:8] in _SGX:
        raise MalformedError("a quote of an sgx enclave, which is no evidence of a machine")
    if data.removeprefix(b"\xd2").startswith(_COSE):
        from quotary_cli.teeviews import nitro_view

        return "Nitro document", nitro_view(data)
    if data[:4] == b"HCLA":
        from quotary_cli.teeviews import hcl_view

        return "Azure HCL report", hcl_view(data)
    if data[:2] == _SPDM:
        from quotary_cli.teeviews import spdm_view

        return "NVIDIA device report", spdm_view(data)
    if data[2:4] == _SPDM:  # each report behind its length, which no longer exchange would fit
        from quotary_cli.teeviews import nvidia_view

        return "NVIDIA device reports", nvidia_view(data)
    if data[:3] in _CCA:
        from quotary_cli.teeviews import cca_view

        return "Arm CCA token", cca_view(data)
    return None
