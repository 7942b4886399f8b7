# SPDX-License-Identifier: Apache-2.0
"""Finding the value PCR 10 had when it was quoted, from the kernel's IMA log.

On a host with IMA, PCR 10 moves whenever a file is measured, often between the moment the agent last knew the
PCRs and the quote. The log says through which values it went: the right one is the prefix of the log that
fits the quoted digest. What lies behind that prefix belongs to later quotes.

Log format: kernel, security/integrity/ima/ima_fs.c, `binary_runtime_measurements` (host byte order; all of
Linux's platforms with a TPM are little-endian). Only the attester reads the log here, and only to find values
that it then proves against the TPM's own signature; a verifier replays it with its own code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_LOG: Final = Path("/sys/kernel/security/ima/binary_runtime_measurements")

_MAX_NAME = 64
_MAX_DATA = 1 << 20
_LEGACY_DIGEST = 20
_LEGACY_NAME_FIELD = 256
_VIOLATION: Final = b"\xff" * 32


@dataclass(frozen=True, slots=True)
class ImaEntry:
    """One measurement: the PCR, what the kernel extended into its SHA-256 bank, and where the entry ends.

    `digest` is the hash of the template data (kernel 5.8 and later), `padded` the SHA-1 template hash with
    zeros (earlier kernels); both are 32 bytes, or 0xff for a violation.
    """

    pcr: int
    digest: bytes
    padded: bytes
    end: int


def digest_size(log: bytes) -> int:
    """The size of the template hashes in a log: 20 in the usual file, more in the newer per-hash files.

    A log does not say it; the first entry's template name shows which size fits. 20 where none does.
    """
    for size in (20, 32, 48, 64):
        length = int.from_bytes(log[4 + size : 8 + size], "little")
        name = log[8 + size : 8 + size + length]
        if 0 < length <= _MAX_NAME and len(name) == length and name.isascii() and name.decode().isprintable():
            return size
    return 20


def entries(log: bytes, size: int = 20) -> Iterator[ImaEntry]:
    """Parse entries with template hashes of `size` bytes; one that is not complete yet, or not well formed,
    ends the iteration."""
    at = 0
    while (entry := _entry(log, at, size)) is not None:
        yield entry
        at = entry.end


def _entry(log: bytes, at: int, size: int) -> ImaEntry | None:
    if len(log) < at + size + 8:
        return None
    pcr = int.from_bytes(log[at : at + 4], "little")
    template_hash = log[at + 4 : at + 4 + size]
    name_size = int.from_bytes(log[at + 4 + size : at + 8 + size], "little")
    at += size + 8 + name_size
    if name_size > _MAX_NAME or len(log) < at + 4:
        return None
    legacy = log[at - name_size : at] == b"ima"
    span = _legacy_span(log, at) if legacy else _counted_span(log, at)
    if span is None:
        return None
    first, end = span
    data = _legacy_data(log[first:end]) if legacy else log[first:end]
    if template_hash == bytes(size):
        return ImaEntry(pcr, _VIOLATION, _VIOLATION, end)
    return ImaEntry(pcr, hashlib.sha256(data).digest(), template_hash[:32].ljust(32, b"\0"), end)


def _counted_span(log: bytes, at: int) -> tuple[int, int] | None:
    """Template data behind a 32-bit length."""
    size = int.from_bytes(log[at : at + 4], "little")
    end = at + 4 + size
    return (at + 4, end) if size <= _MAX_DATA and end <= len(log) else None


def _legacy_span(log: bytes, at: int) -> tuple[int, int] | None:
    """The template `ima` has no length of its own: a 20-byte digest, then a counted file name."""
    counted = _counted_span(log, at + _LEGACY_DIGEST)
    return (at, counted[1]) if counted and len(log) >= at + _LEGACY_DIGEST + 4 else None


def _legacy_data(fields: bytes) -> bytes:
    """What the kernel hashes for the template `ima`: the digest, the name padded to 256 bytes, a zero."""
    name = fields[_LEGACY_DIGEST + 4 :]
    return fields[:_LEGACY_DIGEST] + name.ljust(_LEGACY_NAME_FIELD + 1, b"\0")


class ImaReplay:
    """Follows the IMA log from one fitting prefix to the next, so that each entry is hashed once.

    It proposes values; the caller's quoted digest decides.
    """

    def __init__(self, path: Path = DEFAULT_LOG) -> None:
        self._path = path
        self._offset = 0
        self._replayed: dict[int, bytes] = {}
        self._padded = False
        self._size = 20
        self._hopeless = False

    def fit(
        self, pcrs: Mapping[int, bytes], fits: Callable[[Mapping[int, bytes]], bool]
    ) -> dict[int, bytes] | None:
        """Find the values after some further entries of the log that satisfy `fits`.

        `pcrs` are values that were right at an earlier moment. Returns None where there is no log, where the
        log does not lead to `pcrs`, or where no prefix fits.
        """
        if not self._locate(pcrs):
            return None
        values, touched = dict(pcrs), set(self._replayed)
        for entry in entries(self._tail(), self._size):
            self._extend(values, entry)
            touched.add(entry.pcr)
            if fits(values):
                self._offset += entry.end
                self._replayed = {pcr: values[pcr] for pcr in touched & values.keys()}
                return values
        return None

    def _tail(self) -> bytes:
        """The log from the present place on; empty where it cannot be read."""
        try:
            with self._path.open("rb") as log:
                log.seek(self._offset)
                return log.read()
        except OSError:
            return b""

    def _locate(self, pcrs: Mapping[int, bytes]) -> bool:
        """Go to the prefix whose replay gives `pcrs`: where we are, further on, or counted from the start.

        A whole log that does not lead there (the kernel was started by another kernel and the log was not
        handed over) is not tried again: it would cost every commit.
        """
        if self._replayed and (self._matches(pcrs) or self._search(pcrs)):
            return True
        for padded in () if self._hopeless else (False, True):
            self._padded, self._offset, self._replayed = padded, 0, {}
            if self._search(pcrs):
                return True
        self._hopeless = self._hopeless or self._path.exists()
        self._offset, self._replayed = 0, {}
        return False

    def _search(self, pcrs: Mapping[int, bytes]) -> bool:
        """Replay from the present place until the values are `pcrs`."""
        log = self._tail()
        if self._offset == 0:
            self._size = digest_size(log)
        values = dict.fromkeys(pcrs, bytes(32)) | self._replayed
        replayed = dict(self._replayed)
        for entry in entries(log, self._size):
            self._extend(values, entry)
            replayed[entry.pcr] = values.get(entry.pcr, b"")
            if all(pcrs.get(pcr, b"") == value for pcr, value in replayed.items()):
                self._offset += entry.end
                self._replayed = replayed
                return True
        return False

    def _matches(self, pcrs: Mapping[int, bytes]) -> bool:
        return all(pcrs.get(pcr) == value for pcr, value in self._replayed.items())

    def _extend(self, values: dict[int, bytes], entry: ImaEntry) -> None:
        if entry.pcr in values:
            digest = entry.padded if self._padded else entry.digest
            values[entry.pcr] = hashlib.sha256(values[entry.pcr] + digest).digest()
