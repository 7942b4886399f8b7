# SPDX-License-Identifier: Apache-2.0
"""Attestation keys that are not the agent's own, through the whole recipe: what each may claim to be."""

from __future__ import annotations

from dataclasses import replace

import forge as workshop
import pytest
from forge import NOW, Forge
from soft_tpm import CLOUD_ATTRIBUTES, SoftKey, ecc_key, rsa_key

from quotary_verifier import NotChecked, Outcome, Question, Rejected, Report, Step, load_policy, verify
from quotary_verifier.wire import tpm
from quotary_verifier.wire.records import TpmIdentity
from quotary_verifier.wire.tpm_names import hierarchy_qn, qualified_name

PARENT_QN = b"\x00\x0b" + bytes(range(32))
OWNER, ENDORSEMENT, NULL = (handle.to_bytes(4) for handle in (0x40000001, 0x4000000B, 0x40000007))
ALLOW = "[tpm]\nunauthenticated_ak = true\n"


def host(key: SoftKey, parent: bytes) -> Forge:
    """A host whose genesis record names this key and this parent."""
    made = Forge()
    made.public = key.public.raw
    identity = TpmIdentity(key.public.raw, parent, made.chain_pcr, made.workload_pcr, made.counter)
    made.genesis = replace(made.genesis, tpm=identity)
    made.genesis_record = made.genesis.encode()
    made.origin = made.genesis.origin(made.genesis_record)
    return made


def judge(
    monkeypatch: pytest.MonkeyPatch, key: SoftKey, parent: bytes, signer: bytes, extra: str = ALLOW
) -> Report:
    """Verify an attestation signed by `key`, whose quote names `signer` as its qualified signer."""
    monkeypatch.setattr(workshop, "sign_tpm", lambda _, data: key.sign(data))
    made = host(key, parent)
    policy = f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{made.origin}"\n{extra}'
    data = made.attestation(signer=signer).encode()
    try:
        return verify(data, Question(made.body, at=NOW), load_policy(policy.encode())).report
    except (Rejected, NotChecked) as error:
        return error.report


KEYS = {
    "rsassa 2048": rsa_key,
    "rsapss 3072": lambda: rsa_key(3072, scheme=tpm.ALG_RSAPSS),
    "p-256": lambda: ecc_key(attributes=CLOUD_ATTRIBUTES),
    "p-384": lambda: ecc_key(tpm.CURVE_P384, attributes=CLOUD_ATTRIBUTES, hash_alg=tpm.ALG_SHA256),
    "own attributes with a policy": lambda: ecc_key(auth_policy=bytes(32)),
}


@pytest.mark.parametrize("parent", [PARENT_QN, OWNER, ENDORSEMENT], ids=["child", "owner", "endorsement"])
@pytest.mark.parametrize("name", KEYS)
def test_a_foreign_key_verifies_only_where_allowed_and_the_verdict_says_so(
    name: str, parent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = KEYS[name]()
    signer = qualified_name(parent, key.public.name)
    report = judge(monkeypatch, key, parent, signer)
    assert report.outcome is Outcome.VERIFIED, report.reason
    assert any("AK without auth" in text for text in report.notices)
    assert judge(monkeypatch, key, parent, signer, "").failing is Step.AK_ATTRIBUTES


@pytest.mark.parametrize("hierarchy", [0x40000001, 0x4000000C])
def test_an_own_key_in_another_hierarchy_has_another_name(
    hierarchy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ecc_key()
    parent = qualified_name(hierarchy_qn(hierarchy), PARENT_QN)
    signer = qualified_name(parent, key.public.name)
    assert judge(monkeypatch, key, PARENT_QN, signer).failing is Step.AK_NAME
    assert judge(monkeypatch, key, parent, signer).failing is Step.AK_NAME


def test_an_own_key_that_is_a_primary_counts_as_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    key = ecc_key()
    signer = qualified_name(ENDORSEMENT, key.public.name)
    assert judge(monkeypatch, key, ENDORSEMENT, signer, "").failing is Step.AK_ATTRIBUTES
    report = judge(monkeypatch, key, ENDORSEMENT, signer)
    assert any("AK without auth" in text for text in report.notices)


def test_a_key_of_the_null_hierarchy_does_not_attest(monkeypatch: pytest.MonkeyPatch) -> None:
    key = ecc_key(attributes=CLOUD_ATTRIBUTES)
    signer = qualified_name(NULL, key.public.name)
    assert judge(monkeypatch, key, NULL, signer).failing is Step.AK_ATTRIBUTES


@pytest.mark.parametrize("bit", [0x2, 0x10, 0x20, 0x10000, 0x40000])
def test_no_policy_allows_a_foreign_key_that_could_sign_what_its_tpm_did_not_make(
    bit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ecc_key(attributes=CLOUD_ATTRIBUTES & ~bit)
    signer = qualified_name(PARENT_QN, key.public.name)
    assert judge(monkeypatch, key, PARENT_QN, signer).failing is Step.AK_ATTRIBUTES


def test_a_key_of_1024_bits_is_too_weak_whatever_a_policy_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    key = rsa_key(1024)
    signer = qualified_name(PARENT_QN, key.public.name)
    assert judge(monkeypatch, key, PARENT_QN, signer).outcome is Outcome.REJECTED
