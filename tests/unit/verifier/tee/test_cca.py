# SPDX-License-Identifier: Apache-2.0
"""Arm CCA tokens that the tests mint: what holds, every refusal, and every rule."""

from __future__ import annotations

import pickle
from typing import Any

import cbor2
import pytest
from cca_tokens import (
    BOUND,
    CPAK,
    FIRMWARE,
    RAK,
    SMALL,
    cose_key,
    newer,
    platform_claims,
    platform_key,
    point,
    realm_claims,
    sign1,
    spki,
    token,
)
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from quotary_verifier.errors import EvidenceError, MalformedError, QuotaryError, UnsupportedError
from quotary_verifier.evidence.tee.cca import (
    CcaClaims,
    CcaRules,
    PlatformKey,
    appraise_cca,
    verify_cca,
)
from quotary_verifier.evidence.tee.cca_token import (
    LEGACY_PROFILE,
    PLATFORM_PROFILE,
    REALM_PROFILE,
    Lifecycle,
    parse_cca_token,
)
from quotary_verifier.evidence.tee.shape import Severity, enforce
from quotary_verifier.pki.revocation import Revocation


def verified(data: bytes, *keys: PlatformKey) -> CcaClaims:
    return verify_cca(data, keys or [platform_key()], challenge=BOUND)


def broken(rules: CcaRules, data: bytes | None = None) -> list[tuple[str, Severity]]:
    found = appraise_cca(verified(token() if data is None else data), rules)
    return [(finding.rule, finding.severity) for finding in found]


@pytest.mark.parametrize(
    "data", [token(), newer(), newer(cose_key(alg=-35))], ids=["bare", "cose", "with alg"]
)
def test_a_minted_token_verifies(data: bytes) -> None:
    claims = verified(data)
    assert (claims.token.challenge, claims.measurements["rim"], claims.device) == (
        BOUND,
        b"\1" * 32,
        b"\3" * 33,
    )
    assert claims.shown == ("report-data", "realm-signature", "realm-key", "platform-signature")
    assert claims.not_shown == ("revocation",)
    assert claims.signer.root == f"platform key sha256:{platform_key().sha256.hex()}"
    assert claims.signer.revocation is Revocation.UNKNOWN
    assert claims.signed_time is None
    assert enforce(appraise_cca(claims, CcaRules())) == ()


def test_a_platform_may_sign_by_p256_and_is_found_among_several_keys() -> None:
    small = token(tokens={44234: sign1(platform_claims(), SMALL, header={1: -7}, size=32)})
    for keys in ([platform_key(SMALL)], [platform_key(), platform_key(RAK), platform_key(SMALL)]):
        assert verified(small, *keys).platform_key is keys[-1]
    with pytest.raises(EvidenceError, match="no platform key that was given"):
        verified(small, platform_key(), platform_key(RAK))


def test_a_key_signs_by_the_algorithm_of_its_own_curve_alone() -> None:
    made = token(
        tokens={44234: sign1(platform_claims(), SMALL)}
    )  # ES384 by a key on P-256, halves padded to 48 bytes
    with pytest.raises(EvidenceError, match="no platform key that was given"):
        verified(made, platform_key(SMALL))


def test_without_a_platform_key_the_claims_say_so_and_no_rules_accept_them() -> None:
    claims = verify_cca(token(), (), challenge=BOUND)
    assert claims.not_shown == ("platform-signature", "revocation")
    assert not set(claims.shown) & set(claims.not_shown)
    assert claims.signer.root == "none: no platform key was given"
    everything = CcaRules(debug=True)
    assert [finding.severity for finding in appraise_cca(claims, everything)] == [Severity.COULD_NOT]
    with pytest.raises(UnsupportedError, match="no platform key was given"):
        enforce(appraise_cca(claims, everything))
    for false in (
        token({10: bytes(64)}),
        token(platform={10: bytes(32)}),
        token(tokens={44241: sign1(realm_claims(), CPAK)}),
    ):
        with pytest.raises(EvidenceError):
            verify_cca(false, (), challenge=BOUND)


REFUSED: dict[str, tuple[bytes, type[QuotaryError], str]] = {
    "no tag": (token()[3:], MalformedError, "tag 399"),
    "the tag of a later form": (b"\xd9\x03\x8b" + token()[3:], UnsupportedError, "tag 907"),
    "more behind it": (token() + b"\0", MalformedError, "bytes follow"),
    "too long": (token(platform={7: bytes(40_000)}), MalformedError, "32768 are allowed"),
    "no realm token": (token(tokens={44241: None}), MalformedError, "a platform token and a realm token"),
    "another token": (token(tokens={7: b"x"}), MalformedError, "a platform token and a realm token"),
    "a token without its tag": (
        token(tokens={44241: sign1({}, RAK)[1:]}),
        MalformedError,
        "a tagged COSE_Sign1",
    ),
    "an unprotected header": (
        token(tokens={44241: sign1({}, RAK, unprotected={4: b"k"})}),
        MalformedError,
        "without unprotected",
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
    "a realm token of the algorithm of another key": (
        token(tokens={44241: sign1(realm_claims(), SMALL, header={1: -7}, size=32)}),
        EvidenceError,
        "realm token of arm cca does not verify",
    ),
    "a longer signature": (token(tokens={44234: sign1({}, CPAK, size=49)}), MalformedError, "has 96 bytes"),
    "another challenge": (token({10: bytes(64)}), EvidenceError, "the challenge is not"),
    "a short challenge": (token({10: BOUND[:32]}), MalformedError, "claim 10 of an arm cca token is not 64 bytes"),
    "another realm key": (token(platform={10: bytes(32)}), EvidenceError, "for another realm key"),
    "a realm key in another form": (token({44237: b"\4" * 98}), UnsupportedError, "not a point"),
    "a realm key that is none": (token({44237: b"\4" * 97}), MalformedError, "is no point"),
    "a bare realm key under the newer profile": (newer(point()), MalformedError, "realm key of arm cca"),
    "a cose key without its profile": (token({44237: cose_key()}), UnsupportedError, "not a point"),
    "a cose key that is no map": (newer(cbor2.dumps([1])), MalformedError, "no COSE_Key"),
    "a cose key with a byte behind it": (newer(cose_key() + b"\0"), MalformedError, "bytes follow"),
    "a cose key with a name": (newer(cose_key(kid=b"k")), UnsupportedError, "both coordinates on p-384"),
    "a cose key of another type": (newer(cose_key(kty=1)), UnsupportedError, "both coordinates"),
    "a cose key on another curve": (newer(cose_key(crv=1)), UnsupportedError, "both coordinates"),
    "a cose key for another algorithm": (newer(cose_key(alg=-7)), UnsupportedError, "both coordinates"),
    "a compressed cose key": (newer(cose_key(y=True)), UnsupportedError, "both coordinates"),
    "a cose key with a short half": (newer(cose_key(x=b"\1" * 47)), UnsupportedError, "both coordinates"),
    "a cose key off the curve": (newer(cose_key(x=b"\1" * 48)), MalformedError, "is no point"),
    "a hash that is not known": (token({44240: "md5"}), UnsupportedError, "the hash 'md5'"),
    "a hash of the realm that is not known": (token({44236: "sha-1"}), UnsupportedError, "the hash 'sha-1'"),
    "a hash that is none": (token({44236: 5}), MalformedError, "not text"),
    "too few measurements": (token({44239: [bytes(32)] * 3}), MalformedError, "five measurements of 32"),
    "measurements that are none": (token({44239: b"\0" * 4}), MalformedError, "five measurements of 32"),
    "a short measurement": (token({44238: bytes(31)}), MalformedError, "five measurements of 32"),
    "measurements of another hash": (token({44236: "sha-512"}), MalformedError, "five measurements of 64"),
    "a short personalization value": (token({44235: bytes(63)}), MalformedError, "claim 44235"),
    "no lifecycle": (token(platform={2395: "x"}), MalformedError, "no lifecycle"),
    "a lifecycle of more bits": (token(platform={2395: 0x13000}), MalformedError, "no lifecycle"),
    "a lifecycle below zero": (token(platform={2395: -1}), MalformedError, "no lifecycle"),
    "a lifecycle between the states": (token(platform={2395: 0x3100}), UnsupportedError, "0x3100"),
    "no implementation": (token(platform={2396: 7}), MalformedError, "claim 2396"),
    "a short instance id": (token(platform={256: bytes(32)}), MalformedError, "claim 256"),
    "no profile": (token(platform={265: 1}), MalformedError, "names no profile"),
    "another profile": (token(platform={265: "tag:arm.com,2026:cca_platform#2.0.0"}), UnsupportedError, "2026"),
    "a long profile": (token(platform={265: "x" * 9000}), UnsupportedError, "the profile 'x{64}…' of"),
    "another profile of realms": (token({265: "tag:arm.com,2026:realm#2.0.0"}), UnsupportedError, "2026"),
    "a profile of realms that is none": (token({265: [1]}), MalformedError, "is not text"),
    "no components": (token(platform={2399: []}), MalformedError, "lists 1 to 64 components"),
    "too many components": (
        token(platform={2399: [{2: FIRMWARE, 5: FIRMWARE}] * 65}),
        MalformedError,
        "lists 1 to 64",
    ),
    "a component that is none": (token(platform={2399: [7]}), MalformedError, "its measurement and its signer"),
    "a component without its signer": (token(platform={2399: [{2: FIRMWARE}]}), MalformedError, "its signer"),
    "a component with a short measurement": (
        token(platform={2399: [{2: b"x", 5: FIRMWARE}]}),
        MalformedError,
        "its measurement",
    ),
    "a component with a name that is none": (
        token(platform={2399: [{1: 1, 2: FIRMWARE, 5: FIRMWARE}]}),
        MalformedError,
        "its measurement",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_token_that_does_not_hold_is_refused(case: tuple[bytes, type[QuotaryError], str]) -> None:
    data, error, message = case
    with pytest.raises(error, match=message):
        verified(data)


@pytest.mark.parametrize("make", [token, newer], ids=["bare", "cose"])
def test_no_byte_of_a_minted_token_can_be_altered(make: Any) -> None:
    data = make()
    for at in range(len(data)):
        changed = data[:at] + bytes((data[at] ^ (1 << at % 8),)) + data[at + 1 :]
        with pytest.raises(QuotaryError):
            verified(changed)
    for size in range(0, len(data), 7):
        with pytest.raises(QuotaryError):
            verified(data[:size])


def test_a_platform_key_goes_to_other_processes() -> None:
    key = platform_key()
    assert verified(token(), pickle.loads(pickle.dumps(key))).signer.root_sha256 == key.sha256


def test_a_realm_token_signed_by_another_key_is_refused() -> None:
    with pytest.raises(EvidenceError, match="realm token of arm cca does not verify"):
        verified(token(tokens={44241: sign1(realm_claims(), CPAK)}))


def test_a_claim_that_is_not_known_is_passed_over() -> None:
    assert verified(token({44299: b"more"}, {"text": 1})).device == b"\3" * 33


def test_what_is_given_has_to_be_a_challenge_of_64_bytes_and_a_key_on_a_known_curve() -> None:
    with pytest.raises(ValueError, match="challenge"):
        verify_cca(token(), [platform_key()], challenge=BOUND[:32])
    with pytest.raises(MalformedError, match="platform key"):
        PlatformKey(b"x")
    for other in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP521R1())):
        with pytest.raises(UnsupportedError, match="not on p-256 or p-384"):
            PlatformKey(spki(other.public_key()))


@pytest.mark.parametrize("state", [one for one in Lifecycle if one is not Lifecycle.SECURED])
def test_a_platform_that_is_not_secured_is_refused(state: Lifecycle) -> None:
    data = token(platform={2395: state.value << 8 | 3})
    debug = state.name.endswith("DEBUG")
    assert broken(CcaRules(), data) == [("cca.debug" if debug else "cca.lifecycle", Severity.FAIL)]
    assert broken(CcaRules(debug=True), data) == ([] if debug else [("cca.lifecycle", Severity.FAIL)])


def test_every_value_in_the_secured_range_is_secured() -> None:
    for lifecycle in (0x3000, 0x3003, 0x30FF):
        assert broken(CcaRules(), token(platform={2395: lifecycle})) == []


NONE: frozenset[bytes] = frozenset()


@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        (CcaRules(profiles=frozenset({LEGACY_PROFILE})), "profile"),
        (CcaRules(hashes=frozenset({"sha-512"})), "hash"),
        (CcaRules(rims=NONE), "rim"),
        (CcaRules(rems={2: frozenset({b"\1" * 32})}), "rem2"),
        (CcaRules(personalizations=NONE), "personalization"),
        (CcaRules(implementations=NONE), "implementation"),
        (CcaRules(devices=NONE), "device"),
        (CcaRules(components=NONE), "component"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rule_refuses_what_it_does_not_name(rules: CcaRules, rule: str) -> None:
    assert broken(rules) == [(f"cca.{rule}", Severity.FAIL)]
    with pytest.raises(EvidenceError, match=r"^cca: "):
        enforce(appraise_cca(verified(token()), rules))


def test_rules_that_name_what_the_token_says_are_kept() -> None:
    rules = CcaRules(
        profiles=frozenset({PLATFORM_PROFILE}),
        hashes=frozenset({"sha-256"}),
        rims=frozenset({b"\1" * 32}),
        rems={number: frozenset({bytes(32)}) for number in range(4)},
        personalizations=frozenset({bytes(64)}),
        implementations=frozenset({b"\2" * 32}),
        devices=frozenset({b"\3" * 33}),
        components=frozenset({FIRMWARE}),
    )
    assert broken(rules) == broken(rules, newer()) == []


def test_every_component_of_the_platform_has_to_be_accepted() -> None:
    listed = [{1: "RMM", 2: FIRMWARE, 5: FIRMWARE}, {1: "BL31", 2: b"\7" * 48, 5: FIRMWARE, 4: "2.12"}]
    data = token(platform={2399: listed})
    (finding,) = appraise_cca(verified(data), CcaRules(components=frozenset({FIRMWARE})))
    assert finding.message == f"cca: the platform's component 'BL31' {'07' * 48} is not accepted"
    assert parse_cca_token(data).components[1].version == "2.12"


def test_the_profile_of_realms_is_told() -> None:
    assert parse_cca_token(newer()).realm_profile == REALM_PROFILE
    assert parse_cca_token(token()).realm_profile is None
