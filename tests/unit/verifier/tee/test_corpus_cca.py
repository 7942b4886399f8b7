# SPDX-License-Identifier: Apache-2.0
"""Every file of the corpus folder `tee/cca`."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from typing import Any

import cbor2
import pytest
from cca_tokens import CPAK, platform_key, spki
from corpus import corpus_bytes, corpus_root, entries, judge, needs_corpus
from cryptography.hazmat.primitives.asymmetric import ec

from quotary_verifier.errors import EvidenceError, QuotaryError
from quotary_verifier.evidence.tee.cca import CcaRules, PlatformKey, appraise_cca, verify_cca
from quotary_verifier.evidence.tee.cca_token import LEGACY_PROFILE, Lifecycle

ENTRIES = entries("tee/cca/")
TOKEN = "tee/cca/cca-token-emulator.cbor"
KEY = "tee/cca/cpak-public.jwk.json"


def corpus_key() -> PlatformKey:
    jwk = json.loads(corpus_bytes(KEY))
    x, y = (int.from_bytes(urlsafe_b64decode(jwk[name] + "=="), "big") for name in "xy")
    return PlatformKey(spki(ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()))


def corpus_challenge() -> bytes:
    token = cbor2.loads(corpus_bytes(TOKEN)).value
    challenge = cbor2.loads(cbor2.loads(token[44241]).value[2])[10]
    assert isinstance(challenge, bytes)
    return challenge


def check_token(item: dict[str, Any]) -> None:
    claims = verify_cca(corpus_bytes(item["file"]), [corpus_key()], challenge=corpus_challenge())
    assert item["expect"] == "ok"
    assert item["expected"]["platform_signature"] == "ES384 with cpak"
    assert item["expected"]["realm_key"] == "raw 97-byte P-384 point (older profile)"
    token = claims.token
    assert (claims.kind, token.hash_name, token.state) == ("cca", "sha-512", Lifecycle.SECURED)
    assert (token.profile, token.realm_profile) == (LEGACY_PROFILE, None)
    assert set(claims.measurements) == {"rim", "rem0", "rem1", "rem2", "rem3"}
    assert token.initial.hex().startswith("ae87fbf7")
    assert "RMM" in {component.name for component in token.components}
    assert appraise_cca(claims, CcaRules()) == ()


def check_key(item: dict[str, Any]) -> None:
    assert item["expect"] == "reference"
    assert corpus_key()
    with pytest.raises(EvidenceError, match="platform token of arm cca verifies by no platform key"):
        verify_cca(corpus_bytes(TOKEN), [platform_key(CPAK)], challenge=corpus_challenge())


CHECKS = {"cca-token": check_token, "public-key": check_key}


@needs_corpus
@pytest.mark.parametrize("item", ENTRIES, ids=lambda item: item["file"].removeprefix("tee/"))
def test_a_file_of_the_corpus_has_its_stated_outcome(item: dict[str, Any]) -> None:
    judge(item, CHECKS)


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
            verify_cca(changed, [key], challenge=challenge)
