# SPDX-License-Identifier: Apache-2.0
"""Compares two boots: PCR by PCR down to the event, the files that ran, the models that may have served."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from quotary_cli.bootevents import SECTION_NAME, Subject, subject_of
from quotary_verifier.logs.tcg import Event

_SHOWN: Final = 16
"""Hexadecimal digits of a digest that people are shown."""
_NOUNS: Final = {"x509": ("certificate", "certificates"), "sha256": ("hash", "hashes")}
_ENTRIES: Final = ("entry", "entries")
Files = Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Side:
    """One of two boots. `verified` tells that a quote proves it.

    `pcrs` are the quoted values, empty for a raw log; `events` those of the firmware's log (None: there is no log),
    `unconfirmed` the registers whose events are withheld. `files` maps a path to the digests that it ran with,
    `facts` are named values such as models and reset counts.
    """

    name: str
    verified: bool
    pcrs: Mapping[int, bytes] = field(default_factory=dict)
    events: tuple[Event, ...] | None = None
    unconfirmed: frozenset[int] = frozenset()
    files: Files | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `area` is `pcr`, `ima` or `host`; `change` is added, removed or changed.

    `before` and `after` are digests in hexadecimal or texts; `added` and `removed` are words of a command line or
    entries of a database.
    """

    area: str
    change: str
    what: str
    pcr: int | None = None
    before: str | None = None
    after: str | None = None
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    summary: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the change as it stands in JSON."""
        return {
            "area": self.area,
            "pcr": self.pcr,
            "change": self.change,
            "what": self.what,
            "before": self.before,
            "after": self.after,
            "added": list(self.added),
            "removed": list(self.removed),
            "message": self.text,
        }

    @property
    def text(self) -> str:
        """The change in words, not yet escaped."""
        where = f"PCR {self.pcr}: " if self.pcr is not None else "IMA: " if self.area == "ima" else ""
        if self.summary:
            return where + self.summary
        if self.change == "changed":
            return f"{where}{self.what} changed from {_short(self.before)} to {_short(self.after)}"
        value = self.after if self.change == "added" else self.before
        return f"{where}{self.what} was {self.change}" + (f" ({_short(value)})" if value else "")


def compare(before: Side, after: Side) -> Iterator[Change]:
    """Yield what differs between two boots."""
    for name in sorted(before.facts.keys() | after.facts.keys()):
        old, new = before.facts.get(name), after.facts.get(name)
        if old != new:
            yield Change("host", _kind(old, new), name, before=old, after=new, summary=_fact(name, old, new))
    yield from _firmware(before, after)
    if before.files is not None and after.files is not None:
        yield from _files(before.files, after.files)


def _fact(name: str, old: str | None, new: str | None) -> str:
    if old is None or new is None:
        return f"{name} {old or new} was {_kind(old, new)}"
    return f"{name} changed from {old} to {new}"


def _kind(old: object, new: object) -> str:
    return "added" if old is None else "removed" if new is None else "changed"


def _firmware(before: Side, after: Side) -> Iterator[Change]:
    old, new = _by_pcr(before.events), _by_pcr(after.events)
    logs = before.events is not None and after.events is not None
    withheld = before.unconfirmed | after.unconfirmed
    for pcr in sorted(old.keys() | new.keys() | before.pcrs.keys() | after.pcrs.keys()):
        told = False
        if logs and pcr not in withheld:
            for change in _register(pcr, old.get(pcr, []), new.get(pcr, [])):
                told = True
                yield change
        values = before.pcrs.get(pcr), after.pcrs.get(pcr)
        if None not in values and values[0] != values[1] and not told and pcr not in _TOLD_ELSEWHERE:
            first, second = values
            what = (
                f"its value changed from {_short(_hex(first))} to {_short(_hex(second))}, and no log says why"
            )
            yield Change("pcr", "changed", "value", pcr, _hex(first), _hex(second), summary=what)


_TOLD_ELSEWHERE: Final = frozenset({10})
"""IMA's PCR differs with every boot; what matters of it is compared as files."""


def _hex(value: bytes | None) -> str:
    return "" if value is None else value.hex()


def _by_pcr(events: Iterable[Event] | None) -> dict[int, list[Subject]]:
    found: dict[int, list[Subject]] = defaultdict(list)
    for event in events or ():
        found[event.register].append(subject_of(event))
    return found


def _register(pcr: int, old: Sequence[Subject], new: Sequence[Subject]) -> Iterator[Change]:
    """Compare the events of one register: what only one side has, and whether the rest stands in another order.

    Takes time in proportion to the events, of which a host can write thousands.
    """
    old, new = ([one for one in side if one.kind != SECTION_NAME] for side in (old, new))
    kept, gone = _split(old, new)
    kept_too, came = _split(new, old)
    for key in (_slot, _exchangeable):
        pairs, gone, came = _paired(gone, came, key)
        for before, after in pairs:
            yield _changed(pcr, before, after)
    for one in gone:
        yield Change("pcr", "removed", one.title, pcr, before=_value(one))
    for one in came:
        yield Change("pcr", "added", one.title, pcr, after=_value(one))
    if [_event(one) for one in kept] != [_event(one) for one in kept_too]:
        yield Change("pcr", "changed", "order", pcr, summary="the order of its events changed")


def _split(side: Sequence[Subject], other: Sequence[Subject]) -> tuple[list[Subject], list[Subject]]:
    """Return the events of a side that the other has as often, and those that it has not."""
    left = Counter(map(_event, other))
    both: list[Subject] = []
    alone: list[Subject] = []
    for one in side:
        found = left[_event(one)] > 0
        left[_event(one)] -= found
        (both if found else alone).append(one)
    return both, alone


def _paired(
    gone: Iterable[Subject], came: Iterable[Subject], key: Callable[[Subject], Hashable]
) -> tuple[list[tuple[Subject, Subject]], list[Subject], list[Subject]]:
    """Pair what left with what came in its place: the first with the first of the same key; None pairs with nothing."""
    waiting: dict[Hashable, deque[Subject]] = defaultdict(deque)
    for one in came:
        waiting[key(one)].append(one)
    pairs, alone = [], []
    for one in gone:
        if key(one) is not None and waiting[key(one)]:
            pairs.append((one, waiting[key(one)].popleft()))
        else:
            alone.append(one)
    taken = {id(after) for _, after in pairs}
    return pairs, alone, [one for one in came if id(one) not in taken]


def _event(subject: Subject) -> Hashable:
    return subject.slot, subject.event.digest


def _slot(subject: Subject) -> Hashable:
    return subject.slot


def _exchangeable(subject: Subject) -> Hashable:
    """Return the kind of what may be called otherwise and still be what took the place of another."""
    return subject.kind if subject.kind in _EXCHANGEABLE else None


_EXCHANGEABLE: Final = frozenset({"application", "file", "command", "command line", "section"})


def _value(subject: Subject) -> str:
    return subject.event.digest.hex() if subject.text is None else subject.text


def _changed(pcr: int, old: Subject, new: Subject) -> Change:
    title = old.title if old.title == new.title else f"{old.title}, now {new.title},"
    if old.entries is not None and new.entries is not None:
        return _sets(pcr, old, new)
    if old.setting is not None and new.setting is not None:
        what = f"{title} was {old.setting} and is {new.setting}"
        return Change("pcr", "changed", title, pcr, old.setting, new.setting, summary=what)
    if old.text is not None and new.text is not None:
        added, removed = _words(old.text, new.text)
        words = [f"+{word}" for word in added] + [f"-{word}" for word in removed]
        what = f"{title} changed: {' '.join(words) or 'spaces or the order of words'}"
        return Change("pcr", "changed", title, pcr, old.text, new.text, added, removed, what)
    return Change("pcr", "changed", title, pcr, old.event.digest.hex(), new.event.digest.hex())


def _words(old: str, new: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words that a command line gained and those that it lost, each as often as it did."""
    first, second = Counter(old.split()), Counter(new.split())
    return tuple((second - first).elements()), tuple((first - second).elements())


def _sets(pcr: int, old: Subject, new: Subject) -> Change:
    first, second = set(old.entries or ()), set(new.entries or ())
    added, removed = tuple(sorted(second - first)), tuple(sorted(first - second))
    if added and not removed:
        what = f"{old.title} grew by {_count(added)}"
    elif removed and not added:
        what = f"{old.title} shrank by {_count(removed)}"
    elif added:
        what = f"{old.title} gained {_count(added)} and lost {_count(removed)}"
    else:
        what = f"{old.title} has the same entries in another order or of other owners"
    before, after = old.event.digest.hex(), new.event.digest.hex()
    return Change("pcr", "changed", old.title, pcr, before, after, added, removed, what)


def _count(entries: Sequence[str]) -> str:
    """Count the entries of a database by their kind, or what else there is."""
    kinds: dict[tuple[str, str], int] = defaultdict(int)
    for entry in entries:
        kind = entry.partition(":")[0]
        noun = ("partition", "partitions") if entry.startswith("partition ") else _NOUNS.get(kind, _ENTRIES)
        kinds[noun] += 1
    return " and ".join(f"{number} {noun[number != 1]}" for noun, number in kinds.items())


def _files(old: Files, new: Files) -> Iterator[Change]:
    """Compare what ran by paths; a path that ran with several contents has changed if the set of them did."""
    for path in sorted(old.keys() | new.keys()):
        first, second = old.get(path), new.get(path)
        if first == second:
            continue
        before, after = _joined(first), _joined(second)
        yield Change("ima", _kind(first, second), path, before=before, after=after)


def _joined(digests: frozenset[str] | None) -> str | None:
    return None if digests is None else ", ".join(sorted(digests))


def _short(value: str | None) -> str:
    """Return a digest as its first digits, anything else whole."""
    if value is None:
        return "nothing"
    parts = []
    for part in value.split(", "):
        name, colon, digits = part.rpartition(":")
        is_digest = len(digits) >= 40 and set(digits) <= set("0123456789abcdef")
        parts.append(f"{name}{colon}{digits[:_SHOWN]}…" if is_digest else part)
    return ", ".join(parts)
