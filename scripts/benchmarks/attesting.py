# SPDX-License-Identifier: Apache-2.0
"""How fast the agent attests on a simulated discrete TPM: throughput and latency against the bare TPM.

One process holds the agent and its callers; swtpm and the transport that slows it are processes of their own. The
bare side is what a signer without group commit does: one extend and one quote for each output.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from figures import Measured, progress
from quotary_attest import memory
from quotary_attest.agent import Agent, Delivered, NewOutput, World
from quotary_attest.origin import init_state
from quotary_attest.state import read_identity
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.emulator import Emulator
from quotary_attest.tpm.keys import counter_value, make_identity, open_counter
from quotary_attest.tpm.root import TpmRoot, open_root
from quotary_attest.workload import Engine, ServedModel, Workload
from quotary_verifier import Question, load_policy, verify
from quotary_verifier.wire.bindings import request_commitment
from quotary_verifier.wire.records import Link

HOST = "bench.example"
MODEL = ServedModel("llama", bytes(range(32)), Link.CHECKED)
WORKLOAD = Workload((MODEL,), Engine("vllm", bytes(range(1, 33)), ("--port", "8000")))
BODY = b"x" * 1024
REQUEST = b"y" * 450
REQUEST_KEY = bytes(range(32))
COMMITMENT = request_commitment(REQUEST_KEY, REQUEST)
DIGESTS = {"body": hashlib.sha256(BODY).digest(), "text/0": bytes(32)}
NONCE = bytes(range(32))
CONTEXT = {"endpoint": "/v1/chat/completions"}
IN_FLIGHT = 8192
VERIFIED = 1000
CHAIN_PCR, WORKLOAD_PCR = 15, 13
_SWITCH_SECONDS = 0.0005
_SAMPLE = 97
LOAD = 2000
"""Outputs for each extend and quote: the bar of commit_ratio."""
DTPM = Path(__file__).with_name("dtpm.py")


@contextmanager
def simulated_dtpm(folder: Path, *, slow: bool = True) -> Iterator[str]:
    """A software TPM, behind the transport that makes it as slow as a chip if `slow`; yields its TSS string."""
    with Emulator(folder / "swtpm") as emulator, tempfile.TemporaryDirectory() as sockets:
        if not slow:
            yield emulator.tcti
            return
        path = Path(sockets) / "tpm"
        command = [sys.executable, str(DTPM), "--listen", str(path), "--swtpm", str(emulator.socket)]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stderr is not None
            if "ready" not in process.stderr.readline():
                raise RuntimeError("the simulated TPM did not start")
            try:
                yield f"swtpm:path={path}"
            finally:
                process.terminate()


def make_state(tcti: str, folder: Path) -> None:
    """Make an origin on a TPM."""
    with Connection(tcti) as connection:
        identity = make_identity(connection, chain_pcr=CHAIN_PCR, workload_pcr=WORKLOAD_PCR)
        counter = counter_value(connection, open_counter(connection, identity))
    init_state(folder, HOST, identity, counter=counter)


@dataclass
class Running:
    """An agent with its root, for measuring the two by turns."""

    agent: Agent
    root: TpmRoot
    state: Path

    def output(self) -> NewOutput:
        """An output as the proxy hands it in: digests of a body and its text, request commitment, nonce, model.

        Digests and commitment are made once: they are the callers' work, which the bar does not measure.
        """
        return NewOutput(
            self.agent.new_output_id(),
            DIGESTS,
            request=COMMITMENT,
            request_key=REQUEST_KEY,
            nonce=NONCE,
            model=MODEL.name,
            context=CONTEXT,
        )

    async def bare_seconds(self, count: int = 3) -> float:
        """Seconds of one extend and quote on this TPM, the agent being idle: made as commits of one output."""
        seconds = []
        for _ in range(count):
            begun = time.perf_counter()
            await self.root.quote(os.urandom(32))
            quoted = time.perf_counter() - begun
            seconds.append(quoted)
        return statistics.median(seconds) + self.extend_seconds

    extend_seconds: float = 0.0


@asynccontextmanager
async def running(folder: Path, tcti: str) -> AsyncIterator[Running]:
    """A running agent on a TPM, and what one extend takes there (on a PCR that nothing else uses)."""
    state = folder / "state"
    make_state(tcti, state)
    extend = _extend_seconds(tcti)
    root = await open_root(read_identity(state).tpm, tcti)
    async with Agent(state, root=root, workload=WORKLOAD, world=World(spare=memory.collect)) as agent:
        yield Running(agent, root, state, extend)


def _extend_seconds(tcti: str) -> float:
    import tpm2_pytss as lib

    digest = lib.TPML_DIGEST_VALUES(
        [lib.TPMT_HA(hashAlg=lib.TPM2_ALG.SHA256, digest=lib.TPMU_HA(sha256=bytes(32)))]
    )
    seconds = []
    with Connection(tcti) as connection:
        for _ in range(5):
            begun = time.perf_counter()
            connection.commands.pcr_extend(lib.ESYS_TR.PCR16, digest)
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def fsync_seconds(folder: Path) -> float:
    """Median seconds of appending 64 KiB and fsync, where the agent's state lies."""
    block = os.urandom(65536)
    seconds = []
    with (folder / "fsync").open("ab") as file:
        for _ in range(21):
            begun = time.perf_counter()
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def tune() -> None:
    """Set what `attest agent run` sets, for the process that holds the agent."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    memory.settle(spare=True)


def throughput(folder: Path, rounds: int, seconds: float) -> Measured:
    """commit_ratio: complete attestations a second, over one extend and quote for each output."""
    tune()
    with simulated_dtpm(folder) as tcti:
        ratios, rate = asyncio.run(_throughput(folder, tcti, rounds, seconds))
    return Measured(
        ratios,
        f"{IN_FLIGHT} callers in the agent's process, {seconds:g} s a round, each attestation's bytes joined; about"
        f" {rate:.0f}/s; bare: PCR_Extend and Quote by turns on the same simulated TPM; {VERIFIED} verified afterwards",
    )


async def _throughput(folder: Path, tcti: str, rounds: int, seconds: float) -> tuple[list[float], float]:
    ratios, rates, kept = [], [], []
    async with running(folder, tcti) as run:
        await _flood(run, 1.0)
        for number in range(rounds):
            count, lasted, made = await _flood(run, seconds)
            kept += made[: VERIFIED // rounds + 1]
            bare = await run.bare_seconds()
            rates.append(count / lasted)
            ratios.append(rates[-1] * bare)
            progress(f"commit_ratio round {number + 1}: {rates[-1]:.0f}/s, bare {1 / bare:.2f}/s")
        _verify_all([delivered.encoded for delivered in kept[:VERIFIED]], run.agent.origin)
    return ratios, statistics.median(rates)


async def _flood(run: Running, seconds: float) -> tuple[int, float, list[Delivered]]:
    """Keep IN_FLIGHT callers busy; return how many attestations were complete, in how long, and a sample of them."""
    made: list[Delivered] = []
    size = count = 0
    end = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal size, count
        while time.perf_counter() < end:
            delivered = await run.agent.submit(run.output())
            size += len(delivered.encoded)
            count += 1
            if count % _SAMPLE == 0:
                made.append(delivered)

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return count, time.perf_counter() - begun, made


def _verify_all(attestations: list[bytes], origin: str) -> None:
    """Verify each in full. Raises Rejected where one does not."""
    text = f'schema = "quotary-policy/v1"\n[tpm]\nsoftware = true\n[[pin]]\norigin = "{origin}"\n'
    policy = load_policy(text.encode())
    question = Question(BODY, at=int(time.time()), request=REQUEST, nonce=NONCE)
    for attestation in attestations:
        verify(attestation, question, policy)
    progress(f"{len(attestations)} of the attestations verified")


def latency(folder: Path, rounds: int, seconds: float) -> Measured:
    """commit_latency_ratio: p99 of open-loop Poisson arrivals at half the load that the bar of commit_ratio names."""
    tune()
    with simulated_dtpm(folder) as tcti:
        ratios, rate, limit = asyncio.run(_latency(folder, tcti, rounds, seconds))
    return Measured(
        ratios,
        f"open loop, Poisson arrivals at {rate:.0f}/s (half of {LOAD} times the bare rate), {seconds:g} s a round, p99"
        f" from the scheduled time; over extend + quote + two fsyncs of this run, {limit * 1000:.1f} ms",
    )


async def _latency(folder: Path, tcti: str, rounds: int, seconds: float) -> tuple[list[float], float, float]:
    ratios, limits = [], []
    async with running(folder, tcti) as run:
        await _flood(run, 1.0)
        rate = LOAD / 2 / await run.bare_seconds(7)
        for number in range(rounds):
            limit = await run.bare_seconds() + 2 * fsync_seconds(folder)
            waits = await _arrivals(run, rate, seconds)
            p99 = statistics.quantiles(waits, n=100)[98]
            limits.append(limit)
            ratios.append(p99 / limit)
            progress(
                f"commit_latency_ratio round {number + 1}: p50 {statistics.median(waits) * 1000:.0f} ms,"
                f" p99 {p99 * 1000:.0f} ms, over {limit * 1000:.0f} ms"
            )
    return ratios, rate, statistics.median(limits)


async def _arrivals(run: Running, rate: float, seconds: float) -> list[float]:
    """Hand outputs in at Poisson times, whatever the agent does; return how long each took from its time.

    Nothing is done for all of them at once at the end: that would hold up those that are still on their way.
    """
    waits: list[float] = []
    last = asyncio.Event()
    sent = 0
    begun = time.perf_counter()
    due, end = begun, begun + seconds

    def done(scheduled: float, future: asyncio.Future[Delivered]) -> None:
        future.result()
        waits.append(time.perf_counter() - scheduled)
        if len(waits) == sent and due >= end:
            last.set()

    while due < end:
        while due <= time.perf_counter() and due < end:
            future = run.agent.enqueue(run.output())
            sent += 1
            future.add_done_callback(partial(done, due))
            due -= math.log(1.0 - random.random()) / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    async with asyncio.timeout(60):
        await last.wait()
    return waits
