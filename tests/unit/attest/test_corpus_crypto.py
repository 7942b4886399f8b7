# SPDX-License-Identifier: Apache-2.0
"""Every file of the corpus folder `tpm/crypto`: key derivations by our code, policy digests by their formulas."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from corpus import corpus_bytes, entries, needs_corpus

from quotary_attest.enrol.credential import kdfa, kdfe

pytestmark = needs_corpus

Entry = dict[str, Any]
ENTRIES = entries("tpm/crypto/")
ALGORITHMS = {"sha1": 4, "sha256": 11, "sha384": 12, "sha512": 13}
HASH_NAMES = {number: name for name, number in ALGORITHMS.items()}
POLICY_SECRET, POLICY_AUTHORIZE, POLICY_OR, POLICY_PCR = 0x151, 0x16A, 0x171, 0x17F
RH_ENDORSEMENT = 0x4000000B.to_bytes(4, "big")
PCR_16_OF_ONE_BANK = b"\x03\0\0\x01"


def check_kdf(item: Entry) -> None:
    agreement = item["file"].endswith("kdfe-vectors.json")
    found = json.loads(corpus_bytes(item["file"]))
    assert len(found) == item["expected"]["vectors"]
    for vector in found:
        secret, u, v = (
            bytes.fromhex(vector[field]) for field in ("Z" if agreement else "Key", "ContextU", "ContextV")
        )
        derive = kdfe if agreement else kdfa
        name, label = HASH_NAMES[vector["HashAlg"]], vector["Label"].encode()
        assert derive(name, secret, label, u, v, vector["Bits"]).hex() == vector["Result"], vector["Name"]


def extended(name: str, old: bytes, *parts: bytes) -> bytes:
    """A policy digest after one more command (TPM 2.0 Library, Part 3, section 23)."""
    return hashlib.new(name, old + b"".join(parts)).digest()


def command(code: int) -> bytes:
    """A command code."""
    return code.to_bytes(4, "big")


def policy_digests(name: str, stored: dict[str, bytes]) -> dict[str, bytes]:
    """The policies of one hash that can be computed, by their names in the file.

    PolicyA of the EK credential profile is PolicySecret of the endorsement hierarchy, PolicyB PolicyOR of it and of
    PolicyC, which is given. The last is PolicyPCR over PCR 16 after `aaa`, filled up with zeros, was extended.
    """
    zeros = bytes(hashlib.new(name).digest_size)
    first = extended(name, extended(name, zeros, command(POLICY_SECRET), RH_ENDORSEMENT))
    pcr = hashlib.new(name, zeros + b"aaa".ljust(len(zeros), b"\0")).digest()
    selection = b"\0\0\0\1" + ALGORITHMS[name].to_bytes(2, "big") + PCR_16_OF_ONE_BANK
    values = hashlib.new(name, pcr).digest()
    found = {f"policypcr16aaa{name}": extended(name, zeros, command(POLICY_PCR), selection, values)}
    if name != "sha1":
        third = stored[f"policyiwgekc{name}"]
        found[f"policyiwgek{name}"] = first
        found[f"policyiwgekb{name}"] = extended(name, zeros, command(POLICY_OR), first, third)
        found[f"policyiwgekc{name}"] = third
    return found


def check_policy_digests(item: Entry) -> None:
    found = json.loads(corpus_bytes(item["file"]))
    stored = {name: bytes.fromhex(digest) for name, digest in found.items()}
    assert len(stored) == item["expected"]["digests"]
    computed: dict[str, bytes] = {}
    for name in ALGORITHMS:
        computed |= policy_digests(name, stored)
    # PolicyAuthorize names a key, and the corpus has not kept which: only the size can be checked.
    left = {name for name in stored if name.startswith("policyauthorize")}
    assert {name: stored[name] for name in stored if name not in left} == computed
    for name in left:
        assert len(stored[name]) == hashlib.new(name.removeprefix("policyauthorize")).digest_size


CHECKS: dict[str, Callable[[Entry], None]] = {
    "kdf-vectors": check_kdf,
    "policy-digests": check_policy_digests,
}


@pytest.mark.parametrize("item", ENTRIES, ids=[one["file"].rpartition("/")[2] for one in ENTRIES])
def test_a_file_of_the_corpus_holds_what_its_formulas_give(item: Entry) -> None:
    CHECKS[item["kind"]](item)
