# SPDX-License-Identifier: Apache-2.0
"""Quotes and keys that the tests mint themselves: what verifies without collateral, and every way to be refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from intel_sgx import (
    BOUND,
    NOW,
    PCK_CA,
    ROOT,
    SIGNING,
    Platform,
    TdxForge,
    certificate,
    forged_root,
    key,
    number,
    pck_ca,
    pem,
    raw_point,
    root_certificate,
    tcb_signing,
)

from quotary_verifier.errors import (
    EvidenceError,
    MalformedError,
    OutOfTimeError,
    QuotaryError,
    UnsupportedError,
)
from quotary_verifier.evidence.tee.intel_pki import IntelRoot, intel_root
from quotary_verifier.evidence.tee.tdx import TdxClaims, verify_tdx
from quotary_verifier.evidence.tee.tdx_quote import parse_tdx_quote
from quotary_verifier.pki.der import encode
from quotary_verifier.pki.revocation import Revocation

KINDS = [(4, 2), (5, 2), (5, 3)]


def verified(forge: TdxForge, quote: bytes | None = None, *, at: datetime = NOW) -> TdxClaims:
    data = forge.quote() if quote is None else quote
    return verify_tdx(data, None, at, report_data=BOUND, root=forged_root())


@pytest.mark.parametrize(("version", "body_type"), KINDS)
def test_a_quote_of_each_version_and_body_verifies_and_says_what_was_not_shown(
    version: int, body_type: int
) -> None:
    forge = TdxForge(version, body_type)
    if body_type == 3:
        forge.body[0x248] = b"\x33" * 16 + b"\x44" * 48
    claims = verified(forge)
    body = claims.quote.body
    assert (claims.kind, claims.quote.version, claims.signed_time) == ("tdx", version, None)
    assert claims.quote.signed == forge.signed()
    assert claims.measurements["mrtd"] == b"\x11" * 48
    assert [claims.measurements[f"rtmr{at}"] for at in range(4)] == [
        bytes((0x20 + at,)) * 48 for at in range(4)
    ]
    assert (body.tee_tcb_svn_2, body.mr_service_td) == (
        (b"\x33" * 16, b"\x44" * 48) if body_type == 3 else (None, None)
    )
    assert claims.device == b"\xaa" * 16
    assert (claims.pck.components, claims.pck.pce_svn) == ((5,) * 16, 300)
    assert claims.tcb is None
    assert claims.signer.revocation is Revocation.UNKNOWN
    assert claims.shown == ("report-data", "signature", "qe-report", "chain")
    assert claims.not_shown == ("revocation", "qe-identity", "module-identity", "tcb")


@pytest.mark.parametrize("at", range(64))
def test_report_data_that_differ_in_any_byte_are_refused(at: int) -> None:
    forge = TdxForge(body={0x208 + at: bytes((BOUND[at] ^ 1,))})
    with pytest.raises(EvidenceError, match="report data"):
        verified(forge)


def test_what_is_asked_for_has_to_be_64_bytes_at_a_time_with_a_zone() -> None:
    quote = TdxForge().quote()
    with pytest.raises(ValueError, match="report data"):
        verify_tdx(quote, None, NOW, report_data=BOUND[:32], root=forged_root())
    with pytest.raises(ValueError, match="time zone"):
        verify_tdx(quote, None, NOW.replace(tzinfo=None), report_data=BOUND, root=forged_root())


FORMS: dict[str, tuple[dict[str, Any], type[QuotaryError], str]] = {
    "version 6": ({"version": 6}, UnsupportedError, "version 6"),
    "an sgx quote": ({"version": 3}, EvidenceError, "an sgx quote is not"),
    "a quote of an sgx enclave": ({"header": {4: bytes(4)}}, EvidenceError, "tee type 0x0"),
    "another kind of tee": ({"header": {4: b"\x82"}}, EvidenceError, "tee type 0x82"),
    "another kind of key": ({"header": {2: b"\x03"}}, UnsupportedError, "key type 3"),
    "another vendor": ({"header": {12: b"\x94"}}, UnsupportedError, "not intel's"),
    "the body of an enclave": ({"version": 5, "body_type": 1}, EvidenceError, "sgx enclave"),
    "an unknown body": ({"version": 5, "body_type": 4}, UnsupportedError, "body type 4"),
    "no qe report": ({"certification": (5, 5)}, UnsupportedError, "type 5 are not known"),
    **{
        f"certification data of type {kind}": (
            {"certification": (6, kind)},
            UnsupportedError,
            f"type {kind}.* no chain",
        )
        for kind in (1, 2, 3, 4, 6, 7, 99)
    },
    "a module signed by another": ({"body": {0x40: b"\1"}}, EvidenceError, "tdx module"),
    "a module with attributes": ({"body": {0x70: b"\1"}}, EvidenceError, "tdx module"),
    "a quoting enclave under debug": ({"qe": {0x30: b"\x17"}}, EvidenceError, "enclave may be debugged"),
    "another attestation key": ({"qe": {0x140: bytes(32)}}, EvidenceError, "another attestation key"),
    "more in the qe's report data": ({"qe": {0x17F: b"\1"}}, EvidenceError, "another attestation key"),
    "a quote signed by another key": ({"signer": "other"}, EvidenceError, "signature of the tdx quote"),
    "a qe report signed by another key": ({"pck_signer": "other"}, EvidenceError, "of the qe report"),
    "no chain": ({"chain": b""}, MalformedError, "not a sequence"),
    "text before the chain": ({"chain": b"x\n" + pem(pck_ca())}, MalformedError, "not a sequence"),
    "text behind the chain": ({"chain": pem(pck_ca()) + b"x"}, MalformedError, "not a sequence"),
    "a block that is no certificate": (
        {"chain": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        MalformedError,
        "cannot be read",
    ),
    "a chain that is too long": ({"chain": pem(pck_ca()) * 60}, MalformedError, "too large"),
}


@pytest.mark.parametrize("case", FORMS.values(), ids=FORMS)
def test_a_quote_of_a_form_that_cannot_be_is_refused(
    case: tuple[dict[str, Any], type[QuotaryError], str],
) -> None:
    changes, error, message = case
    with pytest.raises(error, match=message):
        verified(TdxForge(**changes))


@pytest.mark.parametrize(("version", "body_type"), KINDS)
def test_every_field_of_a_quote_takes_all_of_its_length_and_nothing_more(
    version: int, body_type: int
) -> None:
    forge = TdxForge(version, body_type)
    for data in (forge.quote(extra=b"\0"), forge.quote(inner=b"\0")):
        with pytest.raises(MalformedError, match="1 trailing bytes"):
            verified(forge, data)
    whole = forge.quote()
    for length in (*range(8, 900), len(whole) - 1):
        with pytest.raises(MalformedError):
            parse_tdx_quote(whole[:length])


def test_a_body_whose_size_does_not_fit_its_type_is_malformed() -> None:
    quote = bytearray(TdxForge(5, 3).quote())
    for kind, size in ((2, 648), (3, 584), (3, 647)):
        quote[48:54] = kind.to_bytes(2, "little") + size.to_bytes(4, "little")
        with pytest.raises(MalformedError, match=f"of type {kind} has"):
            parse_tdx_quote(bytes(quote))


def test_the_type_of_a_body_is_signed() -> None:
    forge = TdxForge(5, 3)
    quote = forge.quote()
    shorter = quote[:48] + b"\2\0" + (584).to_bytes(4, "little") + quote[54 : 54 + 584] + quote[54 + 648 :]
    with pytest.raises(EvidenceError, match="signature of the tdx quote"):
        verified(forge, shorter)


def test_an_attestation_key_that_is_no_point_is_malformed() -> None:
    forge = TdxForge()
    off = raw_point(key("attestation"))[:-1] + bytes((raw_point(key("attestation"))[-1] ^ 1,))
    forge.qe[0x140] = hashlib.sha256(off + forge.auth).digest()
    quote = forge.quote().replace(raw_point(key("attestation")), off)
    with pytest.raises(MalformedError, match="no point"):
        verified(forge, quote)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"\x81" + bytes(1023), EvidenceError, "a tdreport is no quote"),
        (b"\xd2\x84" + bytes(9000), UnsupportedError, "cbor web token"),
        (b"\xd8\x3d\xd2\x84" + bytes(9000), UnsupportedError, "cbor web token"),
        (b"\x84\x43" + bytes(9000), UnsupportedError, "cbor web token"),
        (b"", MalformedError, "ends at byte 0"),
        (bytes(1 << 17), MalformedError, "larger than"),
    ],
    ids=["tdreport", "tagged cose", "tagged cwt", "bare cose", "nothing", "too large"],
)
def test_what_is_no_tdx_quote_is_refused_by_its_name(
    data: bytes, error: type[QuotaryError], message: str
) -> None:
    with pytest.raises(error, match=message):
        parse_tdx_quote(data)


def chain(leaf: dict[str, Any] | None = None, ca: dict[str, Any] | None = None) -> bytes:
    made = certificate(**{"subject": PCK_CA, "issuer": ROOT, "ca": True, "path_length": 0, **(ca or {})})
    return pem(TdxForge(pck=leaf or {}).pck_certificate(), made, root_certificate())


PATHS: dict[str, tuple[Callable[[], bytes], type[QuotaryError], str]] = {
    "a pck of another name": (lambda: chain({"subject": SIGNING}), EvidenceError, "is expected, not of"),
    "a pck that is expired": (lambda: chain({"days": (-9, -1)}), OutOfTimeError, "is not valid at"),
    "a pck that is not yet valid": (lambda: chain({"days": (1, 9)}), OutOfTimeError, "is not valid at"),
    "a pck that may sign certificates": (lambda: chain({"ca": True}), EvidenceError, "does not hold"),
    "a pck without constraints": (lambda: chain({"ca": None}), EvidenceError, "does not hold"),
    "a pck with the usage of a ca": (lambda: chain({"usage": False}), EvidenceError, "does not hold"),
    "a pck signed by another": (lambda: chain({"signer": "other"}), EvidenceError, "does not hold"),
    "a pck of another issuer": (lambda: chain({"issuer": "Other CA"}), EvidenceError, "does not hold"),
    "a ca that is expired": (lambda: chain(ca={"days": (-9, -1)}), OutOfTimeError, "is not valid at"),
    "a ca signed by another": (lambda: chain(ca={"signer": "other"}), EvidenceError, "does not hold"),
    "a ca that is none": (lambda: chain(ca={"ca": False, "path_length": None}), EvidenceError, "does not hold"),
    "another root": (
        lambda: pem(TdxForge().pck_certificate(), pck_ca(), certificate(ROOT, ROOT, ca=True, public="x", signer="x")),
        EvidenceError,
        "a root that is not trusted",
    ),
    "no ca": (lambda: pem(TdxForge().pck_certificate(), root_certificate()), EvidenceError, "does not hold"),
    "a pck alone": (lambda: pem(TdxForge().pck_certificate()), MalformedError, "1 certificates, where 3"),
    "four certificates": (lambda: pem(*[pck_ca()] * 4), MalformedError, "4 certificates, where 3"),
    "a pck under the root": (
        lambda: pem(TdxForge(pck={"issuer": ROOT}).pck_certificate(), pck_ca()),
        EvidenceError,
        "does not have 3 certificates",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PATHS.values(), ids=PATHS)
def test_a_chain_that_does_not_lead_from_a_pck_to_the_root_is_refused(
    case: tuple[Callable[[], bytes], type[QuotaryError], str],
) -> None:
    make, error, message = case
    with pytest.raises(error, match=message):
        verified(TdxForge(chain=make()))


def test_a_chain_verifies_without_its_root_and_with_zero_bytes_behind() -> None:
    for given in (pem(TdxForge().pck_certificate(), pck_ca()), chain() + b"\0"):
        verified(TdxForge(chain=given))


def test_intels_own_root_does_not_vouch_for_what_another_signed() -> None:
    with pytest.raises(EvidenceError):
        verify_tdx(TdxForge().quote(), None, NOW, report_data=BOUND, root=intel_root())


def test_a_path_is_valid_when_all_of_its_certificates_are() -> None:
    forge = TdxForge(pck={"days": (-20, 20)})
    claims = verified(forge)
    assert (claims.signer.not_before, claims.signer.not_after) == (NOW - timedelta(20), NOW + timedelta(20))
    verified(forge, at=NOW + timedelta(20))
    with pytest.raises(OutOfTimeError, match="is not valid at") as caught:
        verified(forge, at=NOW + timedelta(20, 1))
    assert (caught.value.not_before, caught.value.not_after) == (NOW - timedelta(20), NOW + timedelta(20))


def test_a_pck_key_that_is_not_on_p256_is_not_supported() -> None:
    for private in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        with pytest.raises(UnsupportedError, match="not on p-256"):
            verified(TdxForge(pck={"own_key": private}))


PLATFORM = Platform()
EXTENSIONS: dict[str, tuple[bytes, str]] = {
    "none": (b"", "which platform"),
    "no sequence": (encode(0x04, b"x"), "not one sequence"),
    "two sequences": (PLATFORM.extension() * 2, "not one sequence"),
    "an element that is cut off": (PLATFORM.extension()[:-1], "truncated"),
    "no ppid": (PLATFORM.extension({b"\x01": b""}), "lacks value 1"),
    "no tcb": (PLATFORM.extension({b"\x02": b""}), "lacks value 2"),
    "a tcb that is none": (PLATFORM.extension({b"\x02": number(1)}), "lacks value 2"),
    "an empty tcb": (PLATFORM.extension({b"\x02": encode(0x30, b"")}), r"lacks value 2\.1"),
    "no fmspc": (PLATFORM.extension({b"\x04": b""}), "lacks value 4"),
    "a short fmspc": (PLATFORM.extension({b"\x04": encode(0x04, b"x")}), "has 1 bytes"),
    "a type that is negative": (PLATFORM.extension({b"\x05": encode(0x0A, b"\x80")}), "no small number"),
    "a type that is huge": (PLATFORM.extension({b"\x05": encode(0x0A, bytes(4))}), "no small number"),
    "a name without a value": (
        encode(0x30, encode(0x30, encode(0x06, bytes.fromhex("2a864886f84d010d0101")))),
        "truncated",
    ),
    "a value with more behind it": (
        encode(0x30, encode(0x30, encode(0x06, bytes.fromhex("2a864886f84d010d0101")) + number(1) + b"x")),
        "not of its length",
    ),
    "a value that has no name": (encode(0x30, encode(0x30, number(1) + number(2))), "not made of named"),
}


@pytest.mark.parametrize("case", EXTENSIONS.values(), ids=EXTENSIONS)
def test_a_pck_that_does_not_say_its_platform_is_malformed(case: tuple[bytes, str]) -> None:
    extension, message = case
    with pytest.raises(MalformedError, match=message):
        verified(TdxForge(extension=extension))


def test_a_pck_with_an_extension_that_cannot_be_read_is_malformed() -> None:
    broken = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("2.5.29.31"), b"\x30\x03x"
    )  # no distribution points
    platform = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("1.2.840.113741.1.13.1"), PLATFORM.extension()
    )
    with pytest.raises(MalformedError, match="the pck certificate cannot be read"):
        verified(TdxForge(pck={"extensions": ((platform, False), (broken, False))}))


def test_a_pck_with_a_value_twice_is_malformed() -> None:
    fields = PLATFORM.extension()
    content = fields[4:]
    twice = encode(0x30, content + content)
    with pytest.raises(MalformedError, match="twice"):
        verified(TdxForge(extension=twice))


def test_a_root_has_to_sign_itself() -> None:
    for one in (pck_ca(), tcb_signing()):
        with pytest.raises(MalformedError):
            IntelRoot(one.public_bytes(Encoding.DER))
