# SPDX-License-Identifier: Apache-2.0
"""The TCB status of a TDX platform, by the library dcap-qvl (extra `[tdx]`), held against what this package found.

The library verifies the quote and its collateral on its own. What it says counts only where it agrees with us on the
level, on the state of module and quoting enclave, and on what was measured: a fault in either shows as a refusal.
"""

from __future__ import annotations

import importlib
import json
from datetime import datetime
from typing import Any, Final

from quotary_verifier.errors import EvidenceError, UnsupportedError
from quotary_verifier.evidence.tee.intel_pki import IntelRoot, Pck
from quotary_verifier.evidence.tee.tdx_collateral import CollateralFacts, TcbLevel, TdxCollateral
from quotary_verifier.evidence.tee.tdx_quote import TdxBody, TdxQuote
from quotary_verifier.wire.frozen import frozen

_CLAIMS_VERSION: Final = 1
UP_TO_DATE: Final = "UpToDate"
REVOKED: Final = "Revoked"


@frozen
class TcbAppraisal:
    """How current a platform is. `status`: Intel's word for the whole, `platform`, `qe`, `module` for its parts.

    `date`: of the level that the platform reaches. `not_before`, `not_after`: when the collateral is valid, the
    latter no longer included.
    """

    status: str
    advisories: tuple[str, ...]
    evaluation: int
    date: str
    platform: str
    qe: str
    module: str
    not_before: datetime
    not_after: datetime


def appraise_tcb(
    quote: TdxQuote,
    pck: Pck,
    collateral: TdxCollateral,
    facts: CollateralFacts,
    root: IntelRoot,
    at: datetime,
) -> TcbAppraisal | None:
    """Return the TCB status, or None where the library is not installed. `facts`: of the same collateral.

    Raises:
        EvidenceError: no level fits, or a part was revoked; the library refuses the quote, or finds something else
            than this package.
        UnsupportedError: the library is of a version that says it in another form.
    """
    level = reached_level(facts, pck, quote.body)
    if REVOKED in (level.status, facts.qe.status, facts.module.status):
        raise EvidenceError("the tcb of the platform, of its quoting enclave or tdx module was revoked")
    try:
        library = importlib.import_module("dcap_qvl")
    except ImportError:
        return None
    said = _ask(library, quote, collateral, root, int(at.timestamp()))
    try:
        return _compare(said, quote, pck, facts, level)
    except (KeyError, TypeError, AttributeError):
        raise UnsupportedError("dcap-qvl states its claims in a form that is not known") from None


def reached_level(facts: CollateralFacts, pck: Pck, body: TdxBody) -> TcbLevel:
    """Return the first level of which the platform has every SVN. EvidenceError if there is none.

    Where the module has its own identity (major version above 0), its two SVNs are judged by that and not here.
    """
    skipped = 2 if body.tee_tcb_svn[1] else 0
    for level in facts.levels:
        if (
            _at_least(pck.components, level.components)
            and pck.pce_svn >= level.pce_svn
            and _at_least(body.tee_tcb_svn[skipped:], level.tdx_components[skipped:])
        ):
            return level
    raise EvidenceError("the platform is below every level of the tcb info")


def _at_least(has: tuple[int, ...] | bytes, needs: tuple[int, ...]) -> bool:
    return all(one >= least for one, least in zip(has, needs, strict=True))


def _ask(
    library: Any, quote: TdxQuote, collateral: TdxCollateral, root: IntelRoot, seconds: int
) -> dict[str, Any]:
    try:
        given = library.QuoteCollateralV3(
            collateral.pck_crl_issuer_chain.decode(),
            collateral.root_ca_crl,
            collateral.pck_crl,
            collateral.tcb_info_issuer_chain.decode(),
            collateral.tcb_info.decode(),
            collateral.tcb_info_signature,
            collateral.qe_identity_issuer_chain.decode(),
            collateral.qe_identity.decode(),
            collateral.qe_identity_signature,
        )
        policy = library.QuotePolicy.claims_only(seconds)
        claims = library.QuoteVerifier(root.der).verify_with_policy(quote.raw, given, seconds, policy)
        said: dict[str, Any] = json.loads(claims.to_json())
    except ValueError as error:
        raise EvidenceError(f"dcap-qvl refuses the quote: {error}") from None
    return said


def _compare(
    said: dict[str, Any], quote: TdxQuote, pck: Pck, facts: CollateralFacts, level: TcbLevel
) -> TcbAppraisal:
    if said["claims_version"] != _CLAIMS_VERSION:
        raise UnsupportedError(f"claims of dcap-qvl of version {said['claims_version']} are not known")
    status, platform, qe = said["tcb"]["status"], said["platform"]["tcb_level"], said["qe"]["tcb_level"]
    (report,) = said["report"].values()
    report = report.get("base", report)  # a TD 1.5 report holds one of TD 1.0
    body = quote.body
    agreed = {
        "the tcb level": _svns(platform) == (level.components, level.tdx_components, level.pce_svn),
        "the platform": bytes(said["platform"]["pck"]["fmspc"]) == pck.fmspc,
        "the quoting enclave": (qe["tcbStatus"], tuple(qe["advisoryIDs"])) == (facts.qe.status, facts.qe.advisories),
        "the evaluation data": said["tcb"]["eval_data_number"] == facts.evaluation,
        "the report data": report["report_data"] == body.report_data.hex(),
        "the measurements": [report["mr_td"], *(report[f"rt_mr{number}"] for number in range(4))]
        == [body.mr_td.hex(), *(rtmr.hex() for rtmr in body.rtmrs)],
    }  # fmt: skip
    differing = [name for name, same in agreed.items() if not same]
    parts = {level.status, facts.qe.status, facts.module.status}
    if (status == UP_TO_DATE) != (parts == {UP_TO_DATE}):  # how other states merge is the library's to say
        differing.append("the status")
    if differing:
        raise EvidenceError(f"dcap-qvl and this verifier differ on {', '.join(differing)}")
    return TcbAppraisal(
        status=status,
        advisories=tuple(said["tcb"]["advisory_ids"]),
        evaluation=facts.evaluation,
        date=level.date,
        platform=level.status,
        qe=facts.qe.status,
        module=facts.module.status,
        not_before=facts.not_before,
        not_after=facts.not_after,
    )


def _svns(level: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The level that the library found, without its state, into which that of the module was merged."""
    tcb = level["tcb"]
    components, tdx = (tuple(one["svn"] for one in tcb[f"{kind}tcbcomponents"]) for kind in ("sgx", "tdx"))
    return components, tdx, tcb["pcesvn"]
