# SPDX-License-Identifier: Apache-2.0
"""Every file of the corpus folder `tee/tdx`, with the outcome that its index states."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from corpus import check_certificate, corpus_bytes, corpus_root, entries, entry, judge, needs_corpus

from quotary_verifier.errors import EvidenceError, MalformedError, QuotaryError, UnsupportedError
from quotary_verifier.evidence.tee.intel_pki import IntelRoot, intel_root, read_chain
from quotary_verifier.evidence.tee.shape import enforce
from quotary_verifier.evidence.tee.tdx import TdxClaims, replay_ccel, verify_tdx
from quotary_verifier.evidence.tee.tdx_collateral import TdxCollateral
from quotary_verifier.evidence.tee.tdx_quote import parse_tdx_quote
from quotary_verifier.evidence.tee.tdx_rules import TdxRules, appraise_tdx
from quotary_verifier.pki.revocation import Revocation

pytestmark = needs_corpus

Entry = dict[str, Any]
ENTRIES = entries("tee/tdx/")
QUOTES = [one for one in ENTRIES if one["kind"] == "tdx-quote"]
COLLATERAL = "tee/tdx/tdx-v4-collateral.json"
CURRENT = "tee/tdx/tdx-v4-quote.bin"
NOW = datetime(2025, 6, 20, tzinfo=UTC)


def file_id(item: Entry) -> str:
    return str(item["file"]).removeprefix("tee/")


@functools.cache
def collateral() -> TdxCollateral:
    return TdxCollateral.from_json(corpus_bytes(COLLATERAL))


def given(item: Entry) -> TdxCollateral | None:
    return collateral() if COLLATERAL in item.get("needs", ()) else None


def verified(item: Entry, quote: bytes | None = None, **options: Any) -> TdxClaims:
    expected = item["expected"]
    return verify_tdx(
        corpus_bytes(item["file"]) if quote is None else quote,
        options.pop("collateral", given(item)),
        options.pop("at", NOW),
        report_data=bytes.fromhex(expected["report_data"]),
        **options,
    )


def check_quote(item: Entry) -> None:
    data, expected = corpus_bytes(item["file"]), item["expected"]
    claims = verified(item)
    quote, body = claims.quote, claims.quote.body
    assert quote.version == expected["version"]
    assert data[4:8] == int(expected["tee_type"], 16).to_bytes(4, "little")
    assert len(quote.signed) == expected["signed_bytes_end"]
    assert (len(quote.raw), quote.trailing) == (expected["quote_length"], expected["trailing_bytes"])
    assert any(data[len(quote.raw) :]) is not expected["trailing_bytes_all_zero"]
    for name in ("tee_tcb_svn", "td_attributes", "xfam"):
        assert getattr(body, name).hex() == expected[name]
    measured = {"mrtd": expected["mrtd"], "mrseam": expected["mrseam"]}
    measured |= {f"rtmr{number}": value for number, value in enumerate(expected["rtmrs"])}
    assert {name: value.hex() for name, value in claims.measurements.items()} == measured
    assert claims.pck.fmspc.hex().upper() == expected["fmspc"]
    rules = {finding.rule for finding in appraise_tdx(claims, TdxRules())}
    assert ("tdx.debug" in rules) is expected["debug"]
    assert ("tdx.sept-ve-disable" in rules) is not expected["sept_ve_disable"]
    if item["expect"] == "ok-signature-only":
        assert claims.tcb is None
        if "pck_not_before" in expected:
            leaf = read_chain(quote.chain)[0]
            assert f"{leaf.not_valid_before_utc:%Y-%m-%d}" == expected["pck_not_before"]
        assert claims.not_shown == ("revocation", "qe-identity", "module-identity", "tcb")
        with pytest.raises(UnsupportedError, match="tcb not appraised: there is no collateral"):
            enforce(appraise_tdx(claims, TdxRules()))
        return
    assert item["expect"] == "ok"
    assert datetime.fromisoformat(expected["valid_at"]) == NOW
    assert claims.tcb is not None
    assert (claims.tcb.status, list(claims.tcb.advisories)) == (
        expected["tcb_status"],
        expected["advisories"],
    )
    assert claims.not_shown == ()
    assert claims.signer.revocation is Revocation.GOOD
    assert enforce(appraise_tdx(claims, TdxRules())) == ()
    first, last = (datetime.fromisoformat(text) for text in expected["collateral_window"])
    assert (claims.tcb.not_before, claims.tcb.not_after) == (first, last)


def check_sgx(item: Entry) -> None:
    assert item["expect"] == "reject"
    data, expected = corpus_bytes(item["file"]), item["expected"]
    assert int.from_bytes(data[:2], "little") == expected["version"]
    assert int.from_bytes(data[4:8], "little") == int(expected["tee_type"], 16)
    with pytest.raises(EvidenceError, match=f"(?i){item['expected']['reason']}"):
        parse_tdx_quote(corpus_bytes(item["file"]))


def check_root(item: Entry) -> None:
    assert item["expect"] == "reference"
    root = IntelRoot(corpus_bytes(item["file"]))
    assert root.der == intel_root().der
    check_certificate(root.certificate, item["expected"])
    assert root.subject == root.certificate.subject.rfc4514_string()


def check_nonce(item: Entry) -> None:
    assert item["expect"] == "reference"
    nonce = corpus_bytes(item["file"])
    assert nonce.hex() == item["expected"]["hex"]
    (quote,) = (one for one in QUOTES if item["file"] in one.get("needs", ()))
    assert verified(quote).quote.body.report_data == nonce
    with pytest.raises(EvidenceError, match="report data"):
        verify_tdx(corpus_bytes(quote["file"]), None, NOW, report_data=nonce[:-1] + b"\1")


def check_collateral(item: Entry) -> None:
    assert (item["file"], item["expect"]) == (COLLATERAL, "reference")
    content = json.loads(corpus_bytes(COLLATERAL))
    assert collateral().tcb_info == content["tcb_info"].encode()
    assert collateral().root_ca_crl.hex() == content["root_ca_crl"]


CHECKS = {
    "tdx-quote": check_quote,
    "sgx-quote": check_sgx,
    "ca-certificate": check_root,
    "report-data": check_nonce,
    "tdx-collateral": check_collateral,
}

AS_SGX = dict.fromkeys(
    ("tcb_status", "advisories", "valid_at"), "what an sgx verifier with collateral would find"
)


@pytest.mark.parametrize("item", ENTRIES, ids=file_id)
def test_a_file_of_the_corpus_has_its_stated_outcome(item: Entry) -> None:
    judge(item, CHECKS, AS_SGX if item["kind"] == "sgx-quote" else {})


def test_every_file_of_this_folder_is_in_the_index() -> None:
    root = corpus_root()
    assert root is not None
    assert {one["file"] for one in ENTRIES} == {
        f"tee/tdx/{path.name}" for path in (root / "tee" / "tdx").iterdir()
    }


def altered(data: bytes, places: range) -> Iterator[bytes]:
    for at in places:
        yield data[:at] + bytes((data[at] ^ (1 << at % 8),)) + data[at + 1 :]


@pytest.mark.parametrize("item", QUOTES, ids=file_id)
def test_a_quote_with_any_byte_altered_before_its_certificates_is_rejected(item: Entry) -> None:
    data = corpus_bytes(item["file"])
    places = range(data.index(b"-----BEGIN"))
    for changed in altered(data, places):
        with pytest.raises(QuotaryError):
            verified(item, changed, collateral=None)


def test_certificates_with_any_byte_altered_vouch_for_nothing() -> None:
    item = entry(CURRENT)
    data = parse_tdx_quote(corpus_bytes(CURRENT)).raw
    chain = verified(item).quote.chain
    same = []
    for at in range(data.index(b"-----BEGIN"), len(data)):
        try:
            claims = verified(item, next(altered(data, range(at, at + 1))), collateral=None)
        except QuotaryError:
            continue
        assert claims.pck == verified(item).pck
        same.append(at - (len(data) - len(chain)))
    assert same == []


def test_what_stands_behind_a_quote_changes_neither_its_claims_nor_its_digest() -> None:
    item = entry(CURRENT)
    bare = parse_tdx_quote(corpus_bytes(CURRENT)).raw
    claims = [verified(item, bare + behind) for behind in (b"", bytes(70), b"\xff" * 39)]
    assert {one.quote.sha256 for one in claims} == {claims[0].quote.sha256}
    assert {one.quote.trailing for one in claims} == {0, 70, 39}
    assert {one.tcb for one in claims} == {claims[0].tcb}


def test_a_quote_that_is_cut_off_anywhere_is_malformed() -> None:
    bare = parse_tdx_quote(corpus_bytes(CURRENT)).raw
    for length in range(8, len(bare)):
        with pytest.raises(MalformedError):
            parse_tdx_quote(bare[:length])


@pytest.mark.parametrize(
    "name", [one for one in TdxCollateral.__dataclass_fields__ if one != "pck_crl_issuer_chain"]
)
def test_collateral_with_any_part_altered_is_refused(name: str) -> None:
    item = entry(CURRENT)
    part: bytes = getattr(collateral(), name)
    for changed in altered(part, range(5, len(part), max(1, len(part) // 40))):
        with pytest.raises(QuotaryError):
            verified(item, collateral=replace(collateral(), **{name: changed}))


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
def test_json_that_was_written_anew_does_not_verify(name: str) -> None:
    written = json.dumps(json.loads(getattr(collateral(), name))).encode()
    with pytest.raises(EvidenceError, match=r"signature of the .* does not verify"):
        verified(entry(CURRENT), collateral=replace(collateral(), **{name: written}))


def test_collateral_counts_to_the_last_second_of_its_window_and_no_longer() -> None:
    item = entry(CURRENT)
    claims = verified(item)
    assert claims.tcb is not None
    second = timedelta(seconds=1)
    for time in (claims.tcb.not_before, claims.tcb.not_after - second):
        inside = verified(item, at=time).tcb
        assert inside is not None
        assert inside.status == "UpToDate"
    for time in (claims.tcb.not_before - second, claims.tcb.not_after):
        with pytest.raises(UnsupportedError, match=r"is valid from|no crl of that time"):
            verified(item, at=time)
    assert verified(item, at=claims.tcb.not_after, collateral=None).tcb is None


def test_collateral_for_another_platform_is_refused() -> None:
    other = entry("tee/tdx/tdx-v4-quote-no-collateral.bin")
    with pytest.raises(EvidenceError, match="is for platforms B0C06F000000, not 00A06D080000"):
        verified(other, collateral=collateral())


def test_without_the_library_the_claims_say_that_the_tcb_was_not_appraised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    claims = verified(entry(CURRENT))
    assert claims.tcb is None
    assert claims.not_shown == ("tcb",)
    with pytest.raises(UnsupportedError, match="tcb not appraised: dcap-qvl is not installed"):
        enforce(appraise_tdx(claims, TdxRules()))


def test_the_event_log_of_a_confidential_vm_replays_to_the_registers_of_its_quote() -> None:
    item = entry("tee/tdx/gce-cos113-quote.bin")
    claims = verified(item)
    log = corpus_bytes(item["needs"][0])
    replayed = replay_ccel(claims, log)
    assert replayed.unconfirmed == ()
    assert set(replayed.values) == {1, 2, 3}
    with pytest.raises(MalformedError):
        replay_ccel(claims, log, tolerate=())
    other = verified(entry(CURRENT))
    with pytest.raises(EvidenceError, match="does not replay"):
        replay_ccel(other, log)
