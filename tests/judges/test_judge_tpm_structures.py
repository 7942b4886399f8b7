# SPDX-License-Identifier: Apache-2.0
"""TPM structures, read by us and by tpm2-pytss, which marshals them with the TPM2 software stack in C."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from corpus import corpus_bytes, entries, needs_corpus
from hypothesis import given
from hypothesis import strategies as st
from soft_tpm import attest_bytes, ecc_key, nv_body, quote_body, rsa_key

from quotary_verifier.errors import QuotaryError
from quotary_verifier.wire import tpm

os.environ.setdefault("TSS2_LOG", "all+none")
tss = pytest.importorskip("tpm2_pytss")
pytestmark = pytest.mark.judge

ATTESTS = [one["file"] for one in entries("tpm/quote/") if one["file"].endswith(".attest.bin")]
PUBLICS = [one["file"] for one in entries("tpm/quote/") if one["file"].endswith(".tpm2b.bin")]
SIGNATURES = [one["file"] for one in entries("tpm/quote/") if one["file"].endswith(".sig.bin")]
GCE = "tpm/quote/gce-cos85-rsa-nonce9009.json"


def judged(kind: str, data: bytes) -> Any:
    """What the judge reads, which has to be all of the bytes."""
    value, used = getattr(tss, kind).unmarshal(data)
    assert used == len(data)
    return value


def same_attest(data: bytes) -> None:
    ours, theirs = tpm.parse_attest(data), judged("TPMS_ATTEST", data)
    assert (ours.magic, ours.type) == (theirs.magic, theirs.type)
    assert (ours.qualified_signer, ours.extra_data) == (
        bytes(theirs.qualifiedSigner),
        bytes(theirs.extraData),
    )
    clock = theirs.clockInfo
    counts = clock.clock, clock.resetCount, clock.restartCount, bool(clock.safe)
    assert (ours.clock, ours.firmware_version) == (tpm.ClockInfo(*counts), theirs.firmwareVersion)
    if ours.quote is not None:
        chosen = [
            (one.hash, bytes(one.pcrSelect[0 : one.sizeofSelect])) for one in theirs.attested.quote.pcrSelect
        ]
        assert [(one.hash_alg, one.bitmap) for one in ours.quote.selections] == chosen
        assert ours.quote.pcr_digest == bytes(theirs.attested.quote.pcrDigest)
    if ours.nv is not None:
        nv = theirs.attested.nv
        assert ours.nv == tpm.NvInfo(bytes(nv.indexName), nv.offset, bytes(nv.nvContents))


def same_public(data: bytes) -> None:
    ours, theirs = tpm.parse_public(data), judged("TPMT_PUBLIC", data)
    assert (ours.type, ours.name_alg, ours.attributes) == (
        theirs.type,
        theirs.nameAlg,
        theirs.objectAttributes,
    )
    assert ours.auth_policy == bytes(theirs.authPolicy)
    assert ours.name == bytes(theirs.get_name())
    assert ours.to_spki_der() == theirs.to_der()


def same_signature(data: bytes) -> None:
    ours, theirs = tpm.parse_signature(data), judged("TPMT_SIGNATURE", data)
    assert ours.alg == theirs.sigAlg
    if ours.rsa is None:
        ecdsa = theirs.signature.ecdsa
        r, s = (int.from_bytes(bytes(part), "big") for part in (ecdsa.signatureR, ecdsa.signatureS))
        assert (ours.hash_alg, ours.r, ours.s) == (ecdsa.hash, r, s)
    else:
        assert (ours.hash_alg, ours.rsa) == (theirs.signature.rsassa.hash, bytes(theirs.signature.rsassa.sig))


@needs_corpus
@pytest.mark.parametrize("file", ATTESTS)
def test_attestations_of_the_corpus_read_alike(file: str) -> None:
    data = corpus_bytes(file)
    if judged("TPMS_ATTEST", data).type in {tpm.ST_ATTEST_QUOTE, tpm.ST_ATTEST_NV}:
        same_attest(data)


@needs_corpus
@pytest.mark.parametrize("file", PUBLICS)
def test_public_areas_of_the_corpus_read_alike(file: str) -> None:
    same_public(corpus_bytes(file)[2:])


@needs_corpus
@pytest.mark.parametrize("file", SIGNATURES)
def test_signatures_of_the_corpus_read_alike(file: str) -> None:
    same_signature(corpus_bytes(file))


@needs_corpus
def test_quotes_of_a_cloud_read_alike() -> None:
    found = json.loads(corpus_bytes(GCE))
    same_public(bytes.fromhex(found["ak_pub_tpmt_hex"]))
    for quote in found["quotes"]:
        same_attest(bytes.fromhex(quote["tpms_attest"]))
        same_signature(bytes.fromhex(quote["tpmt_signature"]))


@pytest.mark.parametrize(
    "key",
    [
        ecc_key(),
        ecc_key(tpm.CURVE_P384, hash_alg=tpm.ALG_SHA384),
        rsa_key(),
        rsa_key(3072, scheme=tpm.ALG_RSAPSS),
        rsa_key(
            attributes=0x300B2,
            scheme=None,
            hash_alg=None,
            symmetric=tpm.SymmetricDefinition(tpm.ALG_AES, 128, tpm.ALG_CFB),
        ),
    ],
    ids=["p256", "p384", "rsassa", "rsapss", "endorsement key"],
)
def test_what_we_encode_the_judge_reads(key: Any) -> None:
    same_public(key.public.raw)
    if key.public.scheme is not None:
        same_signature(key.sign(b"message"))


def test_an_nv_public_area_reads_alike() -> None:
    data = tpm.encode_nv_public(index=0x0181_7100, attributes=0x2206_0016, data_size=8, auth_policy=bytes(32))
    ours, theirs = tpm.parse_nv_public(data), judged("TPMS_NV_PUBLIC", data)
    assert (ours.index, ours.attributes, ours.data_size) == (
        theirs.nvIndex,
        theirs.attributes,
        theirs.dataSize,
    )
    assert ours.name == bytes(theirs.get_name())


WHOLE = [
    attest_bytes(
        quote_body([tpm.PcrSelection(tpm.ALG_SHA256, b"\xff\xff\x00")], bytes(32)), signer=bytes(34)
    ),
    attest_bytes(nv_body(bytes(34), bytes(8)), kind=tpm.ST_ATTEST_NV),
]


@given(st.sampled_from(WHOLE), st.data())
def test_damaged_attestations_that_both_accept_read_alike(whole: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + data.draw(st.binary(min_size=1, max_size=2)) + whole[at + 1 :]
    try:
        tpm.parse_attest(damaged)
        tss.TPMS_ATTEST.unmarshal(damaged)
    except (QuotaryError, tss.TSS2_Exception):
        return
    same_attest(damaged)
