# SPDX-License-Identifier: Apache-2.0
"""Attestations of old outputs, put together from the log."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256
from threading import Lock
from typing import Final

from quotary_attest.engine.assemble import Sealed, Supports, Template, WorkloadView
from quotary_attest.engine.errors import UnknownOutput
from quotary_attest.engine.host import Host
from quotary_attest.log.errors import NotFound
from quotary_attest.log.store import AttestationParts
from quotary_verifier.logs.cel import parse_log
from quotary_verifier.wire.attestation import TpmSupport
from quotary_verifier.wire.history import CommitSupport, CommitTeeSupport
from quotary_verifier.wire.records import Genesis, Output, Statement
from quotary_verifier.wire.tee_support import Endorsements, TeeSupport

_VIEWS: Final = 8

STATEMENT: Final = sha256(b"quotary/statement/v1\n\0").digest()
"""The alias by which the newest statement is found. Aliases of outputs are made under a secret."""


class Stored:
    """Reads outputs back. Safe to use from any thread."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._template = Template(host.genesis_record)
        tpm = Genesis.decode(host.genesis_record).tpm
        self._pcr = None if tpm is None else tpm.workload_pcr
        self._views: OrderedDict[tuple[bytes, int], WorkloadView] = OrderedDict()
        self._lock = Lock()

    def attestation(self, output_id: bytes) -> bytes:
        """Return the attestation of an output with the newest certificates.

        Raises:
            UnknownOutput: the log has no record of this output, or no more, or only as history that no quote
                speaks for.
        """
        try:
            parts = self._host.store.parts(output_id)
        except NotFound as error:
            raise UnknownOutput(str(error)) from error
        model = Output.decode(parts.record).model
        return self._joined(parts, None if model is None else model.event)

    def statement(self) -> tuple[Statement, bytes]:
        """Return the host's newest statement, and its attestation with the newest certificates.

        Raises:
            UnknownOutput: the host states nothing, or no quote speaks for what it last stated.
        """
        try:
            parts = self._host.store.parts_of(self._host.store.public(STATEMENT))
        except NotFound as error:
            raise UnknownOutput(str(error)) from error
        return Statement.decode(parts.record), self._joined(parts, None)

    def _joined(self, parts: AttestationParts, event: int | None) -> bytes:
        if parts.index < parts.commit.first:
            raise UnknownOutput("the host stopped before it could commit this record: no quote speaks for it")
        commit = parts.commit.commit
        logs = self._host.carried(commit.boot_logs)
        supports = Supports(tuple(map(self._support, commit.supports)), tuple(map(self._tee, commit.tees)))
        named = [stored.workload_log for stored in commit.supports if stored.workload_log is not None]
        sealed = Sealed(commit.note, supports, self._view(*named), logs)
        own = self._template.parts(parts.record, parts.index, parts.path, event, parts.request_key)
        return sealed.join(own)

    def _support(self, stored: CommitSupport) -> TpmSupport:
        certificates = self._host.certificates or tuple(map(self._host.store.blob, stored.certificates))
        return TpmSupport(
            stored.identifier,
            stored.pcrs,
            stored.chain_before,
            certificates,
            endorsements=self._endorsements(stored.endorsements),
        )

    def _tee(self, stored: CommitTeeSupport) -> TeeSupport:
        return TeeSupport(stored.identifier, self._endorsements(stored.endorsements))

    def _endorsements(self, names: Endorsements) -> Endorsements:
        blob = self._host.store.blob
        return {name: tuple(map(blob, named)) for name, named in names.items()}

    def _view(self, named: tuple[bytes, int] | None = None) -> WorkloadView:
        if named is None or self._pcr is None:
            return WorkloadView(())
        with self._lock:
            if (view := self._views.get(named)) is not None:
                self._views.move_to_end(named)
                return view
        data = self._host.store.blob(named[0])[: named[1]]
        view = WorkloadView([record.content for record in parse_log(data, pcr=self._pcr)])
        with self._lock:
            self._views[named] = view
            while len(self._views) > _VIEWS:
                self._views.popitem(last=False)
        return view
