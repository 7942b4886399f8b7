# SPDX-License-Identifier: Apache-2.0
"""Collateral for a TDX quote, from Intel's Provisioning Certification Service (Intel, "PCS API" version 4)."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final
from urllib.parse import unquote_to_bytes

from cryptography import x509

from quotary_cli.collateral.web import Answer, Fetch
from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.intel_pki import (
    PCK_NAME,
    IntelRoot,
    intel_root,
    read_pck,
    verify_intel_path,
)
from quotary_verifier.evidence.tee.tdx import TdxClaims, verify_tdx
from quotary_verifier.evidence.tee.tdx_collateral import TdxCollateral
from quotary_verifier.evidence.tee.tdx_quote import parse_tdx_quote

PCS: Final = "https://api.trustedservices.intel.com"
CERTIFICATES: Final = "https://certificates.trustedservices.intel.com"

_PATH_LENGTH: Final = 3
_CAS: Final = {"Intel SGX PCK Platform CA": "platform", "Intel SGX PCK Processor CA": "processor"}
_SIGNED: Final = re.compile(
    rb'\s*\{\s*"(tcbInfo|enclaveIdentity)"\s*:\s*(\{.*\})\s*,\s*"signature"\s*:\s*"([0-9A-Fa-f]{128})"\s*\}\s*',
    re.DOTALL,
)


def fetch_tdx(
    data: bytes,
    fetch: Fetch,
    at: datetime,
    *,
    base: str = PCS,
    certificates: str = CERTIFICATES,
    root: IntelRoot | None = None,
) -> tuple[TdxCollateral, TdxClaims]:
    """Return collateral for a quote's platform, verified with the quote at a time.

    Raises:
        MalformedError, EvidenceError: the quote, or what the server gave, does not hold.
        UnsupportedError: the platform is of a kind for which Intel publishes nothing, or nothing of that time.
        Failure: the server could not be asked.
    """
    quote = parse_tdx_quote(data)
    path = verify_intel_path(quote.chain, root or intel_root(), leaf=PCK_NAME, length=_PATH_LENGTH)
    path.require_valid("the pck", at)
    fmspc, ca = read_pck(path).fmspc.hex(), _ca(path.chain[0])
    tcb_info = fetch(f"{base}/tdx/certification/v4/tcb?fmspc={fmspc}")
    identity = fetch(f"{base}/tdx/certification/v4/qe/identity")
    pck_crl = fetch(f"{base}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der")
    root_crl = fetch(f"{certificates}/IntelSGXRootCA.der")
    info, info_signature = _signed(tcb_info, b"tcbInfo")
    enclave, enclave_signature = _signed(identity, b"enclaveIdentity")
    collateral = TdxCollateral(
        pck_crl_issuer_chain=_chain(pck_crl, "sgx-pck-crl-issuer-chain"),
        root_ca_crl=root_crl.body,
        pck_crl=pck_crl.body,
        tcb_info_issuer_chain=_chain(tcb_info, "tcb-info-issuer-chain"),
        tcb_info=info,
        tcb_info_signature=info_signature,
        qe_identity_issuer_chain=_chain(identity, "sgx-enclave-identity-issuer-chain"),
        qe_identity=enclave,
        qe_identity_signature=enclave_signature,
    )
    bound = quote.body.report_data
    return collateral, verify_tdx(data, collateral, at, report_data=bound, root=root)


def _ca(pck: x509.Certificate) -> str:
    names = [str(name.value) for name in pck.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    if len(names) != 1 or names[0] not in _CAS:
        raise UnsupportedError(f"intel publishes no crl for the ca of this platform, {names!r}")
    return _CAS[names[0]]


def _signed(answer: Answer, name: bytes) -> tuple[bytes, bytes]:
    """The document exactly as it was published, and its signature: JSON that is written anew would not verify."""
    found = _SIGNED.fullmatch(answer.body)
    if found is None or found[1] != name:
        raise MalformedError(f"intel's answer is not a {name.decode()} with a signature")
    return found[2], bytes.fromhex(found[3].decode())


def _chain(answer: Answer, header: str) -> bytes:
    value = answer.headers.get(header, "")
    if not value:
        raise MalformedError(f"intel's answer lacks the header {header}")
    return unquote_to_bytes(value)
