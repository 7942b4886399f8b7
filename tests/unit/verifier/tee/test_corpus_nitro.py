# SPDX-License-Identifier: Apache-2.0
"""Every file of the corpus folder `tee/nitro`, with the outcome that its index states."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from corpus import check_certificate, corpus_bytes, entries, judge, needs_corpus
from cryptography import x509

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tee.device_pki import read_certificate
from quotary_verifier.evidence.tee.nitro import (
    NitroRules,
    appraise_nitro,
    nitro_root,
    verify_nitro,
    verify_unbound_nitro,
)
from quotary_verifier.evidence.tee.nitro_document import parse_nitro_document

pytestmark = needs_corpus

Entry = dict[str, Any]
ENTRIES = entries("tee/nitro/")
DOCUMENTS = [one for one in ENTRIES if one["kind"].startswith("nitro-document")]
LATER = datetime(2026, 1, 1, tzinfo=UTC)


def document_of(item: Entry) -> bytes:
    data = corpus_bytes(item["file"])
    if item["kind"] == "nitro-document":
        return data
    names = x509.load_der_x509_certificate(data).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    longest = max(names.value.get_values_for_type(x509.DNSName), key=len)
    return bytes.fromhex(longest.partition(".")[0])


def hexadecimal(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def check_document(item: Entry) -> None:
    expected = item["expected"]
    claims = verify_unbound_nitro(document_of(item), LATER)
    document = claims.document
    assert document.module_id == expected["module_id"]
    assert document.timestamp == expected["timestamp_ms"]
    assert claims.signed_time == datetime.fromisoformat(expected["valid_at"])
    measured = {str(index): value.hex() for index, value in document.pcrs.items() if any(value)}
    assert measured == expected["pcrs"]
    assert [index for index, value in document.pcrs.items() if not any(value)] == expected["zero_pcrs"]
    for name in ("user_data", "nonce", "public_key"):
        assert hexadecimal(getattr(document, name)) == expected[name]
    assert len(document.bundle) == expected["cabundle_length"]
    leaf = read_certificate(document.certificate)
    assert leaf.not_valid_before_utc == datetime.fromisoformat(expected["leaf_not_before"])
    assert leaf.not_valid_after_utc == datetime.fromisoformat(expected["leaf_not_after"])
    assert item["expect"] == "ok"
    assert {len(value) for value in document.pcrs.values()} == {hashlib.new(expected["digest"]).digest_size}
    if "in_certificate" in expected:
        assert expected["in_certificate"] == "hex in the first label of a subjectAltName dNSName"
    assert appraise_nitro(claims, NitroRules()) == ()
    with pytest.raises(EvidenceError, match="user data is not"):
        verify_nitro(document_of(item), LATER, user_data=bytes(32), nonce=bytes(32))


def check_root(item: Entry) -> None:
    der = b64decode(b"".join(corpus_bytes(item["file"]).split(b"-----")[2].split()))
    root = nitro_root()
    assert der == root.der
    assert root.sha256.hex() == item["expected"]["sha256_der"]
    check_certificate(root.certificate, item["expected"])
    assert item["expect"] == "reference"


CHECKS: dict[str, Callable[[Entry], None]] = {
    "ca-certificate": check_root,
    "nitro-document": check_document,
    "nitro-document-in-certificate": check_document,
}


@pytest.mark.parametrize("item", ENTRIES, ids=[one["file"].rpartition("/")[2] for one in ENTRIES])
def test_a_file_of_the_corpus_has_its_stated_outcome(item: Entry) -> None:
    judge(item, CHECKS)


@pytest.mark.parametrize("item", DOCUMENTS, ids=[one["file"].rpartition("/")[2] for one in DOCUMENTS])
@pytest.mark.parametrize("step", [97, pytest.param(1, marks=pytest.mark.slow)])
def test_no_byte_of_a_real_document_can_be_altered(item: Entry, step: int) -> None:
    data = document_of(item)
    for position in range(0, len(data), step):
        altered = data[:position] + bytes((data[position] ^ 0x10,)) + data[position + 1 :]
        with pytest.raises((MalformedError, EvidenceError, UnsupportedError)):
            verify_unbound_nitro(altered, LATER)


def test_a_real_document_was_never_valid_at_the_present_time_and_the_verifier_does_not_ask() -> None:
    document = parse_nitro_document(document_of(DOCUMENTS[0]))
    assert read_certificate(document.certificate).not_valid_after_utc < LATER
