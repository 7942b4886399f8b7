# SPDX-License-Identifier: Apache-2.0
"""The agent's commands as an operator meets them, on a private software TPM: init, run, sign, quote, status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ATTEST = [sys.executable, "-m", "quotary_cli"]
POLICY = 'schema = "quotary-policy/v1"\n[tpm]\nsoftware = true\n[[pin]]\norigin = "{origin}"\n'
NONCE = "00112233445566778899aabbccddeeff"


def attest(*arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        [*ATTEST, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent") / "state"
    attest("agent", "init", "--state", folder, "--host", "h.example", "--emulator")
    return folder


@contextmanager
def running(state: Path, *arguments: object) -> Iterator[dict[str, str]]:
    """An agent that runs for as long as the block lasts, and must then stop by itself when told to."""
    command = [*ATTEST, "agent", "run", "--state", str(state), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            pytest.fail(process.communicate(timeout=30)[1])
        try:
            yield json.loads(line)
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors


def test_a_file_is_signed_and_verifies_with_the_origin_pinned(state: Path, tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("what the model said\n")
    with running(state) as ready:
        attest("agent", "sign", tmp_path / "report.txt", "--state", state, "--nonce", NONCE)
        status = json.loads(attest("agent", "status", "--state", state, "--json"))
    assert (status["schema"], status["state"], status["origin"]) == (
        "quotary-agent-status/v1",
        "running",
        ready["origin"],
    )
    (tmp_path / "policy.toml").write_text(POLICY.format(origin=ready["origin"]))
    shown = attest("verify", tmp_path / "report.txt", "-p", tmp_path / "policy.toml", "--nonce", NONCE)
    assert "submitted by a local caller" in shown
    assert "software TPM" in shown


def test_the_default_policy_refuses_the_software_tpm(state: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with running(state) as ready:
        attest("agent", "sign", tmp_path / "file", "--state", state)
    policy = POLICY.format(origin=ready["origin"]).replace("software = true", "software = false")
    (tmp_path / "policy.toml").write_text(policy)
    done = subprocess.run(
        [*ATTEST, "verify", str(tmp_path / "file"), "-p", str(tmp_path / "policy.toml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "tpm.kind" in done.stdout


def test_a_fresh_quote_over_a_nonce_verifies(state: Path, tmp_path: Path) -> None:
    with running(state) as ready:
        attest("agent", "quote", "--state", state, "--nonce", NONCE, "-o", tmp_path / "quote")
    (tmp_path / "policy.toml").write_text(POLICY.format(origin=ready["origin"]))
    attest("verify", "--fresh", tmp_path / "quote", "-p", tmp_path / "policy.toml", "--nonce", NONCE)
    attest(
        "verify",
        "--fresh",
        tmp_path / "quote",
        "-p",
        tmp_path / "policy.toml",
        "--nonce",
        NONCE[::-1],
        code=1,
    )


def test_what_is_measured_stands_in_the_attestation(state: Path, tmp_path: Path) -> None:
    weights = tmp_path / "tiny.gguf"
    weights.write_bytes(os.urandom(5000))
    with running(
        state, "--model", f"tiny={weights}", "--engine", sys.executable, "--", "--secret-key=hunter2"
    ):
        status = json.loads(attest("agent", "status", "--state", state, "--json"))
    assert status["models"] == ["tiny"]
    log = max((state / "workload").glob("*.cel"), key=lambda file: file.stat().st_mtime)
    shown = json.loads(attest("inspect", log, "--json"))["content"]
    events = {event["type"]: event for event in shown["events"]}
    assert events["model"]["name"] == "tiny"
    assert "hunter2" not in json.dumps(shown)
    assert events["agent"]["details"]["tpm"] == "software"


def test_a_hangup_makes_the_agent_look_for_certificates(state: Path) -> None:
    command = [*ATTEST, "agent", "run", "--state", str(state), "--keep-days", "30"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        lines = iter(process.stderr.readline, "")
        assert any("certificates in use: 0" in line for line in lines)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_two_agents_cannot_run_on_one_state_folder(state: Path) -> None:
    with running(state):
        error = attest("agent", "run", "--state", state, code=4)
    assert "hint:" in error


REFUSALS = {
    "a host name that is none": (["init", "--state", "{new}", "--host", "Bad_Host", "--emulator"], 2),
    "an origin that is there already": (
        ["init", "--state", "{state}", "--host", "h.example", "--emulator"],
        4,
    ),
    "a TPM that is not there": (
        ["init", "--state", "{new}", "--host", "h.example", "--tpm", "device:/dev/none"],
        4,
    ),
    "a TPM and an emulator": (
        ["init", "--state", "{new}", "--host", "h.example", "--tpm", "x", "--emulator"],
        2,
    ),
    "a resettable PCR": (
        ["init", "--state", "{new}", "--host", "h.example", "--emulator", "--chain-pcr", "16"],
        2,
    ),
    "one PCR for both": (
        [
            *("init", "--state", "{new}", "--host", "h.example", "--emulator"),
            *("--chain-pcr", "12", "--workload-pcr", "12"),
        ],
        2,
    ),
    "a state folder that is not there": (["run", "--state", "{new}"], 4),
    "a model that is not there": (["run", "--state", "{state}", "--model", "nowhere.gguf"], 2),
    "an upstream without an address to listen on": (
        ["run", "--state", "{state}", "--upstream", "http://[::1]:1"],
        2,
    ),
    "an address that is none": (
        ["run", "--state", "{state}", "--upstream", "http://[::1]:1", "--listen", "here"],
        2,
    ),
    "an agent that does not run": (["status", "--state", "{state}"], 4),
    "no agent named": (["status"], 2),
    "a file that is not there": (["sign", "nowhere", "--state", "{state}"], 2),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_it_says_in_one_line_what_is_wrong(name: str, state: Path, tmp_path: Path) -> None:
    words, code = REFUSALS[name]
    error = attest("agent", *[word.format(state=state, new=tmp_path / "new") for word in words], code=code)
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert not lines[0].endswith(".")


def test_a_running_agent_states_what_its_proxies_attest(state: Path, tmp_path: Path) -> None:
    with (
        running(state, "--upstream", "http://127.0.0.1:9", "--listen", "127.0.0.1:0") as where,
        urllib.request.urlopen(where["proxy"] + "/quotary/v1/statement") as answer,
    ):
        (tmp_path / "host.statement").write_bytes(answer.read())
    (tmp_path / "policy.toml").write_text(POLICY.format(origin=where["origin"]))
    words = ("verify", tmp_path / "host.statement", "--statement", "--policy", tmp_path / "policy.toml")
    assert '"/v1/chat/completions"' in attest(*words)
    shown = json.loads(attest("inspect", tmp_path / "host.statement", "--json"))
    (service,) = shown["content"]["record"]["services"]
    assert "/v1/completions" in service["paths"]


def test_an_init_that_fails_takes_the_emulator_that_it_made_away_again(tmp_path: Path) -> None:
    folder, beside = tmp_path / "state", tmp_path / "state.swtpm"
    folder.mkdir()
    (folder / "something").touch()
    init = ("agent", "init", "--state", folder, "--host", "h.example", "--emulator")
    attest(*init, code=4)
    assert not beside.exists()
    (folder / "something").unlink()
    attest(*init)
    made = sorted(beside.rglob("*"))
    attest(*init, code=4)
    assert sorted(beside.rglob("*")) == made  # one that was there before is the origin's


def test_the_agent_stops_soon_when_it_is_told_to(state: Path) -> None:
    with running(state):
        start = time.monotonic()
    assert time.monotonic() - start < 20


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_who_is_allowed_gets_in_and_no_other(state: Path) -> None:
    """In a folder that everybody may enter: the state folder is for the agent alone."""
    program = (
        "import os, socket, sys; uid = int(sys.argv[2]); os.setgroups([]); os.setgid(uid); os.setuid(uid)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(b'GET /v1/status HTTP/1.0\\r\\n\\r\\n'); print(s.recv(12).decode())\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "agent.sock"
        with running(state, "--socket", path, "--allow-uid", "65534"):
            for uid, answer in ((65534, "HTTP/1.0 200"), (65533, "HTTP/1.0 403")):
                done = subprocess.run(
                    ["python3", "-I", "-c", program, str(path), str(uid)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.stdout.strip() == answer, done.stderr


def test_an_agent_that_is_told_to_stop_while_it_measures_leaves_no_emulator_behind(
    state: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    weights.touch()
    os.truncate(weights, 1 << 36)  # no bytes on disk, and a minute of hashing
    command = [*ATTEST, "agent", "run", "--state", str(state), "--model", f"x={weights}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("measuring" in line for line in iter(process.stderr.readline, ""))
        emulator = int((state.with_name("state.swtpm") / "swtpm.pid").read_text())
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "interrupted" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(emulator, 0)
