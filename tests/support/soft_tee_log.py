# SPDX-License-Identifier: Apache-2.0
"""A host's log as static files, of an origin that has no TPM: each commit is bound by what a test hands it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from nacl.signing import SigningKey
from soft_log import HOST, TIME, Bind, SoftLog, TreeFiles

from quotary_verifier.tlog.note import Note, sign_ed25519
from quotary_verifier.wire.bindings import ZERO, commit_digest
from quotary_verifier.wire.history import Commit
from quotary_verifier.wire.records import Boot, Genesis, Statement, entry_of


class SoftTeeLog(SoftLog):
    """A log that grows by starts, outputs and statements. Fields may be changed between any two of them."""

    def __init__(self, folder: Path, bind: Bind | None, *, note_key: SigningKey | None = None) -> None:
        self.files = TreeFiles(folder)
        self.note_key = note_key or SigningKey.generate()
        genesis = Genesis(os.urandom(16), TIME, HOST, bytes(self.note_key.verify_key), None)
        self.genesis = genesis.encode()
        self.origin = genesis.origin(self.genesis)
        self.files.append([entry_of(self.genesis)])
        self.put(self.genesis)
        self.tee = bind
        self.digest, self.claimed, self.note = ZERO, 0, b""
        self._history, self._commits = [], 0

    def start(  # type: ignore[override]
        self,
        *,
        lost: Sequence[bytes] = (),
        change: Callable[[Boot], Boot] = lambda record: record,
        commit: bool = True,
    ) -> bytes:
        """Start the agent, and return its boot record; `change` makes it say something else.

        `lost` are entries that stand before it as history. Without `commit` the start dies before its commit.
        """
        record = change(Boot(os.urandom(16), TIME, self.digest, None)).encode()
        self.put(record)
        self.files.append([*lost, entry_of(record)])
        if commit:
            self.commit(first=self.size - 1)
        return record

    def state(self, text: str) -> None:
        """A statement."""
        record = Statement(os.urandom(16), TIME, text).encode()
        self.put(record)
        self.files.append([entry_of(record)])
        self.commit()

    def commit(  # type: ignore[override]
        self, *, first: int | None = None, root: bytes | None = None, publish: bool = True
    ) -> Commit:
        """Bind what the tree is now, as the leaves since the last commit or from `first` on."""
        first = self.claimed if first is None else first
        text = self.text(root)
        digest = commit_digest(self.origin, first, text)
        tees, lines = self._tees(digest, first)
        note = Note(text, (sign_ed25519(text, self.origin, self.note_key), *lines))
        made = Commit(first, note.encode(), (), {}, tees)
        self.digest, self.claimed = digest, self.size
        if publish:
            self.publish(made)
        return made
