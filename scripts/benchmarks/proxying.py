# SPDX-License-Identifier: Apache-2.0
"""What the proxy adds to a stream: time to the first token, and CPU for each chunk.

Upstream and load are one compiled program (scripts/loading/traffic) in processes of their own; each side is a process
of its own too (proxy_side.py), and its CPU is read from the kernel's clock of that process. All sides get the same
streams by turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from go_toolchain import NotInstalled, go_program

import attesting
from figures import Measured, NotMeasured, progress

TRAFFIC = Path(__file__).resolve().parent.parent / "loading" / "traffic"
SIDE = Path(__file__).with_name("proxy_side.py")
STREAMS, COUNT, CHUNKS, PACE_MS = 32, 64, 200, 10
"""Streams at a time, streams of a turn, chunks of each, milliseconds between two."""


@dataclass(frozen=True)
class Turn:
    """What one turn of one side showed: median time to the first bytes, and CPU of its process for each chunk."""

    first_ms: float
    cpu_us: float


@contextmanager
def traffic_server() -> Iterator[tuple[str, str]]:
    """Run the upstream; yield the path of the traffic program and the upstream's address."""
    try:
        program = str(go_program(TRAFFIC))
    except NotInstalled as error:
        raise NotMeasured(f"the load is a compiled program, and {error}") from None
    with subprocess.Popen([program, "upstream"], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield program, _address(process)
        finally:
            process.kill()


@contextmanager
def side(kind: str, upstream: str, *arguments: str) -> Iterator[tuple[int, str]]:
    """Run one side; yield its process and its address."""
    command = [sys.executable, str(SIDE), kind, "--upstream", upstream, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        try:
            yield process.pid, _address(process)
        finally:
            process.stdin.close()
            process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a process of the benchmark did not start")
    url: str = json.loads(line)["url"]
    return url


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process with all of its threads, from the kernel (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def measure(folder: Path, rounds: int, *, chunks: int = CHUNKS) -> dict[str, Measured]:
    """proxy_first_token_ms and proxy_chunk_ratio, from the same turns."""
    with ExitStack() as stack:
        program, upstream = stack.enter_context(traffic_server())
        tcti = stack.enter_context(attesting.simulated_dtpm(folder))
        sides = {
            "forward": stack.enter_context(side("forward", upstream)),
            "proxy": stack.enter_context(side("proxy", upstream)),
            "agent": stack.enter_context(side("agent", upstream, "--state", str(folder), "--tpm", tcti)),
        }
        turns = [_round(program, sides, chunks, number) for number in range(rounds)]
    return {"proxy_first_token_ms": _first_token(turns), "proxy_chunk_ratio": _chunk_ratio(turns, chunks)}


def _round(program: str, sides: dict[str, tuple[int, str]], chunks: int, number: int) -> dict[str, Turn]:
    # each round begins with another side, so that what one leaves behind does not always meet the same
    names = list(sides)
    order = names[number % len(names) :] + names[: number % len(names)]
    turns = {name: _turn(program, *sides[name], chunks) for name in order}
    shown = ", ".join(f"{name} {turn.first_ms:.2f} ms {turn.cpu_us:.0f} µs" for name, turn in turns.items())
    progress(f"proxy round {number + 1}: {shown}")
    return turns


def _turn(program: str, pid: int, url: str, chunks: int) -> Turn:
    command = [program, "streams", "--url", url, "--streams", str(STREAMS), "--count", str(COUNT)]
    command += ["--chunks", str(chunks), "--pace-ms", str(PACE_MS)]
    before = cpu_seconds(pid)
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    spent = cpu_seconds(pid) - before
    seen: dict[str, Any] = json.loads(done.stdout)
    if seen["failures"]:
        raise RuntimeError(f"streams failed: {seen['failures'][0]}")
    return Turn(statistics.median(seen["first_ms"]), spent / (COUNT * chunks) * 1e6)


def _first_token(turns: list[dict[str, Turn]]) -> Measured:
    forward, agent = (
        statistics.median(turn[name].first_ms for turn in turns) for name in ("forward", "agent")
    )
    return Measured(
        [turn["agent"].first_ms - turn["forward"].first_ms for turn in turns],
        f"{STREAMS} streams paced at {PACE_MS} ms, from the request to the first bytes, p50 of {COUNT} streams"
        f" a round: proxy and agent in one process on the simulated dTPM ({agent:.2f} ms), less the same server and"
        f" client of aiohttp only passing on ({forward:.2f} ms); upstream and client are compiled",
    )


def _chunk_ratio(turns: list[dict[str, Turn]], chunks: int) -> Measured:
    cost = {name: statistics.median(turn[name].cpu_us for turn in turns) for name in turns[0]}
    whole = statistics.median(turn["agent"].cpu_us / turn["forward"].cpu_us for turn in turns)
    return Measured(
        [turn["proxy"].cpu_us / turn["forward"].cpu_us for turn in turns],
        f"CPU of the process, all it does for a stream of {chunks} chunks, over its chunks: the proxy with a stand-in"
        f" for the agent that answers after a commit's time ({cost['proxy']:.0f} µs), over the same server and client"
        f" of aiohttp only passing on ({cost['forward']:.0f} µs); with the agent and its commits in the same process"
        f" {cost['agent']:.0f} µs, {whole:.2f} times",
    )
