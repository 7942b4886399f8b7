# SPDX-License-Identifier: Apache-2.0
"""The start counter, certified by TPM2_NV_Certify."""

from __future__ import annotations

import hashlib

import pytest
from soft_tpm import CLOCK, SoftKey, attest_bytes, ecc_key, nv_body, quote_body

from quotary_verifier.errors import EvidenceError
from quotary_verifier.evidence.tpm_counter import (
    CounterReading,
    check_counter_public,
    check_counter_step,
    verify_counter,
)
from quotary_verifier.wire import tpm

KEY = ecc_key()
SIGNER = b"\x00\x0b" + hashlib.sha256(b"signer").digest()
NONCE = hashlib.sha256(b"nonce").digest()
COUNTER_ATTRIBUTES = 0x2206_0016


def counter(index: int = 0x0181_7100, attributes: int = COUNTER_ATTRIBUTES, size: int = 8) -> tpm.NvPublic:
    return tpm.parse_nv_public(tpm.encode_nv_public(index=index, attributes=attributes, data_size=size))


COUNTER = counter()


def certify(
    *,
    key: SoftKey = KEY,
    name: bytes = COUNTER.name,
    contents: bytes = (42).to_bytes(8, "big"),
    offset: int = 0,
    extra: bytes = NONCE,
    signer: bytes = SIGNER,
) -> bytes:
    body = nv_body(name, contents, offset)
    return key.evidence(attest_bytes(body, kind=tpm.ST_ATTEST_NV, extra=extra, signer=signer))


def verify(evidence: bytes, nv_public: tpm.NvPublic = COUNTER) -> CounterReading:
    return verify_counter(
        KEY.public, evidence, qualified_signer=SIGNER, extra_data=NONCE, nv_public=nv_public
    )


def test_a_certified_counter_gives_its_value_and_the_clock() -> None:
    assert verify(certify()) == CounterReading(42, CLOCK)


def test_the_whole_range_of_a_counter_is_read() -> None:
    assert verify(certify(contents=b"\xff" * 8)).value == 2**64 - 1


def test_a_certification_of_another_index_fails() -> None:
    with pytest.raises(EvidenceError, match="not the start counter"):
        verify(certify(name=counter(0x0181_7101).name))


def test_a_certification_of_the_same_index_defined_otherwise_fails() -> None:
    with pytest.raises(EvidenceError, match="not the start counter"):
        verify(certify(name=counter(attributes=COUNTER_ATTRIBUTES ^ 0x4).name))


@pytest.mark.parametrize("kind", [0x00, 0x20, 0x40, 0x80, 0x90])
def test_an_index_that_is_no_counter_is_refused(kind: int) -> None:
    other = counter(attributes=COUNTER_ATTRIBUTES & ~0xF0 | kind)
    with pytest.raises(EvidenceError, match="is not a counter"):
        verify(certify(name=other.name), other)


def test_a_counter_that_was_never_incremented_is_refused() -> None:
    fresh = counter(attributes=COUNTER_ATTRIBUTES & ~0x2000_0000)
    with pytest.raises(EvidenceError, match="never been incremented"):
        verify(certify(name=fresh.name), fresh)


def test_a_counter_has_eight_bytes() -> None:
    with pytest.raises(EvidenceError, match="has 16 bytes"):
        check_counter_public(counter(size=16))


@pytest.mark.parametrize(("offset", "size"), [(1, 8), (0, 7), (0, 9), (0, 0), (4, 4)])
def test_a_certification_of_a_part_fails(offset: int, size: int) -> None:
    with pytest.raises(EvidenceError, match="whole counter"):
        verify(certify(offset=offset, contents=bytes(size)))


def test_a_certification_for_another_start_fails() -> None:
    with pytest.raises(EvidenceError, match="extraData"):
        verify(certify(extra=bytes(32)))


def test_a_certification_by_another_key_fails() -> None:
    with pytest.raises(EvidenceError, match="does not verify"):
        verify(certify(key=ecc_key()))
    with pytest.raises(EvidenceError, match="qualified signer"):
        verify(certify(signer=KEY.public.name))


def test_a_quote_is_not_a_certification() -> None:
    selection = tpm.PcrSelection(tpm.ALG_SHA256, b"\xff\xff\x00")
    attest = attest_bytes(quote_body([selection], bytes(32)), extra=NONCE, signer=SIGNER)
    with pytest.raises(EvidenceError, match="not an nv certification but quote"):
        verify(KEY.evidence(attest))


@pytest.mark.parametrize(
    ("before", "after", "skipped"), [(0, 1, 0), (1, 2, 0), (1, 5, 3), (7, 2**64 - 1, 2**64 - 9)]
)
def test_a_counter_may_skip_and_tells_how_many(before: int, after: int, skipped: int) -> None:
    assert check_counter_step(before, after) == skipped


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 1), (2**64 - 1, 0)])
def test_a_counter_that_does_not_rise_fails(before: int, after: int) -> None:
    with pytest.raises(EvidenceError, match="did not rise"):
        check_counter_step(before, after)
