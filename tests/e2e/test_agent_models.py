# SPDX-License-Identifier: Apache-2.0
"""Models as an operator meets them: an engine that the agent starts, and one exchanged for another while it serves."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from llama_server import await_ready, find_engine, llama_server
from small_engine import PROGRAM, PYTHON, any_port, small_engine

from quotary_cli.main import run
from quotary_verifier import strip

ATTEST = [sys.executable, "-m", "quotary_cli"]
QUESTION = b'{"messages":[{"role":"user","content":"Say hello."}],"max_tokens":4}'
POLICY = 'schema = "quotary-policy/v1"\n[tpm]\nsoftware = true\n[[pin]]\norigin = "{origin}"\n'


def attest(*arguments: object, code: int = 0) -> str:
    """Run a command in this process; its result, or what it said where another code is expected."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        assert run([str(argument) for argument in arguments]) == code, out.getvalue() + errors.getvalue()
    return out.getvalue() if code == 0 else errors.getvalue()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent") / "state"
    attest("agent", "init", "--state", folder, "--host", "h.example", "--emulator")
    return folder


class Running:
    """An agent that runs, and what it said when it was ready."""

    def __init__(self, process: subprocess.Popen[str], ready: dict[str, Any], folder: Path) -> None:
        self.process, self.ready, self.folder = process, ready, folder
        (folder / "policy.toml").write_text(POLICY.format(origin=ready["origin"]))

    def ask(self) -> dict[str, Any]:
        """The claims of the verdict about one answer, and its body."""
        url = f"{self.ready['proxy']}/v1/chat/completions"
        with urllib.request.urlopen(urllib.request.Request(url, QUESTION), timeout=30) as answer:
            received = answer.read()
        (self.folder / "body").write_bytes(received)
        verdict = json.loads(
            attest("verify", self.folder / "body", "-p", self.folder / "policy.toml", "--json")
        )
        (result,) = verdict["results"]
        claims = {claim["name"]: claim["value"] for claim in result["verdict"]["claims"]}
        return claims | {"said": strip(received)[0]}


@contextmanager
def running(state: Path, folder: Path, *arguments: object, code: int = 0) -> Iterator[Running]:
    command = [*ATTEST, "agent", "run", "--state", str(state), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
        reader.start()
        line = process.stdout.readline()
        try:
            if line:
                yield Running(process, json.loads(line), folder)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(60)
            reader.join()
        assert line, "".join(said)
        assert process.returncode == code, "".join(said)
        assert "Traceback" not in "".join(said)


def test_the_agent_starts_the_engine_and_exchanges_its_model_in_one_command(
    state: Path, tmp_path: Path
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(f"{name} weights     ".encode() + bytes(4096))
    arguments = ("-I", PROGRAM, "--model", "{model}", "--port", "{port}")
    port = any_port()
    with running(
        state, tmp_path, "--model", f"m={tmp_path / 'old'}", "--engine", PYTHON, "--start-engine",
        "--upstream", f"http://127.0.0.1:{port}", "--listen", "127.0.0.1:0", "--", *arguments,
    ) as agent:  # fmt: skip
        before = agent.ask()
        assert (before["model"], before["model_link"]) == ("m", "started")
        assert b"old weights" in before["said"]
        swapped = json.loads(
            attest("agent", "swap", "--state", state, "--model", f"m={tmp_path / 'new'}", "--json")
        )
        assert (swapped["schema"], swapped["state"]) == ("quotary-agent-swap/v1", "done")
        after = agent.ask()
        assert after["model_weights"] == swapped["digest"] != before["model_weights"]
        assert (after["model"], after["model_link"]) == ("m", "started")
        assert b"new weights" in after["said"]
        told = attest("agent", "swap", "--state", state, "--model", f"other={tmp_path / 'new'}", code=4)
        assert "no proxy of this agent serves the model to be replaced" in told
        told = attest(
            "agent", "swap", "--state", state, "--model", f"m={tmp_path / 'old'}", "--upstream", "http://127.0.0.1:1",
            code=4,
        )  # fmt: skip
        assert "starts its engine itself" in told


def test_a_swap_to_an_engine_that_the_operator_started_is_checked(state: Path, tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(f"{name} weights     ".encode() + bytes(4096))
    with (
        small_engine(tmp_path / "old") as old,
        small_engine(tmp_path / "new") as new,
        running(
            state, tmp_path, "--model", f"m={tmp_path / 'old'}", "--engine", PYTHON,
            "--upstream", old.url, "--listen", "127.0.0.1:0",
        ) as agent,
    ):  # fmt: skip
        assert agent.ask()["model_link"] == "checked"
        attest("agent", "swap", "--state", state, "--model", f"m={tmp_path / 'new'}", "--upstream", new.url)
        after = agent.ask()
        assert after["model_link"] == "checked"
        assert b"new weights" in after["said"]


def test_an_agent_whose_engine_never_serves_does_not_start(state: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    words = ["--state", state, "--model", f"m={tmp_path / 'weights'}", "--engine", PYTHON, "--start-engine"]
    door = ["--upstream", f"http://127.0.0.1:{any_port()}", "--listen", "127.0.0.1:0", "--"]
    said = attest("agent", "run", *words, *door, "-m", "http.server", code=2)
    assert "no place for what was measured" in said
    command = [*ATTEST, "agent", "run", *words, *door, "-I", "-c", "import sys; sys.exit(5)", "{model}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 4
    assert "the engine ended with status 5 before it was ready" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_agent_may_stop_with_its_engine(state: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"weights         " + bytes(100))
    port = any_port()
    arguments = ["-I", str(PROGRAM), "--model", "{model}", "--port", "{port}"]
    (tmp_path / "agent.toml").write_text(
        f'[state]\nfolder = "{state}"\n[[model]]\nname = "m"\nfiles = ["{tmp_path / "weights"}"]\n'
        f'[engine]\nbinary = "{PYTHON}"\narguments = {json.dumps(arguments)}\nstart = true\non_exit = "stop"\n'
        f'[[proxy]]\nupstream = "http://127.0.0.1:{port}"\nlisten = "127.0.0.1:0"\n'
    )
    with running(state, tmp_path, "--config", tmp_path / "agent.toml", code=4) as agent:
        assert agent.ask()["model_link"] == "started"
        children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text().split()
        engines = [pid for pid in children if "small_engine" in Path(f"/proc/{pid}/cmdline").read_text()]
        subprocess.run(["kill", "-9", *engines], check=True)
        assert agent.process.wait(60) == 4


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.timeout(300)
def test_a_real_engine_is_started_checked_and_exchanged(state: Path, tmp_path: Path) -> None:
    engine = find_engine()
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(engine.weights.read_bytes() + b"\0")  # other bytes, which the server does not mind
    arguments = ["-m", "{model}", "-a", "smollm2", "--host", "127.0.0.1", "--port", "{port}"]
    arguments += ["-c", "512", "-np", "1", "-t", "2", "--no-webui"]
    (tmp_path / "agent.toml").write_text(
        f'[state]\nfolder = "{state}"\n[[model]]\nname = "smollm2"\nfiles = ["{engine.weights}"]\n'
        f'[engine]\nbinary = "{engine.server}"\narguments = {json.dumps(arguments)}\nstart = true\n'
        f'environment = {{ LD_LIBRARY_PATH = "{engine.libraries}" }}\ncode = ["{engine.server.parent}"]\n'
        f'[[proxy]]\nupstream = "http://127.0.0.1:{any_port()}"\nlisten = "127.0.0.1:0"\n'
    )
    with running(state, tmp_path, "--config", tmp_path / "agent.toml") as agent:
        before = agent.ask()
        assert (before["model"], before["model_link"]) == ("smollm2", "started")
        swapped = json.loads(
            attest("agent", "swap", "--state", state, "--model", f"smollm2={copy}", "--json")
        )
        after = agent.ask()
        assert after["model_weights"] == swapped["digest"] != before["model_weights"]
        assert after["model_link"] == "started"
    with (
        llama_server(engine, tmp_path / "server.log") as url,
        running(
            state, tmp_path, "--model", f"smollm2={engine.weights}", "--engine", engine.server,
            "--upstream", url, "--listen", "127.0.0.1:0",
        ) as agent,
    ):  # fmt: skip
        await_ready(url, tmp_path / "server.log")
        assert agent.ask()["model_link"] == "checked"
