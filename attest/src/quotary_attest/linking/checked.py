# SPDX-License-Identifier: Apache-2.0
"""The check of an engine that runs already: whose socket, which program, which files (docs/threat-model.md).

What costs little is done for every connection: its other end is a socket of a process that was examined. That the
process still runs the measured program, has the weights open, and that all files are as they were measured, is
examined again when the last examination is older than `recheck_seconds`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from quotary_attest.enginelink import Address, Peer, ProcessPeer
from quotary_attest.linking.processes import Inode, Process, holder_of
from quotary_attest.linking.sockets import peer_inodes
from quotary_attest.measure import Measurement
from quotary_attest.measuring.errors import MeasureError
from quotary_attest.measuring.files import Identity, MeasuredFile, hash_file
from quotary_attest.measuring.folder import part_of
from quotary_verifier.wire.records import Link

RECHECK_SECONDS: Final = 1.0
_MOST_EXECUTABLE: Final = 1 << 30
_MOST_KNOWN: Final = 64
_ATTEMPTS: Final = 3
_LONGEST_WAIT: Final = 32
"""Times `recheck_seconds` between two looks at all processes where none was the right one."""

_LOG = logging.getLogger("quotary.link")


@dataclass(frozen=True, slots=True)
class MeasuredFiles:
    """The files of one model as they were measured, with the folders that hold them, and which of them the engine
    must have open: the weights."""

    files: tuple[tuple[Path, Identity], ...]
    weights: frozenset[Inode]

    @classmethod
    def of(cls, measured: Measurement) -> MeasuredFiles:
        """Take over what measuring found."""
        found = [(file.path, file.identity, file) for file in measured.files]
        files = tuple(
            (path, identity) for path, identity, _ in found if path is not None and identity is not None
        )
        weights = frozenset(
            (identity.device, identity.inode)
            for path, identity, file in found
            if path is not None and identity is not None and _must_be_open(file, measured)
        )
        return cls((*files, *measured.folders), weights)

    def changed(self) -> Path | None:
        """Return the first file that is not as it was measured; None where all are."""
        for path, identity in self.files:
            try:
                if Identity.of(path.stat()) != identity:
                    return path
            except OSError:
                return path
        return None


def _must_be_open(file: MeasuredFile, measured: Measurement) -> bool:
    return measured.folder is None or part_of(file.name) == "weights"


@dataclass(slots=True)
class _Finding:
    """What the last examination of a process found for a model, and when."""

    at: float
    problem: str


@dataclass(slots=True)
class _Told:
    """The last thing that was logged of a model, so that a change is logged and nothing else."""

    text: str | None = field(default=None)


class CheckedLink:
    """Checks engines that somebody else started. For one thread."""

    def __init__(
        self,
        engine: MeasuredFile,
        models: Mapping[str, MeasuredFiles],
        *,
        recheck_seconds: float = RECHECK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`engine` is the measured executable; `models` what was measured by the names or keys that `link` is asked
        for. A model may be added or taken away later (`models` is kept, not copied)."""
        self.models = models
        self._engine = engine
        self._recheck, self._clock = recheck_seconds, clock
        self._known: dict[Process, dict[tuple[str, bool], _Finding]] = {}
        self._digests: dict[Identity, bytes] = {}
        self._unchanged: dict[str, tuple[float, Path | None]] = {}
        self._searched: dict[Address, tuple[float, int]] = {}
        self._told: dict[str, _Told] = {}
        if engine.identity is not None:
            self._digests[engine.identity] = engine.digest

    def link(self, model: str, peer: Peer | None = None) -> Link:
        """Return CHECKED where everything holds, else CONFIGURED (see `EngineLink.link`)."""
        return Link.CHECKED if self.process(model, peer) is not None else Link.CONFIGURED

    def process(self, model: str, peer: Peer | None, *, below: Process | None = None) -> Process | None:
        """Return the process at the other end if it runs the measured engine on the measured files; None otherwise.

        Of a process that is, or was started by, `below` it is not asked that it has the weights open.
        """
        if peer is None or model not in self.models:
            return None  # whoever hands an output in chooses the name: of one that was never measured nothing is kept
        process = self._at(peer)
        if process is None:
            problem = "the other end of the connection is no process that can be seen from here"
        else:
            ours = below is not None and process.descends_from(below)
            problem = self._examined(process, model, ours)
        self._tell(model, problem)
        return None if problem else process

    def holds(self, model: str) -> bool:
        """Tell whether the model's files are as they were measured, as of `recheck_seconds` ago at the earliest."""
        return self._changed_file(model) is None and model in self.models

    def reason(self, model: str) -> str:
        """Return why the last link of a model was only configured; empty where it was checked, or none was asked
        for."""
        told = self._told.get(model)
        return (told.text or "") if told is not None else ""

    def _at(self, peer: Peer) -> Process | None:
        """Return the process at the other end of a connection."""
        if isinstance(peer, ProcessPeer):
            process = Process.of(peer.pid)
            if process is None or peer.started not in (None, process.started):
                return None
            return process
        now = self._clock()
        last, failures = self._searched.get(peer.theirs, (-1e9, 0))
        searching = now - last >= self._recheck * min(1 << failures, _LONGEST_WAIT)
        inodes = peer_inodes(peer)
        for _ in range(_ATTEMPTS):
            process = self._known_with(inodes)
            if process is None and searching and inodes:
                # looking at every process is for when an engine was exchanged, not for every request
                if len(self._searched) >= _MOST_KNOWN:
                    self._searched.clear()
                self._searched[peer.theirs] = now, failures + 1
                self._known = {known: found for known, found in self._known.items() if known.alive}
                process = holder_of(inodes)
                if process is not None:
                    self._searched[peer.theirs] = now, 0
            if process is not None:
                return process
            before, inodes = inodes, peer_inodes(peer)
            if inodes == before:  # else the engine has closed the connection while it was looked for
                break
        return None

    def _known_with(self, inodes: frozenset[int]) -> Process | None:
        if inodes:
            for process in self._known:
                if process.has_sockets(inodes) and process.alive:
                    return process
        return None

    def _examined(self, process: Process, model: str, ours: bool) -> str:
        """Return what is wrong with a process, from the last examination or a new one; empty where nothing is."""
        findings = self._known.get(process)
        if findings is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            findings = self._known[process] = {}
        last = findings.get((model, ours))
        now = self._clock()
        if last is None or now - last.at >= self._recheck:
            last = findings[model, ours] = _Finding(now, self._examine(process, model, ours))
        return last.problem

    def _examine(self, process: Process, model: str, ours: bool) -> str:
        files = self.models.get(model)
        if files is None:
            return "the model's files are not known here"
        changed = files.changed()
        self._unchanged[model] = (self._clock(), changed)
        if changed is not None:
            return f"{changed.name} is not as it was measured"
        if self._digest_of(process) != self._engine.digest:
            return "what runs there is not the measured engine"
        if not ours and not _open_in(process, files.weights):
            return "the engine does not have the measured weights open"
        return "" if process.alive else "the engine has ended"

    def _digest_of(self, process: Process) -> bytes | None:
        identity = process.executable()
        if identity is None or identity.size > _MOST_EXECUTABLE:
            return None
        digest = self._digests.get(identity)
        if digest is None:
            try:
                measured = hash_file(process.executable_path)
            except MeasureError:
                return None
            if measured.identity is None:
                return None
            digest, identity = measured.digest, measured.identity
            if len(self._digests) >= _MOST_KNOWN:
                self._digests.clear()
            self._digests[identity] = digest
        return digest

    def _changed_file(self, model: str) -> Path | None:
        files = self.models.get(model)
        if files is None:
            return None
        at, changed = self._unchanged.get(model, (-1e9, None))
        if self._clock() - at >= self._recheck:
            changed = files.changed()
            self._unchanged[model] = (self._clock(), changed)
        return changed

    def _tell(self, model: str, text: str) -> None:
        told = self._told.setdefault(model, _Told())
        if told.text == text:
            return
        told.text = text
        if text:
            _LOG.warning("model %s: the link to the engine is only configured: %s", model, text)
        else:
            _LOG.info("model %s: the engine was checked", model)


def _open_in(process: Process, weights: frozenset[Inode]) -> bool:
    """Tell whether a process, with those below it, has all of these files open or mapped."""
    missing = set(weights)
    for member in process.family():
        missing -= member.open_files(weights)
        if not missing:
            break
    return bool(weights) and not missing
