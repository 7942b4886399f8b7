# SPDX-License-Identifier: Apache-2.0
"""`attest agent measure`: what it prints, and its exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from signed_models import bundle, public_pem, statement, write_files

from quotary_cli.main import run

FILES = {"model.safetensors": b"weights", "tokenizer.json": b"tokens", "sub/vocab.txt": b"words"}
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    write_files(made, FILES)
    (tmp_path / "signer.pem").write_bytes(public_pem(KEY))
    return made


def measured(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict[str, Any]:
    assert run(["agent", "measure", *map(str, words), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def sign(folder: Path, files: dict[str, bytes] = FILES) -> None:
    (folder / "model.sig").write_text(json.dumps(bundle(KEY, statement(files))))


def test_it_prints_what_the_agent_would_measure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(capsys, folder)
    assert found["schema"] == "quotary-agent-measure/v1"
    assert (found["model"], found["files"], found["bytes"]) == ("model", 3, sum(map(len, FILES.values())))
    lines = "".join(f"{file['sha256']}  {file['name']}\n" for file in found["manifest"])
    assert found["digest"] == hashlib.sha256(lines.encode()).hexdigest()
    assert [file["name"] for file in found["manifest"]] == sorted(FILES)
    assert set(found["parts"]) == {"weights", "tokenizer"}
    assert found["signature"] == "none"
    assert run(["agent", "measure", str(folder)]) == 0
    shown = capsys.readouterr()
    assert found["digest"] in shown.out
    assert shown.err == ""


def test_a_single_file_goes_by_its_own_name_and_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"weights")
    found = measured(capsys, tmp_path / "tiny.gguf")
    assert (found["model"], found["digest"]) == ("tiny", hashlib.sha256(b"weights").hexdigest())
    assert measured(capsys, tmp_path / "tiny.gguf", "--name", "other")["model"] == "other"
    measured(capsys, tmp_path / "tiny.gguf", "--name", "x" * 501, code=2)


def test_the_exit_code_tells_what_became_of_the_signature(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trusting = ("--signer-key", tmp_path / "signer.pem")
    sign(folder)
    assert measured(capsys, folder, *trusting)["signature"] == "verified"
    assert measured(capsys, folder)["signature"] == "could not be checked"
    signed = json.loads((folder / "model.sig").read_text())
    signed["verificationMaterial"] = {"certificate": {"rawBytes": ""}}
    (folder / "model.sig").write_text(json.dumps(signed))
    assert "sigstore" in measured(capsys, folder, *trusting, code=3)["reason"]
    sign(folder, FILES | {"tokenizer.json": b"other"})
    refused = measured(capsys, folder, *trusting, code=1)
    assert "differ from what was signed: tokenizer.json" in refused["error"]
    (folder / "model.sig").unlink()
    assert measured(capsys, folder, *trusting)["signature"] == "none"


def test_what_cannot_be_measured_is_usage_or_failure(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(capsys, tmp_path / "absent", code=2)
    measured(capsys, code=2)
    (folder / "link").symlink_to(tmp_path)
    refused = measured(capsys, folder, code=4)
    assert "link to a folder" in refused["error"]
    assert refused["hint"]
    (tmp_path / "text").write_text("no key")
    measured(capsys, tmp_path / "signer.pem", "--signer-key", tmp_path / "text", code=4)


def test_names_that_act_on_a_terminal_are_escaped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a\x1b[31mb").write_bytes(b"x")
    assert run(["agent", "measure", str(folder)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_on_a_terminal_a_bar_shows_how_far_it_is(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(bytes(5 << 20))
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "quotary_cli", "agent", "measure", str(tmp_path / "tiny.gguf")]
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE) as process:
        os.close(theirs)
        drawn = b""
        try:
            while piece := os.read(ours, 4096):
                drawn += piece
        except OSError:
            pass  # how a terminal says that nobody is left
        assert process.wait(30) == 0
    os.close(ours)
    assert b"100%" in drawn
