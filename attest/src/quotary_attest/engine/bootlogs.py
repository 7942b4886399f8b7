# SPDX-License-Identifier: Apache-2.0
"""The logs of this boot: which commits name them, and how far (docs/spec/boot-logs.md, "At the host").

A log is named only where a verifier would find that it replays to the very quote. The firmware's log is held against
the quote by the verifier's own replay, whenever a PCR that it must explain has moved. What part of the IMA log leads to
a quote is found by the root, which follows that log anyway (`quotary_attest.tpm.ima`). Where nothing moved, a commit
names what the one before it named, and costs a comparison.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from quotary_attest.bootlogs import ABSENT, LEFT_OUT, NAMED, OFF, BootLogSettings
from quotary_attest.growing import GrowingFile, read_whole
from quotary_attest.log.store import Store
from quotary_attest.roots import LogPrefix, Quote
from quotary_verifier.errors import QuotaryError
from quotary_verifier.logs.ima import parse_ima_binary
from quotary_verifier.logs.tcg import ReplayedLog
from quotary_verifier.recipe.boot_logs import check_aggregate, replay_firmware
from quotary_verifier.wire.attestation import BOOT_LOG_FIRMWARE, BOOT_LOG_IMA
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.limits import MAX_BOOT_LOG

_LOG = logging.getLogger("quotary.agent")

_BOOT_PCRS: Final = range(8)
_EXPLAINED: Final = range(10)
"""Whether a log is named depends on these PCRs: the firmware's own, and those of IMA's boot aggregate."""
_FIRST_RECORD: Final = 2 << 20
_HINT: Final = (
    "commits go on without it, and verifiers say that they did not see it (docs/howto/operations.md)"
)

Named = Mapping[str, tuple[bytes, int]]
"""Name of a log → SHA-256 of its first bytes, and how many."""


@dataclass(frozen=True, slots=True)
class LogState:
    """What became of a log, how many bytes of it the last commit named, and why it is left out."""

    state: str
    size: int = 0
    reason: str = ""


class BootLogs:
    """Names the logs for one commit after the other. `begin` comes with every start; one thread at a time."""

    def __init__(
        self, settings: BootLogSettings, store: Store, own: Collection[int], crash: Callable[[str], None]
    ) -> None:
        """`own` are the PCRs that the agent itself extends, `crash` is that of `World`."""
        self._settings, self._own = settings, frozenset(own)
        self._crash = crash
        self._firmware = _FirmwareLog(settings.tcg, store)
        self._ima = None if settings.ima is None else _KeptLog(GrowingFile(settings.ima), store)
        self._states: dict[str, LogState] = {}
        self._forget()

    def _forget(self) -> None:
        self._seen: object = None
        self._explained: object = None
        self._named: Named = {}
        self._replayed: ReplayedLog | None = None
        self._foreign: str | None = None

    def begin(self) -> None:
        """Read the firmware's log anew, and let the IMA log be another one."""
        self._forget()
        self._firmware.read()
        if self._ima is not None:
            self._ima.restart()

    def named(self, quote: Quote) -> Named:
        """Return what a commit with this quote names; all of it is on disk then. Raises StorageFull, StorageFailed."""
        explained = tuple(
            [value for pcr, value in quote.pcrs.items() if pcr in _EXPLAINED and pcr not in self._own]
        )
        seen = (quote.ima, quote.ima_flaw, explained)
        if seen != self._seen:
            quoted = {pcr: value for pcr, value in quote.pcrs.items() if pcr not in self._own}
            if explained != self._explained:
                self._replayed, self._foreign = self._replay_firmware(quoted), None
                self._explained = explained
            named = {} if self._replayed is None else {BOOT_LOG_FIRMWARE: self._firmware.keep()}
            if (ima := self._ima_of(quote, quoted)) is not None:
                named[BOOT_LOG_IMA] = ima
            self._named, self._seen = named, seen
        return self._named

    def _replay_firmware(self, quoted: Mapping[int, bytes]) -> ReplayedLog | None:
        """Replay the firmware's log as a verifier does; None where it is left out, or there is none."""
        firmware = self._firmware
        if self._settings.tcg is None:
            self._become(BOOT_LOG_FIRMWARE, LogState(OFF))
        elif firmware.flaw:
            self._become(BOOT_LOG_FIRMWARE, LogState(LEFT_OUT, 0, firmware.flaw))
        elif not firmware.data or not any(quoted.get(pcr, ZERO) != ZERO for pcr in _BOOT_PCRS):
            self._become(BOOT_LOG_FIRMWARE, LogState(ABSENT))
        else:
            try:
                replayed = replay_firmware(firmware.data, quoted)
            except QuotaryError as error:
                self._become(BOOT_LOG_FIRMWARE, LogState(LEFT_OUT, 0, str(error)))
            else:
                self._become(BOOT_LOG_FIRMWARE, LogState(NAMED, len(firmware.data)))
                return replayed
        return None

    def _ima_of(self, quote: Quote, quoted: Mapping[int, bytes]) -> tuple[bytes, int] | None:
        """Return the part of the IMA log that leads to a quote, on disk; None where it is left out."""
        prefix, log, flaw = quote.ima, self._ima, quote.ima_flaw
        if log is None:
            self._become(BOOT_LOG_IMA, LogState(OFF))
            return None
        if prefix is not None:
            flaw = log.keep(prefix, quote.clock.reset_count, self._crash) or self._judge_aggregate(
                log, quoted
            )
        if flaw or prefix is None:
            self._become(BOOT_LOG_IMA, LogState(LEFT_OUT, 0, flaw) if flaw else LogState(ABSENT))
            return None
        self._become(BOOT_LOG_IMA, LogState(NAMED, prefix.size))
        return prefix.digest, prefix.size

    def _judge_aggregate(self, log: _KeptLog, quoted: Mapping[int, bytes]) -> str:
        """Return what a verifier has against the log's boot aggregate; empty where nothing."""
        if self._foreign is None:
            try:
                first = next(parse_ima_binary(log.head).read(1))[0]
                check_aggregate(first, quoted, self._replayed)
                self._foreign = ""
            except QuotaryError as error:
                self._foreign = str(error)
        return self._foreign

    def _become(self, name: str, state: LogState) -> None:
        """Take note of what became of a log; a change is worth a line."""
        before, self._states[name] = self._states.get(name), state
        if before is not None and (before.state, before.reason) == (state.state, state.reason):
            return
        if state.state == LEFT_OUT:
            _LOG.warning("boot log %s is left out: %s", name, state.reason, extra={"hint": _HINT})
        elif state.state == NAMED:
            _LOG.info("boot log %s is named by commits from here on", name)

    def status(self) -> dict[str, Any]:
        """Return what became of each log, as JSON can hold it."""
        states = dict.fromkeys((BOOT_LOG_FIRMWARE, BOOT_LOG_IMA), LogState(OFF)) | self._states
        return {
            name: {"state": each.state, "bytes": each.size, "reason": each.reason}
            for name, each in states.items()
        }


class _FirmwareLog:
    """The firmware's log as it was read, and its name once it was stored."""

    def __init__(self, path: Path | None, store: Store) -> None:
        self._path, self._store = path, store
        self._name: tuple[bytes, int] | None = None
        self.data = b""
        self.flaw = ""

    def read(self) -> None:
        """Read it anew."""
        self.data, self.flaw, self._name = b"", "", None
        if self._path is None:
            return
        try:
            self.data = read_whole(self._path, MAX_BOOT_LOG) or b""
        except OSError as error:
            self.flaw = f"it cannot be read: {(error.strerror or str(error)).lower()}"
        if len(self.data) > MAX_BOOT_LOG:
            self.data, self.flaw = b"", f"it has more than {MAX_BOOT_LOG} bytes"

    def keep(self) -> tuple[bytes, int]:
        """Return its name; it is on disk then. Raises StorageFull, StorageFailed."""
        if self._name is None:
            self._name = self._store.put_blob(self.data), len(self.data)
        return self._name


class _KeptLog:
    """The copy of a growing log in the store, and the place that was reached in the log itself."""

    def __init__(self, source: GrowingFile, store: Store) -> None:
        self._source, self._store = source, store
        self.restart()

    def restart(self) -> None:
        """Take the log for another one, until its bytes show that it is not."""
        self._source.restart()
        self._file: str | None = None
        self._reached = LogPrefix(b"", 0)
        self._hash = sha256()
        self.head = b""

    def keep(self, prefix: LogPrefix, boot: int, crash: Callable[[str], None]) -> str:
        """Have the first bytes of the log on disk that `prefix` names; return what is wrong where that cannot be.

        Raises StorageFull, StorageFailed.
        """
        if prefix == self._reached:
            return ""
        if prefix.size < self._reached.size:
            self.restart()
        try:
            wanted = prefix.size - self._reached.size
            self._source.read(wanted)
        except OSError as error:
            return f"it cannot be read: {(error.strerror or str(error)).lower()}"
        data, digest = self._source.rest[:wanted], self._hash.copy()
        digest.update(data)
        if digest.digest() != prefix.digest:
            self.restart()
            return "it is another one than a moment ago"
        offset = self._reached.size
        if self._file is None:
            self._file, offset = self._adopt(data, boot)
            self.head = data[:_FIRST_RECORD]
        self._store.grow(self._file, data[offset - self._reached.size :], offset, prefix.digest)
        crash("boot-log-on-disk")
        self._source.take(wanted)
        self._hash, self._reached = digest, prefix
        return ""

    def _adopt(self, data: bytes, boot: int) -> tuple[str, int]:
        """Return the file that a log goes on in, and how much of it is there: what an earlier start of this boot
        stored, if the log begins with it, else none of a new one."""
        known = self._store.boot_log(boot, BOOT_LOG_IMA)
        if known is not None and sha256(data[: known.size]).digest() == known.digest:
            return known.file, known.size
        return self._store.new_boot_log(boot, BOOT_LOG_IMA), 0
