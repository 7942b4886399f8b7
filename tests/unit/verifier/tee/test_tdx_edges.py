# SPDX-License-Identifier: Apache-2.0
"""Intel TDX: where each field of a quote stands, how far each limit reaches, and each half of each condition."""

from __future__ import annotations

import base64
import json
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import intel_sgx
import pytest
from cryptography import x509
from intel_sgx import (
    BOUND,
    NOW,
    PCK_CA,
    ROOT,
    SIGNING,
    Platform,
    TdxForge,
    certificate,
    collateral,
    crl,
    forged_root,
    level,
    module_level,
    number,
    pck_ca,
    pem,
    qe_identity,
    raw_signature,
    root_certificate,
    stamp,
    tcb_info,
    tcb_signing,
)

from quotary_verifier.errors import EvidenceError, MalformedError, OutOfTimeError, UnsupportedError
from quotary_verifier.evidence.tee.intel_pki import MAX_CHAIN, read_chain, verify_intel_path
from quotary_verifier.evidence.tee.tdx import TdxClaims, verify_tdx
from quotary_verifier.evidence.tee.tdx_collateral import MAX_JSON, TdxCollateral, read_json
from quotary_verifier.evidence.tee.tdx_quote import MAX_QUOTE, parse_tdx_quote
from quotary_verifier.evidence.tee.tdx_rules import TdxRules
from quotary_verifier.evidence.tee.tdx_tcb import TcbAppraisal
from quotary_verifier.pki.der import encode


def verified(forge: TdxForge | None = None, given: TdxCollateral | None = None) -> TdxClaims:
    return verify_tdx((forge or TdxForge()).quote(), given, NOW, report_data=BOUND, root=forged_root())


def appraised(given: TdxCollateral, forge: TdxForge | None = None) -> TcbAppraisal:
    tcb = verified(forge, given).tcb
    assert tcb is not None
    return tcb


def test_each_field_of_body_and_enclave_report_is_read_from_its_place() -> None:
    pattern = bytes((at * 7 + at // 256 + 13) % 256 for at in range(648))
    quote = parse_tdx_quote(
        TdxForge(5, 3, body={0: pattern}, qe={0: pattern[:384]}, header={28: pattern[:20]}).quote()
    )
    places = {
        "tee_tcb_svn": (0, 16), "mr_seam": (16, 48), "mr_signer_seam": (64, 48), "seam_attributes": (112, 8),
        "td_attributes": (120, 8), "xfam": (128, 8), "mr_td": (136, 48), "mr_config_id": (184, 48),
        "mr_owner": (232, 48), "mr_owner_config": (280, 48), "report_data": (520, 64), "tee_tcb_svn_2": (584, 16),
        "mr_service_td": (600, 48),
    }  # fmt: skip
    for name, (start, size) in places.items():
        assert getattr(quote.body, name) == pattern[start : start + size], name
    assert quote.body.rtmrs == tuple(pattern[at : at + 48] for at in (328, 376, 424, 472))
    enclave = {"misc_select": (16, 4), "attributes": (48, 16), "mr_enclave": (64, 32), "mr_signer": (128, 32),
               "report_data": (320, 64)}  # fmt: skip
    report = quote.qe_report
    for name, (start, size) in enclave.items():
        assert getattr(report, name) == pattern[start : start + size], name
    assert report.isv_prod_id == int.from_bytes(pattern[256:258], "little")
    assert report.isv_svn == int.from_bytes(pattern[258:260], "little")
    assert report.raw == pattern[:384]
    assert quote.user_data == pattern[:20]
    assert quote.qe_auth_data == bytes(range(32))


def test_a_quote_and_what_stands_behind_it_have_at_most_64_kib() -> None:
    quote = TdxForge().quote()
    assert parse_tdx_quote(quote.ljust(MAX_QUOTE, b"\0")).trailing == MAX_QUOTE - len(quote)
    assert MAX_QUOTE == 65536
    with pytest.raises(MalformedError, match="larger than 65536"):
        parse_tdx_quote(quote.ljust(MAX_QUOTE + 1, b"\0"))


@pytest.mark.parametrize(
    ("kind", "held"),
    [
        (1, r"type 1 \(the encrypted id of a platform\) hold"),
        (2, r"type 2 \(the id of a platform, encrypted with RSA-2048\) hold"),
        (3, r"type 3 \(the id of a platform, encrypted with RSA-3072\) hold"),
        (4, r"type 4 \(a PCK certificate without its chain\) hold"),
        (7, r"type 7 \(a platform's manifest\) hold"),
        (8, "type 8 hold"),
    ],
)
def test_certification_data_without_a_chain_are_named(kind: int, held: str) -> None:
    with pytest.raises(UnsupportedError, match=held):
        verified(TdxForge(certification=(6, kind)))


@pytest.mark.parametrize("first", [0x84, 0xD2, 0xD8, 0xD9])
def test_a_cbor_web_token_could_not_be_checked(first: int) -> None:
    with pytest.raises(UnsupportedError, match="cbor web token"):
        parse_tdx_quote(bytes((first,)) + bytes(600))


@pytest.mark.parametrize("first", [0x83, 0x85, 0xD1, 0xD3, 0xD7, 0xDA])
def test_what_begins_otherwise_is_no_web_token(first: int) -> None:
    with pytest.raises(EvidenceError, match="tee type 0x0"):
        parse_tdx_quote(bytes((first,)) + bytes(600))


def test_a_version_is_read_whole() -> None:
    with pytest.raises(UnsupportedError, match="version 259"):
        parse_tdx_quote(TdxForge(version=0x103).quote())
    with pytest.raises(MalformedError):
        parse_tdx_quote(b"")


def test_a_td_has_four_registers_that_rules_may_name() -> None:
    assert set(TdxRules(rtmrs={at: frozenset() for at in range(4)}).rtmrs) == {0, 1, 2, 3}


SIGNS_DATA = {"digital_signature": True}
USAGES = {
    "no signatures": {"content_commitment": True},
    "certificates": {"digital_signature": True, "key_cert_sign": True},
    "crls": {"digital_signature": True, "crl_sign": True},
}


def usage(flags: dict[str, bool]) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: flags.get(name, False) for name in names})


@pytest.mark.parametrize("name", USAGES)
def test_a_key_that_signs_quotes_or_documents_is_for_that_alone(name: str) -> None:
    assert verified(TdxForge(pck={"usage": usage(SIGNS_DATA)}))
    with pytest.raises(EvidenceError, match="does not hold"):
        verified(TdxForge(pck={"usage": usage(USAGES[name])}))
    signer = pem(certificate(SIGNING, ROOT, usage=usage(USAGES[name])), root_certificate())
    with pytest.raises(EvidenceError, match="does not hold"):
        verified(None, collateral(signing=signer))


def test_a_ca_with_the_usage_of_a_leaf_signs_no_quotes() -> None:
    with pytest.raises(EvidenceError, match="does not hold"):
        verified(TdxForge(pck={"ca": True, "usage": usage(SIGNS_DATA)}))


def test_between_leaf_and_root_stands_one_ca_and_no_more() -> None:
    middle = certificate("Intel Middle", ROOT, ca=True, path_length=None)
    lower = certificate(PCK_CA, "Intel Middle", ca=True, path_length=0)
    leaf = TdxForge().pck_certificate()
    with pytest.raises(EvidenceError, match="does not hold"):
        verify_intel_path(pem(leaf, lower, middle), forged_root(), leaf=intel_sgx.PCK, length=4)
    with pytest.raises(EvidenceError, match="does not hold"):
        verify_intel_path(pem(leaf, leaf, root_certificate()), forged_root(), leaf=intel_sgx.PCK, length=3)


def test_a_chain_has_at_most_32_kib_and_base64_in_one_spelling() -> None:
    chain = pem(pck_ca())
    assert MAX_CHAIN == 32768
    assert len(read_chain(chain.ljust(MAX_CHAIN, b"\0"))) == 1
    with pytest.raises(MalformedError, match="too large"):
        read_chain(chain.ljust(MAX_CHAIN + 1, b"\0"))
    lines = chain.split(b"\n")
    assert len(read_chain(b"\r\n".join(lines))) == 1
    for text in (b"AAB=", b"AA=A", b"A", b"====", b"AAAA="):
        with pytest.raises(MalformedError, match="base64 in its one spelling"):
            read_chain(b"\n".join([lines[0], text, *lines[-2:]]))


def test_a_certificate_whose_signature_has_unused_bits_is_malformed() -> None:
    ders = [TdxForge(pck={"serial": at}).pck_certificate() for at in range(5000, 5040)]
    even = next(one for one in ders if not one.signature[-1] & 1)
    der = bytearray(even.public_bytes(intel_sgx.Encoding.DER))
    der[-len(even.signature) - 1] = 1
    text = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(der)) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(MalformedError, match="whole number of bytes"):
        verified(TdxForge(chain=text + pem(pck_ca(), root_certificate())))


PLATFORM = Platform()
SGX = bytes.fromhex("2a864886f84d010d01")


@pytest.mark.parametrize(
    "wrong",
    [
        encode(0x31, encode(0x06, SGX + b"\x01") + number(1)),
        encode(0x30, encode(0x0D, SGX + b"\x01") + number(1)),
        encode(0x30, encode(0x06, SGX[:-1] + b"\x02\x01") + number(1)),
    ],
    ids=["a set", "a relative name", "a name of somebody else"],
)
def test_a_value_of_a_pck_has_a_name_of_intels(wrong: bytes) -> None:
    with pytest.raises(MalformedError, match="not made of named values"):
        verified(TdxForge(extension=encode(0x30, PLATFORM.extension()[4:] + wrong)))


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"\x05", 5), (b"\x7f\xff\xff", 0x7FFFFF), (b"", None), (b"\x01\0\0\0", None), (b"\xff", None)],
)
def test_a_small_number_has_one_to_three_bytes_and_no_sign(content: bytes, value: int | None) -> None:
    forge = TdxForge(extension=PLATFORM.extension({b"\x05": encode(0x0A, content)}))
    if value is not None:
        assert verified(forge).pck.sgx_type == value
        return
    with pytest.raises(MalformedError, match="value 5 of a pck is no small number"):
        verified(forge)


@pytest.mark.parametrize(
    ("svn", "levels", "reached"),
    [
        (b"\1\1" + b"\2" * 14, [level(0, "UpToDate", tdx=2), level(0, "OutOfDate")], 0),
        (b"\5\1\1" + b"\2" * 13, [level(0, "UpToDate", tdx=2), level(0, "OutOfDate")], 1),
        (b"\5\1\2\1" + b"\2" * 12, [level(0, "UpToDate", tdx=2), level(0, "OutOfDate")], 1),
        (b"\2\0" + b"\0" * 14, [level(0, "OutOfDate")], 0),
        (b"\1\0" + b"\2" * 14, [level(0, "UpToDate", tdx=1), level(0, "OutOfDate")], 1),
    ],
    ids=[
        "the module has its own",
        "the third counts",
        "the fourth counts",
        "no level asks",
        "the second counts",
    ],
)
def test_a_modules_own_svns_count_only_where_it_has_no_identity(
    svn: bytes, levels: list[dict[str, Any]], reached: int
) -> None:
    module = [{"id": "TDX_01", **intel_sgx.ZERO_MODULE, "tcbLevels": [module_level(0, "UpToDate")]}]
    given = collateral(tcb_info(tcbLevels=levels, tdxModuleIdentities=module))
    assert appraised(given, TdxForge(body={0: svn})).platform == levels[reached]["tcbStatus"]


def test_a_modules_level_holds_from_its_own_version_on() -> None:
    module = {"id": "TDX_01", **intel_sgx.ZERO_MODULE}
    levels = [{**module_level(7, "UpToDate"), "advisoryIDs": ["INTEL-SA-2"]}, module_level(2, "OutOfDate")]
    given = collateral(tcb_info(tdxModuleIdentities=[{**module, "tcbLevels": levels}]))
    assert appraised(given, TdxForge(body={0: b"\7"})).module == "UpToDate"
    assert appraised(given, TdxForge(body={0: b"\6"})).module == "OutOfDate"


def test_the_quoting_enclaves_advisories_are_compared_with_the_librarys() -> None:
    levels = [{**module_level(6, "OutOfDate"), "advisoryIDs": ["INTEL-SA-1"]}]
    assert appraised(collateral(None, qe_identity(tcbLevels=levels))).advisories == ("INTEL-SA-1",)


def test_the_lower_evaluation_number_and_the_earliest_end_count() -> None:
    for info, identity in ((17, 16), (16, 17)):
        given = collateral(
            tcb_info(tcbEvaluationDataNumber=info), qe_identity(tcbEvaluationDataNumber=identity)
        )
        assert appraised(given).evaluation == 16
    ends = [
        collateral(tcb_info(nextUpdate=stamp(5))),
        collateral(None, qe_identity(nextUpdate=stamp(5))),
        collateral(pck_crl=crl(PCK_CA, days=(-1, 5))),
        collateral(root_crl=crl(ROOT, days=(-1, 5))),
    ]
    for given in ends:
        assert f"{appraised(given).not_after:%Y-%m-%dT%H:%M:%SZ}" == stamp(5)
    for given in (
        collateral(tcb_info(issueDate=stamp(-1))),
        collateral(None, qe_identity(issueDate=stamp(-1))),
    ):
        assert f"{appraised(given).not_before:%Y-%m-%dT%H:%M:%SZ}" == stamp(-1)


DOCUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "a text that is a number": ({"info": tcb_info(id=7)}, "lacks id"),
    "a list that is an object": ({"info": tcb_info(tcbLevels={})}, "lacks tcbLevels"),
    "a number that is a text": ({"info": tcb_info(tcbType="0")}, "lacks tcbType"),
    "advisories that are numbers": (
        {"identity": qe_identity(tcbLevels=[{**module_level(6, "x"), "advisoryIDs": [7]}])},
        "advisoryIDs of the qe identity is no list of texts",
    ),
    "a time without a zone": ({"info": tcb_info(issueDate="2026-05-01T00:00:00")}, "is no time"),
    "a time in few digits": ({"info": tcb_info(issueDate="2026-5-1T0:00:00Z")}, "is no time"),
    "a value longer than its mask": ({"identity": qe_identity(attributes="11" + "00" * 16)}, "does not have 16 bytes"),
    "value and mask that are short": (
        {"identity": qe_identity(attributes="11", attributesMask="FF")},
        "does not have 16 bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_document_with_a_value_of_another_form_is_malformed(case: tuple[dict[str, Any], str]) -> None:
    changes, message = case
    with pytest.raises(MalformedError, match=message):
        verified(None, collateral(**changes))


@pytest.mark.parametrize("kind", ["sgxtcbcomponents", "tdxtcbcomponents"])
def test_a_level_has_16_components_of_each_kind(kind: str) -> None:
    made = level(5, "UpToDate")
    made["tcb"][kind] = [{"svn": 0}] * 15
    with pytest.raises(MalformedError, match="16 components of each kind"):
        verified(None, collateral(tcb_info(tcbLevels=[made])))


def test_a_signature_of_another_length_is_malformed_even_where_its_halves_would_do() -> None:
    whole = collateral()
    made = raw_signature(intel_sgx.key(SIGNING), whole.tcb_info)
    for wrong in (made[:32] + b"\0" + made[32:], made[:63], made + b"\0"):
        with pytest.raises(MalformedError, match="a length that cannot be"):
            verified(None, replace(whole, tcb_info_signature=wrong))


def test_a_document_has_at_most_a_mebibyte() -> None:
    assert read_json(b" " * (MAX_JSON - 1) + b"7", "it") == 7
    assert MAX_JSON == 1 << 20
    with pytest.raises(MalformedError, match="too large"):
        read_json(b" " * MAX_JSON + b"7", "it")
    for text in (b"NaN", b"Infinity", b'{"a":{"b":1,"b":1}}'):
        with pytest.raises(MalformedError, match="cannot be read"):
            read_json(text, "it")


@pytest.mark.parametrize("name", [name for name in TdxCollateral.__dataclass_fields__ if not name.endswith(
    ("chain", "tcb_info", "qe_identity"))])  # fmt: skip
def test_each_part_that_stands_in_hex_is_read_as_hex(name: str) -> None:
    whole = {
        part: value.hex() if not part.endswith(("chain", "tcb_info", "qe_identity")) else value.decode()
        for part, value in (
            (part, getattr(collateral(), part)) for part in TdxCollateral.__dataclass_fields__
        )
    }
    with pytest.raises(MalformedError, match=f"{name} of the tdx collateral is not hex"):
        TdxCollateral.from_json(json.dumps({**whole, name: "zz"}).encode())


def test_the_chain_beside_the_crl_of_pcks_is_that_of_the_pcks_issuer() -> None:
    assert appraised(replace(collateral(), pck_crl_issuer_chain=pem(pck_ca()))).status == "UpToDate"
    other = certificate(PCK_CA, ROOT, ca=True, path_length=0, public="other")
    for chain in (pem(other, root_certificate()), pem(root_certificate(), pck_ca()), pem(tcb_signing())):
        with pytest.raises(EvidenceError, match="not that of the pck's issuer"):
            verified(None, replace(collateral(), pck_crl_issuer_chain=chain))


@pytest.mark.parametrize("said", [7, [], {"claims_version": 1, "tcb": 7}, {"claims_version": 1, "tcb": {}}])
def test_a_library_that_says_something_of_another_form_could_not_be_asked(
    said: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(
        QuoteCollateralV3=lambda *_: None,
        QuotePolicy=SimpleNamespace(claims_only=lambda _: None),
        QuoteVerifier=lambda _: SimpleNamespace(
            verify_with_policy=lambda *_: SimpleNamespace(to_json=lambda: json.dumps(said))
        ),
    )
    monkeypatch.setitem(sys.modules, "dcap_qvl", fake)
    with pytest.raises(UnsupportedError, match="form that is not known"):
        verified(None, collateral())


def test_without_an_identity_of_its_own_a_modules_first_svn_counts_too() -> None:
    asks = level(0, "UpToDate")
    asks["tcb"]["tdxtcbcomponents"] = [{"svn": 3}, *[{"svn": 0}] * 15]
    given = collateral(tcb_info(tcbLevels=[asks, level(0, "OutOfDate")], tdxModuleIdentities=None))
    for minor, status in ((b"\2\0", "OutOfDate"), (b"\3\0", "UpToDate")):
        assert appraised(given, TdxForge(body={0: minor})).platform == status


def test_a_body_of_td_1_5_is_appraised_like_one_of_td_1_0() -> None:
    for version, body in ((4, 2), (5, 2), (5, 3)):
        assert appraised(collateral(), TdxForge(version, body)).status == "UpToDate"


def test_a_crl_made_after_a_certificate_ceased_to_be_valid_does_not_speak_for_it() -> None:
    forge = TdxForge(pck={"days": (-20, 5)})
    later = collateral(pck_crl=crl(PCK_CA, days=(6, 29)))
    with pytest.raises(UnsupportedError, match="no crl of that time says"):
        verified(forge, later)
    assert appraised(collateral(pck_crl=crl(PCK_CA, days=(4, 29))), forge).status == "UpToDate"


def test_a_pck_of_another_time_is_refused_beside_current_collateral_too() -> None:
    with pytest.raises(OutOfTimeError, match="the certificate path of the pck is not valid at"):
        verified(TdxForge(pck={"days": (-20, -5)}), collateral())
