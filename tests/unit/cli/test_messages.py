# SPDX-License-Identifier: Apache-2.0
"""What the commands say to people who are about to stumble: hints, help pages, plain names instead of numbers."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from forge import NOW, Forge, sign_tpm

from quotary_cli.kinds import describe
from quotary_cli.main import cli, run
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE
from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import TpmSupport
from quotary_verifier.wire.bindings import fresh_digest
from quotary_verifier.wire.fresh import FreshQuote
from quotary_verifier.wire.tpm import pack_evidence


def commands(group: click.Command, context: click.Context | None = None) -> list[tuple[str, click.Context]]:
    """Every command below a group, by its path, with a context to show its help in."""
    context = click.Context(group, info_name=group.name, parent=context)
    found = [(context.command_path, context)]
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            found += commands(command, context)
    return found


def test_no_command_is_cut_short_where_commands_are_listed() -> None:
    cut = [path for path, context in commands(cli) if "..." in context.get_help().partition("Commands:")[2]]
    assert cut == []


def test_a_ca_and_an_enrolment_list_their_commands_in_the_order_of_use() -> None:
    listed = {path: context.command for path, context in commands(cli)}
    for path, order in {
        "cli ca": ["init", "challenge", "issue", "show"],
        "cli agent enroll": ["request", "activate", "install"],
    }.items():
        group = listed[path]
        assert isinstance(group, click.Group)
        assert group.list_commands(click.Context(group)) == order


def test_the_help_of_a_quote_names_the_option_without_which_it_is_not_verified() -> None:
    help_of = {path: context.get_help() for path, context in commands(cli)}
    assert "attest verify --fresh" in help_of["cli agent quote"]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(Forge().policy())
    return path


def test_who_names_a_fresh_quote_as_an_output_learns_of_the_option(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "platform.quote"
    forge = Forge()
    attest = forge.quote(fresh_digest(forge.origin, b"n" * 16), forge.events()).encode()
    support = TpmSupport(IDENTIFIER_TPM2_QUOTE, dict(forge.pcrs), forge.before, (), ())
    evidence = pack_evidence(attest, sign_tpm(forge.ak, attest))
    file.write_bytes(FreshQuote(b"n" * 16, forge.genesis_record, evidence, support).encode())
    assert run(["verify", str(file), "--policy", str(policy)]) == 2
    assert "this is a fresh quote: verify it with --fresh" in capsys.readouterr().err


def test_who_names_an_attestation_as_an_output_learns_what_to_name(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "host.statement"
    file.write_bytes(Forge().attestation().encode())
    assert run(["verify", str(file), "--policy", str(policy)]) == 2
    hint = capsys.readouterr().err
    assert "--attestation" in hint
    assert "--statement" in hint


def test_who_names_anything_else_as_an_output_learns_where_attestations_come_from(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answer.json"
    file.write_bytes(b"{}")
    assert run(["verify", str(file), "--policy", str(policy)]) == 2
    assert "Quotary-Output" in capsys.readouterr().err


def test_a_missing_nonce_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge = Forge()
    (tmp_path / "policy.toml").write_text(forge.policy() + "\n[freshness]\nnonce = true\n")
    (tmp_path / "answer").write_bytes(forge.body)
    (tmp_path / "answer.attestation").write_bytes(forge.attestation().encode())
    words = ["verify", str(tmp_path / "answer"), "--policy", str(tmp_path / "policy.toml"), "--at", str(NOW)]
    assert run(words) == 1
    assert "(--nonce)" in capsys.readouterr().out


def test_a_missing_file_is_named_in_lower_case_but_for_its_own_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(tmp_path / "File")]) == 2
    assert (
        f"error: invalid value for 'FILE': file '{tmp_path}/File' does not exist" in capsys.readouterr().err
    )


def test_a_ca_without_the_host_side_asks_for_no_tpm_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "quotary_attest"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "quotary_attest", None)
    assert run(["ca", "init", str(tmp_path / "ca"), "--name", "x"]) == 4
    assert "pip install 'quotary-attest'" in capsys.readouterr().err


def test_inspect_names_the_fields_of_an_enrolment_and_its_expiry() -> None:
    kind, content = describe(cbor.encode({0: 21, 1: 1, 2: b"i" * 16, 4: "origin", 7: NOW * 1000, 12: 3}))
    assert kind == "enrolment challenge"
    assert content["id"] == "69" * 16
    assert content["origin"] == "origin"
    assert content["expires"].startswith("2026-") and content["expires"].endswith("+00:00")
    assert content["12"] == 3


def test_an_address_that_is_taken_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def taken(*_: object, **__: object) -> None:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            first.listen()
            asyncio.run(serve(first.getsockname()[1]))

    async def serve(port: int) -> None:
        await asyncio.start_server(lambda *_: None, "127.0.0.1", port)

    monkeypatch.setattr("quotary_cli.kinds.describe", taken)
    (tmp_path / "file").write_bytes(b"x")
    assert run(["inspect", str(tmp_path / "file")]) == 4
    said = capsys.readouterr().err
    assert said.startswith("error: cannot listen on address ('127.0.0.1', ")
    assert "hint: name another address" in said


def test_a_reader_that_goes_away_is_a_failure_and_no_rejection() -> None:
    """`attest … | head`: click's own answer would be 1, which is our code for evidence that is false."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "quotary_cli", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (4, b"")
