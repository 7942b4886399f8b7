# SPDX-License-Identifier: Apache-2.0
"""Signed policies: what is accepted, what is not, and that the bytes are a COSE_Sign1 to who never saw our code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import pycddl
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from quotary_verifier.errors import EvidenceError, MalformedError, QuotaryError, UnsupportedError
from quotary_verifier.policy.signed import (
    CONTENT_TYPE,
    PolicyKey,
    SignedPolicy,
    is_signed_policy,
    open_signed_policy,
    policy_key,
    read_policy_key,
    sign_policy,
    unverified_signed_policy,
)
from quotary_verifier.wire import cbor

NOW = 1_795_435_200
POLICY = SignedPolicy(b'schema = "quotary-policy/v1"\n', "fleet", 7, NOW - 60, NOW + 3600)

Signer = tuple[PolicyKey, Callable[[bytes], bytes]]


def ed_signer() -> Signer:
    key = ed25519.Ed25519PrivateKey.generate()
    return policy_key(key.public_key()), key.sign


def ec_signer() -> Signer:
    key = ec.generate_private_key(ec.SECP256R1())

    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)

    return policy_key(key.public_key()), sign


SIGNERS = {"ed25519": ed_signer(), "p-256": ec_signer()}


@pytest.fixture(params=SIGNERS)
def signer(request: pytest.FixtureRequest) -> Signer:
    return SIGNERS[request.param]


def envelope(
    signer: Signer,
    header: dict[Any, Any] | None = None,
    *,
    payload: bytes | None = None,
    unprotected: dict[Any, Any] | None = None,
    **changes: Any,
) -> bytes:
    """A COSE_Sign1 made with cbor2 alone, rightly signed whatever is in it."""
    key, sign = signer
    protected_map = {1: key.algorithm, 3: CONTENT_TYPE, 4: key.kid} | (header or {})
    protected = cbor2.dumps({k: v for k, v in sorted(protected_map.items()) if v is not None})
    body = replace(POLICY, **changes).encode() if payload is None else payload
    signature = sign(cbor2.dumps(["Signature1", protected, b"", body]))
    return cbor2.dumps(cbor2.CBORTag(18, [protected, unprotected or {}, body, signature]))


def test_a_signed_policy_comes_back_as_it_was_with_the_key_that_signed_it(signer: Signer) -> None:
    key, sign = signer
    signed = sign_policy(POLICY, key, sign)
    others = [one[0] for one in SIGNERS.values()]
    assert open_signed_policy(signed, others, NOW) == (POLICY, key)
    assert unverified_signed_policy(signed) == (POLICY, key.algorithm, key.kid)
    assert signed == envelope(signer) or key.algorithm == -7
    assert is_signed_policy(signed)
    assert not is_signed_policy(POLICY.policy)


def test_the_bytes_are_a_cose_sign1_to_a_reader_that_is_not_ours(signer: Signer) -> None:
    key, sign = signer
    item = cbor2.loads(sign_policy(POLICY, key, sign))
    assert item.tag == 18
    protected, unprotected, payload, signature = item.value
    header = cbor2.loads(protected)
    assert set(header) == {1, 3, 4}
    assert not unprotected
    message = cbor2.dumps(["Signature1", protected, b"", payload])
    if isinstance(key.public, ed25519.Ed25519PublicKey):
        assert header[1] == -8
        key.public.verify(signature, message)
        raw = key.public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        cose_key = {1: 1, -1: 6, -2: raw}
    else:
        assert header[1] == -7
        r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
        key.public.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        numbers = key.public.public_numbers()
        cose_key = {1: 2, -1: 1, -2: numbers.x.to_bytes(32), -3: numbers.y.to_bytes(32)}
    assert header[4] == hashlib.sha256(cbor2.dumps(cose_key, canonical=True)).digest()
    assert cbor2.loads(payload) == {
        0: 24,
        1: 1,
        2: POLICY.policy,
        3: "fleet",
        4: 7,
        5: NOW - 60,
        6: NOW + 3600,
    }


def test_the_payload_fits_the_cddl() -> None:
    text = (Path(__file__).parents[3] / "docs" / "spec" / "quotary.cddl").read_text()
    pycddl.Schema(text).validate_cbor(POLICY.encode())


def test_what_another_implementation_signs_is_accepted(signer: Signer) -> None:
    assert open_signed_policy(envelope(signer), [signer[0]], NOW)[0] == POLICY


def test_every_changed_byte_is_caught(signer: Signer) -> None:
    key, sign = signer
    signed = sign_policy(POLICY, key, sign)
    for place in range(len(signed)):
        changed = bytearray(signed)
        changed[place] ^= 0x01
        with pytest.raises(QuotaryError):
            open_signed_policy(bytes(changed), [key], NOW)
    for end in range(len(signed)):
        with pytest.raises(MalformedError):
            open_signed_policy(signed[:end], [key], NOW)
    with pytest.raises(MalformedError):
        open_signed_policy(signed + b"\0", [key], NOW)


def test_a_policy_of_a_key_that_was_not_given_is_refused(signer: Signer) -> None:
    signed = sign_policy(POLICY, *signer)
    others = [one[0] for one in (ed_signer(), ec_signer())]
    for keys in ([], others):
        with pytest.raises(EvidenceError, match="none of those given"):
            open_signed_policy(signed, keys, NOW)


def test_a_key_identifier_does_not_make_a_signature(signer: Signer) -> None:
    false = (signer[0], ed_signer()[1])
    with pytest.raises(EvidenceError, match="does not verify"):
        open_signed_policy(envelope(false), [signer[0]], NOW)
    with pytest.raises(EvidenceError, match="does not verify"):
        sign_policy(POLICY, *false)


def test_an_old_policy_is_not_accepted_again(signer: Signer) -> None:
    signed = sign_policy(POLICY, *signer)
    open_signed_policy(signed, [signer[0]], NOW, least_version=7)
    with pytest.raises(EvidenceError, match="version 7, and at least 8"):
        open_signed_policy(signed, [signer[0]], NOW, least_version=8)


def test_a_policy_ends_when_it_says(signer: Signer) -> None:
    signed = sign_policy(POLICY, *signer)
    open_signed_policy(signed, [signer[0]], POLICY.expires - 1)
    with pytest.raises(EvidenceError, match="expired"):
        open_signed_policy(signed, [signer[0]], POLICY.expires)


def test_the_algorithm_is_that_of_the_key(signer: Signer) -> None:
    other = -7 if signer[0].algorithm == -8 else -8
    with pytest.raises(EvidenceError, match="its key is of"):
        open_signed_policy(envelope(signer, {1: other}), [signer[0]], NOW)


@pytest.mark.parametrize("algorithm", [-35, -37, -257, -19, -9, 5, 0])
def test_other_algorithms_are_not_known(signer: Signer, algorithm: int) -> None:
    with pytest.raises(UnsupportedError, match="not known"):
        open_signed_policy(envelope(signer, {1: algorithm}), [signer[0]], NOW)


@pytest.mark.parametrize("label", [5, 15, 33, -70001, "reserved"])
def test_a_critical_header_that_is_not_known_fails(signer: Signer, label: int | str) -> None:
    with pytest.raises(UnsupportedError, match="demands that header"):
        open_signed_policy(envelope(signer, {2: [label]}), [signer[0]], NOW)


def test_a_critical_header_that_is_known_does_no_harm(signer: Signer) -> None:
    assert open_signed_policy(envelope(signer, {2: [1, 4]}), [signer[0]], NOW)[0] == POLICY


FORMS: dict[str, Callable[[Signer], bytes]] = {
    "without its tag": lambda signer: envelope(signer)[1:],
    "under another tag": lambda signer: b"\xd1" + envelope(signer)[1:],
    "tagged twice": lambda signer: b"\xd2" + envelope(signer),
    "with an unprotected header": lambda signer: envelope(signer, unprotected={4: b"k"}),
    "without an algorithm": lambda signer: envelope(signer, {1: None}),
    "with an algorithm by its name": lambda signer: envelope(signer, {1: "EdDSA"}),
    "without a content type": lambda signer: envelope(signer, {3: None}),
    "with another content type": lambda signer: envelope(signer, {3: "application/cbor"}),
    "without a key identifier": lambda signer: envelope(signer, {4: None}),
    "with a short key identifier": lambda signer: envelope(signer, {4: b"k"}),
    "with a header that is not known": lambda signer: envelope(signer, {5: b"iv"}),
    "with an empty list of critical headers": lambda signer: envelope(signer, {2: []}),
    "with a critical header that is not there": lambda signer: envelope(signer, {2: [3], 3: None}),
    "with a detached payload": lambda signer: cbor2.dumps(
        cbor2.CBORTag(18, [*cbor2.loads(envelope(signer)).value[:2], None, bytes(64)])
    ),
    "with the payload of another artefact": lambda signer: envelope(
        signer, payload=cbor.encode({0: 16, 1: 1})
    ),
    "with TOML alone": lambda signer: envelope(signer, payload=POLICY.policy),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_envelope_of_another_form_is_malformed(signer: Signer, form: str) -> None:
    with pytest.raises(MalformedError):
        open_signed_policy(FORMS[form](signer), [signer[0]], NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": b""},
        {"name": ""},
        {"name": "a\nb"},
        {"name": "n" * 129},
        {"version": 0},
        {"version": -1},
        {"expires": POLICY.issued},
        {"issued": -1},
    ],
    ids=str,
)
def test_a_policy_with_a_value_out_of_range_is_not_signed(signer: Signer, changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        sign_policy(replace(POLICY, **changes), *signer)


def test_a_payload_of_a_later_version_could_not_be_checked(signer: Signer) -> None:
    payload = cbor2.dumps(cbor2.loads(POLICY.encode()) | {1: 2})
    with pytest.raises(UnsupportedError, match="version 2"):
        open_signed_policy(envelope(signer, payload=payload), [signer[0]], NOW)


def test_keys_are_read_from_pem_and_those_of_other_kinds_are_refused(signer: Signer) -> None:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    assert (
        read_policy_key(signer[0].public.public_bytes(serialization.Encoding.PEM, spki)).kid == signer[0].kid
    )
    with pytest.raises(MalformedError):
        read_policy_key(b"no key")
    for other in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(UnsupportedError):
            read_policy_key(other.public_key().public_bytes(serialization.Encoding.PEM, spki))
