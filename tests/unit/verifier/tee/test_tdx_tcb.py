# SPDX-License-Identifier: Apache-2.0
"""Collateral that the tests mint themselves: every way in which it does not count, and what follows from its levels."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from intel_sgx import (
    BOUND,
    NOW,
    PCK_CA,
    ROOT,
    SIGNING,
    ZERO_MODULE,
    Platform,
    TdxForge,
    certificate,
    collateral,
    crl,
    forged_root,
    level,
    module_level,
    pck_ca,
    pem,
    qe_identity,
    root_certificate,
    stamp,
    tcb_info,
)

from quotary_verifier.errors import (
    EvidenceError,
    MalformedError,
    OutOfTimeError,
    PolicyError,
    QuotaryError,
    StaleCollateralError,
    UnsupportedError,
)
from quotary_verifier.evidence.tee.shape import Severity, enforce
from quotary_verifier.evidence.tee.tdx import TdxClaims, verify_tdx
from quotary_verifier.evidence.tee.tdx_collateral import MAX_JSON, TdxCollateral
from quotary_verifier.evidence.tee.tdx_rules import TdxRules, appraise_tdx
from quotary_verifier.evidence.tee.tdx_tcb import TcbAppraisal
from quotary_verifier.pki.revocation import Revocation


def verified(given: TdxCollateral, forge: TdxForge | None = None, *, at: datetime = NOW) -> TdxClaims:
    return verify_tdx((forge or TdxForge()).quote(), given, at, report_data=BOUND, root=forged_root())


def appraised(given: TdxCollateral, forge: TdxForge | None = None) -> TcbAppraisal:
    tcb = verified(given, forge).tcb
    assert tcb is not None
    return tcb


def test_a_platform_with_current_collateral_is_appraised() -> None:
    claims = verified(collateral())
    assert claims.not_shown == ()
    assert claims.signer.revocation is Revocation.GOOD
    assert claims.tcb == TcbAppraisal(
        status="UpToDate",
        advisories=(),
        evaluation=17,
        date="2026-01-01T00:00:00Z",
        platform="UpToDate",
        qe="UpToDate",
        module="UpToDate",
        not_before=NOW - timedelta(1),
        not_after=NOW + timedelta(28),
    )
    assert enforce(appraise_tdx(claims, TdxRules())) == ()


@pytest.mark.parametrize(
    ("platform", "body", "qe", "expected"),
    [
        ({}, {}, {}, ("UpToDate", "UpToDate", "UpToDate", "UpToDate")),
        ({"components": (9,) * 16}, {}, {}, ("UpToDate", "UpToDate", "UpToDate", "UpToDate")),
        ({"components": (5,) * 15 + (4,)}, {}, {}, ("OutOfDate", "OutOfDate", "UpToDate", "UpToDate")),
        ({"components": (4, *(255,) * 15)}, {}, {}, ("OutOfDate", "OutOfDate", "UpToDate", "UpToDate")),
        ({}, {0: b"\4"}, {}, ("OutOfDate", "UpToDate", "UpToDate", "OutOfDate")),
        ({}, {}, {0x102: b"\5"}, ("OutOfDate", "UpToDate", "OutOfDate", "UpToDate")),
    ],
)
def test_the_whole_is_as_current_as_its_oldest_part(
    platform: dict[str, Any], body: dict[int, bytes], qe: dict[int, bytes], expected: tuple[str, ...]
) -> None:
    forge = TdxForge(platform=Platform(**platform), body=body, qe=qe)
    tcb = appraised(collateral(), forge)
    assert (tcb.status, tcb.platform, tcb.qe, tcb.module) == expected
    assert tcb.advisories == (("INTEL-SA-00001",) if tcb.platform == "OutOfDate" else ())
    if tcb.status != "UpToDate":
        with pytest.raises(EvidenceError, match="status OutOfDate of the tcb is not accepted"):
            enforce(appraise_tdx(verified(collateral(), forge), TdxRules()))


def test_pce_and_tdx_components_count_too() -> None:
    levels = [level(0, "UpToDate", pce=301), level(0, "SWHardeningNeeded", tdx=1), level(0, "OutOfDate")]
    given = collateral(tcb_info(tcbLevels=levels))
    assert appraised(given).status == "OutOfDate"
    assert appraised(given, TdxForge(body={2: b"\1" * 14})).status == "SWHardeningNeeded"
    assert appraised(given, TdxForge(platform=Platform(pce_svn=301))).status == "UpToDate"


def test_a_module_of_major_version_zero_is_judged_by_the_levels_alone() -> None:
    info = tcb_info(tcbLevels=[level(5, "UpToDate", tdx=7), level(5, "OutOfDate")], tdxModuleIdentities=None)
    forge = TdxForge(body={0: b"\7\0" + b"\7" * 14})
    with pytest.raises(EvidenceError):
        verified(collateral(info), TdxForge())
    assert appraised(collateral(tcb_info(tcbLevels=[level(5, "UpToDate")], tdxModuleIdentities=None)),
                     TdxForge(body={0: b"\7\0"})).status == "UpToDate"  # fmt: skip
    with pytest.raises(EvidenceError, match="tdx module is not the one"):
        verified(collateral(tcb_info(tdxModule={**ZERO_MODULE, "mrsigner": "11" * 48})), forge)


def signing(**changes: Any) -> bytes:
    return pem(certificate(**{"subject": SIGNING, "issuer": ROOT, **changes}), root_certificate())


MODULE = {"id": "TDX_01", **ZERO_MODULE, "tcbLevels": [module_level(5, "UpToDate")]}
REFUSED: dict[str, tuple[dict[str, Any], type[QuotaryError], str]] = {
    "a tcb info of sgx": ({"info": tcb_info(id="SGX")}, EvidenceError, "is for 'SGX', not for tdx"),
    "a tcb info of version 2": ({"info": tcb_info(version=2)}, UnsupportedError, "version or type"),
    "a tcb info of another type": ({"info": tcb_info(tcbType=1)}, UnsupportedError, "version or type"),
    "another platform": ({"info": tcb_info(fmspc="00A06D080000")}, EvidenceError, "for platforms 00A06D080000"),
    "another pce": ({"info": tcb_info(pceId="0001")}, EvidenceError, "is for platforms"),
    "no module of that version": (
        {"info": tcb_info(tdxModuleIdentities=[{**MODULE, "id": "TDX_03"}])},
        EvidenceError,
        "does not know a tdx module TDX_01",
    ),
    "no modules": ({"info": tcb_info(tdxModuleIdentities=None)}, EvidenceError, "does not know a tdx module"),
    "a module signed by another": (
        {"info": tcb_info(tdxModuleIdentities=[{**MODULE, "mrsigner": "11" * 48}])},
        EvidenceError,
        "not the TDX_01 that",
    ),
    "a module with other attributes": (
        {"info": tcb_info(tdxModuleIdentities=[{**MODULE, "attributes": "01" + "00" * 7}])},
        EvidenceError,
        "not the TDX_01 that",
    ),
    "a module below every level": (
        {"info": tcb_info(tdxModuleIdentities=[{**MODULE, "tcbLevels": [module_level(8, "UpToDate")]}])},
        EvidenceError,
        "no level for version 7 of the module",
    ),
    "a platform below every level": (
        {"info": tcb_info(tcbLevels=[level(6, "UpToDate")])},
        EvidenceError,
        "below every level",
    ),
    "an identity of another enclave": ({"identity": qe_identity(id="QE")}, UnsupportedError, "another kind"),
    "an identity of version 3": ({"identity": qe_identity(version=3)}, UnsupportedError, "another kind or version"),
    "an enclave signed by another": (
        {"identity": qe_identity(mrsigner="11" * 32)},
        EvidenceError,
        "not made by the quoting enclave",
    ),
    "another product": ({"identity": qe_identity(isvprodid=1)}, EvidenceError, "not made by the quoting enclave"),
    "other attributes": (
        {"identity": qe_identity(attributes="19" + "00" * 15)},
        EvidenceError,
        "not made by the quoting enclave",
    ),
    "another miscselect": (
        {"identity": qe_identity(miscselect="00000001")},
        EvidenceError,
        "not made by the quoting enclave",
    ),
    "an enclave below every level": (
        {"identity": qe_identity(tcbLevels=[module_level(7, "UpToDate")])},
        EvidenceError,
        "no level for version 6",
    ),
    "a tcb info not yet valid": ({"info": tcb_info(issueDate=stamp(1))}, StaleCollateralError, "is valid from"),
    "a tcb info no longer valid": ({"info": tcb_info(nextUpdate=stamp(0))}, UnsupportedError, "is valid from"),
    "an identity not yet valid": ({"identity": qe_identity(issueDate=stamp(1))}, StaleCollateralError, "is valid from"),
    "an identity no longer valid": ({"identity": qe_identity(nextUpdate=stamp(0))}, UnsupportedError, "is valid from"),
    "documents signed by another": ({"signer": "other"}, EvidenceError, "signature of the tcb info"),
    "a pck in place of tcb signing": (
        {"signing": pem(TdxForge().pck_certificate(), pck_ca(), root_certificate())},
        MalformedError,
        "where 2 are expected",
    ),
    "a signer of another name": ({"signing": signing(subject="x", public=SIGNING)}, EvidenceError, "is expected"),
    "a signer that is expired": ({"signing": signing(days=(-9, -1))}, OutOfTimeError, "is not valid at"),
    "a signer under another root": ({"signing": signing(signer="other")}, EvidenceError, "does not hold"),
    "a pck that was revoked": (
        {"pck_crl": crl(PCK_CA, (TdxForge().pck_certificate().serial_number,))},
        EvidenceError,
        "was revoked",
    ),
    "a ca that was revoked": ({"root_crl": crl(ROOT, (pck_ca().serial_number,))}, EvidenceError, "was revoked"),
    "a signer that was revoked": ({"root_crl": crl(ROOT, (1000 + len(SIGNING),))}, EvidenceError, "was revoked"),
    "a crl of pcks that is expired": ({"pck_crl": crl(PCK_CA, days=(-9, -1))}, StaleCollateralError, "is valid from"),
    "an expired crl of the root": ({"root_crl": crl(ROOT, days=(-9, -1))}, StaleCollateralError, "is valid from"),
    "a crl of pcks by another": ({"pck_crl": crl(PCK_CA, signer="other")}, EvidenceError, "was not made by whom"),
    "a crl of the root by another": ({"root_crl": crl(ROOT, signer="other")}, EvidenceError, "was not made by whom"),
    "the crls exchanged": ({"pck_crl": crl(ROOT), "root_crl": crl(PCK_CA)}, EvidenceError, "was not made by whom"),
    "a crl that is none": ({"pck_crl": b"\x30\x00"}, MalformedError, "crl"),
    "json that is no object": ({"info": b"[]"}, MalformedError, "no json object"),
    "no json": ({"info": b"{"}, MalformedError, "cannot be read as json"),
    "json that is nested without end": ({"info": b"[" * 100000}, MalformedError, "cannot be read as json"),
    "json with a key twice": ({"info": b'{"id":"TDX","id":"TDX"}'}, MalformedError, "cannot be read as json"),
    "json with no number": ({"info": b'{"version":NaN}'}, MalformedError, "cannot be read as json"),
    "json that is too large": ({"info": b" " * (MAX_JSON + 1)}, MalformedError, "length that cannot be"),
    "a level with too few components": (
        {"info": tcb_info(tcbLevels=[{**level(0, "x"), "tcb": {"pcesvn": 0, "sgxtcbcomponents": [{"svn": 1}]}}])},
        MalformedError,
        "16 components",
    ),
    "a level that is no object": ({"info": tcb_info(tcbLevels=[7])}, MalformedError, "no object where one is"),
    "a number that is true": ({"info": tcb_info(version=True)}, MalformedError, "lacks version"),
    "a number below zero": ({"info": tcb_info(version=-1)}, MalformedError, "is negative"),
    "a mask of another length": (
        {"identity": qe_identity(attributesMask="FF")},
        MalformedError,
        "does not have 16 bytes",
    ),
    "hex that is none": ({"info": tcb_info(fmspc="xx")}, MalformedError, "not hex"),
    "a time that is none": ({"info": tcb_info(issueDate="2026-06-31T00:00:00Z")}, MalformedError, "is no time"),
    "a time in another form": ({"info": tcb_info(issueDate="2026-05-01 00:00:00")}, MalformedError, "is no time"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("library", [True, False], ids=["with the library", "without"])
def test_collateral_that_does_not_fit_is_refused_with_and_without_the_library(
    case: tuple[dict[str, Any], type[QuotaryError], str], library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, error, message = case
    if not library:
        monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    with pytest.raises(error, match=message):
        verified(collateral(**changes))


def test_no_part_of_the_collateral_may_be_missing_or_of_another_form() -> None:
    whole = {
        name: value.decode() if name.endswith(("chain", "tcb_info", "qe_identity")) else value.hex()
        for name, value in (
            (name, getattr(collateral(), name)) for name in TdxCollateral.__dataclass_fields__
        )
    }
    assert appraised(TdxCollateral.from_json(json.dumps(whole).encode())).status == "UpToDate"
    for name in whole:
        for value in (None, 7):
            with pytest.raises(MalformedError, match=f"lacks {name}"):
                TdxCollateral.from_json(json.dumps({**whole, name: value}).encode())
    for data, message in (
        (json.dumps({**whole, "pck_crl": "xx"}).encode(), "not hex"),
        (b"[]", "lacks"),
        (b"\xff", "cannot be read"),
        (b" " * (MAX_JSON + 1), "too large"),
    ):
        with pytest.raises(MalformedError, match=message):
            TdxCollateral.from_json(data)


def library_saying(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Put a library in place that finds what the real one does, but for what `change` does to its claims."""
    import dcap_qvl

    class Verifier:
        def __init__(self, root: bytes) -> None:
            self._real = dcap_qvl.QuoteVerifier(root)

        def verify_with_policy(self, *arguments: Any) -> Any:
            said = json.loads(self._real.verify_with_policy(*arguments).to_json())
            change(said)
            return SimpleNamespace(to_json=lambda: json.dumps(said))

    fake = SimpleNamespace(
        QuoteCollateralV3=dcap_qvl.QuoteCollateralV3, QuotePolicy=dcap_qvl.QuotePolicy, QuoteVerifier=Verifier
    )
    monkeypatch.setitem(sys.modules, "dcap_qvl", fake)


DIFFERENCES: dict[str, tuple[Any, str]] = {
    "the level": (lambda said: said["platform"]["tcb_level"]["tcb"].update(pcesvn=1), "the tcb level"),
    "the platform": (lambda said: said["platform"]["pck"].update(fmspc=[0] * 6), "the platform"),
    "the enclave": (lambda said: said["qe"]["tcb_level"].update(tcbStatus="Revoked"), "the quoting enclave"),
    "the number": (lambda said: said["tcb"].update(eval_data_number=18), "the evaluation data"),
    "the binding": (lambda said: said["report"]["TD10"].update(report_data="00" * 64), "the report data"),
    "a register": (lambda said: said["report"]["TD10"].update(rt_mr3="00" * 48), "the measurements"),
    "the whole": (lambda said: said["tcb"].update(status="UpToDate"), "the status"),
}


@pytest.mark.parametrize("library", [True, False], ids=["with the library", "without"])
def test_a_platform_of_which_a_part_was_revoked_is_refused(
    library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not library:
        monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    module = {**MODULE, "tcbLevels": [module_level(5, "Revoked")]}
    for given in (
        collateral(tcb_info(tcbLevels=[level(5, "Revoked")])),
        collateral(tcb_info(tdxModuleIdentities=[module])),
        collateral(None, qe_identity(tcbLevels=[module_level(6, "Revoked")])),
    ):
        with pytest.raises(EvidenceError, match="was revoked"):
            verified(given)


def test_a_library_that_finds_a_current_platform_outdated_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library_saying(monkeypatch, lambda said: said["tcb"].update(status="OutOfDate"))
    with pytest.raises(EvidenceError, match=r"differ on the status$"):
        verified(collateral())


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_library_that_finds_something_else_than_we_do_is_not_believed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = DIFFERENCES[name]
    library_saying(monkeypatch, change)
    outdated = TdxForge(platform=Platform(components=(4,) * 16))
    with pytest.raises(EvidenceError, match=f"differ on {message}$"):
        verified(collateral(), outdated)


def test_a_library_whose_claims_have_another_form_could_not_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        library_saying(newer, lambda said: said.update(claims_version=2))
        with pytest.raises(UnsupportedError, match="version 2 are not known"):
            verified(collateral())
    library_saying(monkeypatch, lambda said: said.pop("qe"))
    with pytest.raises(UnsupportedError, match="form that is not known"):
        verified(collateral())


def test_the_library_refuses_what_we_would_leave_to_the_rules() -> None:
    debug = TdxForge(body={0x78: b"\1"})
    with pytest.raises(EvidenceError, match="dcap-qvl refuses the quote"):
        verified(collateral(), debug)


def bare(**forged: Any) -> TdxClaims:
    return verify_tdx(TdxForge(**forged).quote(), None, NOW, report_data=BOUND, root=forged_root())


def broken(claims: TdxClaims, rules: TdxRules) -> set[str]:
    return {found.rule for found in appraise_tdx(claims, rules) if found.severity is Severity.FAIL}


SERVICE = b"\x44" * 48
NEW = {"version": 5, "body_type": 3}


def attributes(*bits: int) -> dict[int, bytes]:
    return {0x78: sum(1 << bit for bit in bits).to_bytes(8, "little")}


UNSAFE: dict[str, tuple[dict[str, Any], TdxRules | None]] = {
    "sept-ve-disable": ({"body": attributes()}, TdxRules(sept_ve_disable=False)),
    "migratable": ({"body": attributes(28, 29)}, TdxRules(migratable=True)),
    "service-td": ({**NEW, "body": {0x258: SERVICE}}, TdxRules(service_tds=frozenset({SERVICE}))),
    "debug": ({"body": attributes(28, 0)}, None),
}


@pytest.mark.parametrize("rule", UNSAFE)
def test_what_is_unsafe_is_refused_unless_the_rules_accept_it_by_name(rule: str) -> None:
    forged, accepting = UNSAFE[rule]
    assert broken(bare(**forged), TdxRules()) == {f"tdx.{rule}"}
    if accepting is not None:
        assert broken(bare(**forged), accepting) == set()


@pytest.mark.parametrize("bit", range(8))
def test_every_attribute_of_the_debug_group_is_one_of_debugging(bit: int) -> None:
    assert broken(bare(body=attributes(28, bit)), TdxRules()) == {"tdx.debug"}


def test_a_service_td_that_the_rules_demand_has_to_be_there() -> None:
    demanded = TdxRules(service_tds=frozenset({SERVICE}))
    assert broken(bare(), demanded) == {"tdx.service-td"}
    assert broken(bare(**NEW), demanded) == {"tdx.service-td"}


DEMANDED: dict[str, tuple[TdxRules, TdxRules]] = {
    name: (rules(frozenset({value})), rules(frozenset({b"x"})))
    for name, rules, value in (
        ("mrtd", lambda some: TdxRules(mr_tds=some), b"\x11" * 48),
        ("rtmr2", lambda some: TdxRules(rtmrs={2: some}), b"\x22" * 48),
        ("mrseam", lambda some: TdxRules(mr_seams=some), bytes(48)),
        ("mrconfigid", lambda some: TdxRules(mr_config_ids=some), bytes(48)),
        ("mrowner", lambda some: TdxRules(mr_owners=some), bytes(48)),
        ("mrownerconfig", lambda some: TdxRules(mr_owner_configs=some), bytes(48)),
        ("device", lambda some: TdxRules(devices=some), b"\xaa" * 16),
        ("platform", lambda some: TdxRules(platforms=some), Platform().fmspc),
    )
}


@pytest.mark.parametrize("rule", DEMANDED)
def test_what_the_rules_demand_is_refused_where_it_differs_and_otherwise_not(rule: str) -> None:
    fulfilled, violated = DEMANDED[rule]
    assert broken(bare(), fulfilled) == set()
    assert broken(bare(), violated) == {f"tdx.{rule}"}


def test_a_status_advisories_and_an_evaluation_number_are_accepted_by_name() -> None:
    claims = verified(collateral(), TdxForge(platform=Platform(components=(4,) * 16)))
    assert broken(claims, TdxRules()) == {"tdx.tcb-status"}
    accepting = TdxRules(statuses=frozenset({"OutOfDate"}))
    assert broken(claims, accepting) == set()
    assert broken(claims, replace(accepting, advisories=frozenset())) == {"tdx.advisories"}
    assert broken(claims, replace(accepting, advisories=frozenset({"INTEL-SA-00001"}))) == set()
    assert broken(claims, replace(accepting, evaluation=17)) == set()
    assert broken(claims, replace(accepting, evaluation=18)) == {"tdx.evaluation"}


def test_a_tcb_that_was_not_appraised_is_never_accepted() -> None:
    with pytest.raises(UnsupportedError, match="tcb not appraised: there is no collateral"):
        enforce(appraise_tdx(bare(), TdxRules(statuses=frozenset({"UpToDate", "OutOfDate"}))))


def test_a_register_that_no_td_has_is_no_policy() -> None:
    with pytest.raises(PolicyError, match="0 to 3"):
        TdxRules(rtmrs={4: frozenset()})
