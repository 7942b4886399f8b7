# SPDX-License-Identifier: Apache-2.0
"""What counts as an attestation that somebody holds: files of their own, and answers that carry one in their body."""

from __future__ import annotations

from pathlib import Path

import pytest

from quotary_cli.auditing import named_files
from quotary_cli.given import given_attestations
from quotary_cli.output import Failure
from quotary_verifier.wire.inband import insert

ATTESTATION = b"\xa9 what an attestation may be"


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    folder = tmp_path / "answers"
    folder.mkdir()
    body = insert(b'{"object": "chat.completion"}', ATTESTATION)
    assert body is not None
    (folder / "a.json").write_bytes(body)
    (folder / "report.txt").write_bytes(b"a report")
    return folder


def test_answers_of_a_folder_bring_the_attestations_in_their_bodies(answers: Path) -> None:
    (answers / "report.txt.attestation").write_bytes(ATTESTATION[:9])
    given = list(given_attestations([answers]))
    assert [(Path(one.name).name, one.load()) for one in given] == [
        ("a.json", ATTESTATION),
        ("report.txt.attestation", ATTESTATION[:9]),
    ]


def test_an_answer_by_itself_brings_the_attestation_in_its_body(answers: Path) -> None:
    assert [one.load() for one in given_attestations([answers / "a.json"])] == [ATTESTATION]


def test_an_audit_takes_answers_among_its_records(answers: Path) -> None:
    assert {name: load() for name, load in named_files(answers)}["a.json"] == ATTESTATION


def test_a_folder_without_any_says_what_it_was_searched_for(answers: Path) -> None:
    (answers / "a.json").unlink()
    with pytest.raises(Failure, match="or answers that carry one"):
        list(given_attestations([answers]))
