# SPDX-License-Identifier: Apache-2.0
"""Boot logs that a caller has beside an attestation, which names them by their digest (docs/spec/boot-logs.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from quotary_verifier.wire.attestation import DIGEST_BYTES
from quotary_verifier.wire.limits import MAX_NAMED_BOOT_LOG

T = TypeVar("T")


class GivenLogs(Mapping[bytes, bytes]):
    """The logs of a question, SHA-256 → bytes, and what was made of them.

    Each is hashed once, and one that replayed to some quoted values is not replayed to the same values again, however
    many outputs are verified with the same object. What is kept of a log lives as long as the object.
    """

    __slots__ = ("_found", "_logs", "_replayed")

    def __init__(self, logs: Mapping[bytes, bytes]) -> None:
        self._logs = logs
        self._found: dict[bytes, bytes | None] = {}
        self._replayed: dict[tuple[object, ...], Any] = {}

    @classmethod
    def of(cls, logs: Mapping[bytes, bytes]) -> GivenLogs:
        """Return the logs as they are, or made ready to be kept."""
        return logs if isinstance(logs, GivenLogs) else cls(logs)

    def __getitem__(self, digest: bytes) -> bytes:
        return self._logs[digest]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._logs)

    def __len__(self) -> int:
        return len(self._logs)

    def are(self, logs: Mapping[bytes, bytes]) -> bool:
        """Whether another question gives the same logs."""
        return logs is self or logs is self._logs or logs == self._logs

    def find(self, digest: bytes) -> bytes | None:
        """Return the log of this SHA-256; None where none is given, or what is given for it has another digest."""
        if digest not in self._found:
            data = self._logs.get(digest)
            if data is not None and (
                len(data) > MAX_NAMED_BOOT_LOG or hashlib.sha256(data).digest() != digest
            ):
                data = None
            self._found[digest] = data
        return self._found[digest]

    def replayed(self, name: str, value: bytes, quoted: Mapping[int, bytes], replay: Callable[[], T]) -> T:
        """Return what `replay` makes of a log, which an attestation gives under a name as `value`: its bytes, or its
        digest. The name is of the key, as an attestation may give one log under both."""
        digest = value if len(value) == DIGEST_BYTES else hashlib.sha256(value).digest()
        key = (name, digest, *sorted(quoted.items()))
        if key not in self._replayed:
            self._replayed[key] = replay()
        found: T = self._replayed[key]
        return found
