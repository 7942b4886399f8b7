# SPDX-License-Identifier: Apache-2.0
"""Epochs, and the workload log on disk that proves them (design section 3, "Workload log").

Without a TPM there is no PCR into which a log could be extended: there an epoch is a list, and claims cite no event.

An event goes to disk before its extend, so after a crash the file holds at most one event that the PCR does
not. `WorkloadLog.fit` compares file and PCR and drops that event; whatever else differs is somebody else's
extend, and only a reboot makes the PCR usable again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quotary_attest.engine.assemble import WorkloadView
from quotary_attest.engine.errors import StartRefused
from quotary_attest.engine.host import TpmHost
from quotary_attest.log.durable import fsync_data, open_file, truncate, write_at
from quotary_attest.workload import Secret, Workload, events_of, model_key
from quotary_verifier.errors import QuotaryError
from quotary_verifier.logs import workload as rules
from quotary_verifier.logs.cel import content_digest, encode_record, parse_log
from quotary_verifier.logs.workload import TYPE_MODEL
from quotary_verifier.wire import cbor
from quotary_verifier.wire.bindings import ZERO, chain_extend
from quotary_verifier.wire.limits import MAX_EVENTS
from quotary_verifier.wire.records import ModelClaim


@dataclass(frozen=True, slots=True)
class Epoch:
    """The epoch in force: the log up to its separator, the blob that holds it (name, bytes), the value
    that it replays to, and the claims that records make about each model, by its name and by its key."""

    view: WorkloadView
    blob: tuple[bytes, int] | None
    value: bytes = ZERO
    claims: Mapping[str, ModelClaim] = field(default_factory=dict)


class WorkloadLog:
    """The workload log of one boot: file, contents, and the value the PCR has when all of them are extended."""

    def __init__(self, path: Path, pcr: int) -> None:
        """Open the log at `path`, or begin an empty one; a torn tail is cut off."""
        self.path = path
        self.pcr = pcr
        self.contents: list[bytes] = []
        self.values: list[bytes] = [ZERO]
        self.ends: list[int] = [0]
        self.open_digests: list[bytes] = []
        self.epochs = 0
        data = path.read_bytes() if path.exists() else b""
        try:
            for record in parse_log(data, pcr=pcr):
                self._add(record.content)
        except QuotaryError:
            pass  # what follows was never extended, or `fit` will find that the PCR disagrees
        if self.size != len(data):
            _cut(path, self.size)

    @property
    def value(self) -> bytes:
        """What the workload PCR holds when every event of the log is extended."""
        return self.values[-1]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.ends[-1]

    @property
    def closed(self) -> bool:
        """Whether the log ends in a separator (an empty log has nothing open)."""
        return not self.open_digests

    def data(self) -> bytes:
        """Return the log as CEL-TLV."""
        return b"".join(encode_record(number, self.pcr, item) for number, item in enumerate(self.contents))

    def fit(self, pcr_value: bytes) -> None:
        """Make the log what the PCR says: drop the one event that was not extended before a crash.

        Raises:
            StartRefused: the PCR holds something else; it can be used again after a reboot.
        """
        if pcr_value == self.value:
            return
        if len(self.contents) and pcr_value == self.values[-2]:
            kept = self.contents[:-1]
            self.contents, self.values, self.ends, self.open_digests, self.epochs = [], [ZERO], [0], [], 0
            for content in kept:
                self._add(content)
            _cut(self.path, self.size)
            return
        raise StartRefused(
            f"the workload log does not replay to pcr {self.pcr}: somebody else extended it, or the log is damaged",
            hint="find the program that extends this pcr, then restart the host: only a reboot makes it usable again",
        )

    def append(self, content: bytes) -> bytes:
        """Put an event on disk, durably, and return the digest to extend.

        Raises:
            StartRefused: the log is full.
        """
        if len(self.contents) >= MAX_EVENTS:
            raise StartRefused(
                f"the workload log of this boot has {MAX_EVENTS} events, and no more are allowed",
                hint="restart the host to begin a new one",
            )
        _append(self.path, encode_record(len(self.contents), self.pcr, content), self.size)
        return self._add(content)

    def separator(self) -> bytes:
        """Return the content of the separator that closes the open epoch."""
        return rules.separator(self.epochs, self.open_digests)

    def _add(self, content: bytes) -> bytes:
        digest = content_digest(content)
        if self.open_digests and content == self.separator():
            self.open_digests = []
            self.epochs += 1
        else:
            self.open_digests.append(digest)
        self.contents.append(content)
        self.values.append(chain_extend(self.value, digest))
        self.ends.append(self.size + len(encode_record(len(self.contents) - 1, self.pcr, content)))
        return digest


class Epochs:
    """The epoch in force, of an origin that has no workload log.

    `generation` moves with every change of the epoch in force, so that a record made under an earlier one is
    recognised.
    """

    def __init__(self) -> None:
        self.current = Epoch(WorkloadView(()), None)
        self.workload = Workload()
        self.generation = 0

    async def begin(self, workload: Workload) -> None:
        """Put a full list of what may serve in force.

        The caller holds staging, and has committed what was staged.
        """
        claims: dict[str, ModelClaim] = {}
        for model in workload.models:
            claim = ModelClaim(model.name, model.weights, None, None, model.link)
            claims[model.name] = claims[model.key] = claim  # as in a log: a name alone means the later
        self._become(Epoch(WorkloadView(()), None, claims=claims))
        self.workload = workload

    def _become(self, epoch: Epoch) -> None:
        self.current = epoch
        self.generation += 1


class LoggedEpochs(Epochs):
    """Extends events and closes epochs; knows the log of this boot and the epoch in force."""

    def __init__(self, host: TpmHost) -> None:
        super().__init__()
        self.host = host
        self.log = WorkloadLog(host.folder / "workload" / "none", host.tpm.workload_pcr)

    async def adopt(self, log: WorkloadLog) -> None:
        """Take over the log of this boot as an earlier run left it: what is staged is quoted under it."""
        self.log = log
        await self._enter({})

    async def close_open(self) -> None:
        """Close an epoch that was left open."""
        if not self.log.closed:
            await self._extend(self.log.separator())

    async def begin(self, workload: Workload) -> None:
        """Extend a full epoch, every event and then one separator, and put it in force.

        The caller holds staging, and has committed what was staged.
        """
        await self.close_open()
        claims: dict[str, ModelClaim] = {}
        links = {model.key: model.link for model in workload.models}
        for event, hidden in events_of(workload, self.host.world.random, software_tpm=self.host.software_tpm):
            number = len(self.log.contents)
            if hidden:
                await self._keep(number, hidden)
            digest = await self._extend(event.encode())
            if event.type == TYPE_MODEL:
                key = model_key(event.name, event.digest)
                claim = ModelClaim(event.name, event.digest, number, digest, links[key])
                claims[event.name] = claims[key] = claim  # of two of one name, the name alone means the later
        await self._extend(self.log.separator())
        await self._enter(claims)
        self.workload = workload

    async def _enter(self, claims: Mapping[str, ModelClaim]) -> None:
        """Publish the log as it stands, and let the following commits and records refer to it."""
        store, data = self.host.store, self.log.data()
        blob = None
        if data:
            blob = (await self.host.files.run(lambda: store.put_blob(data)), len(data))
        self._become(Epoch(WorkloadView(self.log.contents), blob, self.log.value, claims))

    async def _extend(self, content: bytes) -> bytes:
        digest = await self.host.files.run(lambda: self.log.append(content))
        self.host.world.crash("event-on-disk")
        await self.host.root.extend_workload(digest)
        self.host.world.crash("event-extended")
        return digest

    async def _keep(self, number: int, hidden: tuple[Secret, ...]) -> None:
        """Keep what stands behind an event's commitments: a CBOR sequence that only the operator can read."""
        path = self.log.path.with_suffix(".secrets")
        items = [
            cbor.encode(
                {"event": number, "what": secret.what, "salt": secret.salt, "content": secret.content}
            )
            for secret in hidden
        ]
        await self.host.files.run(lambda: _append(path, b"".join(items), None))


def _append(path: Path, data: bytes, offset: int | None) -> None:
    """Write at `offset`, or at the end, durably; the file is made if need be."""
    descriptor = open_file(path, create=True)
    try:
        write_at(descriptor, data, os.fstat(descriptor).st_size if offset is None else offset, path)
        fsync_data(descriptor, path)
    finally:
        os.close(descriptor)


def _cut(path: Path, size: int) -> None:
    """Cut off what follows the first `size` bytes, durably."""
    descriptor = open_file(path)
    try:
        truncate(descriptor, size, path)
        fsync_data(descriptor, path)
    finally:
        os.close(descriptor)


def _unused(folder: Path, start: int) -> Path:
    """Return the path of a new log. One start can need several: hibernation ends a boot while the agent runs."""
    number = 0
    while (path := folder / f"{start:010d}-{number:04d}.cel").exists():
        number += 1
    return path


def open_log(folder: Path, pcr: int, pcr_value: bytes, start: int) -> WorkloadLog:
    """Open the workload log that the PCR continues: the newest, or a new one where the PCR is zero.

    `start` numbers this start of the agent and names a new log.

    Raises:
        StartRefused: the PCR does not hold what the newest log replays to.
    """
    if pcr_value == ZERO:
        return WorkloadLog(_unused(folder, start), pcr)
    existing = sorted(folder.glob("*.cel"))
    if not existing:
        raise StartRefused(
            f"pcr {pcr} is not zero and there is no workload log: somebody else extended it",
            hint="find the program that extends this pcr, then restart the host",
        )
    log = WorkloadLog(existing[-1], pcr)
    log.fit(pcr_value)
    return log
