# SPDX-License-Identifier: Apache-2.0
"""Endorsements of an AK in the TPM support: their form, and what tells such a support from one of a TEE line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quotary_verifier.errors import MalformedError
from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import Attestation, TpmSupport
from quotary_verifier.wire.history import Commit, CommitSupport, CommitTeeSupport
from quotary_verifier.wire.tee_support import MAX_NAMES, MAX_PART, MAX_PARTS, TeeSupport

OWN = TpmSupport("quotary/tpm2-quote/v1", {0: b"\1" * 32}, bytes(32), endorsements={"hcl": (b"report",)})
TEE = TeeSupport("quotary/sev-snp/v1", {"leaf": (b"der",)})
ATTESTATION = Attestation(b"r", b"g", 1, b"", b"n", (OWN,), tees=(TEE,))
NAMED = {"hcl": (b"\2" * 32,)}


def with_endorsements(value: Any) -> dict[int, Any]:
    return {**OWN.fields(), 6: value}


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {1: [b"x"]},
        {"": [b"x"]},
        {"n" * 33: [b"x"]},
        {"hcl": []},
        {"hcl": b"x"},
        {"hcl": [b""]},
        {"hcl": ["x"]},
        {"hcl": [b"x"] * (MAX_PARTS + 1)},
        {"hcl": [bytes(MAX_PART + 1)]},
        {f"{number:02}": [b"x"] for number in range(MAX_NAMES + 1)},
    ],
    ids=lambda value: repr(value)[:30],
)
def test_endorsements_of_another_form_or_size_are_refused(value: Any) -> None:
    with pytest.raises(MalformedError):
        TpmSupport.read(with_endorsements(value))


def test_a_support_without_endorsements_leaves_the_field_out() -> None:
    assert 6 not in replace(OWN, endorsements={}).fields()
    assert TpmSupport.read(OWN.fields()) == OWN


def test_a_support_with_pcr_values_is_the_tpms_and_one_without_is_a_tee_lines() -> None:
    assert Attestation.decode(ATTESTATION.encode()) == ATTESTATION
    fields = cbor.decode(ATTESTATION.encode(), max_bytes=1 << 20, what="attestation")
    fields[7].reverse()
    with pytest.raises(MalformedError):
        Attestation.decode(cbor.encode(fields))
    commit = Commit(
        1,
        b"n",
        (CommitSupport(OWN.identifier, OWN.pcrs, bytes(32), (), None, NAMED),),
        tees=(CommitTeeSupport(TEE.identifier, NAMED),),
    )
    assert Commit.decode(commit.encode()) == commit


@pytest.mark.parametrize("value", [{}, {"hcl": [b"short"]}, {"hcl": [bytes(33)]}])
def test_in_the_history_an_endorsement_is_the_digest_of_a_blob(value: Any) -> None:
    support = CommitSupport(OWN.identifier, OWN.pcrs, bytes(32), (), None).fields()
    with pytest.raises(MalformedError):
        CommitSupport.read({**support, 6: value})
    with pytest.raises(MalformedError):
        CommitTeeSupport.read({1: TEE.identifier, 6: value or {"hcl": []}})
