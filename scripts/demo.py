# SPDX-License-Identifier: Apache-2.0
"""The main job on real parts, for scripts/demo: a model server, a TPM, the agent, a client, the verifier, a forger.

It leaves in .demo/: plain.body, plain.attestation, stream.body, stream.attestation, policy.toml, and for each forgery
forged/<name>/{body,attestation,policy.toml,expected}, where `expected` holds the code of the step that must fail.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo_forgeries import Evidence, forgeries

from quotary_verifier import strip

ROOT = Path(__file__).resolve().parent.parent
ATTEST = [sys.executable, "-m", "quotary_cli"]
HOST = "demo-host.example"
MODEL = "smollm2"
QUESTION = "What is the capital of France? Answer in one short sentence."
START_SECONDS = 120.0


@dataclass(frozen=True)
class Demo:
    """Where things are, and which TPM is used."""

    folder: Path
    tpm: str | None
    ek_roots: Path | None
    server: Path
    weights: Path

    @property
    def state(self) -> Path:
        """State folder of the demo's host."""
        return self.folder / "agent"


def main() -> int:
    """Run the whole demo; the exit code is 0 only if everything ended as it must."""
    demo = _arguments()
    for old in sorted(demo.folder.glob("*")):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    step("1. A host with a TPM, and a CA that endorses it")
    make_host(demo)
    step("2. A real model server, and the agent as its proxy")
    with model_server(demo) as upstream, agent(demo, upstream) as ready:
        step("3. The official openai client asks, plain and streamed")
        nonce = ask_plain(ready["proxy"], demo.folder)
        ask_streamed(ready["proxy"], demo.folder)
    step("4. The answers, verified offline: the agent, the model server and the TPM are gone")
    rules = demo.folder / "policy.toml"
    verify(demo.folder / "plain.body", demo.folder / "plain.attestation", rules, "--nonce", nonce.hex())
    verify(demo.folder / "stream.body", demo.folder / "stream.attestation", rules)
    step("5. Six forgeries")
    caught = forge(demo, nonce)
    step(f"Done: 2 answers verified, {caught} of 6 forgeries rejected at the step that had to find them")
    say(
        f"everything is in {demo.folder.relative_to(ROOT) if demo.folder.is_relative_to(ROOT) else demo.folder}; try:"
    )
    say(
        "  .venv/bin/attest verify .demo/plain.body -a .demo/plain.attestation -p .demo/policy.toml --explain"
    )
    return 0 if caught == 6 else 1


def _arguments() -> Demo:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="Run the main job of Quotary on this machine."
    )
    parser.add_argument(
        "--tpm", metavar="TSS", help="use this TPM, such as device:/dev/tpmrm0, not a software one"
    )
    parser.add_argument(
        "--ek-roots", type=Path, help="with --tpm: PEM file of the TPM vendor's roots, to enrol"
    )
    parser.add_argument("--out", type=Path, default=ROOT / ".demo", help="folder for what the demo leaves")
    chosen = parser.parse_args()
    folder = chosen.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return Demo(
        folder,
        chosen.tpm,
        chosen.ek_roots,
        Path(os.environ["QUOTARY_DEMO_SERVER"]),
        Path(os.environ["QUOTARY_DEMO_MODEL"]),
    )


def step(title: str) -> None:
    """Say what comes next."""
    print(f"\n\033[1m{title}\033[0m" if sys.stdout.isatty() else f"\n{title}", flush=True)


def say(text: str) -> None:
    """Say something below the present title."""
    for line in text.splitlines():
        print(f"   {line}", flush=True)


def attest(*arguments: object, expect: int = 0) -> str:
    """Run the command `attest`; its standard output is returned, another exit code than expected ends the demo."""
    words = [str(argument) for argument in arguments]
    done = subprocess.run([*ATTEST, *words], capture_output=True, text=True, check=False)
    if done.returncode != expect:
        print(done.stdout + done.stderr, file=sys.stderr)
        raise SystemExit(f"error: attest {' '.join(words)} exited with {done.returncode}, not {expect}")
    return done.stdout


# --- the host and its CA -------------------------------------------------------------------------------------


def make_host(demo: Demo) -> None:
    """Make the origin, the CA, enrol the one at the other, and write the policy."""
    tpm = ["--tpm", demo.tpm] if demo.tpm else ["--emulator"]
    made = json.loads(attest("agent", "init", "--state", demo.state, "--host", HOST, *tpm, "--json"))
    say(f"origin   {made['origin']}\ntpm      {made['tpm']}")
    roots = demo.ek_roots if demo.tpm else _emulator_roots(demo.state, demo.folder)
    if roots is None:
        say("no vendor roots were named (--ek-roots), so the policy pins the origin and no CA is asked")
        trust = f'[[pin]]\norigin = "{made["origin"]}"\n'
    else:
        trust = enrol(demo, roots)
    (demo.folder / "policy.toml").write_text(policy(demo, trust))


def _emulator_roots(state: Path, folder: Path) -> Path:
    """The roots of the software TPM's maker: what a vendor publishes for real ones."""
    authority = state.with_name(f"{state.name}.swtpm") / "ca"
    roots = folder / "ek-roots.pem"
    parts = [(authority / name).read_text() for name in ("swtpm-localca-rootca-cert.pem", "issuercert.pem")]
    roots.write_text("".join(parts))
    return roots


def enrol(demo: Demo, roots: Path) -> str:
    """Enrol the host at a new CA, by files, and return the policy's words that trust this CA."""
    ca, files = demo.folder / "ca", demo.folder / "enrolment"
    files.mkdir()
    attest("ca", "init", ca, "--name", "Demo CA")
    state = ["--state", demo.state]
    attest("agent", "enroll", "request", *state, "-o", files / "request")
    attest("ca", "challenge", ca, files / "request", "--ek-roots", roots, "-o", files / "challenge")
    attest("agent", "enroll", "activate", files / "challenge", *state, "-o", files / "activation")
    attest("ca", "issue", ca, files / "activation", "-o", files / "grant")
    attest("agent", "enroll", "install", files / "grant", *state)
    say("the CA made sure that the key lives in that TPM, and issued a certificate for it")
    pem = attest("ca", "show", ca, "--root")
    return f'[[authority]]\nname = "Demo CA"\nhosts = ["{HOST}"]\ncertificates = """\n{pem}"""\n'


def policy(demo: Demo, trust: str) -> str:
    """The demo's policy. It says itself what is lax about it."""
    software = "" if demo.tpm else (
        "# This policy allows a software TPM, because the demo has no other. Its signatures bind to no hardware:\n"
        "# whoever holds the emulator's files can make them. Never write this into a policy that protects something.\n"
        "[tpm]\nsoftware = true\n"
    )  # fmt: skip
    description = "the demo's host" + ("" if demo.tpm else ", with a software TPM")
    head = f'schema = "quotary-policy/v1"\ndescription = "{description}"\n'
    return f'{head}\n{trust}\n{software}\n[[model]]\nname = "{MODEL}"\n'


# --- model server, agent, client -----------------------------------------------------------------------------


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def process(command: list[str], log: Path, **options: object) -> Iterator[subprocess.Popen[str]]:
    """Run a process for as long as the block lasts; its standard error goes to a file."""
    with log.open("w") as stderr:
        running = subprocess.Popen(command, stderr=stderr, stdin=subprocess.DEVNULL, text=True, **options)  # type: ignore[call-overload]
        try:
            yield running
        finally:
            running.send_signal(signal.SIGTERM)
            try:
                running.wait(30)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def server_arguments(demo: Demo, port: int) -> list[str]:
    """The model server's command line, which the agent measures too."""
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    return [
        "-m",
        str(demo.weights),
        "-a",
        MODEL,
        *listen,
        "-c",
        "2048",
        "-np",
        "2",
        "-t",
        "2",
        "--jinja",
        "--no-webui",
    ]


@contextlib.contextmanager
def model_server(demo: Demo) -> Iterator[tuple[str, list[str]]]:
    """Run llama.cpp's server with the real model; yield its address and its arguments."""
    port = free_port()
    arguments = server_arguments(demo, port)
    environment = {**os.environ, "LD_LIBRARY_PATH": os.environ["QUOTARY_DEMO_LIBRARIES"]}
    log = demo.folder / "model-server.log"
    with process([str(demo.server), *arguments], log, stdout=subprocess.DEVNULL, env=environment) as running:
        url = f"http://127.0.0.1:{port}"
        await_health(url, running, log)
        say(f"llama.cpp server with {demo.weights.name} at {url}")
        yield url, arguments


def await_health(url: str, running: subprocess.Popen[str], log: Path) -> None:
    """Wait until the model server says that it is ready."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and running.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310 - our own http address
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)  # the server has no other way to tell that it is ready
    raise SystemExit(f"error: the model server did not become ready, see {log}")


@contextlib.contextmanager
def agent(demo: Demo, upstream: tuple[str, list[str]]) -> Iterator[dict[str, str]]:
    """Run `attest agent run` as the server's proxy; yield what it says when it is ready."""
    url, arguments = upstream
    measured = ["--model", f"{MODEL}={demo.weights}", "--engine", str(demo.server)]
    command = [*ATTEST, "agent", "run", "--state", str(demo.state), *measured]
    command += ["--upstream", url, "--listen", "127.0.0.1:0", "--", *arguments]
    log = demo.folder / "agent.log"
    with process(command, log, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        if not line:
            raise SystemExit(f"error: the agent did not start:\n{log.read_text()}")
        ready: dict[str, str] = json.loads(line)
        say(f"the agent measured weights, binary and arguments, and listens at {ready['proxy']}")
        yield ready


def _client(proxy: str) -> object:
    from openai import OpenAI

    return OpenAI(base_url=f"{proxy}/v1", api_key="none", timeout=120)


def ask_plain(proxy: str, folder: Path) -> bytes:
    """Ask once, with a nonce, and keep the answer's exact bytes; return the nonce."""
    nonce = secrets.token_bytes(32)
    client = _client(proxy)
    raw = client.chat.completions.with_raw_response.create(  # type: ignore[attr-defined]
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=32,
        temperature=0,
        extra_headers={"Quotary-Nonce": nonce.hex()},
    )
    say(f"plain:    {raw.parse().choices[0].message.content!r}")
    keep(folder, "plain", raw.http_response.content, raw.headers["Quotary-Output"])
    return nonce


def ask_streamed(proxy: str, folder: Path) -> None:
    """Ask for a stream, and keep the exact bytes beside what the client makes of them."""
    client = _client(proxy)
    with client.chat.completions.with_streaming_response.create(  # type: ignore[attr-defined]
        model=MODEL,
        messages=[{"role": "user", "content": "Count from one to five."}],
        max_tokens=32,
        temperature=0,
        stream=True,
    ) as response:
        body = b"".join(response.iter_bytes())
        output_id = response.headers["Quotary-Output"]
    events = [line[6:] for line in body.decode().splitlines() if line.startswith("data: {")]
    chunks = [json.loads(event) for event in events]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    say(f"streamed: {text!r} in {len(chunks)} chunks")
    keep(folder, "stream", body, output_id)


def keep(folder: Path, name: str, received: bytes, output_id: str) -> None:
    """Keep the answer as the model server wrote it, and the attestation that came in band with it."""
    body, attestation = strip(received)
    if attestation is None:
        raise SystemExit(f"error: the {name} answer carries no attestation in band")
    (folder / f"{name}.received").write_bytes(received)
    (folder / f"{name}.body").write_bytes(body)
    (folder / f"{name}.attestation").write_bytes(attestation)
    say(f"          {output_id}, {len(body)} bytes and an attestation of {len(attestation)} bytes")


# --- verifying and forging -----------------------------------------------------------------------------------


def offline() -> list[str]:
    """A prefix that cuts a command off from every network, where this user may do that."""
    prefix = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--net"]
    tried = (
        subprocess.run([*prefix, "true"], capture_output=True, check=False)
        if shutil.which("unshare")
        else None
    )
    return prefix if tried is not None and tried.returncode == 0 else []


def verify(body: Path, attestation: Path, rules: Path, *more: str) -> None:
    """Verify one answer and show the verdict."""
    prefix = offline()
    command = [*prefix, *ATTEST, "verify", str(body), "-a", str(attestation), "-p", str(rules), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    say(("(network cut off) " if prefix else "") + done.stdout.strip() + done.stderr)
    if done.returncode != 0:
        raise SystemExit(f"error: {body.name} did not verify")


def other_host(demo: Demo, body: Path) -> bytes:
    """Have another machine, with a TPM of its own, claim the same host name and attest the very same answer."""
    state = demo.folder / "other"
    attest("agent", "init", "--state", state, "--host", HOST, "--emulator")
    command = [*ATTEST, "agent", "run", "--state", str(state)]
    with process(command, demo.folder / "other.log", stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        if not running.stdout.readline():
            raise SystemExit("error: the other host's agent did not start")
        attest("agent", "sign", body, "--state", state, "-o", state)
    return (state / f"{body.name}.attestation").read_bytes()


def forge(demo: Demo, nonce: bytes) -> int:
    """Make the forgeries, show that each is rejected at its step, and return how many were."""
    folder = demo.folder
    evidence = Evidence(
        body=(folder / "plain.body").read_bytes(),
        attestation=(folder / "plain.attestation").read_bytes(),
        other_attestation=(folder / "stream.attestation").read_bytes(),
        other_host=other_host(demo, folder / "plain.body"),
        policy=(folder / "policy.toml").read_text(),
        nonce=nonce,
    )
    caught = 0
    for forgery in forgeries(evidence):
        place = folder / "forged" / forgery.name
        place.mkdir(parents=True)
        (place / "body").write_bytes(forgery.body)
        (place / "attestation").write_bytes(forgery.attestation)
        (place / "policy.toml").write_text(forgery.policy)
        (place / "expected").write_text(f"{forgery.expected}\n")
        files = [place / "body", "-a", place / "attestation", "-p", place / "policy.toml"]
        shown = json.loads(attest("verify", *files, "--json", expect=1))
        verdict = shown["results"][0]["verdict"]
        found = verdict["failing"] == forgery.expected
        caught += found
        say(f"{'rejected' if found else 'NOT AS EXPECTED'}  {forgery.name}: {forgery.story}")
        say(f"          {verdict['failing']}: {verdict['reason']}")
    return caught


if __name__ == "__main__":
    sys.exit(main())
