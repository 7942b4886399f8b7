# SPDX-License-Identifier: Apache-2.0
"""Agents of origins without a TPM, on a synthetic SEV-SNP processor, and an audit of all that they leave behind.

`audit_tee` uses the verifier's parts and the RFC's definitions, and nothing of the engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import rfc6962
from agents import HOST, WORKLOAD, Naps, commits_of, entries_of
from amd_pki import NOW
from soft_snp import SoftSnp, in_its_time

from quotary_attest.agent import Agent
from quotary_attest.engine.further import FurtherRoot
from quotary_attest.log.errors import NotFound
from quotary_attest.log.store import Store
from quotary_attest.origin import init_tee_state
from quotary_attest.state import HostIdentity
from quotary_verifier.errors import QuotaryError
from quotary_verifier.evidence.tee.lines import Bound, verify_tee_line
from quotary_verifier.tlog.checkpoint import parse_checkpoint
from quotary_verifier.tlog.hardware import IDENTIFIER_SEV_SNP, hardware_lines
from quotary_verifier.tlog.note import TYPE_ED25519, VerifierKey, open_note, parse_note
from quotary_verifier.wire.bindings import ZERO, commit_digest
from quotary_verifier.wire.history import Commit
from quotary_verifier.wire.records import Boot, Genesis
from quotary_verifier.wire.tee_support import TeeSupport


def make_tee_state(folder: Path) -> HostIdentity:
    """Make an origin without a TPM, as `attest agent init --tee` does."""
    return init_tee_state(folder, HOST, world=in_its_time())


async def start_tee(folder: Path, snp: SoftSnp, **options: object) -> Agent:
    """Start an agent over a state folder, with the processor as the root that every commit needs."""
    given = {
        "workload": WORKLOAD,
        "world": in_its_time(sleep=Naps()),
        "roots": [FurtherRoot(snp, required=True)],
        "tee_roots": snp.roots,
    } | options
    return await Agent.start(folder, **given)  # type: ignore[arg-type]


@asynccontextmanager
async def running_tee(folder: Path, snp: SoftSnp | None = None, **options: object) -> AsyncIterator[Agent]:
    """An agent for the block; its origin is made where the folder is not there yet."""
    if not (folder / "identity").exists():
        make_tee_state(folder)
    agent = await start_tee(folder, snp or SoftSnp(), **options)
    try:
        yield agent
    finally:
        await agent.close()


@dataclass(slots=True)
class TeeAudit:
    """The commits' ranges (size before, first, size), and the index of each boot record."""

    ranges: list[tuple[int, int, int]] = field(default_factory=list)
    boots: list[int] = field(default_factory=list)


def audit_tee(folder: Path, snp: SoftSnp) -> TeeAudit:
    """Audit the history in a state folder that no agent holds; an assertion fails for what no honest agent leaves."""
    store = Store.open(folder / "log")
    try:
        return _audit(store, snp)
    finally:
        store.close()


def _audit(store: Store, snp: SoftSnp) -> TeeAudit:
    leaf_zero = store.record_at(0).record
    genesis = Genesis.decode(leaf_zero)
    assert genesis.tpm is None
    origin = genesis.origin(leaf_zero)
    note_key = VerifierKey(origin, TYPE_ED25519, genesis.note_key)
    report, size, last, entries = TeeAudit(), 0, ZERO, entries_of(store)
    for commit in commits_of(store):
        note = parse_note(commit.note)
        open_note(note, [note_key])
        checkpoint = parse_checkpoint(note.text, origin=origin)
        assert size <= commit.first < checkpoint.size
        hashes = [rfc6962.sha256(b"\0" + entry).digest() for entry in entries[: checkpoint.size]]
        assert rfc6962.root_of(hashes) == checkpoint.root
        digest = commit_digest(origin, commit.first, note.text)
        assert (commit.supports, commit.boot_logs) == ((), {})
        _check_line(store, commit, Bound(digest, sha256(leaf_zero).digest()), snp)
        record = _boot_at(store, commit.first)
        if record is not None:
            assert (record.tpm, record.last_commit) == (None, last)
            report.boots.append(commit.first)
        assert commit.first == size or record is not None
        report.ranges.append((size, commit.first, checkpoint.size))
        size, last = checkpoint.size, digest
    return report


def _check_line(store: Store, commit: Commit, bound: Bound, snp: SoftSnp) -> None:
    origin = store.serve("checkpoint").split(b"\n", 1)[0].decode()
    (line,) = hardware_lines(parse_note(commit.note), origin, {IDENTIFIER_SEV_SNP: b""})
    (support,) = commit.tees
    parts = {name: tuple(map(store.blob, named)) for name, named in support.endorsements.items()}
    assert line.first == commit.first
    verify_tee_line(line.evidence, TeeSupport(support.identifier, parts), bound, NOW, snp.roots)


def _boot_at(store: Store, index: int) -> Boot | None:
    try:
        return Boot.decode(store.record_at(index).record)
    except (NotFound, QuotaryError):
        return None
