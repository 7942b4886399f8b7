# SPDX-License-Identifier: Apache-2.0
"""Quotes: signature, binding, selection and PCR values."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from soft_tpm import CLOCK, FIRMWARE, SoftKey, attest_bytes, ecc_key, nv_body, quote_body, rsa_key

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tpm_quote import (
    OWN_SELECTION,
    check_extra_data,
    check_pcrs,
    check_qualified_signer,
    check_selection,
    pcr_digest,
    verify_pcr_values,
    verify_quote,
    verify_signature,
)
from quotary_verifier.wire import tpm

KEY = ecc_key()
SIGNER = b"\x00\x0b" + hashlib.sha256(b"signer").digest()
NONCE = hashlib.sha256(b"nonce").digest()
VALUES = {number: hashlib.sha256(bytes((number,))).digest() for number in range(16)}
DIGEST = hashlib.sha256(b"".join(VALUES[number] for number in range(16))).digest()


def quote(
    key: SoftKey = KEY,
    *,
    selections: tuple[tpm.PcrSelection, ...] = (OWN_SELECTION,),
    digest: bytes = DIGEST,
    extra: bytes = NONCE,
    signer: bytes = SIGNER,
) -> bytes:
    return key.evidence(attest_bytes(quote_body(selections, digest), extra=extra, signer=signer))


def verify(
    evidence: bytes, key: SoftKey = KEY, values: Mapping[int, bytes] = VALUES, extra: bytes = NONCE
) -> Mapping[int, bytes]:
    state = verify_quote(
        key.public, evidence, qualified_signer=SIGNER, extra_data=extra, values=values
    )  # fmt: skip
    assert (state.clock, state.firmware_version) == (CLOCK, FIRMWARE)
    return state.pcrs


KEYS = {
    "p256": KEY,
    "p384": ecc_key(tpm.CURVE_P384, hash_alg=tpm.ALG_SHA384),
    "rsassa-2048": rsa_key(),
    "rsassa-3072": rsa_key(3072, hash_alg=tpm.ALG_SHA384),
    "rsapss-2048": rsa_key(scheme=tpm.ALG_RSAPSS),
    "rsapss-3072-sha512": rsa_key(3072, scheme=tpm.ALG_RSAPSS, hash_alg=tpm.ALG_SHA512),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_quote_by_a_key_of_each_kind_verifies(name: str) -> None:
    key = KEYS[name]
    values = b"".join(VALUES[number] for number in range(16))
    digest = hashlib.new(tpm.HASH_NAMES[key.public.scheme_hash or 0], values).digest()
    assert verify(quote(key, digest=digest), key) == VALUES


@pytest.mark.parametrize("name", KEYS)
def test_a_signature_by_another_key_of_the_same_kind_fails(name: str) -> None:
    key = KEYS[name]
    attest = attest_bytes(quote_body((OWN_SELECTION,), DIGEST))
    signature = tpm.parse_signature(key.sign(attest))
    verify_signature(key.public, attest, signature)
    with pytest.raises(EvidenceError, match="does not verify"):
        verify_signature(key.public, attest + b"\x00", signature)


@given(st.integers(0, 144), st.integers(1, 255))
def test_the_signature_covers_every_byte(at: int, change: int) -> None:
    attest = bytearray(attest_bytes(quote_body((OWN_SELECTION,), DIGEST), extra=NONCE, signer=SIGNER))
    signature = tpm.parse_signature(_SIGNED[1])
    assert bytes(attest) == _SIGNED[0]
    attest[at] ^= change
    with pytest.raises(EvidenceError, match="does not verify"):
        verify_signature(KEY.public, bytes(attest), signature)


_SIGNED = tpm.unpack_evidence(quote())


def test_a_pss_signature_under_an_rsassa_key_fails() -> None:
    key = rsa_key()
    attest = attest_bytes(quote_body((OWN_SELECTION,), DIGEST))
    with pytest.raises(EvidenceError, match="scheme and hash that the key fixes"):
        verify_signature(key.public, attest, tpm.parse_signature(key.sign(attest, scheme=tpm.ALG_RSAPSS)))


def test_a_pss_signature_that_is_relabelled_fails() -> None:
    key = rsa_key()
    attest = attest_bytes(quote_body((OWN_SELECTION,), DIGEST))
    signed = key.sign(attest, scheme=tpm.ALG_RSAPSS)
    with pytest.raises(EvidenceError, match="does not verify"):
        verify_signature(key.public, attest, tpm.parse_signature(b"\x00\x14" + signed[2:]))


def test_a_signature_with_another_hash_than_the_keys_fails() -> None:
    attest = attest_bytes(quote_body((OWN_SELECTION,), DIGEST))
    signed = KEY.sign(attest, hash_alg=tpm.ALG_SHA512)
    with pytest.raises(EvidenceError, match="scheme and hash"):
        verify_signature(KEY.public, attest, tpm.parse_signature(signed))


def test_a_signature_with_sha_1_is_refused() -> None:
    key = rsa_key(hash_alg=tpm.ALG_SHA1)
    signature = tpm.Signature(tpm.ALG_RSASSA, tpm.ALG_SHA1, bytes(256), None, None)
    with pytest.raises(EvidenceError, match="sha-1 is refused"):
        verify_signature(key.public, b"", signature)


def test_a_key_that_fixes_no_scheme_verifies_nothing() -> None:
    key = ecc_key(scheme=None, hash_alg=None)
    with pytest.raises(EvidenceError, match="the key fixes"):
        verify_signature(key.public, b"", tpm.parse_signature(key.sign(b"")))


def test_an_ecdsa_signature_under_an_rsa_key_fails() -> None:
    with pytest.raises(EvidenceError, match="the key fixes"):
        verify_signature(rsa_key().public, b"", tpm.parse_signature(KEY.sign(b"")))


@pytest.mark.parametrize(
    "extra",
    [
        b"",
        NONCE[:31],
        NONCE + b"\x00",
        b"\x00" + NONCE[:31],
        base64.b64encode(NONCE),
        NONCE.hex().encode(),
        bytes(32),
    ],
)
def test_extra_data_is_the_expected_digest_and_nothing_else(extra: bytes) -> None:
    with pytest.raises(EvidenceError, match="extraData"):
        verify(quote(extra=extra[:66]))


@pytest.mark.parametrize("expected", [b"", NONCE[:31], NONCE + b"\x00", bytes(48)])
def test_an_expected_digest_of_another_length_is_an_error_of_the_caller(expected: bytes) -> None:
    attest = tpm.parse_attest(attest_bytes(quote_body((), b""), extra=expected))
    with pytest.raises(ValueError, match="not 32"):
        check_extra_data(attest, expected)


def test_the_signer_is_the_key_at_its_place() -> None:
    attest = tpm.parse_attest(attest_bytes(quote_body((), b""), signer=SIGNER))
    check_qualified_signer(attest, SIGNER)
    for other in (KEY.public.name, b"", SIGNER[:-1]):
        with pytest.raises(EvidenceError, match="qualified signer"):
            check_qualified_signer(attest, other)
    with pytest.raises(EvidenceError, match="qualified signer"):
        verify(quote(signer=KEY.public.name))


@pytest.mark.parametrize(
    ("selections", "what"),
    [
        ((), "0 pcr selections"),
        ((OWN_SELECTION, OWN_SELECTION), "2 pcr selections"),
        ((OWN_SELECTION, tpm.PcrSelection(tpm.ALG_SHA384, b"\x00\x00\x00")), "2 pcr selections"),
        ((tpm.PcrSelection(tpm.ALG_SHA256, b"\x00\x00\x00"),), "quoted pcrs are"),
        ((tpm.PcrSelection(tpm.ALG_SHA256, b""),), "quoted pcrs are"),
        ((tpm.PcrSelection(tpm.ALG_SHA256, b"\xff\xff\x01"),), "quoted pcrs are"),
        ((tpm.PcrSelection(tpm.ALG_SHA256, b"\xff\x7f\x00"),), "quoted pcrs are"),
        ((tpm.PcrSelection(tpm.ALG_SHA256, b"\xff\xff"),), "quoted pcrs are"),
        ((tpm.PcrSelection(tpm.ALG_SHA256, b"\xff\xff\x00\x00"),), "quoted pcrs are"),
        ((tpm.PcrSelection(tpm.ALG_SHA384, b"\xff\xff\x00"),), "bank is sha384, not sha256"),
        ((tpm.PcrSelection(tpm.ALG_SHA1, b"\xff\xff\x00"),), "bank is sha1, not sha256"),
        ((tpm.PcrSelection(0x0012, b"\xff\xff\x00"),), "bank is 0x0012, not sha256"),
    ],
)
def test_a_quote_over_another_selection_fails(selections: tuple[tpm.PcrSelection, ...], what: str) -> None:
    chosen = [number for one in selections for number in one.pcrs]
    digest = hashlib.sha256(b"".join(VALUES.get(number, bytes(32)) for number in chosen)).digest()
    with pytest.raises(EvidenceError, match=what):
        verify(quote(selections=selections, digest=digest))


def test_requiring_no_pcr_is_an_error_of_the_caller() -> None:
    nothing = tpm.PcrSelection(tpm.ALG_SHA256, b"\x00\x00\x00")
    with pytest.raises(ValueError, match="no pcr"):
        check_selection(tpm.QuoteInfo((nothing,), bytes(32)), nothing)


def test_our_quotes_cover_pcrs_0_to_15_of_sha_256() -> None:
    assert tpm.PcrSelection(tpm.ALG_SHA256, b"\xff\xff\x00") == OWN_SELECTION
    assert OWN_SELECTION.pcrs == tuple(range(16))


def test_the_pcr_digest_is_by_the_hash_of_the_signature_and_not_of_the_bank() -> None:
    bank = tpm.PcrSelection(tpm.ALG_SHA384, b"\x03\x00\x00")
    values = {0: bytes(48), 1: b"\x01" * 48}
    expected = hashlib.sha256(values[0] + values[1]).digest()
    assert pcr_digest(bank, values, tpm.ALG_SHA256) == expected
    assert pcr_digest(bank, values, tpm.ALG_SHA384) == hashlib.sha384(values[0] + values[1]).digest()
    evidence = quote(selections=(bank,), digest=expected)
    attest, signature = tpm.unpack_evidence(evidence)
    found = check_pcrs(tpm.parse_attest(attest), tpm.parse_signature(signature), values, bank)
    assert found == values


def test_values_are_hashed_in_the_order_of_the_selection() -> None:
    selection = tpm.PcrSelection(tpm.ALG_SHA256, b"\x81\x20\x00")
    expected = hashlib.sha256(VALUES[0] + VALUES[7] + VALUES[13]).digest()
    assert pcr_digest(selection, dict(reversed(VALUES.items())), tpm.ALG_SHA256) == expected


def test_one_changed_value_fails() -> None:
    for number in VALUES:
        with pytest.raises(EvidenceError, match="do not give the quoted digest"):
            verify(quote(), values=VALUES | {number: bytes(32)})


def test_a_missing_value_fails() -> None:
    with pytest.raises(EvidenceError, match="pcr 7 is missing"):
        verify(quote(), values={number: value for number, value in VALUES.items() if number != 7})


@pytest.mark.parametrize("size", [0, 20, 31, 33, 48])
def test_a_value_of_another_size_than_the_banks_fails(size: int) -> None:
    with pytest.raises(EvidenceError, match=f"pcr 3 has {size} bytes, not 32"):
        verify(quote(), values=VALUES | {3: bytes(size)})


def test_bytes_do_not_move_from_one_value_to_the_next() -> None:
    moved = VALUES | {0: VALUES[0] + VALUES[1][:1], 1: VALUES[1][1:]}
    with pytest.raises(EvidenceError, match="pcr 0 has 33 bytes"):
        verify(quote(), values=moved)


def test_values_beside_the_quote_do_not_appear_in_the_result() -> None:
    assert verify(quote(), values=VALUES | {16: bytes(32), 23: b"\x01" * 32, 99: b""}) == VALUES


def test_the_result_cannot_be_changed() -> None:
    found = verify(quote())
    with pytest.raises(TypeError):
        found[0] = bytes(32)  # type: ignore[index]


def test_resettable_pcrs_are_hashed_but_tell_no_history() -> None:
    selection = tpm.PcrSelection(tpm.ALG_SHA256, b"\x80\x00\x81")
    values = {7: VALUES[7], 16: bytes(32), 23: bytes(32)}
    quoted = tpm.QuoteInfo((selection,), hashlib.sha256(VALUES[7] + bytes(64)).digest())
    assert verify_pcr_values(quoted, values, tpm.ALG_SHA256) == {7: VALUES[7]}


def test_banks_of_sha_1_never_count_and_unknown_ones_cannot_be_checked() -> None:
    with pytest.raises(EvidenceError, match="sha-1"):
        pcr_digest(tpm.PcrSelection(tpm.ALG_SHA1, b"\x01"), {0: bytes(20)}, tpm.ALG_SHA256)
    with pytest.raises(UnsupportedError, match="0x0012"):
        pcr_digest(tpm.PcrSelection(0x0012, b"\x01"), {0: bytes(32)}, tpm.ALG_SHA256)


def test_a_valid_structure_of_another_type_is_not_a_quote() -> None:
    certification = attest_bytes(nv_body(SIGNER, bytes(8)), kind=tpm.ST_ATTEST_NV, extra=NONCE, signer=SIGNER)
    with pytest.raises(EvidenceError, match="not a quote but nv certification"):
        verify(KEY.evidence(certification))
    with pytest.raises(EvidenceError, match=r"not a quote but time"):
        verify(KEY.evidence(attest_bytes(bytes(25), kind=0x8019, extra=NONCE, signer=SIGNER)))


def test_a_structure_without_magic_is_refused_before_its_signature_is_looked_at() -> None:
    forged = attest_bytes(quote_body((OWN_SELECTION,), DIGEST), extra=NONCE, signer=SIGNER, magic=0)
    with pytest.raises(EvidenceError, match="magic"):
        verify(KEY.evidence(forged))


def test_evidence_cut_or_extended_anywhere_is_never_anything_but_an_error_of_ours() -> None:
    whole = quote()
    for end in range(len(whole)):
        with pytest.raises(MalformedError):
            verify(whole[:end])
    with pytest.raises(MalformedError, match="trailing"):
        verify(whole + b"\x00")
