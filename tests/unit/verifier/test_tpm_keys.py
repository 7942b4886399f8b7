# SPDX-License-Identifier: Apache-2.0
"""Which keys may attest, and the qualified names that their evidence has to carry."""

from __future__ import annotations

import hashlib

import pytest
from soft_tpm import CLOUD_ATTRIBUTES, ecc_key, rsa_key

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tpm_keys import (
    OWN_AK_ATTRIBUTES,
    AkProfile,
    ak_qualified_name,
    attestation_key,
    check_ak,
)
from quotary_verifier.wire import tpm

PARENT = b"\x00\x0b" + hashlib.sha256(b"primary").digest()
OWNER = bytes.fromhex("40000001")


def test_the_agents_key_is_recognised() -> None:
    profile = check_ak(ecc_key().public, strict=True)
    assert profile == AkProfile(own=True, algorithm="ecdsa-p256-sha256", hash_alg=tpm.ALG_SHA256)


@pytest.mark.parametrize("bit", range(32))
def test_the_agents_attributes_are_exact_to_the_bit(bit: int) -> None:
    changed = OWN_AK_ATTRIBUTES ^ 1 << bit
    with pytest.raises((EvidenceError, MalformedError)):
        check_ak(ecc_key(attributes=changed).public, strict=True)


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (0x2, "fixedTPM"),
        (0x10, "fixedParent"),
        (0x20, "sensitiveDataOrigin"),
        (0x10000, "restricted"),
        (0x40000, "sign"),
    ],
)
def test_each_attribute_of_an_attestation_key_is_required(bit: int, name: str) -> None:
    for key in (ecc_key(attributes=OWN_AK_ATTRIBUTES & ~bit), rsa_key(attributes=CLOUD_ATTRIBUTES & ~bit)):
        with pytest.raises(EvidenceError, match=f"{name} not set"):
            check_ak(key.public)


def test_a_key_that_decrypts_is_refused() -> None:
    with pytest.raises(EvidenceError, match="decrypt is set"):
        check_ak(rsa_key(attributes=CLOUD_ATTRIBUTES | 0x20000).public)


@pytest.mark.parametrize(
    "key",
    [
        ecc_key(attributes=CLOUD_ATTRIBUTES),
        ecc_key(tpm.CURVE_P384),
        ecc_key(hash_alg=tpm.ALG_SHA384),
        ecc_key(name_alg=tpm.ALG_SHA384),
        ecc_key(auth_policy=bytes(32)),
        rsa_key(attributes=OWN_AK_ATTRIBUTES),
    ],
    ids=["attributes", "curve", "hash", "name", "policy", "rsa"],
)
def test_what_differs_from_the_agents_template_is_foreign(key: object) -> None:
    assert not check_ak(key.public).own  # type: ignore[attr-defined]
    with pytest.raises(EvidenceError):
        check_ak(key.public, strict=True)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (rsa_key(), "rsassa-2048-sha256"),
        (rsa_key(3072, scheme=tpm.ALG_RSAPSS, hash_alg=tpm.ALG_SHA384), "rsapss-3072-sha384"),
        (ecc_key(tpm.CURVE_P384, hash_alg=tpm.ALG_SHA384), "ecdsa-p384-sha384"),
    ],
    ids=["rsassa", "rsapss", "p384"],
)
def test_foreign_keys_of_known_algorithms_attest(key: object, algorithm: str) -> None:
    profile = check_ak(key.public)  # type: ignore[attr-defined]
    assert (profile.own, profile.algorithm) == (False, algorithm)


def test_an_rsa_key_of_1024_bits_is_too_weak() -> None:
    with pytest.raises(EvidenceError, match="1024 bits is too weak"):
        check_ak(rsa_key(1024).public)


@pytest.mark.parametrize(
    "key",
    [
        ecc_key(scheme=None, hash_alg=None),
        ecc_key(scheme=0x0019),
        rsa_key(scheme=None, hash_alg=None),
        rsa_key(scheme=0x0017),
        rsa_key(scheme=0x0015, hash_alg=None),
        ecc_key(symmetric=tpm.SymmetricDefinition(tpm.ALG_AES, 128, tpm.ALG_CFB)),
    ],
    ids=["ecc-none", "ecdh", "rsa-none", "oaep", "rsaes", "symmetric"],
)
def test_a_key_without_a_fixed_signature_scheme_is_refused(key: object) -> None:
    with pytest.raises(EvidenceError, match="no fixed signature scheme"):
        check_ak(key.public)  # type: ignore[attr-defined]


def test_a_key_that_signs_with_sha_1_is_refused() -> None:
    with pytest.raises(EvidenceError, match="sha-1"):
        check_ak(rsa_key(hash_alg=tpm.ALG_SHA1).public)
    with pytest.raises(UnsupportedError):
        check_ak(rsa_key(hash_alg=0x0012).public)


def test_an_own_key_hangs_below_a_primary_of_the_endorsement_hierarchy() -> None:
    public = ecc_key().public
    parent = hashlib.sha256(bytes.fromhex("4000000b") + PARENT).digest()
    expected = b"\x00\x0b" + hashlib.sha256(b"\x00\x0b" + parent + public.name).digest()
    assert ak_qualified_name(PARENT, public) == expected


def test_a_foreign_key_hangs_below_the_qualified_name_that_the_genesis_gives() -> None:
    public = rsa_key().public
    expected = b"\x00\x0b" + hashlib.sha256(PARENT + public.name).digest()
    assert ak_qualified_name(PARENT, public) == expected


@pytest.mark.parametrize("handle", ["40000001", "4000000b", "4000000c"])
def test_a_foreign_primary_hangs_below_its_hierarchy(handle: str) -> None:
    public = rsa_key().public
    expected = b"\x00\x0b" + hashlib.sha256(bytes.fromhex(handle) + public.name).digest()
    assert ak_qualified_name(bytes.fromhex(handle), public) == expected


@pytest.mark.parametrize("handle", ["40000007", "00000000", "81010001"])
def test_a_hierarchy_that_does_not_last_is_refused(handle: str) -> None:
    with pytest.raises(EvidenceError, match="lasting hierarchy"):
        ak_qualified_name(bytes.fromhex(handle), rsa_key().public)


@pytest.mark.parametrize("parent", [b"", b"\x00\x0b", PARENT[:-1], PARENT + b"\x00", b"\x00" * 34])
def test_a_parent_that_is_no_name_is_malformed(parent: bytes) -> None:
    for public in (ecc_key().public, rsa_key().public):
        with pytest.raises(MalformedError, match="not a TPM name"):
            ak_qualified_name(parent, public)


def test_the_key_of_a_genesis_record_is_own_only_below_a_parent() -> None:
    public = ecc_key().public
    below = attestation_key(public, PARENT)
    assert (below.profile.own, below.qualified_name) == (True, ak_qualified_name(PARENT, public))
    primary = attestation_key(public, OWNER)
    assert (primary.profile.own, primary.qualified_name) == (False, ak_qualified_name(OWNER, public))


def test_a_key_that_may_not_attest_has_no_place_in_a_genesis_record() -> None:
    with pytest.raises(EvidenceError, match="restricted not set"):
        attestation_key(ecc_key(attributes=OWN_AK_ATTRIBUTES & ~0x10000).public, PARENT)
