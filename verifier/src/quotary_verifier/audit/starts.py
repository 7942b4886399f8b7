# SPDX-License-Identifier: Apache-2.0
"""Starts of the agent: boot records, the certified counter, and starts whose commits were lost (docs/spec/history.md).

A start that died between extending the chain PCR and writing the history leaves its boot record behind as history. With
it an auditor can compute D of the lost commit, and so say whether that is what the chain PCR was extended with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quotary_verifier.audit.reading import Absent, Blobs
from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.evidence.tpm_clock import check_clock_step
from quotary_verifier.evidence.tpm_counter import CounterReading, verify_counter
from quotary_verifier.evidence.tpm_keys import AttestationKey
from quotary_verifier.recipe.platform import Host
from quotary_verifier.tlog.checkpoint import Checkpoint
from quotary_verifier.wire.bindings import ZERO, chain_extend, commit_digest, start_digest
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_RECORD
from quotary_verifier.wire.records import Boot, BootTpm
from quotary_verifier.wire.tpm import ClockInfo, parse_nv_public

MAX_LOST: Final = 64
"""Lost starts before one commit that are looked for."""


@frozen
class StartRecord:
    """A boot record whose counter certification verified; `leaf` is its place."""

    leaf: int
    record: Boot
    tpm: BootTpm
    reading: CounterReading


@frozen
class LostStart:
    """A start whose commit is not in the history: the chain PCR as it found it, and as its extend would leave it."""

    start: StartRecord
    before: bytes
    after: bytes


class Starts:
    """Reads the starts of one origin."""

    __slots__ = ("_blobs", "_host", "_key", "_nv")

    def __init__(self, host: Host, key: AttestationKey, blobs: Blobs) -> None:
        self._host, self._key, self._blobs = host, key, blobs
        self._nv = parse_nv_public(host.identity.counter)

    def read(self, leaf: int, entry: bytes, last: bytes) -> StartRecord:
        """Return the boot record at a leaf, with its certified counter; `last` is D of the commit before it.

        Raises:
            Absent: no public record has this entry.
            MalformedError: it is another record.
            EvidenceError: it does not belong here, or the counter's certification is false.
            UnsupportedError: it is of an unknown version or algorithm.
        """
        record = Boot.decode(self._blobs.get(entry, MAX_RECORD))
        if record.tpm is None:
            raise EvidenceError("the boot record says nothing of the origin's TPM")
        if record.last_commit != last:
            raise EvidenceError("the boot record names another commit than the one before it as the last")
        reading = verify_counter(
            self._host.public,
            record.tpm.counter_evidence,
            qualified_signer=self._key.qualified_name,
            extra_data=start_digest(self._host.origin, last, record.salt),
            nv_public=self._nv,
        )
        return StartRecord(leaf, record, record.tpm, reading)

    def lost(self, start: int, first: int, last: bytes, entries: Mapping[int, bytes]) -> list[StartRecord]:
        """Return the boot records right before leaf `first`, down to leaf `start`, in the order of the log."""
        found: list[StartRecord] = []
        for leaf in range(first - 1, max(start, first - MAX_LOST) - 1, -1):
            entry = entries.get(leaf)
            record = None if entry is None else self._maybe(leaf, entry, last)
            if record is None:
                break
            found.append(record)
        return found[::-1]

    def _maybe(self, leaf: int, entry: bytes, last: bytes) -> StartRecord | None:
        try:
            return self.read(leaf, entry, last)
        except (Absent, MalformedError, EvidenceError, UnsupportedError):
            return None

    def lost_commit(self, start: StartRecord, root: bytes) -> LostStart:
        """Return what the lost commit of a start would have made of the chain; `root` is that of the tree up to it."""
        text = Checkpoint(self._host.origin, start.leaf + 1, root).text
        digest = commit_digest(self._host.origin, start.leaf, text)
        return LostStart(start, start.tpm.chain_before, chain_extend(start.tpm.chain_before, digest))


def explains(lost: list[LostStart], chain: bytes, before: bytes) -> bool:
    """Tell whether lost commits lead from what the last commit left, or from zero, to `before`.

    Each of them found what was there, and extended it or died before that.
    """
    values = {ZERO, chain}
    for item in lost:
        if item.before not in values:
            return False
        values = {item.before, item.after}
    return before in values


def check_place(
    start: StartRecord, before: bytes, clock: ClockInfo | None, earlier: ClockInfo | None
) -> None:
    """Hold a boot record against its commit: the chain PCR before it, its counts, and the TPM's clock around it.

    Raises:
        EvidenceError: they do not agree.
    """
    if start.tpm.chain_before != before:
        raise EvidenceError("the boot record found another chain PCR than the one before its commit")
    if clock is not None:
        counts = (start.tpm.reset_count, start.tpm.restart_count)
        if counts != (clock.reset_count, clock.restart_count):
            raise EvidenceError("the boot record names another boot than the quote of its commit")
        check_clock_step(start.reading.clock, clock)
    if earlier is not None:
        check_clock_step(earlier, start.reading.clock)
