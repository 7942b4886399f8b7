# SPDX-License-Identifier: Apache-2.0
"""Every file of the corpus folder `tee/cca`, and tokens that the tests mint themselves."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from typing import Any

import cbor2
import pytest
from cca_tokens import BOUND, CPAK, RAK, sign1, spki, token
from corpus import corpus_bytes, corpus_root, entries, needs_corpus
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from quotary_verifier.errors import EvidenceError, MalformedError, QuotaryError, UnsupportedError
from quotary_verifier.evidence.tee.cca import CcaClaims, verify_cca

ENTRIES = entries("tee/cca/")
TOKEN = "tee/cca/cca-token-emulator.cbor"
KEY = "tee/cca/cpak-public.jwk.json"


def corpus_key() -> bytes:
    jwk = json.loads(corpus_bytes(KEY))
    x, y = (int.from_bytes(urlsafe_b64decode(jwk[name] + "=="), "big") for name in "xy")
    return spki(ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key())


def corpus_challenge() -> bytes:
    token = cbor2.loads(corpus_bytes(TOKEN)).value
    challenge = cbor2.loads(cbor2.loads(token[44241]).value[2])[10]
    assert isinstance(challenge, bytes)
    return challenge


def check_token(item: dict[str, Any]) -> None:
    claims = verify_cca(corpus_bytes(item["file"]), corpus_key(), challenge=corpus_challenge())
    assert item["expect"] == "ok"
    assert (claims.kind, claims.hash_name, claims.secured) == ("arm-cca", "sha-512", True)
    assert set(claims.measurements) == {"rim", "rem0", "rem1", "rem2", "rem3"}
    assert claims.initial.hex().startswith("ae87fbf7")
    assert len(claims.device) == 33


def check_key(item: dict[str, Any]) -> None:
    assert item["expect"] == "reference"
    assert corpus_key()
    with pytest.raises(EvidenceError, match="platform token of arm cca does not verify"):
        verify_cca(corpus_bytes(TOKEN), spki(CPAK.public_key()), challenge=corpus_challenge())


CHECKS = {"cca-token": check_token, "public-key": check_key}


@needs_corpus
@pytest.mark.parametrize("item", ENTRIES, ids=lambda item: item["file"].removeprefix("tee/"))
def test_a_file_of_the_corpus_has_its_stated_outcome(item: dict[str, Any]) -> None:
    CHECKS[item["kind"]](item)


@needs_corpus
def test_every_file_of_this_folder_is_in_the_index() -> None:
    root = corpus_root()
    assert root is not None
    assert {one["file"] for one in ENTRIES} == {
        f"tee/cca/{path.name}" for path in (root / "tee" / "cca").iterdir()
    }


@needs_corpus
def test_a_token_with_any_byte_altered_is_rejected() -> None:
    data, key, challenge = corpus_bytes(TOKEN), corpus_key(), corpus_challenge()
    for at in range(len(data)):
        changed = data[:at] + bytes((data[at] ^ (1 << at % 8),)) + data[at + 1 :]
        with pytest.raises(QuotaryError):
            verify_cca(changed, key, challenge=challenge)


def verified(data: bytes, key: bytes | None = None) -> CcaClaims:
    return verify_cca(data, key or spki(CPAK.public_key()), challenge=BOUND)


def test_a_minted_token_verifies() -> None:
    claims = verified(token())
    assert (claims.challenge, claims.measurements["rim"], claims.device) == (BOUND, b"\1" * 32, b"\3" * 33)
    assert not verified(token(platform={2395: 0x2000})).secured


REFUSED: dict[str, tuple[bytes, type[QuotaryError], str]] = {
    "no tag": (token()[3:], MalformedError, "tag 399"),
    "more behind it": (token() + b"\0", MalformedError, "bytes follow"),
    "no realm token": (token(tokens={44241: None}), MalformedError, "a platform token and a realm token"),
    "another token": (token(tokens={7: b"x"}), MalformedError, "a platform token and a realm token"),
    "a token without its tag": (
        token(tokens={44241: sign1({}, RAK)[1:]}),
        MalformedError,
        "a tagged COSE_Sign1",
    ),
    "a fifth part": (token(tokens={44241: sign1({}, RAK, rest=(1,))}), MalformedError, "without unprotected"),
    "claims that are none": (token(tokens={44241: sign1([], RAK)}), MalformedError, "are maps"),
    "another algorithm": (
        token(tokens={44241: sign1({}, RAK, header={1: -8})}),
        UnsupportedError,
        "not known",
    ),
    "another header": (
        token(tokens={44241: sign1({}, RAK, header={1: -35, 4: b""})}),
        UnsupportedError,
        "not known",
    ),
    "the algorithm of another key": (
        token(tokens={44234: sign1({}, CPAK, header={1: -7})}),
        EvidenceError,
        "an algorithm of another key",
    ),
    "a longer signature": (token(tokens={44234: sign1({}, CPAK, size=49)}), MalformedError, "has 96 bytes"),
    "another challenge": (token({10: bytes(64)}), EvidenceError, "the challenge is not"),
    "another realm key": (token(platform={10: bytes(32)}), EvidenceError, "for another realm key"),
    "a realm key in another form": (token({44237: b"\4" * 98}), UnsupportedError, "not a point"),
    "a realm key that is none": (token({44237: b"\4" * 97}), MalformedError, "is no point"),
    "a hash that is not known": (token({44240: "md5"}), UnsupportedError, "the hash 'md5'"),
    "a hash that is none": (token({44236: 5}), MalformedError, "not text"),
    "too few measurements": (token({44239: [bytes(32)] * 3}), MalformedError, "five measurements of 32"),
    "a short measurement": (token({44238: bytes(31)}), MalformedError, "five measurements of 32"),
    "no lifecycle": (token(platform={2395: "x"}), MalformedError, "no lifecycle"),
    "no implementation": (token(platform={2396: 7}), MalformedError, "claim 2396"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_token_that_does_not_hold_is_refused(case: tuple[bytes, type[QuotaryError], str]) -> None:
    data, error, message = case
    with pytest.raises(error, match=message):
        verified(data)


def test_a_realm_token_signed_by_another_key_is_refused() -> None:
    realm = cbor2.loads(cbor2.loads(cbor2.loads(token()).value[44241]).value[2])
    with pytest.raises(EvidenceError, match="realm token of arm cca does not verify"):
        verified(token(tokens={44241: sign1(dict(realm), CPAK)}))


def test_what_is_given_has_to_be_a_challenge_of_64_bytes_and_a_key_on_a_curve() -> None:
    with pytest.raises(ValueError, match="challenge"):
        verify_cca(token(), spki(CPAK.public_key()), challenge=BOUND[:32])
    with pytest.raises(MalformedError, match="platform key"):
        verified(token(), b"x")
    with pytest.raises(UnsupportedError, match="not on a curve"):
        verified(token(), spki(rsa.generate_private_key(65537, 2048).public_key()))
