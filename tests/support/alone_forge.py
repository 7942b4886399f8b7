# SPDX-License-Identifier: Apache-2.0
"""Attestations of origins without a TPM, bound by processors of the test's own; each knob breaks one thing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import tee_defects  # by its module: it needs `defects`, which needs `alone_defects`, which needs this one
from forge import Forge, tree
from nacl.signing import SigningKey

from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.tlog.hardware import HardwareLine, encode_hardware_line
from quotary_verifier.tlog.merkle import leaf_hash
from quotary_verifier.tlog.note import Note, SignatureLine, sign_ed25519
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.bindings import commit_digest
from quotary_verifier.wire.names import origin_of
from quotary_verifier.wire.records import Output, entry_of
from quotary_verifier.wire.tee_support import TeeSupport


@dataclass
class AloneForge(Forge):
    """A host whose commits TEEs alone bind.

    `signed`: the note has the Ed25519 line of the note key, or of `other_key`. `second`: the first leaf that all lines
    but the first claim, where it is another. The AK that every `Forge` has stands nowhere.
    """

    signed: bool = True
    other_key: SigningKey | None = None
    second: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tees = self.tees or (tee_defects.snp(),)
        self.genesis = replace(self.genesis, tpm=None)
        self.genesis_record = self.genesis.encode()
        self.origin = origin_of(self.host, self.genesis_record)

    def record(self) -> Output:
        """The record, whose model cites no event."""
        record = super().record()
        assert record.model is not None
        return replace(record, model=replace(record.model, event=None, event_digest=None))

    def attestation(self, *, record: Output | bytes | None = None, **_: object) -> Attestation:
        """A whole attestation."""
        record = self.record() if record is None else record
        octets = record if isinstance(record, bytes) else record.encode()
        entries = [entry_of(b"leaf %d" % number) for number in range(self.leaves)]
        entries[0], entries[self.index] = entry_of(self.genesis_record), entry_of(octets)
        root, paths = tree([leaf_hash(entry) for entry in entries])
        text = Checkpoint(self.origin, self.leaves, root).text
        lines, supports = self.bound(text)
        return Attestation(
            record=octets,
            genesis=self.genesis_record,
            index=self.index,
            path=paths[self.index],
            note=Note(text, lines).encode(),
            supports=(),
            request_key=b"k" * 32,
            tees=supports,
        )

    def bound(self, text: bytes) -> tuple[tuple[SignatureLine, ...], tuple[TeeSupport, ...]]:
        """The lines of a note over this text, and the supports."""
        lines = [sign_ed25519(text, self.origin, self.other_key or self.note_key)] if self.signed else []
        supports = []
        for number, make in enumerate(self.tees):
            first = self.first if self.second is None or not number else self.second
            digest = commit_digest(self.origin, first, text)
            evidence, support = make(digest, hashlib.sha256(self.genesis_record).digest())
            line = HardwareLine(support.identifier, first, evidence)
            lines.append(encode_hardware_line(self.origin, b"", line))
            supports.append(support)
        return tuple(lines), tuple(supports)

    def pinned(self, rules: str) -> str:
        """A policy that pins the origin, with these rules."""
        return f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{self.origin}"\n{rules}'
