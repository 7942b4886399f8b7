# SPDX-License-Identifier: Apache-2.0
"""AWS Nitro documents of a maker of our own: every refusal, and what appraisal makes of what holds."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from device_forge import DIGEST, GENESIS, NOW, NitroForge, device_root, issue, path_of

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.device_pki import PinnedRoot
from quotary_verifier.evidence.tee.nitro import (
    KIND_ENCLAVE,
    KIND_TPM,
    NitroClaims,
    NitroRules,
    appraise_nitro,
    nitro_root,
    verify_nitro,
    verify_unbound_nitro,
)
from quotary_verifier.evidence.tee.nitro_document import parse_nitro_document
from quotary_verifier.evidence.tee.shape import enforce
from quotary_verifier.pki.revocation import Revocation

FORGE = NitroForge()
DOCUMENT = FORGE.document()
ROOT = PinnedRoot(FORGE.root.der)


def verified(document: bytes = DOCUMENT, at: datetime = NOW, **named: Any) -> NitroClaims:
    return verify_nitro(document, at, **({"user_data": DIGEST, "nonce": GENESIS, "root": ROOT} | named))


def test_a_document_that_holds_says_what_it_binds_measures_and_by_whom() -> None:
    claims = verified()
    assert (claims.kind, claims.device) == (KIND_ENCLAVE, b"i-1-enc2")
    assert claims.measurements["pcr0"] == b"\x01" * 48
    assert claims.signed_time == NOW
    assert not claims.debug
    assert claims.shown == ("user-data", "nonce", "signature", "chain", "signed-time")
    assert claims.not_shown == ("revocation",)
    assert claims.signer.root_sha256 == ROOT.sha256
    assert claims.signer.revocation is Revocation.UNKNOWN
    assert appraise_nitro(claims, NitroRules()) == ()


def test_the_tag_of_cose_may_stand_before_a_document_once() -> None:
    tagged = replace(FORGE, tag=b"\xd2").document()
    assert verified(tagged).document.module_id == "i-1-enc2"
    with pytest.raises(MalformedError):
        verified(b"\xd2" + tagged)
    with pytest.raises(MalformedError):
        verified(replace(FORGE, tag=b"\xd1").document())


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_no_byte_of_a_document_can_be_altered(step: int) -> None:
    for position in range(0, len(DOCUMENT), step):
        altered = DOCUMENT[:position] + bytes((DOCUMENT[position] ^ 0x01,)) + DOCUMENT[position + 1 :]
        with pytest.raises((MalformedError, EvidenceError, UnsupportedError)):
            verified(altered)


def test_no_part_of_a_document_is_one_and_nothing_may_follow() -> None:
    for length in range(0, len(DOCUMENT), 7):
        with pytest.raises(MalformedError):
            verified(DOCUMENT[:length])
    with pytest.raises(MalformedError, match="bytes follow"):
        verified(DOCUMENT + b"\0")
    with pytest.raises(MalformedError, match="too large"):
        verified(DOCUMENT + bytes(16 * 1024))


@pytest.mark.parametrize(
    ("payload", "error", "why"),
    [
        ({"digest": "SHA256"}, UnsupportedError, "not of sha-384"),
        ({"surprise": 1}, UnsupportedError, "'surprise'"),
        ({"module_id": ""}, MalformedError, "no module"),
        ({"module_id": 5}, MalformedError, "no module"),
        ({"timestamp": 0}, MalformedError, "no time"),
        ({"timestamp": 1 << 60}, MalformedError, "no time"),
        ({"cabundle": []}, MalformedError, "no bundle"),
        ({"cabundle": [b"x"] * 7}, MalformedError, "no bundle"),
        ({"certificate": bytes(1025)}, MalformedError, "1 to 1024 bytes"),
        ({"certificate": b"\x30\x00"}, MalformedError, "cannot be read"),
        ({"pcrs": {}}, MalformedError, "1 to 32 pcrs"),
        ({"pcrs": {32: bytes(48)}}, MalformedError, "a number below 32"),
        ({"pcrs": {0: bytes(32)}}, MalformedError, "with 48 bytes"),
        ({"pcrs": [bytes(48)]}, MalformedError, "1 to 32 pcrs"),
        ({"nitrotpm_pcrs": {0: bytes(48)}}, MalformedError, "of an enclave or those of a tpm"),
        ({"user_data": bytes(1025)}, MalformedError, "user_data"),
        ({"nonce": "text"}, MalformedError, "nonce"),
        ({"user_data": None}, EvidenceError, "the user data is not"),
        ({"user_data": DIGEST[:31]}, EvidenceError, "the user data is not"),
        ({"user_data": DIGEST + b"\0"}, EvidenceError, "the user data is not"),
        ({"nonce": None}, EvidenceError, "the nonce is not"),
        ({"nonce": DIGEST}, EvidenceError, "the nonce is not"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_signed_document_with_another_field_is_refused(
    payload: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        verified(FORGE.having(**payload).document())


def test_a_document_without_pcrs_or_with_a_key_twice_is_malformed() -> None:
    with pytest.raises(MalformedError, match="of an enclave or those of a tpm"):
        verified(replace(FORGE, without=("pcrs",)).document())
    payload = b"\xa2" + 2 * (cbor2.dumps("digest") + cbor2.dumps("SHA384"))
    with pytest.raises(MalformedError, match="not strict CBOR"):
        parse_nitro_document(cbor2.dumps([FORGE.protected, {}, payload, bytes(96)]))


def test_a_document_whose_parts_are_of_other_types_is_malformed() -> None:
    parts = cbor2.loads(DOCUMENT)
    for place in (0, 2, 3):
        with pytest.raises(MalformedError, match="as byte strings"):
            parse_nitro_document(cbor2.dumps([*parts[:place], "text", *parts[place + 1 :]]))
    with pytest.raises(MalformedError, match="not a map"):
        parse_nitro_document(cbor2.dumps([parts[0], {}, cbor2.dumps([1]), parts[3]]))
    for other in (parts[:3], [*parts, b""], {1: 2}):
        with pytest.raises(MalformedError, match="COSE_Sign1"):
            parse_nitro_document(cbor2.dumps(other))


@pytest.mark.parametrize(
    "protected",
    [{1: -7}, {1: -36}, {1: -35, 4: b"key"}, {1: -35, 2: [1]}, {}, {1: "ES384"}],
    ids=str,
)
def test_an_algorithm_or_header_other_than_es384_alone_is_not_supported(protected: dict[int, Any]) -> None:
    with pytest.raises(UnsupportedError, match="ES384 alone"):
        verified(replace(FORGE, protected=cbor2.dumps(protected)).document())


def test_unprotected_headers_and_signatures_of_another_length_are_malformed() -> None:
    with pytest.raises(MalformedError, match="unprotected"):
        verified(replace(FORGE, unprotected={4: b"key"}).document())
    parts = cbor2.loads(DOCUMENT)
    for signature in (parts[3][:-1], parts[3] + b"\0", b""):
        with pytest.raises(MalformedError, match="signature"):
            verified(cbor2.dumps([*parts[:3], signature]))


def test_the_path_is_checked_at_the_signed_time_and_not_at_the_present_one() -> None:
    years_later = NOW + timedelta(days=3000)
    assert verified(at=years_later).signed_time == NOW
    stale = replace(FORGE, time=NOW + timedelta(days=2)).document()
    with pytest.raises(EvidenceError, match="path of the device is not valid at"):
        verified(stale, at=years_later)
    early = replace(FORGE, time=NOW - timedelta(days=2)).document()
    with pytest.raises(EvidenceError, match="path of the device is not valid at"):
        verified(early, at=years_later)


def test_a_document_of_the_future_is_refused() -> None:
    assert verified(at=NOW - timedelta(minutes=4))
    with pytest.raises(EvidenceError, match="yet to come"):
        verified(at=NOW - timedelta(minutes=6))


def test_another_root_is_refused_wherever_it_stands() -> None:
    with pytest.raises(EvidenceError, match="not the pinned one"):
        verified(root=nitro_root())
    other = device_root("another root")
    with pytest.raises(EvidenceError, match="not the pinned one"):
        verified(NitroForge(root=other, path=path_of(other)).document())
    # the pinned root at its place, and a path to another one
    with pytest.raises(EvidenceError, match="does not hold"):
        verified(NitroForge(path=path_of(other)).document())


def test_a_path_with_a_fault_is_refused() -> None:
    root = FORGE.root
    first = issue("ca 1", 1, root)
    no_ca = issue("ca 2", 2, first, ca=False)
    no_signer = issue("ca 2", 2, first, usage=["crl_sign"])
    gone = issue("ca 2", 2, first, begins=NOW - timedelta(days=9))
    for second in (no_ca, no_signer, gone):
        path = (issue("device", 3, second, ca=False), second, first)
        with pytest.raises(EvidenceError, match=r"does not hold|at no time"):
            verified(NitroForge(path=path).document())
    for leaf in (
        {"ca": True},
        {"ca": True, "usage": ["digital_signature"]},
        {"usage": ["key_encipherment"]},
        {"usage": ["digital_signature", "key_cert_sign"]},
    ):
        with pytest.raises(EvidenceError, match="does not hold"):
            verified(NitroForge(path=path_of(root, leaf=leaf)).document())
    device, second, first = path_of(root)
    with pytest.raises(EvidenceError, match="does not hold"):
        verified(NitroForge(path=(device, second)).document())
    with pytest.raises(EvidenceError, match="not exactly one path"):
        verified(NitroForge(path=(device, second, first, issue("stranger", 9, root))).document())


def test_a_leaf_on_another_curve_is_not_supported() -> None:
    other = ec.derive_private_key(5, ec.SECP256R1())
    path = path_of(FORGE.root, leaf={"key": other, "ca": False})
    with pytest.raises(UnsupportedError, match="not on p-384"):
        verified(NitroForge(path=path).document())


def test_a_document_signed_by_another_key_of_the_same_maker_is_refused() -> None:
    stranger = issue("stranger", 9, FORGE.path[1], ca=False)
    document = NitroForge(path=(stranger, *FORGE.path[1:])).having(certificate=FORGE.path[0].der).document()
    with pytest.raises(EvidenceError, match="not signed by the key of its certificate"):
        verified(document)


def test_expected_values_that_are_no_digests_are_a_mistake_of_the_caller() -> None:
    for wrong in ({"user_data": b""}, {"nonce": DIGEST[:31]}, {"at": NOW.replace(tzinfo=None)}):
        with pytest.raises(ValueError, match=r"32 bytes|time zone"):
            verified(**wrong)


def test_an_enclave_in_debug_mode_verifies_and_is_refused_by_default() -> None:
    zero = {number: bytes(48) if number < 3 else b"\x01" * 48 for number in range(16)}
    claims = verified(FORGE.having(pcrs=zero).document())
    assert claims.debug
    (finding,) = appraise_nitro(claims, NitroRules())
    assert finding.rule == "nitro.debug"
    with pytest.raises(EvidenceError, match="debug mode"):
        enforce([finding])
    assert appraise_nitro(claims, NitroRules(debug=True)) == ()
    absent = verified(FORGE.having(pcrs={3: b"\x01" * 48}).document())
    assert absent.debug


def test_a_nitro_tpm_is_another_kind_that_has_to_be_accepted_by_name() -> None:
    forge = replace(FORGE.having(nitrotpm_pcrs={4: b"\x07" * 48, 0: b"\x01" * 48}), without=("pcrs",))
    claims = verified(forge.document())
    assert claims.kind == KIND_TPM
    assert [finding.rule for finding in appraise_nitro(claims, NitroRules())] == ["nitro.kind"]
    rules = NitroRules(kinds=frozenset({KIND_TPM}), pcrs={4: frozenset({b"\x07" * 48})})
    assert appraise_nitro(claims, rules) == ()


def test_every_rule_that_is_broken_is_named() -> None:
    rules = NitroRules(
        kinds=frozenset({KIND_TPM}),
        pcrs={0: frozenset({bytes(48)}), 31: frozenset({bytes(48)})},
        modules=frozenset({"i-2"}),
        max_age=timedelta(hours=1),
    )
    findings = appraise_nitro(verified(at=NOW + timedelta(hours=2)), rules)
    assert [finding.rule for finding in findings] == [
        "nitro.kind", "nitro.pcr", "nitro.pcr", "nitro.module", "nitro.age",
    ]  # fmt: skip
    assert "pcr 31 is absent" in findings[2].message
    with pytest.raises(EvidenceError, match=r"\(and 4 more\)"):
        enforce(findings)


def test_a_document_that_was_made_for_others_says_that_its_binding_was_not_checked() -> None:
    claims = verify_unbound_nitro(FORGE.having(user_data=None, nonce=b"x").document(), NOW, root=ROOT)
    assert claims.shown == ("signature", "chain", "signed-time")
    assert claims.not_shown == ("user-data", "nonce", "revocation")
