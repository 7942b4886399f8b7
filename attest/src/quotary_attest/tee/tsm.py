# SPDX-License-Identifier: Apache-2.0
"""SEV-SNP, TDX and Arm CCA by configfs-tsm: which driver answers, how its report is read, and what comes with it."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from quotary_attest.roots import TeeEvidence
from quotary_attest.tee.certtable import ASK, VCEK, VLEK, certificates
from quotary_attest.tee.configfs import REPORTS, KernelFiles, TsmFiles, TsmReport, TsmRequest, make_report
from quotary_attest.tee.errors import TeeWrong
from quotary_verifier.errors import QuotaryError, UnsupportedError
from quotary_verifier.evidence.tee.amd_certs import SigningKey
from quotary_verifier.evidence.tee.cca_token import parse_cca_token
from quotary_verifier.evidence.tee.snp_report import parse_snp_report
from quotary_verifier.evidence.tee.tdx_quote import parse_tdx_quote
from quotary_verifier.tlog.hardware import IDENTIFIER_CCA, IDENTIFIER_SEV_SNP, IDENTIFIER_TDX

SEV_GUEST: Final = "sev_guest"
TDX_GUEST: Final = "tdx_guest"
CCA_GUEST: Final = "arm_cca_guest"

_LEAF: Final = {SigningKey.VCEK: VCEK, SigningKey.VLEK: VLEK}


@dataclass(frozen=True, slots=True)
class SnpDevice:
    """An SEV-SNP guest. `privlevel`: the VMPL to ask as, where the guest's own is not 0."""

    files: TsmFiles
    privlevel: int | None = None
    sleep: Callable[[float], None] = time.sleep

    @property
    def identifier(self) -> str:
        """The identifier of its hardware line."""
        return IDENTIFIER_SEV_SNP

    def describe(self) -> str:
        """Say what it is."""
        return f"sev-snp by {_where(self.files)}"

    def collect(self, report_data: bytes) -> TeeEvidence:
        """Return a report, and what the host's certificate table has for it."""
        request = TsmRequest(report_data, SEV_GUEST, auxiliary=True, privlevel=self.privlevel)
        found = make_report(self.files, request, sleep=self.sleep)
        try:
            report = parse_snp_report(found.report)
        except QuotaryError as error:
            raise _unreadable("sev-snp report", error) from None
        _require(report.report_data, report_data, "sev-snp report")
        return TeeEvidence(found.report, _endorsements(found, _LEAF[report.signing_key]))


@dataclass(frozen=True, slots=True)
class TdxDevice:
    """A TDX guest. Its quote comes without collateral, which is Intel's to give."""

    files: TsmFiles
    sleep: Callable[[float], None] = time.sleep

    @property
    def identifier(self) -> str:
        """The identifier of its hardware line."""
        return IDENTIFIER_TDX

    def describe(self) -> str:
        """Say what it is."""
        return f"tdx by {_where(self.files)}"

    def collect(self, report_data: bytes) -> TeeEvidence:
        """Return a quote, without what the host puts behind its end."""
        found = make_report(self.files, TsmRequest(report_data, TDX_GUEST), sleep=self.sleep)
        try:
            quote = parse_tdx_quote(found.report)
        except QuotaryError as error:
            raise _unreadable("tdx quote", error) from None
        _require(quote.body.report_data, report_data, "tdx quote")
        return TeeEvidence(quote.raw)


@dataclass(frozen=True, slots=True)
class CcaDevice:
    """An Arm CCA realm. Its token comes with nothing beside it: who relies on it brings the platform's key."""

    files: TsmFiles
    sleep: Callable[[float], None] = time.sleep

    @property
    def identifier(self) -> str:
        """The identifier of its hardware line."""
        return IDENTIFIER_CCA

    def describe(self) -> str:
        """Say what it is."""
        return f"arm cca by {_where(self.files)}"

    def collect(self, report_data: bytes) -> TeeEvidence:
        """Return a token whose challenge these 64 bytes are."""
        found = make_report(self.files, TsmRequest(report_data, CCA_GUEST), sleep=self.sleep)
        try:
            token = parse_cca_token(found.report)
        except QuotaryError as error:
            raise _unreadable("cca token", error) from None
        _require(token.challenge, report_data, "cca token")
        return TeeEvidence(found.report)


def _where(files: TsmFiles) -> str:
    return str(getattr(files, "folder", REPORTS))


def _endorsements(found: TsmReport, leaf: bytes) -> dict[str, tuple[bytes, ...]]:
    table = certificates(found.auxiliary)
    if leaf not in table or ASK not in table:
        return {}
    return {"leaf": (table[leaf],), "issuer": (table[ASK],)}


def _require(found: bytes, asked: bytes, what: str) -> None:
    if not hmac.compare_digest(found, asked):
        raise TeeWrong(
            f"the kernel gave a {what} over other bytes than were asked for",
            hint="another program writes into configfs-tsm, or the driver keeps old reports: see `dmesg`",
        )


def _unreadable(what: str, error: QuotaryError) -> TeeWrong:
    hint = (
        "this version knows no such evidence"
        if isinstance(error, UnsupportedError)
        else "see `dmesg` for what the guest driver says"
    )
    return TeeWrong(f"the kernel gave no {what} that can be used: {error}", hint=hint)


__all__ = ["CCA_GUEST", "SEV_GUEST", "TDX_GUEST", "CcaDevice", "KernelFiles", "SnpDevice", "TdxDevice"]
