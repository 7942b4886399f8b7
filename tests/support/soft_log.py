# SPDX-License-Identifier: Apache-2.0
"""A host's log, written as static files, whose TPM is a key in memory: for audits of logs that no TPM would make.

The registers, counts and the start counter behave as a TPM's, so that what is written is a history that holds, of any
size: tiles go to disk as they fill up, and nothing grows with the log. Tests then break one thing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import soft_tpm
from nacl.signing import SigningKey

from quotary_verifier.audit.subtrees import tile_root
from quotary_verifier.logs.cel import content_digest, encode_record
from quotary_verifier.logs.workload import WorkloadEvent, separator
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.compact import CompactRange, leaf_hashes
from quotary_verifier.tlog.cosignature import cosign
from quotary_verifier.tlog.hardware import IDENTIFIER_TPM2_QUOTE, HardwareLine, encode_hardware_line
from quotary_verifier.tlog.note import Note, SignatureLine, sign_ed25519
from quotary_verifier.tlog.tiles import ENTRIES, Tile, numbered_path
from quotary_verifier.wire.bindings import ZERO, chain_extend, commit_digest, start_digest
from quotary_verifier.wire.history import COMMITS_PER_FILE, Commit, CommitSupport, CommitTeeSupport
from quotary_verifier.wire.records import Boot, BootTpm, Genesis, Statement, TpmIdentity, entry_of
from quotary_verifier.wire.tpm import ClockInfo, PcrSelection, encode_nv_public, parse_nv_public
from quotary_verifier.wire.tpm_names import RH_ENDORSEMENT, hierarchy_qn, qualified_name

HOST = "gpu-07.example.net"
CHAIN, WORKLOAD = 15, 13
TIME = 1_790_000_000_000
FIRMWARE = 0x0007_0002_0003_0004
PCRS = {pcr: hashlib.sha256(b"pcr %d" % pcr).digest() for pcr in (0, 2, 4, 7)}
SELECTION = PcrSelection(0x0B, b"\xff\xff\x00")
_COUNTER = encode_nv_public(index=0x01817100, attributes=0x22060016, data_size=8)


class TreeFiles:
    """Writes entry bundles and hash tiles as they fill up, and keeps what is not full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = CompactRange()
        self.rows: list[list[bytes]] = [[]]
        self.counts = [0]
        self.entries: list[bytes] = []

    def append(self, entries: Sequence[bytes]) -> None:
        """Append leaves by their entries."""
        hashes = leaf_hashes(entries)
        self.tree.append(hashes)
        self.entries += entries
        self._push(0, [hashes[at : at + 32] for at in range(0, len(hashes), 32)])

    def _push(self, level: int, hashes: list[bytes]) -> None:
        if level == len(self.rows):
            self.rows.append([])
            self.counts.append(0)
        row = self.rows[level] = self.rows[level] + hashes
        parents = []
        while len(row) >= 256:
            tile = b"".join(row[:256])
            self.write(Tile(level, self.counts[level]).path, tile)
            if level == 0:
                self.write(Tile(ENTRIES, self.counts[0]).path, bundle(self.entries[:256]))
                del self.entries[:256]
            self.counts[level] += 1
            parents.append(tile_root(tile))
            del row[:256]
        if parents:
            self._push(level + 1, parents)

    def finish(self) -> None:
        """Write the partial tiles."""
        for level, row in enumerate(self.rows):
            if row:
                self.write(Tile(level, self.counts[level], len(row)).path, b"".join(row))
        if self.entries:
            self.write(Tile(ENTRIES, self.counts[0], len(self.entries)).path, bundle(self.entries))

    def write(self, path: str, data: bytes) -> None:
        """Write a file of the log."""
        place = self.folder / path
        try:
            place.write_bytes(data)
        except FileNotFoundError:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)


def bundle(entries: Iterable[bytes]) -> bytes:
    """An entry bundle."""
    return b"".join([b"\0\x20" + entry for entry in entries])


Bind = Callable[[bytes], Mapping[str, tuple[bytes, Mapping[str, Sequence[bytes]]]]]
"""Binds 64 bytes of report data: evidence and endorsements by the identifier of the line."""


class SoftLog:
    """A log that grows by starts, outputs and statements. Fields may be changed between any two of them."""

    def __init__(
        self, folder: Path, *, key: soft_tpm.SoftKey | None = None, hierarchy: bytes | None = None
    ) -> None:
        """Make a log on an own AK, or on the given one, a primary of a hierarchy by its handle where that is given."""
        self.files = TreeFiles(folder)
        self.key = soft_tpm.ecc_key() if key is None else key
        self.note_key = SigningKey.generate()
        parent = hierarchy or b"\x00\x0b" + hashlib.sha256(b"parent").digest()
        above = hierarchy or qualified_name(hierarchy_qn(RH_ENDORSEMENT), parent)
        self.signer = qualified_name(above, self.key.public.name)
        identity = TpmIdentity(self.key.public.raw, parent, CHAIN, WORKLOAD, _COUNTER)
        genesis = Genesis(b"g" * 16, TIME, HOST, bytes(self.note_key.verify_key), identity)
        record = genesis.encode()
        self.origin = genesis.origin(record)
        self.files.append([entry_of(record)])
        self.put(record)
        self.clock = ClockInfo(1000, 7, 0, True)
        self.pcrs = dict.fromkeys(range(16), ZERO) | PCRS
        self.counter = 1
        self.digest = ZERO
        self.events: list[bytes] = []
        self.epochs = 0
        self.open: list[bytes] = []
        self.workload: tuple[bytes, int] | None = None
        self.boot_logs: Mapping[str, tuple[bytes, int]] = {}
        self.certificates: tuple[bytes, ...] = ()
        self.endorsements: Mapping[str, Sequence[bytes]] = {}
        self.genesis = record
        self.tee: Bind | None = None
        self.claimed = 0
        self.note = b""
        self._history: list[bytes] = []
        self._commits = 0

    @property
    def size(self) -> int:
        """Leaves."""
        return self.files.tree.size

    def put(self, data: bytes) -> bytes:
        """Publish a blob, and return its digest."""
        digest = hashlib.sha256(data).digest()
        self.files.write(f"blob/{digest.hex()}", data)
        return digest

    def reset(self, **counts: int) -> None:
        """A reboot."""
        clock = replace(self.clock, reset_count=self.clock.reset_count + 1, restart_count=0)
        self.clock = replace(clock, **counts)
        self.pcrs = dict.fromkeys(range(16), ZERO) | PCRS
        self.events, self.epochs, self.boot_logs = [], 0, {}

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend a register."""
        self.pcrs[pcr] = chain_extend(self.pcrs[pcr], digest)

    def epoch(self, models: Sequence[str] = ("llama",)) -> None:
        """Measure what may serve from now on."""
        contents = [WorkloadEvent("engine", "vllm", hashlib.sha256(b"engine").digest(), {}).encode()]
        contents += [
            WorkloadEvent("model", name, hashlib.sha256(name.encode()).digest(), {}).encode()
            for name in models
        ]
        contents.append(separator(self.epochs, [content_digest(content) for content in contents]))
        self.epochs += 1
        for content in contents:
            self.extend(WORKLOAD, content_digest(content))
        self.events += contents
        data = b"".join(encode_record(number, WORKLOAD, item) for number, item in enumerate(self.events))
        self.workload = (self.put(data), len(data))

    def start(
        self,
        *,
        lost: Sequence[bytes] = (),
        models: Sequence[str] = ("llama",),
        commit: bool = True,
        change: Callable[[Boot], Boot] = lambda record: record,
    ) -> bytes:
        """Start the agent, and return its boot record; `change` makes it say something else.

        `lost` are entries that stand before it as history. Without `commit` the start dies before its extend.
        """
        self.counter += 1
        self.epoch(models)
        salt = os.urandom(16)
        extra = start_digest(self.origin, self.digest, salt)
        body = soft_tpm.nv_body(parse_nv_public(_COUNTER).name, self.counter.to_bytes(8))
        evidence = self.key.evidence(self._attest(body, extra, kind=0x8014))
        tpm = BootTpm(self.clock.reset_count, self.clock.restart_count, self.pcrs[CHAIN], evidence)
        record = change(Boot(salt, TIME + self.clock.clock, self.digest, tpm)).encode()
        self.put(record)
        self.files.append([*lost, entry_of(record)])
        if commit:
            self.commit(first=self.size - 1)
        return record

    def outputs(self, count: int = 1) -> None:
        """A commit of outputs, of which the log has the hashes of nothing in particular."""
        noise = os.urandom(32 * count)
        self.files.append([noise[at : at + 32] for at in range(0, len(noise), 32)])
        self.commit()

    def state(self, text: str) -> None:
        """A statement."""
        record = Statement(os.urandom(16), TIME + self.clock.clock, text).encode()
        self.put(record)
        self.files.append([entry_of(record)])
        self.commit()

    def _attest(self, body: bytes, extra: bytes, *, kind: int = 0x8018) -> bytes:
        return soft_tpm.attest_bytes(
            body, kind=kind, signer=self.signer, extra=extra, clock=self.clock, firmware=FIRMWARE
        )

    def text(self, root: bytes | None = None) -> bytes:
        """The text of the checkpoint as the tree is now."""
        return Checkpoint(self.origin, self.size, self.files.tree.root() if root is None else root).text

    def commit(
        self,
        *,
        first: int | None = None,
        before: bytes | None = None,
        root: bytes | None = None,
        publish: bool = True,
    ) -> Commit:
        """Quote what the tree is now, as the leaves since the last commit or from `first` on."""
        first = self.claimed if first is None else first
        before = self.pcrs[CHAIN] if before is None else before
        text = self.text(root)
        digest = commit_digest(self.origin, first, text)
        self.pcrs[CHAIN] = chain_extend(before, digest)
        self.clock = replace(self.clock, clock=self.clock.clock + 50)
        values = b"".join(self.pcrs[pcr] for pcr in range(16))
        body = soft_tpm.quote_body([SELECTION], hashlib.sha256(values).digest())
        line = HardwareLine(IDENTIFIER_TPM2_QUOTE, first, self.key.evidence(self._attest(body, digest)))
        lines: tuple[SignatureLine, ...] = (
            sign_ed25519(text, self.origin, self.note_key),
            encode_hardware_line(self.origin, self.key.public.to_spki_der(), line),
        )
        tees, tee_lines = self._tees(digest, first)
        lines = (*lines, *tee_lines)
        given = {
            pcr: value for pcr, value in self.pcrs.items() if pcr not in (CHAIN, WORKLOAD) and any(value)
        }
        named = {name: tuple(map(self.put, parts)) for name, parts in self.endorsements.items()}
        support = CommitSupport(IDENTIFIER_TPM2_QUOTE, given, before, self.certificates, self.workload, named)
        made = Commit(first, Note(text, lines).encode(), (support,), self.boot_logs, tees)
        self.digest = digest
        self.claimed = self.size
        if publish:
            self.publish(made)
        return made

    def _tees(
        self, digest: bytes, first: int
    ) -> tuple[tuple[CommitTeeSupport, ...], tuple[SignatureLine, ...]]:
        """The supports and lines of what `tee` binds, which may be changed between any two commits."""
        made = {} if self.tee is None else self.tee(digest + hashlib.sha256(self.genesis).digest())
        supports = tuple(
            CommitTeeSupport(name, {part: tuple(map(self.put, ders)) for part, ders in endorsements.items()})
            for name, (_, endorsements) in made.items()
        )
        lines = tuple(
            encode_hardware_line(self.origin, b"", HardwareLine(name, first, evidence))
            for name, (evidence, _) in made.items()
        )
        return supports, lines

    def publish(self, made: Commit) -> None:
        """Append a commit to the published history."""
        self.note = made.note
        self._history.append(made.encode())
        self._commits += 1
        if len(self._history) == COMMITS_PER_FILE:
            self._write_history()

    def _write_history(self) -> None:
        number = (self._commits - 1) // COMMITS_PER_FILE
        self.files.write(f"history/{numbered_path(number)}", b"".join(self._history))
        if self._commits % COMMITS_PER_FILE == 0:
            self._history = []

    def cosigned(self, name: str, key: SigningKey, time: int, text: bytes | None = None) -> None:
        """Publish the newest checkpoint with a witness's cosignature."""
        text = self.text() if text is None else text
        lines = (sign_ed25519(text, self.origin, self.note_key), cosign(text, name, key, time))
        self.files.write(f"cosigned/{self.size}", Note(text, lines).encode())

    def finish(self) -> Path:
        """Write what is not full yet, and the checkpoint; returns the folder. The log may go on to grow."""
        self.files.finish()
        if self._history:
            self._write_history()
        self.files.write("checkpoint", self.note)
        return self.files.folder
