# SPDX-License-Identifier: Apache-2.0
"""Changes that come past an encoding: inside the values of a CBOR item, and inside the base64 of a note in it.

A byte changed at random in deterministic CBOR nearly always breaks the encoding, and all behind the decoder would
stay unreached. Here one value is changed and the whole encoded again, three times out of four.
"""

from __future__ import annotations

import base64
import binascii
import random
from collections.abc import Callable, Mapping
from typing import Any

import cbor2

Change = Callable[[bytes, int], bytes]
_DASH = "\u2014 ".encode()


def cbor_mutator(change: Change) -> Callable[[bytes, int, int], bytes]:
    """A mutator for deterministic CBOR out of one that changes bytes (and takes the longest result)."""

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.25:
            return change(data, most)
        try:
            value = cbor2.loads(data)
            altered = cbor2.dumps(_altered(value, chance, change), canonical=True)
        except Exception:  # whatever a hostile item makes the decoder raise: then change its bytes
            return change(data, most)
        return altered if len(altered) <= most else change(data, most)

    return mutate


def _altered(value: Any, chance: random.Random, change: Change) -> Any:
    """The value with one of its parts changed."""
    if isinstance(value, cbor2.CBORTag):
        return cbor2.CBORTag(value.tag, _altered(value.value, chance, change))
    if isinstance(value, Mapping) and value:
        key = chance.choice(list(value))
        if chance.random() < 0.03:
            return {name: item for name, item in value.items() if name != key}
        return dict(value) | {key: _altered(value[key], chance, change)}
    if isinstance(value, list | tuple) and value:
        value = list(value)
        place = chance.randrange(len(value))
        if chance.random() < 0.05:
            return value[:place] + value[place + 1 :] + [value[place]] * chance.randrange(3)
        return [*value[:place], _altered(value[place], chance, change), *value[place + 1 :]]
    if isinstance(value, bytes):
        return _altered_bytes(value, chance, change)
    if isinstance(value, str):
        return change(value.encode(), len(value) + 64).decode("utf-8", "replace")
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.9:
        return chance.choice((value + 1, max(value - 1, 0), 0, 1, 2**63, 2**64 - 1, chance.getrandbits(64)))
    return chance.choice((None, True, 0, b"", "", {}, []))


def _altered_bytes(value: bytes, chance: random.Random, change: Change) -> bytes:
    if b"\n\n" + _DASH in value and chance.random() < 0.7:
        return _altered_note(value, chance, change)
    if chance.random() < 0.5:
        try:  # a record within: it is CBOR of its own
            inner = cbor2.loads(value)
            if isinstance(inner, Mapping | list | tuple | cbor2.CBORTag):
                return cbor2.dumps(_altered(inner, chance, change), canonical=True)
        except Exception:  # as above
            pass
    return change(value, len(value) + 64)


def _altered_note(note: bytes, chance: random.Random, change: Change) -> bytes:
    """The note with the payload of one line changed behind its key id."""
    head, _, tail = note.rpartition(b"\n\n")
    lines = tail.rstrip(b"\n").split(b"\n")
    place = chance.randrange(len(lines))
    name, _, encoded = lines[place].rpartition(b" ")
    try:
        payload = base64.b64decode(encoded)
    except binascii.Error:
        return change(note, len(note) + 64)
    fresh = payload[:4] + change(payload[4:], len(payload) + 16)
    lines[place] = name + b" " + base64.b64encode(fresh)
    return head + b"\n\n" + b"\n".join(lines) + b"\n"
