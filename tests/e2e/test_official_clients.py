# SPDX-License-Identifier: Apache-2.0
"""A real model server behind the agent, asked by the official clients of Python and npm: every delivery verifies.

llama.cpp's server with SmolLM2-135M, `attest agent run` on a software TPM, and the public verifier with a policy that
pins this host and its model.
"""

from __future__ import annotations

import base64
import fcntl
import json
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from kept_exchanges import Exchange, KeepingTransport
from llama_server import MODEL, await_ready, find_engine, llama_server

from quotary_verifier import Policy, load_policy, strip
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.records import Output, Source, State

pytestmark = pytest.mark.timeout(900)  # the first run on a machine fetches the model server

ATTEST = [sys.executable, "-m", "quotary_cli"]
POLICY = """schema = "quotary-policy/v1"
[output]
states = ["complete", "engine-error"]
[tpm]
software = true
[[pin]]
origin = "{origin}"
[[model]]
name = "smollm2"
"""
CONFIG = """[state]
folder = "{state}"
[[model]]
name = "smollm2"
files = ["{weights}"]
[[proxy]]
upstream = "{chat}"
listen = "127.0.0.1:0"
[[proxy]]
upstream = "{embeddings}"
listen = "127.0.0.1:0"
"""
MESSAGES: Any = [{"role": "user", "content": "Say hello."}]
FEW: Any = {"model": MODEL, "max_tokens": 12, "temperature": 0}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NODE = Path(__file__).with_name("openai_node")
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "openai-node"


@dataclass(frozen=True)
class Site:
    """Where the two proxies are, and the policy under which their answers verify."""

    chat: str
    embeddings: str
    policy: Policy

    def proxy_of(self, exchange: Exchange) -> str:
        """The proxy that answered."""
        return self.embeddings if b'"input":"a sentence"' in exchange.request else self.chat

    def record_of(self, exchange: Exchange) -> Output:
        """Verify an exchange and return its record."""
        proxy = self.proxy_of(exchange)
        exchange.verify(proxy, self.policy)
        record = Output.decode(Attestation.decode(exchange.attestation(proxy)[1]).record)
        assert record.source is Source.RELAYED
        assert record.model is not None
        return record


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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    engine, folder = find_engine(), tmp_path_factory.mktemp("site")
    state = folder / "state"
    with ExitStack() as stack:
        logs = [folder / "chat.log", folder / "embeddings.log"]
        chat = stack.enter_context(llama_server(engine, logs[0]))
        embeddings = stack.enter_context(llama_server(engine, logs[1], "--embeddings", "--pooling", "mean"))
        made = [*ATTEST, "agent", "init", "--state", str(state), "--host", "h.example", "--emulator"]
        subprocess.run(made, check=True, capture_output=True)
        config = CONFIG.format(state=state, weights=engine.weights, chat=chat, embeddings=embeddings)
        ready = stack.enter_context(running_agent(folder, config))
        for url, log in zip((chat, embeddings), logs, strict=True):
            await_ready(url, log)
        policy = load_policy(POLICY.format(origin=ready["origin"]).encode())
        yield Site(*ready["proxies"], policy)


class Client:
    """The official Python client in front of both proxies, with every exchange kept."""

    def __init__(self, site: Site) -> None:
        self._transport = KeepingTransport()
        options: Any = {
            "api_key": "k",
            "max_retries": 0,
            "http_client": httpx2.Client(transport=self._transport),
        }
        self.chat = openai.OpenAI(base_url=site.chat + "/v1", **options)
        self.embeddings = openai.OpenAI(base_url=site.embeddings + "/v1", **options)

    @property
    def last(self) -> Exchange:
        """The newest exchange."""
        return self._transport.exchanges[-1]


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    made = Client(site)
    with made.chat, made.embeddings:
        yield made


def test_a_chat_completion_verifies_and_carries_its_attestation(site: Site, client: Client) -> None:
    answer = client.chat.chat.completions.create(messages=MESSAGES, **FEW)
    record = site.record_of(client.last)
    assert answer.choices[0].message.content
    assert answer.model_extra is not None
    assert base64.b64decode(answer.model_extra["attestation"]) == strip(bytes(client.last.body))[1]
    assert {"body", "text/0"} <= set(record.digests)
    assert answer.usage is not None
    assert record.context["completion_tokens"] == answer.usage.completion_tokens


@pytest.mark.parametrize("usage", [False, True])
def test_a_chat_stream_verifies_and_its_last_chunk_is_the_attestation(
    site: Site, client: Client, usage: bool
) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(client.chat.chat.completions.create(messages=MESSAGES, stream=True, **FEW, **options))
    record = site.record_of(client.last)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].model_extra is not None
    assert base64.b64decode(chunks[-1].model_extra["attestation"]) == strip(bytes(client.last.body))[1]
    assert ("completion_tokens" in record.context) is (usage or any(chunk.usage for chunk in chunks))


def test_the_stream_helper_verifies(site: Site, client: Client) -> None:
    # to its own end: the helper takes an answer cut off by its length for an error
    with client.chat.chat.completions.stream(messages=MESSAGES, model=MODEL, temperature=0) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content
    assert site.record_of(client.last).state is State.COMPLETE


def test_completions_verify_plain_and_streamed(site: Site, client: Client) -> None:
    assert client.chat.completions.create(prompt="Once upon", **FEW).choices[0].text
    assert "text/0" in site.record_of(client.last).digests
    chunks = list(client.chat.completions.create(prompt="Once upon", stream=True, **FEW))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert "text/0" in site.record_of(client.last).digests


@pytest.mark.parametrize("stream", [False, True])
def test_whatever_comes_of_a_request_with_tools_verifies(site: Site, client: Client, stream: bool) -> None:
    answer: Any = client.chat.chat.completions.create(
        messages=MESSAGES, tools=[TOOL], tool_choice="auto", stream=stream, **FEW
    )
    assert not stream or list(answer)
    assert site.record_of(client.last).state is State.COMPLETE


def test_embeddings_verify(site: Site, client: Client) -> None:
    answer = client.embeddings.embeddings.create(model=MODEL, input="a sentence")
    assert len(answer.data[0].embedding) == 576
    assert site.record_of(client.last).context["endpoint"] == "/v1/embeddings"


def test_responses_verify_plain_and_streamed(site: Site, client: Client) -> None:
    options: Any = {"model": MODEL, "input": "Say hello.", "max_output_tokens": 12}
    assert client.chat.responses.create(**options).output_text
    assert site.record_of(client.last).context["endpoint"] == "/v1/responses"
    events = list(client.chat.responses.create(**options, stream=True))
    assert events[-1].type == "response.completed"
    record = site.record_of(client.last)
    assert (record.state, "text/0" in record.digests) == (State.COMPLETE, True)


def test_models_pass_through_and_say_that_they_are_not_attested(site: Site, client: Client) -> None:
    assert MODEL in [model.id for model in client.chat.models.list()]
    assert client.last.headers["quotary-attested"] == "no"
    assert "quotary-output" not in client.last.headers


def test_an_over_long_prompt_is_the_engines_error_and_verifies_as_one(site: Site, client: Client) -> None:
    long: Any = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(openai.BadRequestError):
        client.chat.chat.completions.create(messages=long, **FEW)
    assert site.record_of(client.last).state is State.ENGINE_ERROR


def test_a_path_that_the_engine_does_not_have_is_its_404(client: Client) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.post("/no/such/path", body={}, cast_to=object)
    assert client.last.headers["quotary-attested"] == "no"


# -- clients that are no SDK


def ask(proxy: str, path: str, body: bytes) -> Exchange:
    """Ask as any program does, under a nonce, and keep what came."""
    nonce = bytes(range(16))
    headers = {"Content-Type": "application/json", "Quotary-Nonce": nonce.hex()}
    request = urllib.request.Request(proxy + path, data=body, headers=headers)
    try:
        answer: Any = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        found = {name.lower(): value for name, value in answer.headers.items()}
        return Exchange(nonce, body, answer.status, found, bytearray(answer.read()))


def test_bad_json_is_the_engines_error_and_verifies_as_one(site: Site) -> None:
    exchange = ask(site.chat, "/v1/chat/completions", b'{"messages": [')
    assert exchange.status >= 400
    assert site.record_of(exchange).state is State.ENGINE_ERROR


@pytest.mark.parametrize("stream", [False, True])
def test_messages_verify_plain_and_streamed(site: Site, stream: bool) -> None:
    body = {"model": MODEL, "max_tokens": 12, "messages": MESSAGES, "stream": stream}
    exchange = ask(site.chat, "/v1/messages", json.dumps(body).encode())
    assert exchange.status == 200
    record = site.record_of(exchange)
    assert (record.state, "text/0" in record.digests) == (State.COMPLETE, True)


def test_what_is_fetched_by_id_is_the_attestation_of_the_same_bytes(site: Site) -> None:
    exchange = ask(site.chat, "/v1/chat/completions", json.dumps({"messages": MESSAGES, **FEW}).encode())
    body, attestation = strip(bytes(exchange.body))
    assert attestation is not None
    by_id = Exchange(exchange.nonce, exchange.request, exchange.status, exchange.headers, bytearray(body))
    by_id.verify(site.chat, site.policy)


# -- the npm client


@pytest.fixture(scope="module")
def node_client() -> Path:
    """The official npm client, installed once from its lock."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not on this machine")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = (NODE / "package-lock.json").read_bytes()
        stamp = CACHE / "stamp"
        if not stamp.exists() or stamp.read_bytes() != wanted:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(NODE / name, CACHE / name)
            done = subprocess.run(
                [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=CACHE,
                capture_output=True,
                check=False,
            )
            if done.returncode:
                pytest.skip("the npm client cannot be installed here")
            stamp.write_bytes(wanted)
        shutil.copy(NODE / "calls.mjs", CACHE / "calls.mjs")
    return CACHE / "calls.mjs"


ATTESTED = {
    "chat", "chat stream", "chat stream helper", "chat with tools", "completions", "completions stream",
    "embeddings", "responses", "responses stream", "over-long prompt",
}  # fmt: skip


def test_every_delivery_to_the_npm_client_verifies(site: Site, node_client: Path) -> None:
    done = subprocess.run(
        ["node", str(node_client), site.chat, site.embeddings],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    calls = {call["name"]: call for call in map(json.loads, done.stdout.splitlines())}
    assert set(calls) == ATTESTED | {"models", "not found"}
    for name in ATTESTED:
        exchange = _of_node(calls[name])
        state = State.ENGINE_ERROR if name == "over-long prompt" else State.COMPLETE
        assert site.record_of(exchange).state is state, name
    results = {name: call["result"] for name, call in calls.items()}
    for name in ("chat", "chat stream"):
        carried = base64.b64decode(results[name]["attestation"])
        assert carried == strip(bytes(_of_node(calls[name]).body))[1]
    assert all(results[name]["text"] for name in ("chat", "chat stream", "chat stream helper", "completions"))
    assert results["responses"]["text"]
    assert results["responses stream"]["text"]
    assert results["chat stream"]["usage"]["completion_tokens"] > 0
    assert results["embeddings"]["length"] == 576
    assert results["models"]["models"] == [MODEL]
    assert results["over-long prompt"] == {"error": "BadRequestError"}
    assert results["not found"] == {"error": "NotFoundError"}
    for name in ("models", "not found"):
        assert calls[name]["headers"]["quotary-attested"] == "no"


def _of_node(call: dict[str, Any]) -> Exchange:
    sent, came = base64.b64decode(call["request"]), bytearray(base64.b64decode(call["body"]))
    return Exchange(bytes.fromhex(call["nonce"]), sent, call["status"], call["headers"], came)
