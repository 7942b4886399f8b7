# SPDX-License-Identifier: Apache-2.0
"""Makes rules of good boots: what was the same each time is fixed, what differed is told and ruled by events.

The evidence is verified before anything here sees it (`quotary_cli.evidence`). Exact PCR values are fixed where nothing
harmless moves them (firmware and its drivers). Where a log explains a PCR, its events are fixed instead: images by
digest, Secure Boot by keys and authorities, command lines by text. Boot order, device tables and partitions are left
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Final, TypeVar

from quotary_cli.bootdiff import Side, compare
from quotary_cli.bootsides import verified_side
from quotary_verifier.errors import QuotaryError
from quotary_verifier.logs.tcg import ReplayedLog
from quotary_verifier.logs.tcg_boot import Boot, read_boot
from quotary_verifier.logs.tcg_loaders import read_loader_events
from quotary_verifier.logs.tcg_secureboot import SecureBoot, read_secure_boot
from quotary_verifier.logs.tcg_types import EV_S_CRTM_VERSION, Tolerance
from quotary_verifier.policy.findings import PlatformEvidence, shown
from quotary_verifier.policy.load_rules import TOLERANCES
from quotary_verifier.policy.names import authority_name, entry_name, is_authority
from quotary_verifier.policy.patterns import MAX_PATTERN, Pattern
from quotary_verifier.policy.rules import LOADER_PCRS, BootRules, SecureBootRules
from quotary_verifier.wire.bindings import ZERO

FIXED: Final = (0, 2, 3, 6)
"""PCRs of firmware code, option ROMs and their settings: fixed where they are the same each time."""
LEFT: Final = {
    1: "boot order, setup and device tables, which change without harm",
    5: "the disk's partitions and how often it was booted, which change without harm",
}
LATE: Final = (11, 12, 13, 14, 15)
"""PCRs that running systems extend, too: fixed where two boots or more agree and no event rule speaks of them."""
_APPLICATIONS, _SECURE_BOOT, _IMA = 4, 7, 10
_SPECIAL: Final = frozenset("\\.[](){}*+?|^$")
_REASONS: Final = 3
_VERSION: Final = 256
"""Bytes of a firmware's version that are shown."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GoodBoot:
    """A boot to learn from: its name for people, and its verified evidence."""

    name: str
    evidence: PlatformEvidence


@dataclass(frozen=True, slots=True)
class Kind:
    """What was learned of one kind of host: the boots, and rules with a reason for each.

    `pcrs` maps a PCR to its value; `varies` maps one that is not fixed to the reason; `remarks` are lines for people.
    """

    name: str
    boots: tuple[GoodBoot, ...]
    firmware: str = ""
    pcrs: dict[int, bytes] = field(default_factory=dict)
    varies: dict[int, str] = field(default_factory=dict)
    secure_boot: SecureBootRules | None = None
    boot: BootRules | None = None
    tolerate: frozenset[str] = frozenset()
    remarks: tuple[str, ...] = ()

    @property
    def hosts(self) -> tuple[str, ...]:
        """The origins that were learned from."""
        return tuple(sorted({boot.evidence.origin for boot in self.boots}))


def kinds_of(boots: Iterable[GoodBoot]) -> tuple[Kind, ...]:
    """Sort boots by their firmware (PCR 0), and learn the rules of each kind of host."""
    groups: dict[bytes, list[GoodBoot]] = {}
    for boot in boots:
        groups.setdefault(boot.evidence.pcrs[0], []).append(boot)
    return tuple(_learn(f"firmware-{value.hex()[:8]}", tuple(group)) for value, group in groups.items())


def _learn(name: str, boots: tuple[GoodBoot, ...]) -> Kind:
    kind = Kind(name, boots, firmware=_firmware_version(boots))
    logs = [boot.evidence.firmware for boot in boots]
    given = [log for log in logs if log is not None]
    if len(given) == len(logs):
        kind = _with_boot(_with_secure_boot(kind, given), given)
    else:
        remark = "not every boot came with its firmware's log, so that PCR values stand in place of rules on events"
        kind = replace(kind, remarks=(*kind.remarks, remark))
    return _with_values(kind)


def _firmware_version(boots: Sequence[GoodBoot]) -> str:
    """Return what the firmware calls its version, where the log covers it."""
    for boot in boots:
        log = boot.evidence.firmware
        for event in () if log is None else log.events:
            if event.untrusted_type == EV_S_CRTM_VERSION and event.covered:
                return shown(event.covered[:_VERSION].decode("utf-16-le", "replace").rstrip("\0"))
    return ""


def _with_secure_boot(kind: Kind, logs: Sequence[ReplayedLog]) -> Kind:
    """Add what PCR 7 shows: the keys that any boot had, the refused entries that every boot had."""
    if any(_SECURE_BOOT in boot.evidence.moving for boot in kind.boots):
        return kind
    try:
        tolerate, states = _tolerant(logs, lambda log, used: read_secure_boot(log, tolerate=used))
    except QuotaryError as error:
        return _remarked(kind, f"the Secure Boot state could not be read ({error})")
    rules = SecureBootRules(
        enabled=all(state.enabled for state in states),
        pk=_entries(states, lambda state: state.pk),
        kek=_entries(states, lambda state: state.kek),
        db=_entries(states, lambda state: state.db),
        dbx=frozenset.intersection(*[frozenset(map(entry_name, state.dbx)) for state in states]),
        authorities=frozenset(
            authority_name(authority)
            for state in states
            for authority in (*state.authorities, *state.late_authorities)
            if is_authority(authority)
        ),
    )
    if not rules.enabled:
        kind = _remarked(kind, _off(rules))
    return replace(kind, secure_boot=rules, tolerate=kind.tolerate | tolerate)


def _off(rules: SecureBootRules) -> str:
    """Say what the rules ask for where Secure Boot need not be on: its keys all the same, and none where none were."""
    said = "Secure Boot was off in a boot that was learned from, so it need not be on"
    none = [name for name, values in (("PK", rules.pk), ("KEK", rules.kek), ("db", rules.db)) if not values]
    if none:
        said += f"; {', '.join(none)} had no entry in any boot, and may have none"
    return f"{said}; enrolling keys is a change to learn anew"


def _entries(states: Iterable[SecureBoot], of: Callable[[SecureBoot], Iterable[object]]) -> frozenset[str]:
    return frozenset(entry_name(entry) for state in states for entry in of(state))  # type: ignore[arg-type]


def _tolerant(
    logs: Sequence[ReplayedLog], read: Callable[[ReplayedLog, frozenset[Tolerance]], T]
) -> tuple[frozenset[str], list[T]]:
    """Read all logs with as few tolerances as possible; return these and what was read.

    Raises:
        QuotaryError: no tolerance helps; the error is that without any.
    """
    first: QuotaryError | None = None
    known = sorted(TOLERANCES)
    for size in range(len(known) + 1):
        for chosen in combinations(known, size):
            used = frozenset(Tolerance(name) for name in chosen)
            try:
                return frozenset(chosen), [read(log, used) for log in logs]
            except QuotaryError as error:
                first = first or error
    raise first or QuotaryError("nothing was read")


def _with_boot(kind: Kind, logs: Sequence[ReplayedLog]) -> Kind:
    """Add what was started: images of PCR 4, and what boot loaders read and were told in PCR 8, 9 and 12."""
    applications: frozenset[bytes] | None = None
    if not any(_APPLICATIONS in boot.evidence.moving for boot in kind.boots):
        try:
            tolerate, found = _tolerant(logs, lambda log, used: read_boot(log, tolerate=used))
        except QuotaryError as error:
            kind = _remarked(kind, f"the images in PCR 4 could not be told ({error})")
        else:
            applications = frozenset(one for boot in found for one in _images(boot))
            kind = replace(kind, tolerate=kind.tolerate | tolerate)
    pcrs = frozenset(pcr for pcr in LOADER_PCRS if all(_explained(boot, pcr) for boot in kind.boots))
    files, lines = _loaded(logs, pcrs)
    rules = BootRules(
        applications=applications,
        files=files if pcrs else None,
        command_lines=tuple(map(Pattern, lines)) if lines else None,
        pcrs=pcrs or LOADER_PCRS,
    )
    if applications is None and not pcrs:
        return kind
    return replace(kind, boot=rules)


def _images(boot: Boot) -> Iterable[bytes]:
    return (one.digest for one in (*boot.firmware_applications, *boot.applications))


def _explained(boot: GoodBoot, pcr: int) -> bool:
    """Tell whether the log says all of a PCR: its events are confirmed, or there are none and it is zero."""
    evidence, log = boot.evidence, boot.evidence.firmware
    if log is None or pcr in evidence.moving:
        return False
    return pcr in log.values or evidence.pcrs[pcr] == ZERO


def _loaded(logs: Sequence[ReplayedLog], pcrs: frozenset[int]) -> tuple[frozenset[bytes], tuple[str, ...]]:
    """Return the digests that the loader PCRs were extended with, and the patterns of the texts among them."""
    files: set[bytes] = set()
    texts: dict[str, None] = {}
    for log in logs:
        read = {event.number: event for event in read_loader_events(log)}
        known: set[bytes] = set()
        for event in log.events:
            if event.register not in pcrs:
                continue
            text = read[event.number].text if event.number in read else None
            pattern = None if text is None else pattern_of(text)
            if pattern is None:
                files.add(event.digest)
            else:
                texts[pattern] = None
                known.add(event.digest)
        files -= known  # the kernel's stub measures again what a text says already
    return frozenset(files), tuple(texts)


def pattern_of(text: str) -> str | None:
    """Return the pattern that fits this text alone; None for one that no pattern can have."""
    escaped = "".join(f"\\{char}" if char in _SPECIAL else char for char in text)
    if len(escaped) > MAX_PATTERN or not text.isprintable():
        return None
    return escaped


def _with_values(kind: Kind) -> Kind:
    """Fix PCR values where no rule on events speaks of a PCR and nothing harmless moves it."""
    ruled = _ruled(kind)
    pcrs: dict[int, bytes] = {}
    varies: dict[int, str] = {}
    zero: list[int] = []
    for pcr in range(16):
        if pcr in ruled or pcr == _IMA or any(pcr in boot.evidence.moving for boot in kind.boots):
            continue
        values = {boot.evidence.pcrs[pcr] for boot in kind.boots}
        if pcr in LEFT:
            varies[pcr] = LEFT[pcr] + (f" (here: {_why(kind, pcr)})" if len(values) > 1 else "")
        elif len(values) > 1:
            varies[pcr] = _why(kind, pcr)
        elif values == {ZERO} and pcr not in FIXED:
            zero.append(pcr)
        elif pcr in (*LATE, *LOADER_PCRS) and len(kind.boots) == 1:
            varies[pcr] = (
                "a running system may extend it, and one boot does not show whether it stays as it is"
            )
        else:
            pcrs[pcr] = values.pop()
    if zero:
        said = f"PCR {', '.join(map(str, zero))} is zero in each boot and left open, as programs of a host may take it"
        kind = _remarked(kind, said)
    return replace(kind, pcrs=pcrs, varies=varies)


def _ruled(kind: Kind) -> frozenset[int]:
    """Return the PCRs that rules on events speak of."""
    ruled = {_SECURE_BOOT} if kind.secure_boot is not None else set()
    if kind.boot is not None:
        ruled |= {_APPLICATIONS} if kind.boot.applications is not None else set()
        ruled |= kind.boot.pcrs if kind.boot.files is not None else set()
    return frozenset(ruled)


def _why(kind: Kind, pcr: int) -> str:
    """Say in a few words what differs in a PCR between two of the boots."""
    first = kind.boots[0]
    other = next(boot for boot in kind.boots if boot.evidence.pcrs[pcr] != first.evidence.pcrs[pcr])
    left, right = (_only(verified_side(boot.name, boot.evidence), pcr) for boot in (first, other))
    said = [change.text.removeprefix(f"PCR {pcr}: ") for change in compare(left, right)]
    more = f" and {len(said) - _REASONS} more" if len(said) > _REASONS else ""
    return "; ".join(said[:_REASONS]) + more


def _only(side: Side, pcr: int) -> Side:
    events = None if side.events is None else tuple(one for one in side.events if one.register == pcr)
    pcrs = {key: value for key, value in side.pcrs.items() if key == pcr}
    return replace(side, pcrs=pcrs, events=events, files=None, facts={})


def _remarked(kind: Kind, remark: str) -> Kind:
    return replace(kind, remarks=(*kind.remarks, remark))
