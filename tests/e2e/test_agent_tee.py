# SPDX-License-Identifier: Apache-2.0
"""An origin without a TPM as operator and consumer meet it: the agent's commands on a machine whose kernel answers with
emulated SEV-SNP reports, its proxy before a real model server, and `attest verify` as it is, elsewhere."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_engine import any_port, small_engine
from tee_machine import PROGRAM, make_machine

from quotary_attest.state import read_identity
from quotary_cli.main import run
from quotary_verifier import strip
from quotary_verifier.tlog.note import Note, parse_note
from quotary_verifier.wire.attestation import Attestation

ATTEST = [sys.executable, "-m", "quotary_cli"]
QUESTION = b'{"messages":[{"role":"user","content":"Say hello."}]}'
NONCE = "00112233445566778899aabbccddeeff"
POLICY = """schema = "quotary-policy/v1"
[[pin]]
origin = "{origin}"
[tee]
required = ["sev-snp"]
[tee.sev-snp]
generations = ["genoa"]
measurements = ["{measurement}"]
[tee.roots.amd]
genoa = '''{root}'''
"""
MEASUREMENT = "4d" * 48


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_machine(tmp_path_factory.mktemp("processor") / "machine")


@pytest.fixture(scope="module")
def state(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent") / "state"
    on(machine, "agent", "init", "--state", folder, "--host", "h.example", "--tee", "sev-snp")
    return folder


def on(machine: Path, *arguments: object, code: int = 0) -> str:
    """Run a command on the machine; its result, or what it said where another code is expected."""
    command = [sys.executable, PROGRAM, machine, "attest", *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code in (0, 3) else done.stderr


def attest(*arguments: object, code: int = 0) -> str:
    """Run a command in this process, which is another machine."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        assert run([str(argument) for argument in arguments]) == code, out.getvalue() + errors.getvalue()
    return out.getvalue() if code == 0 else out.getvalue() + errors.getvalue()


def policy_of(machine: Path, state: Path, folder: Path, **changes: str) -> Path:
    """A policy that names origin, measurement and root."""
    names = {"origin": read_identity(state).origin, "measurement": MEASUREMENT}
    names |= {"root": (machine / "ark.pem").read_text()} | changes
    (folder / "policy.toml").write_text(POLICY.format(**names))
    return folder / "policy.toml"


@contextmanager
def running(machine: Path, state: Path, *arguments: object, stop: int = signal.SIGTERM) -> Iterator[Any]:
    """An agent that runs on the machine for as long as the block lasts; what it said when it was ready."""
    command = [sys.executable, PROGRAM, machine, "attest", "agent", "run", "--state", state, *arguments]
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            pytest.fail(process.communicate(timeout=30)[1])
        try:
            yield json.loads(line)
        finally:
            process.send_signal(stop)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == (0 if stop == signal.SIGTERM else -stop), errors
        assert "Traceback" not in errors


@contextmanager
def proxied(machine: Path, state: Path, folder: Path, *arguments: object) -> Iterator[Any]:
    """The agent with a proxy before a model server, whose weights it measures."""
    (folder / "weights.bin").write_bytes(b"the weights")
    with small_engine(folder / "weights.bin") as engine:
        options = ("--model", f"m={folder / 'weights.bin'}", "--upstream", engine.url)
        listen = ("--listen", f"127.0.0.1:{any_port()}")
        with running(machine, state, *options, *listen, *arguments) as ready:
            yield {**ready, "engine": engine.url}


def ask(ready: Any, body: bytes = QUESTION) -> bytes:
    """What the model answers through the proxy."""
    request = urllib.request.Request(f"{ready['proxy']}/v1/chat/completions", body)
    request.add_header("Quotary-Nonce", NONCE)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


@pytest.fixture(scope="module")
def answer(machine: Path, state: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one attested answer, `body`, and its `attestation`."""
    folder = tmp_path_factory.mktemp("answer")
    with proxied(machine, state, folder) as ready:
        received = ask(ready)
    body, attestation = strip(received)
    assert attestation is not None
    (folder / "received").write_bytes(received)
    (folder / "body").write_bytes(body)
    (folder / "body.attestation").write_bytes(attestation)
    return folder


def test_an_answer_of_a_machine_without_a_tpm_verifies_in_another_process(
    machine: Path, state: Path, answer: Path, tmp_path: Path
) -> None:
    policy = policy_of(machine, state, tmp_path)
    command = [*ATTEST, "verify", answer / "received", "-p", policy, "--nonce", NONCE, "--json"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = json.loads(done.stdout)
    claims = {claim["name"]: claim for claim in shown["results"][0]["verdict"]["claims"]}
    assert claims["root"]["source"] == "hardware"
    assert "sev-snp" in claims["root"]["value"]
    assert claims["model"]["source"] == "host"


@pytest.mark.parametrize(
    "changes",
    [{"measurement": "4e" * 48}, {"origin": "h.example/" + "a" * 32}, {"root": "another processor's"}],
    ids=["measurement", "origin", "root"],
)
def test_a_policy_that_names_another_machine_rejects_it(
    machine: Path, state: Path, answer: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    if "root" in changes:  # keys are made once in a process: this one's were, for `machine`
        script = f"from tee_machine import *; make_machine(Path({str(tmp_path / 'other')!r}))"
        subprocess.run([sys.executable, "-c", script], cwd=PROGRAM.parent, check=True, timeout=60)
        changes = {"root": (tmp_path / "other" / "ark.pem").read_text()}
    policy = policy_of(machine, state, tmp_path, **changes)
    attest("verify", answer / "body", "-p", policy, "--nonce", NONCE, code=1)


def test_a_policy_that_requires_no_hardware_rejects_it(state: Path, answer: Path, tmp_path: Path) -> None:
    origin = read_identity(state).origin
    (tmp_path / "p.toml").write_text(f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{origin}"\n')
    attest("verify", answer / "body", "-p", tmp_path / "p.toml", "--nonce", NONCE, code=1)


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes((data[place] ^ 1,)) + data[place + 1 :]


def _without(line: int) -> Callable[[Attestation], Attestation]:
    def alter(attestation: Attestation) -> Attestation:
        note = parse_note(attestation.note)
        lines = tuple(each for number, each in enumerate(note.lines) if number != line)
        return replace(attestation, note=Note(note.text, lines).encode())

    return alter


def _evidence(place: int) -> Callable[[Attestation], Attestation]:
    def alter(attestation: Attestation) -> Attestation:
        note = parse_note(attestation.note)
        line = replace(note.lines[1], payload=_flipped(note.lines[1].payload, place))
        return replace(attestation, note=Note(note.text, (note.lines[0], line)).encode())

    return alter


def _endorsement(attestation: Attestation) -> Attestation:
    (tee,) = attestation.tees
    leaf = _flipped(tee.endorsements["leaf"][0], 200)
    return replace(attestation, tees=(replace(tee, endorsements={**tee.endorsements, "leaf": (leaf,)}),))


ALTERED: dict[str, Callable[[Attestation], Attestation]] = {
    "the record": lambda one: replace(one, record=_flipped(one.record, 30)),
    "the genesis record": lambda one: replace(one, genesis=_flipped(one.genesis, 10)),
    "the index": lambda one: replace(one, index=one.index - 1),
    "the path": lambda one: replace(one, path=_flipped(one.path, 0)),
    "the root of the tree": lambda one: replace(one, note=one.note.replace(b"\n4\n", b"\n5\n", 1)),
    "no ed25519 line": _without(0),
    "no hardware line": _without(1),
    "the first leaf": _evidence(7),
    "the measurement": _evidence(8 + 0x90),
    "the report data": _evidence(8 + 0x50),
    "the signature": _evidence(8 + 0x2A0),
    "an endorsement": _endorsement,
    "no endorsements": lambda one: replace(one, tees=()),
    "the request key": lambda one: replace(one, request_key=bytes(32)),
}


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_copy_is_rejected(
    machine: Path, state: Path, answer: Path, tmp_path: Path, what: str
) -> None:
    altered = ALTERED[what](Attestation.decode((answer / "body.attestation").read_bytes())).encode()
    assert altered != (answer / "body.attestation").read_bytes()
    (tmp_path / "altered").write_bytes(altered)
    (tmp_path / "question").write_bytes(QUESTION)
    policy = policy_of(machine, state, tmp_path)
    given = ("-a", tmp_path / "altered", "-p", policy, "--nonce", NONCE, "--request", tmp_path / "question")
    attest("verify", answer / "body", *given, code=1)


def test_an_altered_output_is_rejected(machine: Path, state: Path, answer: Path, tmp_path: Path) -> None:
    policy = policy_of(machine, state, tmp_path)
    (tmp_path / "body").write_bytes(_flipped((answer / "body").read_bytes(), 5))
    given = ("-a", answer / "body.attestation", "-p", policy, "--nonce", NONCE)
    attest("verify", tmp_path / "body", *given, code=1)


def test_while_the_hardware_fails_requests_get_503_and_a_running_stream_ends_with_an_error(
    machine: Path, state: Path, tmp_path: Path
) -> None:
    metrics = any_port()
    (tmp_path / "agent.toml").write_text(f'[metrics]\nlisten = "127.0.0.1:{metrics}"\n')
    with proxied(machine, state, tmp_path, "--config", tmp_path / "agent.toml") as ready:
        streaming = urllib.request.Request(
            f"{ready['proxy']}/v1/chat/completions", QUESTION[:-1] + b',"stream":true}'
        )
        with urllib.request.urlopen(streaming, timeout=30) as stream:
            assert b"the weights" in stream.readline()
            (machine / "broken").touch()
            try:
                with pytest.raises(urllib.error.HTTPError, match="503"):
                    ask(ready)
                shown = json.loads(on(machine, "agent", "status", "--state", state, "--json"))
                with pytest.raises(urllib.error.HTTPError, match="503"):
                    urllib.request.urlopen(f"http://127.0.0.1:{metrics}/ready", timeout=30)
                urllib.request.urlopen(f"{ready['engine']}/release", timeout=30).close()  # its stream goes on
                rest = _until_broken(stream)
            finally:
                (machine / "broken").unlink()
        assert shown["state"] == "unavailable"
        assert "no report could be made" in shown["reason"]
        assert b"attestation_unavailable" in rest
        assert b"[DONE]" not in rest
        _until_ready(metrics)
        assert strip(ask(ready))[1] is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=30) as figures:
            text = figures.read().decode()
    assert 'quotary_root_commits_total{outcome="failed",root="sev-snp"}' in text
    assert "quotary_tpm_resets" not in text
    assert "quotary_starts" not in text


def _until_broken(stream: Any) -> bytes:
    rest = b""
    try:
        while part := stream.readline():
            rest += part
    except (OSError, ValueError):
        pass  # the connection is broken off
    except Exception as error:  # http.client.IncompleteRead, which is no OSError
        rest += getattr(error, "partial", b"")
    return rest


def _until_ready(port: int) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=30).close()
            return
        except urllib.error.HTTPError:
            signal.sigtimedwait([], 0.05)
    pytest.fail("the agent did not take its work up again")


def test_what_was_signed_is_kept_over_a_kill_and_shown_by_each_command(
    machine: Path, state: Path, tmp_path: Path
) -> None:
    (tmp_path / "report.txt").write_text("what the model said\n")
    with running(machine, state, stop=signal.SIGKILL):
        on(machine, "agent", "sign", tmp_path / "report.txt", "--state", state)
    with running(machine, state) as ready:
        status = on(machine, "agent", "status", "--state", state)
        refused = on(
            machine, "agent", "quote", "--state", state, "--nonce", NONCE, "-o", tmp_path / "q", code=4
        )
        told = on(machine, "agent", "doctor", "--state", state, code=3 if _no_timedatectl() else 0)
        attest("log", "export", f"unix:{ready['socket']}", tmp_path / "log.qar")
    assert "only witnesses tell a second history" in status
    assert "sev-snp/v1 (required" in status
    assert "no tpm that could quote" in refused
    assert "sev_guest makes reports" in told
    assert "it runs" in told
    policy = policy_of(machine, state, tmp_path)
    assert "no TPM" in attest("verify", tmp_path / "report.txt", "-p", policy)
    assert "in place of a TPM" in attest("audit", tmp_path / "log.qar", "-p", policy)
    assert "sev-snp" in attest("inspect", tmp_path / "report.txt.attestation")
    learn = ("policy", "learn", tmp_path / "report.txt.attestation", "--pin", ready["origin"])
    assert "no boot was measured" in attest(*learn, "-o", tmp_path / "learnt.toml", code=3)


def _no_timedatectl() -> bool:
    try:
        command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return True
    return said not in ("yes", "no")


def test_what_an_origin_without_a_tpm_cannot_have_is_refused_with_a_hint(
    machine: Path, state: Path, tmp_path: Path
) -> None:
    of_state = ("--state", state)
    said = on(machine, "agent", "enroll", "request", *of_state, "-o", tmp_path / "r", code=4)
    assert "has no tpm" in said
    assert "pins it in their policy" in said
    assert "leave out" in on(machine, "agent", "run", *of_state, "--emulator", code=2)
    (tmp_path / "agent.toml").write_text('[[root]]\nkind = "sev-snp"\n')
    said = on(machine, "agent", "run", *of_state, "--config", tmp_path / "agent.toml", code=2)
    assert "required = true" in said
    said = on(machine, "agent", "doctor", *of_state, "--config", tmp_path / "agent.toml", code=4)
    init = ("agent", "init", "--state", tmp_path / "new", "--host", "h.example", "--tee", "sev-snp")
    assert "stands in place of a tpm" in on(machine, *init, "--chain-pcr", 15, code=2)


def test_a_root_that_this_machine_has_not_is_told_of_when_the_origin_is_made(
    machine: Path, tmp_path: Path
) -> None:
    init = ("agent", "init", "--state", tmp_path / "new", "--host", "h.example", "--json")
    command = [sys.executable, PROGRAM, machine, "attest", *init, "--tee", "tdx", "--tee", "sev-snp"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=True)
    shown = json.loads(done.stdout)
    assert (shown["tpm"], shown["roots"]) == ("none", "tdx, sev-snp")
    assert "tdx cannot be used here" in done.stderr
    assert "sev-snp cannot" not in done.stderr
