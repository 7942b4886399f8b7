# SPDX-License-Identifier: Apache-2.0
"""`attest verify --statement`: what a host states of its answers, judged as any evidence is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forge import NOW, Forge

from quotary_cli.main import run
from quotary_verifier.wire.declaration import Declaration, Service
from quotary_verifier.wire.records import Statement

TEXT = Declaration.of([Service(("/v1/chat/completions",))]).text


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    forge = Forge()
    record = Statement(b"s" * 16, NOW * 1000, TEXT).encode()
    (tmp_path / "host.statement").write_bytes(forge.attestation(record=record).encode())
    (tmp_path / "answer.json").write_bytes(forge.body)
    (tmp_path / "answer.json.attestation").write_bytes(forge.attestation().encode())
    (tmp_path / "policy.toml").write_text(forge.policy())
    return forge


def verify(folder: Path, name: str, *options: str) -> int:
    """The exit code of the command."""
    words = ["verify", str(folder / name), "--policy", str(folder / "policy.toml"), "--at", str(NOW)]
    return run([*words, *options])


@pytest.mark.usefixtures("forge")
def test_a_statement_verifies_and_its_text_is_a_claim_of_the_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(tmp_path, "host.statement", "--statement", "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    claims = {claim["name"]: claim for claim in result["verdict"]["claims"]}
    assert claims["statement"] == {"name": "statement", "value": TEXT, "source": "host"}


@pytest.mark.usefixtures("forge")
def test_neither_an_output_nor_a_statement_passes_for_the_other(tmp_path: Path) -> None:
    assert verify(tmp_path, "answer.json.attestation", "--statement") == 1
    statement = str(tmp_path / "host.statement")
    assert verify(tmp_path, "answer.json", "--attestation", statement) == 1
    assert verify(tmp_path, "answer.json") == 0


@pytest.mark.usefixtures("forge")
@pytest.mark.parametrize(
    "option", [["--fresh"], ["--nonce", "00" * 8], ["--attestation", "{}"], ["--request", "{}"]]
)
def test_a_statement_answers_no_question_about_an_output(tmp_path: Path, option: list[str]) -> None:
    words = [word.format(tmp_path / "answer.json") for word in option]
    assert verify(tmp_path, "host.statement", "--statement", *words) == 2
