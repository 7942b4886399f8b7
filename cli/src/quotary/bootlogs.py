# SPDX-License-Identifier: Apache-2.0
"""Boot logs that attestations name by digest: fetched from their host once, and kept for all answers of the boot.

A log is whatever has the digest, so nothing depends on where it came from. What a host does not hand out is asked for
again after a while; the policy says whether an answer will do without.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
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


class HostLogs:
    """The logs that one client knows. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._logs: OrderedDict[bytes, bytes] = OrderedDict()
        self._given: OrderedDict[tuple[bytes, ...], GivenLogs] = OrderedDict()
        self._asked: OrderedDict[bytes, float] = OrderedDict()
        self._lock = Lock()

    def missing(self, attestation: bytes) -> list[bytes]:
        """Return the digests of the logs that an attestation names and that should be asked for."""
        with self._lock:
            return [
                digest
                for digest in _named(attestation)
                if self._find(digest) is None
                and self._clock() - self._asked.get(digest, -_AGAIN_SECONDS) >= _AGAIN_SECONDS
            ]

    def take(self, digest: bytes, log: bytes | None) -> None:
        """Take in what came of asking for a log: its bytes, or None where it was not to be had."""
        with self._lock:
            if log is not None and hashlib.sha256(log).digest() == digest:
                _keep(self._logs, digest, log)
            else:
                _keep(self._asked, digest, self._clock())

    def given(self, attestation: bytes) -> Mapping[bytes, bytes]:
        """Return those logs of an attestation that are known, for `Question.logs`.

        For the same logs it is the same object, so that they are not replayed for every answer anew.
        """
        with self._lock:
            found = {digest: log for digest in _named(attestation) if (log := self._find(digest)) is not None}
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


def _named(attestation: bytes) -> list[bytes]:
    """Return the digests by which an attestation names logs; none where it cannot be read, which others say."""
    try:
        logs = Attestation.decode(attestation).boot_logs
    except (MalformedError, UnsupportedError):
        return []
    return [value for _, value in sorted(logs.items()) if len(value) == DIGEST_BYTES]
