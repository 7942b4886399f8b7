# SPDX-License-Identifier: Apache-2.0
"""What a growing log costs: a commit of 1,000 outputs at ten million leaves, and memory for each output."""

from __future__ import annotations

import asyncio
import ctypes
import datetime as dt
import gc
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attesting import IN_FLIGHT, MODEL, Running, make_state, simulated_dtpm, tune
from figures import Measured, NotMeasured, progress
from prefill import one_batch, prefill, unsigned_commit
from quotary_attest import memory
from quotary_attest.agent import Agent, World
from quotary_attest.enrol.issuance import Issuer, TpmModel, make_ak_certificate, make_root
from quotary_attest.log.store import Store
from quotary_attest.state import install_certificates, read_identity
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.root import open_root
from quotary_attest.workload import Engine, ServedModel, Workload
from quotary_verifier.logs.cel import content_digest
from quotary_verifier.logs.workload import TYPE_AGENT, WorkloadEvent
from quotary_verifier.wire.attestation import Attestation, TpmSupport
from quotary_verifier.wire.tpm_public import parse_public

ORIGIN = "bench.example/" + "a" * 32
SMALL, LARGE, OUTPUTS = 10_000, 10_000_000, 1_000
FILLED_PCRS = range(8)
_COMMITS = 5
_POINTS = 17
_CALLERS = 1024
_GIB = 1 << 30
_PATH = 20 * 32
WORKLOAD = Workload(
    (MODEL, ServedModel("qwen", bytes(range(2, 34)))),
    Engine("vllm", bytes(range(1, 33)), ("--port", "8000"), ("CUDA_VISIBLE_DEVICES=0",)),
)
"""Seven events an epoch with the separator and the agent's own."""


def flatness(folder: Path, rounds: int, *, large: int = LARGE) -> Measured:
    """append_flatness: a whole commit of 1,000 outputs at `large` leaves over the same at 10^4."""
    if shutil.disk_usage(folder).free < 8 * _GIB:
        raise NotMeasured("ten million records need 8 GiB of free disk")
    begun = time.monotonic()
    stores = []
    for leaves in (SMALL, large):
        store = Store.open(folder / f"log-{leaves}")
        prefill(store, leaves, origin=ORIGIN)
        stores.append(store)
        progress(f"append_flatness: a log of {leaves} leaves after {time.monotonic() - begun:.0f} s")
    ratios = []
    for _ in range(rounds):
        small, big = (statistics.median(_commit(store) for _ in range(_COMMITS)) for store in stores)
        ratios.append(big / small)
    for store in stores:
        store.close()
    return Measured(
        ratios,
        f"stage, commit, apply and sync of {OUTPUTS} outputs (records, index, tiles, fsync), median of {_COMMITS},"
        f" by turns at {large} leaves and at {SMALL}",
    )


def _commit(store: Store) -> float:
    """Write one batch of 1,000 outputs as the engine does, journal first, and return the seconds that it took."""
    begun, staged, growth, entries = one_batch(store, OUTPUTS, origin=ORIGIN)
    store.stage(staged)
    store.commit(unsigned_commit(staged), staged, growth)
    store.apply(staged, growth, entries)
    store.sync()
    return time.perf_counter() - begun


def long_run(folder: Path, *, first: int = 1_000_000, last: int = 3_000_000) -> dict[str, Measured]:
    """agent_bytes_per_output and attestation_bytes, from one long run of a real agent on a fast software TPM.

    It has a process of its own, in which nothing was measured before.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(memory_and_size, folder, first, last).result()


def memory_and_size(folder: Path, first: int, last: int) -> dict[str, Measured]:
    """Do what `long_run` does, in this process."""
    tune()
    with simulated_dtpm(folder, slow=False) as tcti:
        return asyncio.run(_memory_and_size(folder, tcti, first, last))


async def _memory_and_size(folder: Path, tcti: str, first: int, last: int) -> dict[str, Measured]:
    state = folder / "state"
    _fill_pcrs(tcti)
    make_state(tcti, state)
    _certify(state)
    root = await open_root(read_identity(state).tpm, tcti)
    points: list[tuple[int, int]] = []
    async with Agent(state, root=root, workload=WORKLOAD, world=World(spare=memory.collect)) as agent:
        run = Running(agent, root, state)
        step = (last - first) // (_POINTS - 1)
        await _make(run, first - step, IN_FLIGHT)
        for target in range(first, last + 1, step):
            await _make(run, target, _CALLERS)
            points.append((agent.store.size, private_bytes()))
            progress(f"agent_bytes_per_output: {points[-1][0]} leaves, {points[-1][1] >> 20} MiB private")
            if target == first:
                made = (await agent.submit(run.output())).encoded
    shown = Attestation.decode(made)
    slope = statistics.linear_regression(*zip(*points, strict=True)).slope
    counted = _counted(shown)
    support = counted.supports[0]
    full = sum(len(item) > 32 for item in support.workload_log)
    return {
        "agent_bytes_per_output": Measured(
            [slope],
            f"slope of Private_Clean + Private_Dirty of a process with nothing but the agent and its callers, over"
            f" {len(points)} points from {first} to {last} outputs, each with the agent idle and free memory given back"
            f" (malloc_trim); {IN_FLIGHT} callers before that, so that the allocator's pools have their size, and"
            f" {_CALLERS} from then on; software TPM without added delay",
        ),
        "attestation_bytes": Measured(
            [float(len(counted.encode()))],
            f"a real attestation of {len(made)} bytes at {first} leaves, whose path of {len(shown.path) // 32} hashes"
            f" is counted as one of {_PATH // 32}, as most leaves of such a tree have, and whose agent's event, which"
            f" only a software TPM makes it show, as a digest; {len(support.pcrs)} PCR values"
            f" given beside chain and workload PCR, an AK certificate of {len(support.certificates[0])} bytes,"
            f" {len(support.workload_log)} events of which {full} in full, nonce of 32 bytes and request key",
        ),
    }


def _counted(shown: Attestation) -> Attestation:
    """Return an attestation as a host with a hardware TPM makes it, with a path of 20 hashes."""
    (support,) = shown.supports
    assert isinstance(support, TpmSupport)
    events = tuple(
        content_digest(item) if len(item) > 32 and WorkloadEvent.decode(item).type == TYPE_AGENT else item
        for item in support.workload_log
    )
    return replace(shown, path=bytes(_PATH), supports=(replace(support, workload_log=events),))


def _fill_pcrs(tcti: str) -> None:
    """Extend eight PCRs, as firmware and loader do: with chain and workload PCR ten are not zero."""
    import tpm2_pytss as lib

    digest = lib.TPML_DIGEST_VALUES(
        [lib.TPMT_HA(hashAlg=lib.TPM2_ALG.SHA256, digest=lib.TPMU_HA(sha256=b"\x01" * 32))]
    )
    with Connection(tcti) as connection:
        for pcr in FILLED_PCRS:
            connection.commands.pcr_extend(getattr(lib.ESYS_TR, f"PCR{pcr}"), digest)


def _certify(state: Path) -> None:
    """Install the certificate that our own CA code issues for the AK."""
    identity = read_identity(state)
    now = dt.datetime.now(dt.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = Issuer(make_root("Example AK CA", key, now=now, days=3650), key)
    public = parse_public(identity.tpm.ak_public).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    tpm = TpmModel("id:49465800", "SLB9672", "id:0010")
    certificate = make_ak_certificate(issuer, public, origin=identity.origin, tpm=tpm, now=now, days=365)
    install_certificates(state, (certificate.public_bytes(Encoding.DER),))


async def _make(run: Running, target: int, callers: int) -> None:
    """Attest until the log has `target` leaves, and until what was made is applied and synced."""

    async def caller() -> None:
        while run.agent.store.size < target:
            await run.agent.submit(run.output())

    await asyncio.gather(*(caller() for _ in range(callers)))
    while run.agent.store.unsynced or run.agent.store.applied < run.agent.store.size:  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # an idle agent applies and syncs by itself


def private_bytes() -> int:
    """Private memory of this process (proc(5), smaps_rollup), without what was freed and is only kept for reuse."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
