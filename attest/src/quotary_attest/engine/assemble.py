# SPDX-License-Identifier: Apache-2.0
"""Attestations put together from parts (docs/spec/attestation.md).

A commit of thousands of outputs has one note and one set of supports; so everything that its attestations share
is encoded once, and each is a join of a few byte strings. A test shows that the result is, byte for byte, what
`quotary_verifier.wire.attestation.Attestation.encode` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from quotary_attest.roots import Quote
from quotary_verifier.logs.cel import content_digest
from quotary_verifier.logs.workload import TYPE_AGENT, TYPE_ENGINE, TYPE_SEPARATOR, WorkloadEvent
from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import KIND_ATTESTATION, TpmSupport
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.tee_support import Endorsements, TeeSupport

_MAP: Final = 0xA0
_BYTES: Final = 0x40
_HEAD: Final = bytes((0, KIND_ATTESTATION, 1, 1, 2))
_REQUEST_KEY: Final = bytes((8, 0x58, 32))
_FIELDS: Final = 8
_NOTHING: Final[Endorsements] = MappingProxyType({})
_NO_LOGS: Final[Mapping[str, bytes]] = MappingProxyType({})


def head_of(major: int, value: int) -> bytes:
    """Return the head of a CBOR item: `major` is the major type in the three high bits, `value` its argument."""
    if value < 24:
        return bytes((major | value,))
    if value < 1 << 8:
        return bytes((major | 24, value))
    if value < 1 << 16:
        return bytes((major | 25,)) + value.to_bytes(2)
    if value < 1 << 32:
        return bytes((major | 26,)) + value.to_bytes(4)
    return bytes((major | 27,)) + value.to_bytes(8)


class Template:
    """What all attestations of an origin begin with and have in the middle."""

    __slots__ = ("_middle",)

    def __init__(self, genesis_record: bytes) -> None:
        self._middle = b"\x03" + head_of(_BYTES, len(genesis_record)) + genesis_record + b"\x04"

    def parts(
        self, record: bytes, index: int, path: bytes, event: int | None, request_key: bytes | None
    ) -> tuple[bytes, int | None, bytes]:
        """Return what is this leaf's own, for `Sealed.join`: what begins behind the head, cited event, end."""
        begin = b"".join(
            (
                _HEAD,
                head_of(_BYTES, len(record)),
                record,
                self._middle,
                head_of(0, index),
                b"\x05",
                head_of(_BYTES, len(path)),
                path,
            )
        )
        return begin, event, b"" if request_key is None else _REQUEST_KEY + request_key


class WorkloadView:
    """The workload log as one quote covers it: each event's content and digest, in order."""

    __slots__ = ("_shown", "contents", "digests")

    def __init__(self, contents: Sequence[bytes]) -> None:
        self.contents = tuple(contents)
        self.digests = tuple(map(content_digest, self.contents))
        self._shown: dict[int | None, tuple[bytes, ...]] = {}

    def reveal(self, event: int | None) -> tuple[bytes, ...]:
        """Return the log with the cited event in full, and of its epoch the engine's event and that of an agent
        on a software TPM; all others as digests. A consumer learns which model and engine answered, and nothing
        of what else this host serves. Without a cited event it is the last epoch, and no engine."""
        shown = self._shown.get(event)
        if shown is None:
            shown = self._shown[event] = self._reveal(event)
        return shown

    def _reveal(self, event: int | None) -> tuple[bytes, ...]:
        shown = list(self.digests)
        if event is not None:
            shown[event] = self.contents[event]
        last = len(self.contents) - 2 if event is None else event - 1
        for number in range(last, -1, -1):
            content = self.contents[number]
            earlier = WorkloadEvent.decode(content)
            if earlier.type == TYPE_SEPARATOR:
                break
            software = earlier.type == TYPE_AGENT and earlier.details.get("tpm") == "software"
            if software or (earlier.type == TYPE_ENGINE and event is not None):
                shown[number] = content
        return tuple(shown)


@dataclass(frozen=True, slots=True)
class Supports:
    """The supports of one commit: the TPM's, if there is one, without its workload log; those of other lines in their
    order."""

    own: tuple[TpmSupport, ...]
    tees: tuple[TeeSupport, ...] = ()


class Sealed:
    """What the attestations of one commit share: the note and the supports."""

    __slots__ = ("_ends", "_logs", "_maps", "_note", "_supports", "_view")

    def __init__(
        self, note: bytes, supports: Supports, view: WorkloadView, logs: Mapping[str, bytes] = _NO_LOGS
    ) -> None:
        """The TPM's support has everything but the workload log, which depends on what each record cites; `logs` are
        the boot logs, by name."""
        fields = _FIELDS + bool(logs)
        self._maps = (bytes((_MAP | fields,)), bytes((_MAP | fields + 1,)))
        self._logs = b"\x09" + cbor.encode(dict(logs)) if logs else b""
        self._note = b"\x06" + head_of(_BYTES, len(note)) + note + b"\x07"
        self._supports = supports
        self._view = view
        self._ends: dict[int | None, bytes] = {}

    def join(self, parts: tuple[bytes, int | None, bytes]) -> bytes:
        """Return an attestation's bytes, from what `Template.parts` gave."""
        begin, event, end = parts
        shared = self._ends.get(event)
        if shared is None:
            own = [replace(tpm, workload_log=self._view.reveal(event)) for tpm in self._supports.own]
            fields = [tpm.fields() for tpm in own] + [tee.fields() for tee in self._supports.tees]
            shared = self._ends[event] = self._note + cbor.encode(fields)
        return b"".join((self._maps[bool(end)], begin, shared, end, self._logs))


def support_of(
    identifier: str,
    quote: Quote,
    chain_before: bytes,
    own_pcrs: tuple[int, int],
    certificates: Sequence[bytes],
    endorsements: Endorsements = _NOTHING,
) -> TpmSupport:
    """Return a TPM support without its workload log. `own_pcrs` are the chain and the workload PCR, whose values
    follow from other fields and are left out, as zeros are; `endorsements` are those of the AK."""
    pcrs = {pcr: value for pcr, value in quote.pcrs.items() if value != ZERO and pcr not in own_pcrs}
    return TpmSupport(identifier, pcrs, chain_before, tuple(certificates), endorsements=endorsements)
