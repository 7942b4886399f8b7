# SPDX-License-Identifier: Apache-2.0
"""Agents on a test's TPM, and an audit of all that they leave behind.

`audit` uses the verifier's parts and the RFC's definitions, and nothing of the engine: it reads the published
history as an auditor would, recomputes every root and every chain link, and says how the boots hang together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import rfc6962
from tpms import Tpm

from quotary_attest.agent import Agent, World
from quotary_attest.bootlogs import IMA_LOG, NO_BOOT_LOGS, BootLogSettings
from quotary_attest.engine.endorsing import Endorsing
from quotary_attest.engine.further import FurtherRoot
from quotary_attest.log.errors import NotFound
from quotary_attest.log.store import Store
from quotary_attest.origin import init_state
from quotary_attest.state import read_identity
from quotary_attest.tpm.connection import Connection, Retry
from quotary_attest.tpm.keys import counter_value, open_counter
from quotary_attest.tpm.model import TpmIdentity
from quotary_attest.tpm.reading import loaded_handles, read_pcrs
from quotary_attest.tpm.root import TpmOptions, open_root
from quotary_attest.workload import Engine, ServedModel, Workload
from quotary_verifier.evidence.tee.lines import TeeRoots
from quotary_verifier.evidence.tpm_counter import verify_counter
from quotary_verifier.evidence.tpm_keys import attestation_key
from quotary_verifier.evidence.tpm_quote import verify_quote
from quotary_verifier.logs.cel import parse_log
from quotary_verifier.logs.workload import read_log
from quotary_verifier.policy.load import load_policy
from quotary_verifier.policy.model import Policy
from quotary_verifier.recipe.verdict import Verdict
from quotary_verifier.recipe.verify import Question, verify
from quotary_verifier.tlog.checkpoint import parse_checkpoint
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, hardware_lines
from quotary_verifier.tlog.note import TYPE_ED25519, VerifierKey, open_note, parse_note
from quotary_verifier.wire import history
from quotary_verifier.wire.bindings import ZERO, chain_extend, commit_digest, start_digest
from quotary_verifier.wire.records import Boot, Genesis, Link, entry_of
from quotary_verifier.wire.tpm import parse_nv_public, parse_public

HOST = "inference.example"
LLAMA = ServedModel("llama", bytes(range(32)), Link.CHECKED)
QWEN = ServedModel("qwen", bytes(range(1, 33)), Link.STARTED)
WORKLOAD = Workload((LLAMA, QWEN), Engine("vllm", bytes(range(2, 34)), ("--api-key", "secret-value")))
IMPATIENT = Retry(attempts=3, first=0.01, longest=0.02)
_CC_FLUSH_CONTEXT = 0x165
AT = 1_800_000_000


class Naps:
    """Sleeping without time passing: every nap only lets other tasks run, and wakes whoever waits for it."""

    def __init__(self) -> None:
        self.count = 0
        self._woken = asyncio.Event()

    async def __call__(self, _seconds: float) -> None:
        self.count += 1
        self._woken.set()
        await asyncio.sleep(0.002)

    async def next(self) -> None:
        """Wait until the agent has given up for the moment, and naps before it tries again."""
        self._woken.clear()
        await self._woken.wait()


def make_state(tpm: Tpm, folder: Path, **pcrs: int) -> TpmIdentity:
    """Make an origin on a TPM, as `attest agent init` does."""
    identity = tpm.identity(**pcrs)
    with Connection(tpm.tcti) as connection:
        counter = counter_value(connection, open_counter(connection, identity))
    init_state(folder, HOST, identity, counter=counter)
    return identity


async def start(
    tpm: Tpm,
    folder: Path,
    *,
    workload: Workload = WORKLOAD,
    resume: bool = False,
    world: World | None = None,
    slept: Callable[[], float] = lambda: 0.0,
    deadline: float = 20.0,
    boot_logs: BootLogSettings = NO_BOOT_LOGS,
    roots: Sequence[FurtherRoot] = (),
    endorsing: Endorsing | None = None,
    tee_roots: TeeRoots | None = None,
) -> Agent:
    """Start an agent over a state folder."""
    options = TpmOptions(
        retry=IMPATIENT, suspended=slept, deadline=deadline, ima_log=boot_logs.ima or IMA_LOG
    )
    root = await open_root(read_identity(folder).tpm, tpm.tcti, options)
    return await Agent.start(
        folder,
        root=root,
        workload=workload,
        resume=resume,
        world=world or World(sleep=Naps()),
        boot_logs=boot_logs,
        roots=roots,
        endorsing=endorsing,
        tee_roots=tee_roots,
    )


@asynccontextmanager
async def running(tpm: Tpm, folder: Path, **options: object) -> AsyncIterator[Agent]:
    """An agent for the block; made anew where the folder is not there yet."""
    if not (folder / "identity").exists():
        make_state(tpm, folder)
    agent = await start(tpm, folder, **options)  # type: ignore[arg-type]
    try:
        yield agent
    finally:
        await agent.close()


async def settled(store: Store) -> None:
    """Wait until a running agent has published and synced what it committed: an idle one does so by itself."""
    async with asyncio.timeout(10):
        while store.unsynced or store.applied < store.size:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def pcr_of(tpm: Tpm, number: int) -> bytes:
    """What a PCR of a TPM holds now."""
    with Connection(tpm.tcti) as connection:
        return read_pcrs(connection)[number]


def release(tpm: Tpm) -> None:
    """Flush what dead clients left loaded, as the kernel's resource manager does when a client dies."""
    with Connection(tpm.tcti) as connection:
        handles = loaded_handles(connection)
    for handle in handles:
        tpm.command(_CC_FLUSH_CONTEXT, handle.to_bytes(4))


def policy_of(origin: str, extra: str = "") -> Policy:
    """A policy that pins an origin on a software TPM."""
    text = f'schema = "quotary-policy/v1"\n{extra}\n[[pin]]\norigin = "{origin}"\n[tpm]\nsoftware = true\n'
    return load_policy(text.encode())


def judge(attestation: bytes, body: bytes, origin: str, **question: object) -> Verdict:
    """Verify an attestation by the full recipe. Raises as `verify`."""
    return verify(attestation, replace(Question(body, AT), **question), policy_of(origin))  # type: ignore[arg-type]


@dataclass(slots=True)
class Audit:
    """What the audit of a history found: the commits' ranges, starts and boots in order, and the gaps."""

    size: int = 0
    ranges: list[tuple[int, int, int]] = field(default_factory=list)
    counters: list[int] = field(default_factory=list)
    boots: list[tuple[int, int]] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    chain: bytes = ZERO

    @property
    def claimed(self) -> list[range]:
        """The leaves that each commit speaks for."""
        return [range(first, size) for _, first, size in self.ranges]


def audit(folder: Path) -> Audit:
    """Audit the history in a state folder that no agent holds."""
    store = Store.open(folder / "log")
    try:
        return audit_store(store)
    finally:
        store.close()


def audit_store(store: Store) -> Audit:
    """Audit a history; an assertion fails for what no honest agent leaves behind, whatever happened to it."""
    leaf_zero = store.record_at(0).record
    genesis = Genesis.decode(leaf_zero)
    origin = genesis.origin(leaf_zero)
    assert genesis.tpm is not None
    key = attestation_key(parse_public(genesis.tpm.ak), genesis.tpm.ak_parent)
    note_key = VerifierKey(origin, TYPE_ED25519, genesis.note_key)
    report = Audit()
    last, entries = ZERO, entries_of(store)
    for number, commit in enumerate(commits_of(store)):
        note = parse_note(commit.note)
        open_note(note, [note_key])
        checkpoint = parse_checkpoint(note.text, origin=origin)
        assert report.size <= commit.first < checkpoint.size
        hashes = [rfc6962.sha256(b"\0" + entry).digest() for entry in entries[: checkpoint.size]]
        assert rfc6962.root_of(hashes) == checkpoint.root
        (line,) = hardware_lines(note, origin, {IDENTIFIER_TPM2_QUOTE: key.public.to_spki_der()})
        assert line.first == commit.first
        (support,) = commit.supports
        digest = commit_digest(origin, commit.first, note.text)
        after = chain_extend(support.chain_before, digest)
        values = dict.fromkeys(range(16), ZERO) | dict(support.pcrs)
        values[genesis.tpm.chain_pcr] = after
        values[genesis.tpm.workload_pcr] = _workload(store, support, genesis.tpm.workload_pcr)
        state = verify_quote(
            key.public, line.evidence, qualified_signer=key.qualified_name, extra_data=digest, values=values
        )
        boot = (state.clock.reset_count, state.clock.restart_count)
        if support.chain_before != report.chain and support.chain_before != ZERO:
            report.gaps.append(number)
        if support.chain_before == ZERO and number:
            assert boot > report.boots[-1], "the chain began again within a boot"
        if commit.first > report.size or _is_boot(store, commit.first):
            record = Boot.decode(store.blob(entries[commit.first]))
            assert record.tpm is not None
            assert (record.last_commit, record.tpm.chain_before) == (last, support.chain_before)
            assert (record.tpm.reset_count, record.tpm.restart_count) == boot
            reading = verify_counter(
                key.public,
                record.tpm.counter_evidence,
                qualified_signer=key.qualified_name,
                extra_data=start_digest(origin, last, record.salt),
                nv_public=parse_nv_public(genesis.tpm.counter),
            )
            assert not report.counters or reading.value > report.counters[-1]
            report.counters.append(reading.value)
        report.ranges.append((report.size, commit.first, checkpoint.size))
        report.boots.append(boot)
        report.size, report.chain, last = checkpoint.size, after, digest
    assert all(earlier <= later for earlier, later in pairwise(report.boots))
    return report


def commits_of(store: Store) -> list[history.Commit]:
    """The commits of a published history, in order."""
    files = [store.serve(f"history/{_place(number)}") for number in range(-(-store.commits // 256))]
    return [history.Commit.decode(item) for file in files for item in history.split(file)]


def entries_of(store: Store) -> list[bytes]:
    """All entries, each held against the record behind it."""
    entries = []
    for number in range(-(-store.size // 256)):
        width = min(256, store.size - 256 * number)
        suffix = "" if width == 256 else f".p/{width}"
        bundle = store.serve(f"tile/entries/{_place(number)}{suffix}")
        entries += [bundle[at + 2 : at + 34] for at in range(0, len(bundle), 34)]
    for index, entry in enumerate(entries):
        with suppress(NotFound):  # expired
            assert entry_of(store.record_at(index).record) == entry
    return entries


def _is_boot(store: Store, index: int) -> bool:
    try:
        record = store.record_at(index).record
    except NotFound:
        return False
    return record[:3] == bytes((record[0], 0, 2))


def _workload(store: Store, support: history.CommitSupport, pcr: int) -> bytes:
    assert support.workload_log is not None
    name, size = support.workload_log
    contents = [record.content for record in parse_log(store.blob(name)[:size], pcr=pcr)]
    return read_log(contents).value


def _place(number: int) -> str:
    return f"{number:03d}" if number < 1000 else f"x{number // 1000:03d}/{number % 1000:03d}"
