# SPDX-License-Identifier: Apache-2.0
"""`attest verify` and `attest inspect` as a user meets them: exit codes, streams, messages, JSON."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from defects import CASES
from forge import NOW, Forge

EXIT = {"verified": 0, "rejected": 1, "could-not-check": 3}
AT = str(NOW)


def attest(
    *arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the command as a process, as its users do."""
    code = "from quotary_cli.main import main; main()"
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env=environment,
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    forge = Forge()
    (tmp_path / "answer.json").write_bytes(forge.body)
    (tmp_path / "answer.json.attestation").write_bytes(forge.attestation().encode())
    (tmp_path / "policy.toml").write_text(forge.policy())
    (tmp_path / "request.json").write_bytes(forge.request)
    return tmp_path


SAMPLE = [
    "everything_holds", "text_with_one_more_newline", "altered_output", "request_key_dropped",
    "attestation_of_an_unknown_version", "swapped_quote", "expired_certificate",
]  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_the_exit_code_and_the_json_say_how_a_case_ended(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    question = case.question
    (tmp_path / "out").write_bytes(question.output)
    (tmp_path / "a").write_bytes(case.attestation)
    (tmp_path / "p").write_text(case.policy)
    extra: list[str | Path] = ["--exact"] if question.exact else []
    if question.request is not None:
        (tmp_path / "r").write_bytes(question.request)
        extra += ["--request", tmp_path / "r"]
    if question.nonce is not None:
        extra += ["--nonce", question.nonce.hex()]
    result = attest(
        "verify",
        tmp_path / "out",
        "-a",
        tmp_path / "a",
        "-p",
        tmp_path / "p",
        "--at",
        str(question.at),
        "--json",
        *extra,
    )
    assert result.returncode == EXIT[str(case.outcome)], result.stdout + result.stderr
    shown = json.loads(result.stdout)
    assert shown["schema"] == "quotary-verify/v1"
    assert shown["results"][0]["verdict"]["failing"] == (None if case.step is None else str(case.step))


def test_people_see_who_says_what_and_what_was_not_checked(folder: Path) -> None:
    result = attest("verify", "answer.json", "-p", "policy.toml", "--at", AT, cwd=folder)
    text = result.stdout.decode()
    assert result.returncode == 0
    assert text.startswith("verified  answer.json")
    assert "[endorsed]" in text
    assert "not checked: request, nonce, boot-logs, tee, witness, freshness" in text
    assert "no witness cosigned" in text
    assert not result.stderr


def test_explain_shows_every_step(folder: Path) -> None:
    result = attest("verify", "answer.json", "-p", "policy.toml", "--at", AT, "--explain", cwd=folder)
    assert "25   -  freshness" in result.stdout.decode()
    assert result.stdout.decode().count("pass ") == 19


def test_standard_input_is_verified(folder: Path) -> None:
    body = (folder / "answer.json").read_bytes()
    result = attest(
        "verify",
        "-",
        "-a",
        "answer.json.attestation",
        "-p",
        "policy.toml",
        "--at",
        AT,
        stdin=body,
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr


def test_an_attestation_in_band_is_found(folder: Path) -> None:
    body = (folder / "answer.json").read_bytes()
    span = b',"attestation":"' + base64.b64encode((folder / "answer.json.attestation").read_bytes()) + b'"}'
    (folder / "in-band").write_bytes(body[:-1] + span)
    (folder / "answer.json.attestation").unlink()
    result = attest("verify", "in-band", "-p", "policy.toml", "--at", AT, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_folder_is_verified_file_by_file_and_the_worst_outcome_counts(folder: Path) -> None:
    answers = folder / "answers"
    answers.mkdir()
    for name in ("one", "two"):
        (answers / name).write_bytes((folder / "answer.json").read_bytes())
        (answers / f"{name}.attestation").write_bytes((folder / "answer.json.attestation").read_bytes())
    assert attest("verify", answers, "-p", "policy.toml", "--at", AT, cwd=folder).returncode == 0
    (answers / "two").write_bytes(b"altered")
    result = attest("verify", answers, "-p", "policy.toml", "--at", AT, "--json", cwd=folder)
    assert result.returncode == 1
    assert [item["verdict"]["outcome"] for item in json.loads(result.stdout)["results"]] == [
        "verified",
        "rejected",
    ]


USAGE = {
    "no arguments": [],
    "no policy": ["answer.json"],
    "a policy that is not there": ["answer.json", "-p", "nowhere"],
    "a policy that does not parse": ["answer.json", "-p", "request.json"],
    "an output that is not there": ["nowhere", "-p", "policy.toml"],
    "an output without an attestation": ["request.json", "-p", "policy.toml"],
    "a nonce that is not hexadecimal": ["answer.json", "-p", "policy.toml", "--nonce", "xyz"],
    "a nonce that is too short": ["answer.json", "-p", "policy.toml", "--nonce", "00"],
    "a time that is none": ["answer.json", "-p", "policy.toml", "--at", "yesterday"],
    "a time without a zone": ["answer.json", "-p", "policy.toml", "--at", "2026-11-23T12:00:00"],
    "an unknown option": ["answer.json", "-p", "policy.toml", "--bogus"],
}


@pytest.mark.parametrize("name", USAGE)
def test_usage_errors_exit_with_2_a_message_and_no_result(name: str, folder: Path) -> None:
    result = attest("verify", *USAGE[name], cwd=folder)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stdout == b""
    first = result.stderr.decode().splitlines()[0]
    assert first.startswith("error: ")
    assert first[7:8] == first[7:8].lower()
    assert not first.endswith(".")
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("name", USAGE)
def test_usage_errors_are_one_object_where_json_is_asked_for(name: str, folder: Path) -> None:
    result = attest("verify", *USAGE[name], "--json", cwd=folder)
    shown = json.loads(result.stdout)
    assert (shown["schema"], shown["exit"], result.returncode) == ("quotary-error/v1", 2, 2)


@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"\xa2\x00\x10\x01\x01", os.urandom(3000), b"\x9f" * 70000]
)
def test_garbage_for_an_attestation_is_rejected_without_a_traceback(data: bytes, folder: Path) -> None:
    (folder / "bad").write_bytes(data)
    for command in (["verify", "answer.json", "-a", "bad", "-p", "policy.toml"], ["inspect", "bad"]):
        result = attest(*command, cwd=folder)
        assert result.returncode == 1, (command, result.stdout, result.stderr)
        assert b"Traceback" not in result.stderr


def test_text_of_the_evidence_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    forge = Forge(model="evil\x1b[31m\nverified")
    (tmp_path / "o").write_bytes(forge.body)
    (tmp_path / "o.attestation").write_bytes(forge.attestation().encode())
    (tmp_path / "p").write_text(forge.policy())
    for command in (["verify", "o", "-p", "p", "--at", AT], ["inspect", "o.attestation"]):
        result = attest(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert b"\x1b" not in result.stdout
        assert b"evil\\x1b[31m\\nverified" in result.stdout


def test_inspect_says_that_nothing_was_verified(folder: Path) -> None:
    result = attest("inspect", "answer.json.attestation", cwd=folder)
    assert b"parsed, not verified" in result.stdout
    shown = json.loads(attest("inspect", "answer.json.attestation", "--json", cwd=folder).stdout)
    assert (shown["kind"], shown["status"]) == ("attestation", "parsed, not verified")


VERIFY = f"['verify', 'answer.json', '-p', 'policy.toml', '--at', '{AT}']"
NOT_LOADED = (
    *("quotary", "quotary_attest", "tpm2_pytss", "aiohttp", "asyncio", "httpx2", "openai"),
    *("quotary_verifier.evidence.tee", "quotary_verifier.policy.tee", "quotary_verifier.policy.load_tee"),
    *(
        "quotary_verifier.recipe.tee",
        "quotary_verifier.recipe.tee_claims",
        "quotary_verifier.wire.tee_support",
    ),
    *("quotary_verifier.policy.rules", "quotary_verifier.logs.tcg", "quotary_verifier.logs.ima"),
    *("quotary_verifier.recipe.fresh", "quotary_verifier.recipe.statement", "quotary_verifier.audit"),
    *("subprocess", "tempfile", "logging", "ssl", "http.client", "quotary_cli.sources"),
)
"""What one plain output needs nothing of: the host side, other evidence, what reads whole logs, the network."""


def test_verifying_loads_nothing_that_one_plain_output_does_not_need(folder: Path) -> None:
    code = (
        f"import sys; from quotary_cli.main import run; code = run({VERIFY}); "
        "parts = [m.split('.') for m in sys.modules]; "
        "loaded = {'.'.join(part[:n]) for part in parts for n in range(1, len(part) + 1)}; "
        f"bad = loaded & {set(NOT_LOADED)!r}; "
        "print(bad, file=sys.stderr); sys.exit(code or bool(bad))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_verification_looks_for_no_garbage_in_what_it_just_made(folder: Path) -> None:
    code = (
        "import gc, sys; from quotary_cli.main import main; runs = []; "
        f"gc.callbacks.append(lambda *_: runs.append(1)); sys.argv[1:] = {VERIFY}\n"
        "try: main()\n"
        "except SystemExit as end: sys.exit(end.code or bool(runs) or not gc.get_freeze_count())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
