# SPDX-License-Identifier: Apache-2.0
"""Boot logs that attestations name by digest: fetched from their host once, and kept for all answers of the boot.

A log is whatever has the digest, so nothing depends on where it came from. What a host does not hand out is asked for
again after a while; the policy says whether an answer will do without.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Final, TypeVar

from quotary_verifier import GivenLogs, MalformedError, UnsupportedError
from quotary_verifier.logs.ima_prefix import prefix_digests
from quotary_verifier.wire.attestation import DIGEST_BYTES, Attestation

K = TypeVar("K")
V = TypeVar("V")

_KEPT: Final = 8
"""Logs that are kept, and sets of logs whose replays are."""
_AGAIN_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A log to ask for by its digest. `known` is how many of its first bytes are known if it is of the same boot as the
    last one of its `source`: a host, by the digest of its genesis record, and the log's name."""

    digest: bytes
    source: tuple[bytes, str]
    known: int


class HostLogs:
    """The logs that one client knows. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._logs: OrderedDict[bytes, bytes] = OrderedDict()
        self._given: OrderedDict[tuple[bytes, ...], GivenLogs] = OrderedDict()
        self._asked: OrderedDict[bytes, float] = OrderedDict()
        self._newest: OrderedDict[tuple[bytes, str], bytes] = OrderedDict()
        self._lock = Lock()

    def missing(self, attestation: bytes) -> list[Wanted]:
        """Return the logs that an attestation names and that should be asked for."""
        with self._lock:
            return [
                Wanted(digest, source, len(self._newest.get(source, b"")))
                for digest, source in _named(attestation)
                if self._find(digest) is None
                and self._clock() - self._asked.get(digest, -_AGAIN_SECONDS) >= _AGAIN_SECONDS
            ]

    def take(self, wanted: Wanted, log: bytes | None, *, rest: bool = False) -> None:
        """Take in what came of asking for a log: its bytes, with `rest` those behind `Wanted.known`, or None where it
        was not to be had. A rest that does not fit is of another boot: then the whole is missing."""
        with self._lock:
            before = self._newest.pop(wanted.source, b"")[: wanted.known] if rest else b""
            if log is not None and hashlib.sha256(before + log).digest() == wanted.digest:
                _keep(self._logs, wanted.digest, before + log)
                _keep(self._newest, wanted.source, before + log)
            elif not rest:
                _keep(self._asked, wanted.digest, self._clock())

    def given(self, attestation: bytes) -> Mapping[bytes, bytes]:
        """Return those logs of an attestation that are known, for `Question.logs`.

        For the same logs it is the same object, so that they are not replayed for every answer anew.
        """
        with self._lock:
            named = _named(attestation)
            found = {digest: log for digest, _ in named if (log := self._find(digest)) is not None}
            key = tuple(sorted(found))
            if key not in self._given:
                _keep(self._given, key, GivenLogs(found))
            return self._given[key]

    def _find(self, digest: bytes) -> bytes | None:
        """Return a known log, or the part of one: a host's IMA log grows, and earlier answers name less of it."""
        if digest in self._logs:
            self._logs.move_to_end(digest)
            return self._logs[digest]
        if digest not in self._asked:
            for log in list(self._logs.values()):
                size = next((size for name, size in prefix_digests(log) if name == digest), None)
                if size is not None:
                    _keep(self._logs, digest, log[:size])
                    return log[:size]
        return None


def _keep(kept: OrderedDict[K, V], key: K, value: V) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > _KEPT:
        kept.popitem(last=False)


def _named(attestation: bytes) -> list[tuple[bytes, tuple[bytes, str]]]:
    """Return digest and source of each log that an attestation names by a digest; none where it cannot be read, which
    others say."""
    try:
        parsed = Attestation.decode(attestation)
    except (MalformedError, UnsupportedError):
        return []
    origin = hashlib.sha256(parsed.genesis).digest()
    logs = sorted(parsed.boot_logs.items())
    return [(value, (origin, name)) for name, value in logs if len(value) == DIGEST_BYTES]
