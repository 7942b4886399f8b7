# SPDX-License-Identifier: Apache-2.0
"""Linux IMA logs: reading, and replay against quoted PCRs.

Formats: `binary_runtime_measurements` and `ascii_runtime_measurements` of the kernel (security/integrity/ima/ima_fs.c),
little-endian. A record is PCR, template hash, template name, template data. Since kernel 5.8 each bank is extended by
its own hash of the template data; a record whose template hash is zero is a violation and extends 0xff bytes.

What is extended is always computed from the data here, so that whatever replays also covers its data. The log goes on
while a quote is made: replay accepts the prefix that fits and says how much lies behind it. A log shows what was loaded
since boot; root can append to it, and it says nothing of what is there now.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from itertools import islice
from typing import Final, NamedTuple

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs.banks import HASHES, Hash, bank_hash
from quotary_verifier.logs.ima_fields import NAME_FIELD, octets, text_data
from quotary_verifier.wire.limits import MAX_NAMED_BOOT_LOG
from quotary_verifier.wire.tpm_algorithms import ALG_SHA1, ALG_SHA256, HASH_SIZES

IMA_PCR: Final = 10
MAX_IMA_LOG: Final = MAX_NAMED_BOOT_LOG
"""Bytes of one log."""
MAX_IMA_RECORDS: Final = 1 << 20
_MAX_TEMPLATE_NAME = 256
_MAX_TEMPLATE_DATA = 1 << 20
_LEGACY = b"ima"
_LEGACY_DIGEST = 20
_SIZES: Final = {size: bank for bank, size in HASH_SIZES.items()}
_U32 = struct.Struct("<I")
_PCRS = range(24)
_TEXT_PCRS: Final = {b"%2d " % pcr: pcr for pcr in _PCRS}
_MAX_NAMED = 5


class ImaTolerance(StrEnum):
    """A weakness that a caller may accept by its name; results list those that were used."""

    SHA1 = "sha-1"
    """The log is replayed into the SHA-1 bank."""
    SHA1_PADDED = "sha-1-padded"
    """The bank was extended with SHA-1 template hashes and zeros, as kernels before 5.8 did."""


class ImaRecord(NamedTuple):
    """One record of a log: `digest` is its template hash as logged, `data` its template data.

    Records that `ReplayedIma` gives are proved by the quote, data included; `quotary_verifier.logs.ima_fields.decode`
    takes them apart. `violation` says that the kernel measured a file which was open for writing, or the reverse: its
    content is not known.
    """

    number: int
    pcr: int
    digest: bytes
    template: bytes
    data: bytes

    @property
    def violation(self) -> bool:
        """Whether the record says that a measurement was not possible."""
        return not any(self.digest)


_TOKEN: Final = object()


class ReplayedIma:
    """The prefix of a log that quoted PCRs prove. Only `ImaLog.replay` makes one."""

    __slots__ = ("_log", "bank", "count", "tolerances", "unconfirmed", "values", "violations")

    def __init__(
        self,
        token: object,
        log: ImaLog,
        bank: int,
        prefix: _Prefix,
        tolerances: tuple[ImaTolerance, ...],
    ) -> None:
        if token is not _TOKEN:
            raise TypeError("a replayed log is made by replay alone")
        self._log = log
        self.bank = bank
        """The hash algorithm of the bank."""
        self.count = prefix.length
        """Records that are proved."""
        self.values = dict(prefix.values)
        """PCR → value, for each PCR that the proved records extend."""
        self.violations = prefix.violations
        """Numbers of the proved records that are violations."""
        self.unconfirmed = log.size - prefix.end
        """Bytes of the log behind the prefix: written after the quote, or never measured at all."""
        self.tolerances = tolerances
        """Named weaknesses that were used."""

    def records(self) -> Iterator[ImaRecord]:
        """Yield the proved records in order, read anew from the log."""
        for record, _ in self._log.read(self.count):
            yield record


class _Prefix(NamedTuple):
    length: int
    end: int
    values: Mapping[int, bytes]
    violations: tuple[int, ...]


class ImaLog:
    """A log that is not trusted. `replay` is the way to its records."""

    __slots__ = ("_ascii", "_data", "digest_size", "size")

    def __init__(self, data: bytes, *, text: bool, digest_size: int) -> None:
        self._data = data
        self._ascii = text
        self.digest_size = digest_size
        """Bytes of the template hashes."""
        self.size = len(data)
        """Bytes of the log."""

    def read(self, count: int | None = None) -> Iterator[tuple[ImaRecord, int]]:
        """Yield all records, or the first `count`, with the offset at which each ends, unverified.

        Raises:
            MalformedError: a record is not well formed.
            UnsupportedError: a record of an ASCII log has a template that is not known.
        """
        read = _text_records if self._ascii else _binary_records
        yield from islice(read(self._data, self.digest_size), count)

    def unverified_records_do_not_trust(self) -> Iterator[ImaRecord]:
        """Yield all records as the log gives them. Nothing shows that any of them was measured.

        Raises:
            MalformedError: a record is not well formed.
            UnsupportedError: a record of an ASCII log has a template that is not known.
        """
        for record, _ in self.read():
            yield record

    def replay(
        self,
        quoted: Mapping[int, bytes],
        *,
        bank: int = ALG_SHA256,
        initial: Mapping[int, bytes] | None = None,
        tolerate: Collection[ImaTolerance] = (),
    ) -> ReplayedIma:
        """Find the prefix that leads from the `initial` values (zero where absent) to the quoted ones.

        Raises:
            MalformedError: the log is not well formed before such a prefix ends.
            EvidenceError: there is no such prefix, or a record's template hash is not that of its data.
            UnsupportedError: the bank's hash or a template of an ASCII log is not known.
        """
        weak = ImaTolerance.SHA1 in tolerate
        function = bank_hash(bank, weak=weak)
        used = [ImaTolerance.SHA1] if bank == ALG_SHA1 else []
        search = _Search(self, bank, quoted, {} if initial is None else initial)
        prefix = search.prefix(function)
        if prefix is None and ImaTolerance.SHA1_PADDED in tolerate and bank != ALG_SHA1:
            used.append(ImaTolerance.SHA1_PADDED)
            prefix = search.prefix(HASHES[ALG_SHA1])
        if prefix is None:
            raise EvidenceError("the IMA log does not replay: no prefix of it fits the quoted PCRs")
        return ReplayedIma(_TOKEN, self, bank, prefix, tuple(used))


class _Search:
    """The search for the prefix of a log that fits quoted values."""

    __slots__ = ("_bank", "_initial", "_log", "_quoted")

    def __init__(
        self, log: ImaLog, bank: int, quoted: Mapping[int, bytes], initial: Mapping[int, bytes]
    ) -> None:
        self._log, self._bank, self._quoted, self._initial = log, bank, quoted, initial

    def prefix(self, hash_data: Hash) -> _Prefix | None:
        """Return the longest prefix after which every PCR it extended is as quoted; None if there is none.

        `hash_data` makes of template data what is extended. A record is read only as long as a longer prefix could
        still fit, so that what the kernel was just writing does no harm.
        """
        extend, zeros = HASHES[self._bank], bytes(HASH_SIZES[self._bank])
        quoted, values, open_pcrs = self._quoted, dict[int, bytes](), set[int]()
        digests = TemplateDigests(hash_data, len(zeros), self._log.digest_size)
        found = None
        for record, end in self._records(values, open_pcrs):
            pcr = record.pcr
            value = values.get(pcr)
            if value is None:
                if pcr not in quoted:
                    raise EvidenceError(f"the IMA log extends PCR {pcr}, which is not quoted")
                value = self._initial.get(pcr, zeros)
            elif pcr not in open_pcrs:
                break  # it is as quoted, and a prefix with this record would not be
            values[pcr] = value = extend(value + digests.of(record)).digest()
            if value != quoted[pcr]:
                open_pcrs.add(pcr)
                continue
            open_pcrs.discard(pcr)
            if not open_pcrs:
                found = _Prefix(record.number + 1, end, dict(values), tuple(digests.violations))
        if found is not None:
            digests.check(found.length)
        elif not self._log.size and quoted.get(IMA_PCR) == self._initial.get(IMA_PCR, zeros):
            found = _Prefix(0, 0, {}, ())
        return found

    def _records(self, values: dict[int, bytes], open_pcrs: set[int]) -> Iterator[tuple[ImaRecord, int]]:
        """Yield the log's records; one that is malformed is no error behind a prefix that fits."""
        try:
            yield from self._log.read()
        except (MalformedError, UnsupportedError):
            if open_pcrs or not values:
                raise


class TemplateDigests:
    """What records extend into a bank of `size` bytes, computed from their data; `logged` is the size of the template
    hashes. Keeps the numbers of violations, and of records whose template hash is that of other data."""

    __slots__ = ("_hash", "_size", "_template_hash", "_violation", "violations", "wrong")

    def __init__(self, hash_data: Hash, size: int, logged: int) -> None:
        self._hash, self._size, self._violation = hash_data, size, b"\xff" * size
        template_hash = HASHES[_SIZES[logged]]
        self._template_hash = None if template_hash is hash_data else template_hash
        self.violations: list[int] = []
        self.wrong: list[int] = []

    def of(self, record: ImaRecord) -> bytes:
        """Return what the kernel extended for a record, were it true."""
        number, _, logged, _, data = record
        if not any(logged):
            self.violations.append(number)
            return self._violation
        digest: bytes = self._hash(data).digest()
        if logged != (digest if self._template_hash is None else self._template_hash(data).digest()):
            self.wrong.append(number)
        return digest.ljust(self._size, b"\0")

    def check(self, length: int) -> None:
        """Raise EvidenceError if one of the first `length` records has a template hash of other data."""
        wrong = [number for number in self.wrong if number < length]
        if wrong:
            named = ", ".join(map(str, wrong[:_MAX_NAMED])) + (" and more" if len(wrong) > _MAX_NAMED else "")
            raise EvidenceError(f"the IMA log's template hash is not that of the data in record {named}")


def parse_ima_binary(data: bytes, *, digest_size: int | None = None) -> ImaLog:
    """Take a binary log. `digest_size` is that of its template hashes: 20 in the usual file, more in the per-hash
    files of newer kernels; by default the first record shows it.

    Raises:
        MalformedError: it is longer than a log can be, or its first record is of no known size.
    """
    _check_size(data)
    if digest_size is None:
        digest_size = _digest_size(data)
    elif digest_size not in _SIZES:
        raise MalformedError(f"an IMA log's template hashes cannot have {digest_size} bytes")
    return ImaLog(data, text=False, digest_size=digest_size)


def parse_ima_ascii(data: bytes) -> ImaLog:
    """Take an ASCII log.

    Raises:
        MalformedError: it is longer than a log can be, or its first template hash is of no known size.
    """
    _check_size(data)
    size = len(data[3:].partition(b" ")[0]) // 2 if data else 20
    if size not in _SIZES:
        raise MalformedError("the file is no ASCII IMA log")
    return ImaLog(data, text=True, digest_size=size)


def _check_size(data: bytes) -> None:
    if len(data) > MAX_IMA_LOG:
        raise MalformedError(f"an IMA log of {len(data)} bytes is longer than {MAX_IMA_LOG}")


def _digest_size(data: bytes) -> int:
    """Return the size of the template hashes: with it a plausible template name stands behind the first one."""
    if not data:
        return 20
    for size in sorted(_SIZES):
        length = int.from_bytes(data[4 + size : 8 + size], "little")
        if 0 < length <= _MAX_TEMPLATE_NAME:
            name = data[8 + size : 8 + size + length]
            if len(name) == length and _is_name(name):
                return size
    raise MalformedError("the file is no binary IMA log")


def _is_name(name: bytes) -> bool:
    return name.isascii() and name.decode("ascii").isprintable()


def _binary_records(data: bytes, digest_size: int) -> Iterator[tuple[ImaRecord, int]]:
    head, length_of = struct.Struct(f"<I{digest_size}sI"), _U32.unpack_from
    at, end, total = 0, 0, len(data)
    for number in range(MAX_IMA_RECORDS):
        if at == total:
            return
        try:
            pcr, digest, name_size = head.unpack_from(data, at)
            at += head.size + name_size
            template = data[at - name_size : at]
            if template == _LEGACY:
                content, end = _legacy(data, at)
            else:
                (size,) = length_of(data, at)
                end = at + 4 + size
                content = data[at + 4 : end]
                if size > _MAX_TEMPLATE_DATA:
                    raise MalformedError(f"record {number} of the IMA log has {size} bytes")
        except struct.error:
            raise MalformedError(f"record {number} of the IMA log is truncated") from None
        if end > total or pcr not in _PCRS or not 0 < name_size <= _MAX_TEMPLATE_NAME:
            raise MalformedError(f"record {number} of the IMA log is not well formed")
        at = end
        yield ImaRecord(number, pcr, digest, template, content), end
    if at < total:
        raise MalformedError(f"the IMA log has more than {MAX_IMA_RECORDS} records")


def _legacy(data: bytes, at: int) -> tuple[bytes, int]:
    """Read the fields of the template `ima` and return what the kernel hashes of them, and where they end."""
    (size,) = _U32.unpack_from(data, at + _LEGACY_DIGEST)
    end = at + _LEGACY_DIGEST + 4 + size
    if size > NAME_FIELD:
        raise MalformedError(f"a file name in the IMA log has {size} bytes")
    name = data[end - size : end]
    return data[at : at + _LEGACY_DIGEST] + name.ljust(NAME_FIELD + 1, b"\0"), end


def _text_records(data: bytes, digest_size: int) -> Iterator[tuple[ImaRecord, int]]:
    at = 0
    for number in range(MAX_IMA_RECORDS):
        if at == len(data):
            return
        stop = data.find(b"\n", at)
        line = data[at : stop if stop >= 0 else len(data)]
        at = stop + 1 if stop >= 0 else len(data)
        try:
            yield _text_record(line, number, digest_size), at
        except MalformedError as error:
            raise MalformedError(f"line {number} of the IMA log: {error}") from None
    if at < len(data):
        raise MalformedError(f"the IMA log has more than {MAX_IMA_RECORDS} records")


def _text_record(line: bytes, number: int, digest_size: int) -> ImaRecord:
    """Read a line: the PCR in two places, template hash, template, fields."""
    pcr = _TEXT_PCRS.get(line[:3])
    parts = line[3:].split(b" ", 2)
    if pcr is None or len(parts) != 3:
        raise MalformedError("it does not begin with a PCR, a hash and a template")
    digest = octets(parts[0])
    if len(digest) != digest_size:
        raise MalformedError("its template hash has another size than the first")
    return ImaRecord(number, pcr, digest, parts[1], text_data(parts[1], parts[2]))
