# SPDX-License-Identifier: Apache-2.0
"""Verification of Intel TDX quotes, and what one that holds says (docs/spec/tee.md).

The chain: Intel's root vouches for the PCK, the PCK signs the report of the quoting enclave, that report names the
attestation key, and the attestation key signs the quote. Whether the enclave is Intel's, and how current the platform
is, only collateral tells.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.evidence.tee.intel_pki import (
    PCK_NAME,
    IntelPath,
    IntelRoot,
    Pck,
    intel_root,
    read_pck,
    verify_intel_path,
    verify_p256,
)
from quotary_verifier.evidence.tee.shape import REPORT_DATA_BYTES, Signer, require_time
from quotary_verifier.evidence.tee.tdx_collateral import TdxCollateral, verify_collateral
from quotary_verifier.evidence.tee.tdx_quote import TdxQuote, parse_tdx_quote
from quotary_verifier.evidence.tee.tdx_tcb import TcbAppraisal, appraise_tcb
from quotary_verifier.logs.tcg import ReplayedLog, parse_tcg_log
from quotary_verifier.logs.tcg_types import Registers, Tolerance
from quotary_verifier.pki.revocation import Revocation
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tpm_algorithms import ALG_SHA384

KIND: Final = "tdx"
QE_IDENTITY: Final = "qe-identity"
"""Code of what shows that the quoting enclave is Intel's: else any enclave of the platform could have quoted."""

_PCK_CHAIN_LENGTH: Final = 3
_QE_DEBUG: Final = 0x02
_ALWAYS: Final = ("report-data", "signature", "qe-report", "chain")
_BY_COLLATERAL: Final = ("revocation", QE_IDENTITY, "module-identity")
_POINT: Final = b"\x04"


@frozen
class TdxClaims:
    """What a verified quote says.

    `pck`: the platform that the PCK is of. `tcb`: how current that is, or None: *TCB not appraised*, because there was
    no collateral or the library for it is absent (`not_shown` has "tcb").
    """

    quote: TdxQuote
    pck: Pck
    tcb: TcbAppraisal | None
    signer: Signer
    shown: tuple[str, ...]
    not_shown: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Name of the kind."""
        return KIND

    @property
    def device(self) -> bytes:
        """The platform's provisioning id (PPID), 16 bytes."""
        return self.pck.ppid

    @property
    def measurements(self) -> Mapping[str, bytes]:
        """The digests of TD, registers and TDX module, 48 bytes each."""
        body = self.quote.body
        registers = {f"rtmr{number}": value for number, value in enumerate(body.rtmrs)}
        return {"mrtd": body.mr_td, **registers, "mrseam": body.mr_seam}

    @property
    def signed_time(self) -> None:
        """A quote has no time."""
        return None


def verify_tdx(
    evidence: bytes,
    collateral: TdxCollateral | None,
    at: datetime,
    *,
    report_data: bytes,
    root: IntelRoot | None = None,
) -> TdxClaims:
    """Verify a quote that has to carry `report_data` (64 bytes); `at`: with a time zone.

    Raises:
        MalformedError: quote, certificate or collateral is not of its form.
        EvidenceError: the quote binds something else, or a signature, identity or the platform does not fit.
        OutOfTimeError: all of that fits, and the certificates are of another time.
        StaleCollateralError: all of it holds, and the collateral is of another time.
        UnsupportedError: a version or algorithm is not known, or the collateral's CRLs say nothing.
    """
    require_time(at)
    if len(report_data) != REPORT_DATA_BYTES:
        raise ValueError(f"{len(report_data)} bytes are expected as report data, not {REPORT_DATA_BYTES}")
    trusted = root or intel_root()
    quote = parse_tdx_quote(evidence)
    path = verify_intel_path(quote.chain, trusted, leaf=PCK_NAME, length=_PCK_CHAIN_LENGTH)
    pck = read_pck(path)
    _check_signatures(quote, path)
    if any(quote.body.mr_signer_seam) or any(quote.body.seam_attributes):
        raise EvidenceError("the tdx module is not one that intel signed for production")
    if not hmac.compare_digest(quote.body.report_data, report_data):
        raise EvidenceError("the report data is not what the tdx quote has to bind")
    tcb, shown = None, list(_ALWAYS)
    not_shown: list[str] = []
    if collateral is None:
        path.require_valid("the pck", at)
        not_shown += _BY_COLLATERAL
    else:
        facts = verify_collateral(collateral, quote, pck, path, trusted, at)
        path.require_valid("the pck", at)
        facts.require_valid(at)
        tcb = appraise_tcb(quote, pck, collateral, facts, trusted, at)
        shown += _BY_COLLATERAL
    (not_shown if tcb is None else shown).append("tcb")
    return TdxClaims(
        quote, pck, tcb, _signer(path, trusted, collateral is not None), tuple(shown), tuple(not_shown)
    )


def replay_ccel(
    claims: TdxClaims, log: bytes, *, tolerate: Collection[Tolerance] = (Tolerance.PADDING,)
) -> ReplayedLog:
    """Replay a confidential VM's event log against the quoted registers: 1 to 4 are RTMR 0 to 3.

    Firmware has to explain RTMR 0 and 1 in full; others that differ are listed as unconfirmed. The log area is handed
    out padded, so padding is tolerated, and listed, unless the caller says otherwise. MalformedError, EvidenceError.
    """
    registers = dict(enumerate(claims.quote.body.rtmrs, 1))
    parsed = parse_tcg_log(log, registers=Registers.CC, tolerate=tolerate)
    return parsed.replay(registers, bank=ALG_SHA384, tolerate=tolerate)


def _signer(path: IntelPath, root: IntelRoot, collateral: bool) -> Signer:
    state = Revocation.GOOD if collateral else Revocation.UNKNOWN
    return Signer(root.subject, root.sha256, path.not_before, path.not_after, state)


def _check_signatures(quote: TdxQuote, path: IntelPath) -> None:
    report = quote.qe_report
    path.verify(quote.qe_signature, report.raw, "the pck's signature of the qe report")
    if report.attributes[0] & _QE_DEBUG:
        raise EvidenceError("the quoting enclave may be debugged")
    bound = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest()
    if not hmac.compare_digest(report.report_data, bound.ljust(REPORT_DATA_BYTES, b"\0")):
        raise EvidenceError("the qe report is of another attestation key")
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), _POINT + quote.attestation_key)
    except ValueError:
        raise MalformedError("the attestation key of the tdx quote is no point on p-256") from None
    verify_p256(key, quote.signature, quote.signed, "the signature of the tdx quote")
