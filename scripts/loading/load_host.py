# SPDX-License-Identifier: Apache-2.0
"""A host under load: the simulated dTPM, a compiled model server, and `attest agent run` as its operator starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from go_toolchain import go_program

import attesting
from load_watch import children

TRAFFIC = Path(__file__).with_name("traffic")
ATTEST = [sys.executable, "-m", "quotary_cli"]
POLICY = """schema = "quotary-policy/v1"
[tpm]
software = true
[[pin]]
origin = "{origin}"
[[model]]
name = "load"
"""
CONFIG = """[state]
folder = "{state}"
[tpm]
tcti = "{tcti}"
[[model]]
name = "load"
files = ["{weights}"]
[[proxy]]
upstream = "{upstream}"
listen = "127.0.0.1:0"
workers = {workers}
"""
_STOP_SECONDS = 120.0


@dataclass
class Host:
    """What runs. `proxy` is the address that clients use; `others` are children that this process had before."""

    folder: Path
    tcti: str
    traffic: str
    upstream: subprocess.Popen[str]
    upstream_url: str
    agent: subprocess.Popen[str]
    ready: dict[str, Any]
    others: frozenset[int] = frozenset()

    @property
    def proxy(self) -> str:
        """Where clients ask."""
        url: str = self.ready["proxy"]
        return url

    @property
    def policy(self) -> bytes:
        """A policy that accepts this host and its model, and no other."""
        return POLICY.format(origin=self.ready["origin"]).encode()

    @property
    def processes(self) -> dict[str, int]:
        """Name → process of everything but the client."""
        workers = children(self.agent.pid)
        known = {self.agent.pid, self.upstream.pid, *workers, *self.others}
        here = [pid for pid in children(os.getpid()) if pid not in known]
        named = {_name(pid): pid for pid in here}
        of_workers = {f"proxy worker {number + 1}": pid for number, pid in enumerate(workers)}
        return {"agent": self.agent.pid, **of_workers, **named, "upstream": self.upstream.pid}

    def client(self, out: Path, **options: float) -> subprocess.Popen[str]:
        """Start the client: streams and short requests; its answers go to `out`, a summary to its stdout."""
        words = [
            part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", f"{value:g}")
        ]
        command = [self.traffic, "mixed", "--url", self.proxy, "--out", str(out), *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def stop_agent(self, number: int = signal.SIGTERM) -> int:
        """Send the agent a signal and return its exit code."""
        self.agent.send_signal(number)
        return self.agent.wait(_STOP_SECONDS)


def _name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    if any(word.endswith(b"dtpm.py") for word in words):
        return "TPM transport"
    return Path(os.fsdecode(words[0])).name


@contextmanager
def host(folder: Path, *, workers: int = 0, tcti: str | None = None) -> Iterator[Host]:
    """Run a host; on a TPM of one's own where `tcti` names one. Raises NotInstalled where Go cannot be installed."""
    traffic = str(go_program(TRAFFIC))
    others = frozenset(children(os.getpid()))
    with ExitStack() as stack:
        tcti = tcti or stack.enter_context(attesting.simulated_dtpm(folder))
        attesting.make_state(tcti, folder / "state")
        upstream = stack.enter_context(
            subprocess.Popen([traffic, "upstream"], stdout=subprocess.PIPE, text=True)
        )
        stack.callback(upstream.kill)
        url = _first_line(upstream)["url"]
        agent = stack.enter_context(start_agent(folder, tcti, url, workers=workers))
        stack.callback(agent.kill)
        try:
            ready = _first_line(agent)
        except RuntimeError as error:
            raise RuntimeError((folder / "agent.log").read_text()[-2000:]) from error
        yield Host(folder, tcti, traffic, upstream, url, agent, ready, others)


def start_agent(folder: Path, tcti: str, upstream: str, *, workers: int = 0) -> subprocess.Popen[str]:
    """Start `attest agent run`; its log goes to a file of the folder."""
    weights, config = folder / "weights.gguf", folder / "agent.toml"
    weights.write_bytes(b"weights of the load test")
    config.write_text(
        CONFIG.format(state=folder / "state", tcti=tcti, weights=weights, upstream=upstream, workers=workers)
    )
    command = [*ATTEST, "agent", "run", "--config", str(config)]
    with (folder / "agent.log").open("a") as log:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)


def _first_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a process of the load test did not start")
    said: dict[str, Any] = json.loads(line)
    return said
