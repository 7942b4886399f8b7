# SPDX-License-Identifier: Apache-2.0
"""The configuration as the commands meet it: every error at once, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quotary_cli.main import run

WRONG = (
    '[state]\nfolder = "relative"\n[tpm]\nemulater = true\n[[proxy]]\nupstream = "http://a"\nlisten = "b"\n'
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "agent.toml"
    file.write_text(f'[state]\nfolder = "{tmp_path}/state"\n[[model]]\nname = "m"\nfiles = ["{file}"]\n')
    return file


def status(*arguments: object) -> int:
    """Exit code of a command, however it ends."""
    try:
        return run([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_a_configuration_that_can_be_used_is_said_to_be_so(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("agent", "check-config", config) == 0
    assert "can be used" in capsys.readouterr().out


def test_people_are_told_every_error_on_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "agent.toml").write_text(WRONG)
    for command in (["check-config"], ["run", "--config"]):
        assert status("agent", *command, tmp_path / "agent.toml") == 2
        shown = capsys.readouterr().err.splitlines()
        assert [line.split(":")[1].strip() for line in shown[:3]] == [
            "state.folder",
            "tpm.emulater",
            "proxy[0].listen",
        ]
        assert shown[1] == (
            "error: tpm.emulater: is no key of the configuration, did you mean emulator?; "
            "allowed: tcti, emulator, endorsement_auth_file, endorsement_auth_credential"
        )
        assert shown[3] == "hint: 3 errors in the configuration"


def test_programs_get_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "agent.toml").write_text(WRONG)
    assert status("agent", "check-config", tmp_path / "agent.toml", "--json") == 2
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == "quotary-config-check/v1"
    assert shown["problems"][0] == {
        "path": "state.folder",
        "what": "is not absolute",
        "allowed": "an absolute path",
    }


def test_files_that_a_configuration_names_must_be_there(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text() + f'[engine]\nbinary = "{tmp_path}/gone"\n')
    for command in (["check-config"], ["run", "--config"]):
        assert status("agent", *command, config) == 2
        assert f"engine.binary: {tmp_path}/gone: no such file" in capsys.readouterr().err


def test_a_file_that_is_no_text_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "agent.toml").write_bytes(b"\xff\xfe")
    assert status("agent", "check-config", tmp_path / "agent.toml") == 2
    assert "not utf-8" in capsys.readouterr().err


def test_what_is_wrong_with_an_option_is_said_of_the_option(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("agent", "run", "--config", config, "--upstream", "http://a", "--listen", "here") == 2
    assert "--listen: is not HOST:PORT" in capsys.readouterr().err


def test_an_agent_needs_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "doctor"):
        assert status("agent", command) == 2
        assert "--config or --state is needed" in capsys.readouterr().err
