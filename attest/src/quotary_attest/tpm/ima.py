# SPDX-License-Identifier: Apache-2.0
"""Finding the value PCR 10 had when it was quoted, from the kernel's IMA log.

On a host with IMA, PCR 10 moves whenever a file is measured, often between the moment the agent last knew the
PCRs and the quote. The log says through which values it went: the right one is the prefix of the log that
fits the quoted digest. What lies behind that prefix belongs to later quotes.

The same walk says what to call the prefix: its SHA-256 and length, by which a commit names the log. Records are read
by the verifier's own parser, and a prefix that its replay would refuse gets no name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from quotary_attest.bootlogs import IMA_LOG
from quotary_attest.growing import GrowingFile
from quotary_attest.roots import QUOTED_PCRS, LogPrefix
from quotary_verifier.errors import MalformedError
from quotary_verifier.logs.ima import IMA_PCR, MAX_IMA_RECORDS, TemplateDigests, parse_ima_binary
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.limits import MAX_NAMED_BOOT_LOG
from quotary_verifier.wire.tpm_algorithms import ALG_SHA256, HASH_SIZES

DEFAULT_LOG: Final = IMA_LOG

_FIRST: Final = 4096
_MOST: Final = 1 << 30
_SIZE: Final = HASH_SIZES[ALG_SHA256]
_OLD_KERNEL: Final = (
    "this kernel extends padded sha-1 hashes, as kernels before 5.8 do, which no verifier takes"
)
_NO_LEAD: Final = (
    "no part of it leads to the value of its pcr: a kernel that was started by another one (kexec) or resumed from "
    "hibernation goes on with another log than its tpm"
)


class ImaEntry(NamedTuple):
    """One measurement: the PCR, what the kernel extended into its SHA-256 bank, and where the entry ends.

    `digest` is the hash of the template data (kernel 5.8 and later), `padded` the template hash with zeros as earlier
    kernels extend it; both are 32 bytes, or 0xff for a violation. `fitting` says that the template hash is that of the
    data.
    """

    pcr: int
    digest: bytes
    padded: bytes
    end: int
    fitting: bool


def entries(log: bytes, size: int | None = None) -> Iterator[ImaEntry]:
    """Read entries with template hashes of `size` bytes, by default of what the first one shows; one that is not
    complete yet, or not well formed, ends the iteration."""
    begin = 0
    while True:  # a verifier reads no log longer than a piece; what a PCR holds can be found in any
        end = begin
        for entry in _piece(log[begin : begin + MAX_NAMED_BOOT_LOG], size):
            end = begin + entry.end
            yield entry._replace(end=end) if begin else entry
        if end in (begin, len(log)):
            return
        begin = end


def _piece(log: bytes, size: int | None) -> Iterator[ImaEntry]:
    try:
        parsed = parse_ima_binary(log, digest_size=size)
        digests = TemplateDigests(hashlib.sha256, _SIZE, parsed.digest_size)
        for record, end in parsed.read():
            digest = digests.of(record)
            padded = digest if record.violation else record.digest[:_SIZE].ljust(_SIZE, b"\0")
            fitting = not (digests.wrong and digests.wrong[-1] == record.number)
            yield ImaEntry(record.pcr, digest, padded, end, fitting)
    except MalformedError:
        return


class ImaReplay:
    """Follows the IMA log from one fitting prefix to the next, so that each entry is hashed once.

    It proposes values; the caller's quoted digest decides.
    """

    def __init__(self, path: Path = DEFAULT_LOG, own: Collection[int] = ()) -> None:
        """`own` are the PCRs that the agent itself extends: a log that speaks of them gets no name."""
        self._file = GrowingFile(path)
        self._foreign = frozenset(QUOTED_PCRS) - set(own)
        self._size: int | None = None
        self._padded = False
        self._hopeless = False
        self._start()

    def _start(self) -> None:
        """Forget every prefix: the next one begins with the log."""
        self._offset = self._count = 0
        self._replayed: dict[int, bytes] = {}
        self._hash = hashlib.sha256()
        self._reached: tuple[bytes, ...] | None = None
        self._named: LogPrefix | None = None
        self._flaw = ""
        self._file.restart()

    def fit(
        self, pcrs: Mapping[int, bytes], fits: Callable[[Mapping[int, bytes]], bool]
    ) -> dict[int, bytes] | None:
        """Find the values after some further entries of the log that satisfy `fits`.

        `pcrs` are values that were right at an earlier moment. Returns None where there is no log, where the
        log does not lead to `pcrs`, or where no prefix fits.
        """
        if not self._locate(pcrs):
            return None
        values, touched, walk = dict(pcrs), set(self._replayed), _Walk()
        for entry in self._ahead():
            self._extend(values, entry)
            touched.add(entry.pcr)
            walk.pass_by(entry, self._foreign)
            if fits(values):
                self._go_on(walk, {pcr: values[pcr] for pcr in touched & values.keys()})
                return values
        return None

    def prefix(self, pcrs: Mapping[int, bytes]) -> tuple[LogPrefix | None, str]:
        """Return what to call the part of the log that leads to `pcrs`; where there is none, or one that no verifier
        takes, why. Without a reason the log is not there, or is not of this TPM. It costs nothing unless `pcrs` moved.
        """
        foreign = tuple([value for pcr, value in pcrs.items() if pcr in self._foreign])
        if foreign == self._reached:
            return self._name()
        if self._hopeless or (not self._replayed and pcrs.get(IMA_PCR) == ZERO):
            return self._without()
        try:
            self._file.read(1)
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"it cannot be read: {(error.strerror or str(error)).lower()}"
        if not self._locate(pcrs):
            return self._without()
        while self._search(pcrs):
            pass  # a verifier takes the longest part that fits: records of other pcrs may follow
        self._reached = foreign
        return self._name()

    def _without(self) -> tuple[None, str]:
        """Return that there is no such part: the log is another one's, or it is not there, or not of this TPM."""
        return None, _NO_LEAD if self._hopeless else ""

    def _name(self) -> tuple[LogPrefix | None, str]:
        """Return the name of the present prefix, or what speaks against giving it one."""
        if self._padded:
            return None, _OLD_KERNEL
        if self._flaw:
            return None, self._flaw
        if self._offset > MAX_NAMED_BOOT_LOG or self._count > MAX_IMA_RECORDS:
            return None, f"it has {self._offset} bytes and {self._count} records, more than a verifier reads"
        if self._named is None:
            self._named = LogPrefix(self._hash.digest(), self._offset)
        return self._named, ""

    def _ahead(self) -> Iterator[ImaEntry]:
        """Read the log on from the present place; nothing where it cannot be read."""
        try:
            self._file.read(_MOST)
        except OSError:
            return
        if self._offset == 0:
            self._size = _digest_size(self._file.rest)
        yield from entries(self._file.rest, self._size)

    def _locate(self, pcrs: Mapping[int, bytes]) -> bool:
        """Go to the prefix whose replay gives `pcrs`: where we are, further on, or counted from the start.

        A whole log that does not lead there (the kernel was started by another kernel and the log was not
        handed over) is not tried again: it would cost every commit. Nor is one read for a TPM into which nothing was
        measured.
        """
        if self._replayed and (self._matches(pcrs) or self._search(pcrs)):
            return True
        for padded in () if self._hopeless or pcrs.get(IMA_PCR) == ZERO else (False, True):
            self._padded = padded
            self._start()
            if self._search(pcrs):
                return True
            self._hopeless = padded and bool(self._file.rest)
        self._start()
        return False

    def _search(self, pcrs: Mapping[int, bytes]) -> bool:
        """Replay from the present place until the values are `pcrs`."""
        values = dict.fromkeys(pcrs, bytes(32)) | self._replayed
        replayed, walk = dict(self._replayed), _Walk()
        for entry in self._ahead():
            self._extend(values, entry)
            replayed[entry.pcr] = value = values.get(entry.pcr, b"")
            walk.pass_by(entry, self._foreign)
            if value == pcrs.get(entry.pcr, b"") and all(
                pcrs.get(pcr, b"") == reached for pcr, reached in replayed.items()
            ):
                self._go_on(walk, replayed)
                return True
        return False

    def _go_on(self, walk: _Walk, replayed: dict[int, bytes]) -> None:
        """Make the entries that were passed by part of the prefix."""
        self._hash.update(self._file.take(walk.end))
        self._offset += walk.end
        self._count += walk.count
        self._flaw = self._flaw or walk.flaw
        self._replayed = replayed
        self._named = self._reached = None

    def _matches(self, pcrs: Mapping[int, bytes]) -> bool:
        return all(pcrs.get(pcr, b"") == value for pcr, value in self._replayed.items())

    def _extend(self, values: dict[int, bytes], entry: ImaEntry) -> None:
        if entry.pcr in values:
            digest = entry.padded if self._padded else entry.digest
            values[entry.pcr] = hashlib.sha256(values[entry.pcr] + digest).digest()

    def close(self) -> None:
        """Close the file."""
        self._file.restart()


class _Walk:
    """Entries on the way to the next prefix: how many, where the last one ends, and what a verifier would refuse."""

    __slots__ = ("count", "end", "flaw")

    def __init__(self) -> None:
        self.count = self.end = 0
        self.flaw = ""

    def pass_by(self, entry: ImaEntry, foreign: frozenset[int]) -> None:
        """Take note of one."""
        self.count += 1
        self.end = entry.end
        if entry.pcr not in foreign:
            self.flaw = f"it extends pcr {entry.pcr}, which is not quoted, or is the agent's own"
        elif not entry.fitting:
            self.flaw = "a template hash in it is not that of its data"


def _digest_size(log: bytes) -> int | None:
    """Return the size of a log's template hashes; None where that cannot be seen."""
    try:
        return parse_ima_binary(log[:_FIRST]).digest_size
    except MalformedError:
        return None
