# SPDX-License-Identifier: Apache-2.0
"""The stored vectors end as they say, today and in every later version."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from defects import CASES

from quotary_verifier import NotChecked, Question, Rejected, load_policy, verify

FOLDER = Path(__file__).parents[2] / "vectors" / "attestation"
FILES = sorted(FOLDER.glob("*.json"))
FIELDS = {"name", "expect", "step", "at", "exact", "attestation", "output", "request", "nonce", "policy"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_stored_vector_ends_as_it_says(file: Path) -> None:
    vector = json.loads(file.read_text())
    assert set(vector) == FIELDS
    question = Question(
        base64.b64decode(vector["output"]),
        at=vector["at"],
        request=None if vector["request"] is None else base64.b64decode(vector["request"]),
        nonce=None if vector["nonce"] is None else bytes.fromhex(vector["nonce"]),
        exact=vector["exact"],
    )
    try:
        attestation = base64.b64decode(vector["attestation"])
        report = verify(attestation, question, load_policy(vector["policy"].encode())).report
    except (Rejected, NotChecked) as error:
        report = error.report
    assert (str(report.outcome), report.failing) == (vector["expect"], vector["step"]), report.reason


def test_every_case_has_its_vector() -> None:
    assert {file.stem for file in FILES} == set(CASES)
