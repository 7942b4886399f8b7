# SPDX-License-Identifier: Apache-2.0
"""A real model server with a real, small model, out of the packages that scripts/demo uses."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

MODEL = "smollm2"
_ROOT = Path(__file__).resolve().parents[2]
_NAMES = ("QUOTARY_DEMO_SERVER", "QUOTARY_DEMO_LIBRARIES", "QUOTARY_DEMO_MODEL")
_FETCH = 'source scripts/lib.sh && ensure_demo && printf "%s\\n" ' + " ".join(f'"${name}"' for name in _NAMES)
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Engine:
    """Where the model server, its libraries and the weights lie."""

    server: Path
    libraries: str
    weights: Path


def find_engine() -> Engine:
    """Return the model server; it is fetched once (160 MB). Skips the test where that cannot be done."""
    found = [os.environ.get(name, "") for name in _NAMES]
    if not all(found):
        done = subprocess.run(
            ["bash", "-c", _FETCH], cwd=_ROOT, capture_output=True, text=True, check=False, timeout=600
        )
        if done.returncode:
            pytest.skip("the model server of the demo cannot be fetched here")
        found = done.stdout.splitlines()
    return Engine(Path(found[0]), found[1], Path(found[2]))


@contextmanager
def llama_server(engine: Engine, log: Path, *options: str) -> Iterator[str]:
    """Start a server with 1,024 tokens of context on a free port; yields its address at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(engine.server), "-m", str(engine.weights), "-a", MODEL, "--host", "127.0.0.1"]
    command += ["--port", str(port), "-c", "1024", "-np", "1", "-t", "2", "--jinja", "--no-webui", *options]
    environment = {**os.environ, "LD_LIBRARY_PATH": engine.libraries}
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process,
    ):
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def await_ready(url: str, log: Path) -> None:
    """Wait until a server has loaded its model."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.05)  # it has no other way to say so
    pytest.fail(f"the model server did not start: {log.read_text()[-2000:]}")
