# SPDX-License-Identifier: Apache-2.0
"""Deterministic CBOR, written and read strictly (RFC 8949 section 4.2.1; docs/spec/cbor.md).

Allowed are unsigned and negative integers of up to 64 bits, byte strings, text strings, arrays, maps, booleans and
null. A map's keys are all integers from -24 to 23, or all text. There are no floats, tags, bignums or indefinite
lengths. What does not encode to the very same bytes again is refused, so that one value has one encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import cbor2

from quotary_verifier.errors import MalformedError, UnsupportedError

MAX_DEPTH = 8
"""Nesting depth; an attestation needs five."""

MAX_ITEMS = 65_536
"""Items of one artefact, those inside others included; an attestation with a full workload log needs 17,000.

Bytes alone do not bound what decoding takes: an empty list is one byte, and some eighty bytes of memory."""

_MAX_UNCOUNTED = 1 << 18
"""Bytes of input whose items need not be counted first, as so few bytes cannot hold many."""

KIND = 0
VERSION = 1
_MAX_UINT = (1 << 64) - 1
_MIN_INT = -(1 << 63)

Value = Any
"""A decoded value: int, bytes, str, bool, None, list or dict of these."""


def _refuse_tag(*_: object) -> NoReturn:
    raise MalformedError("a CBOR tag stands where none is allowed")


# cbor2 builds regular expressions, dates, shared and cyclic references out of tags. None of that may run on
# hostile input, so each tag it knows is overridden, and those it does not know go to the hook.
_REFUSED_TAGS = dict.fromkeys((*range(64), 100, 256, 258, 260, 261, 1004, 43000, 55799), _refuse_tag)


def encode(value: Value) -> bytes:
    """Return the deterministic encoding of `value`; the caller builds it from allowed types only."""
    data = cbor2.dumps(value, canonical=True)
    assert isinstance(data, bytes)
    return data


def encode_ordered(value: Value) -> bytes:
    """Like `encode` for a value whose map keys already stand in order: five times faster on the hot path.

    Raises nothing if the order is wrong; `decode` would refuse the result, and tests hold the callers to it.
    """
    data = cbor2.dumps(value)
    assert isinstance(data, bytes)
    return data


def decode(data: bytes, *, max_bytes: int, what: str = "CBOR") -> Value:
    """Decode exactly one deterministic item of at most `max_bytes` bytes.

    Raises:
        MalformedError: too long, not CBOR, trailing bytes, a forbidden type or key, or not deterministic.
    """
    if len(data) > max_bytes:
        raise MalformedError(f"{what} has {len(data)} bytes, {max_bytes} are allowed")
    value = _load(data, what)
    _check((value,), what)
    if cbor2.dumps(value) != data:
        raise MalformedError(f"{what} is not in its deterministic encoding, or bytes follow it")
    return value


def decode_unordered(data: bytes, *, max_bytes: int, what: str = "CBOR") -> Value:
    """Decode exactly one item of a format that is not ours: as `decode`, but with keys of both kinds in any order.

    Lengths are definite and shortest, no key stands twice, and nothing follows.

    Raises:
        MalformedError: too long, not CBOR, trailing bytes, a forbidden type, or another encoding of the same value.
    """
    if len(data) > max_bytes:
        raise MalformedError(f"{what} has {len(data)} bytes, {max_bytes} are allowed")
    value = _load(data, what)
    _check_types((value,), what)
    if cbor2.dumps(value) != data:  # keeps the order of keys
        raise MalformedError(f"{what} is not in its shortest encoding, or bytes follow it")
    return value


def _check_types(items: Iterable[Value], what: str) -> None:
    for item in items:
        if type(item) is dict:
            if any(type(key) is not int and type(key) is not str for key in item):
                raise MalformedError(f"{what} has a map key that is neither an integer nor text")
            _check_types(item.values(), what)
        elif type(item) is list:
            _check_types(item, what)
        elif type(item) not in (bytes, str, int, bool) and item is not None:
            raise MalformedError(f"{what} has a value of a type that is not allowed")


def item_end(data: bytes, position: int, *, max_bytes: int, what: str = "CBOR") -> int:
    """Return where the deterministic item that begins at `position` of a CBOR sequence ends (RFC 8742).

    Raises:
        MalformedError: no such item of at most `max_bytes` bytes stands there.
    """
    window = data[position : position + max_bytes]
    value = _load(window, what)
    _check((value,), what)
    item = cbor2.dumps(value)
    if not window.startswith(item):
        raise MalformedError(f"{what} holds an item that is not in its deterministic encoding")
    return position + len(item)


def _load(data: bytes, what: str) -> Value:
    if len(data) > _MAX_UNCOUNTED:
        _check_count(data, what)
    try:
        return cbor2.loads(
            data,
            tag_hook=_refuse_tag,
            semantic_decoders=_REFUSED_TAGS,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
        )
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise MalformedError(f"{what} is not strict CBOR: {_first_line(error)}") from None


def _check_count(data: bytes, what: str) -> None:
    """Refuse data whose first item holds more than `MAX_ITEMS`; what else is wrong with it is left to the decoder."""
    position = items = 0
    pending = 1
    while pending and position < len(data):
        items += 1
        if items > MAX_ITEMS:
            raise MalformedError(f"{what} holds more than {MAX_ITEMS} items")
        major, argument = data[position] >> 5, data[position] & 0x1F
        position += 1
        if argument >= 24:
            size = 1 << (argument & 3)
            argument = int.from_bytes(data[position : position + size])
            position += size
        pending -= 1
        if major in (2, 3):
            position += argument
        elif major in (4, 5):
            pending += argument * (major - 3)
        elif major == 6:
            pending += 1


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:200]


def _check(items: Iterable[Value], what: str) -> None:
    """Refuse types, integers and keys that the format does not have, and maps out of order."""
    for item in items:
        kind = type(item)
        if kind is bytes or kind is str:
            continue
        if kind is int:
            if not _MIN_INT <= item <= _MAX_UINT:
                raise MalformedError(f"{what} has an integer of more than 64 bits")
        elif kind is dict:
            _check_keys(item, what)
            _check(item.values(), what)
        elif kind is list:
            _check(item, what)
        elif kind is not bool and item is not None:
            raise MalformedError(f"{what} has a value of a type that is not allowed")


def _check_keys(item: dict[Any, Any], what: str) -> None:
    previous = -1
    for key in item:
        if type(key) is not int or not previous < key <= 23:
            if type(key) is str and previous == -1:
                _check_text_keys(item, what)
                return
            key = _negative_rank(key, previous, what)  # noqa: PLW2901 - its place among the keys
        previous = key


def _negative_rank(key: Any, previous: int, what: str) -> int:
    """Return the place of a negative key: 0, 1, … 23 come before -1, -2, … -24, as their encoded bytes do."""
    if type(key) is not int:
        raise MalformedError(f"{what} has map keys that are neither all integers nor all text")
    if not -24 <= key <= 23:
        raise MalformedError(f"{what} has the integer key {key}, outside -24 to 23")
    if key >= 0 or 23 - key <= previous:
        raise MalformedError(f"{what} has map keys out of order")
    return 23 - key


def _check_text_keys(item: dict[Any, Any], what: str) -> None:
    previous, length = b"", -1
    for key in item:
        if type(key) is not str:
            raise MalformedError(f"{what} has map keys that are neither all integers nor all text")
        encoded = key.encode()
        if len(encoded) <= length and (len(encoded) < length or encoded <= previous):
            raise MalformedError(f"{what} has map keys out of order")
        previous, length = encoded, len(encoded)


class Fields:
    """Typed access to one decoded map with integer keys: every positive key must be asked for.

    Use: construct, take each field, then call `finish`, which refuses unknown positive keys and returns the
    unknown negative ones (they are "not understood", design section 3).
    """

    __slots__ = ("_left", "_what")

    def __init__(self, value: Value, what: str) -> None:
        if type(value) is not dict or (value and type(next(iter(value))) is not int):
            raise MalformedError(f"{what} is not a map with integer keys")
        self._left: dict[int, Any] = dict(value)
        self._what = what

    @classmethod
    def artefact(cls, value: Value, what: str, kind: int, version: int = 1) -> Fields:
        """Open an artefact's map, whose key 0 must be `kind` and key 1 `version`.

        Raises:
            MalformedError: not a map, or of another kind.
            UnsupportedError: the kind fits but the version is unknown.
        """
        fields = cls(value, what)
        found = fields._left.pop(KIND, None)
        if type(found) is not int or found != kind:
            raise MalformedError(f"{what}: expected kind {kind}, found {found!r:.40}")
        found = fields._left.pop(VERSION, None)
        if type(found) is not int:
            raise MalformedError(f"{what} has no version")
        if found != version:
            raise UnsupportedError(f"{what} has version {found}, this verifier knows {version}")
        return fields

    def _fail(self, key: int, why: str) -> NoReturn:
        raise MalformedError(f"{self._what}: field {key} {why}")

    def has(self, key: int) -> bool:
        """Tell whether a field is there and has not been taken."""
        return key in self._left

    def octets(self, key: int, low: int, high: int | None = None) -> bytes:
        """Take a byte string of `low` bytes, or of `low` to `high`."""
        value = self._left.pop(key, None)
        if type(value) is not bytes:
            self._fail(key, "is missing or not a byte string")
        if not low <= len(value) <= (low if high is None else high):
            self._fail(key, f"has {len(value)} bytes")
        return value

    def maybe_octets(self, key: int, low: int, high: int | None = None) -> bytes | None:
        """Take a byte string if the field is there."""
        return self.octets(key, low, high) if key in self._left else None

    def text(self, key: int, high: int) -> str:
        """Take a text of at most `high` UTF-8 bytes."""
        value = self._left.pop(key, None)
        if type(value) is not str:
            self._fail(key, "is missing or not text")
        if len(value.encode()) > high:
            self._fail(key, "is too long")
        return value

    def uint(self, key: int, high: int = _MAX_UINT) -> int:
        """Take an unsigned integer of at most `high`."""
        value = self._left.pop(key, None)
        if type(value) is not int or value < 0:
            self._fail(key, "is missing or not an unsigned integer")
        if value > high:
            self._fail(key, f"is over {high}")
        return value

    def array(self, key: int, high: int) -> list[Any]:
        """Take an array of at most `high` items."""
        value = self._left.pop(key, None)
        if type(value) is not list:
            self._fail(key, "is missing or not an array")
        if len(value) > high:
            self._fail(key, f"has {len(value)} items, {high} are allowed")
        return value

    def mapping(self, key: int, high: int) -> dict[Any, Any]:
        """Take a map of at most `high` entries."""
        value = self._left.pop(key, None)
        if type(value) is not dict:
            self._fail(key, "is missing or not a map")
        if len(value) > high:
            self._fail(key, f"has {len(value)} entries, {high} are allowed")
        return value

    def finish(self) -> tuple[int, ...]:
        """Refuse positive keys nobody asked for; return the negative ones, not understood.

        Raises:
            MalformedError: an unknown key that is not negative is left.
        """
        left = self._left
        if not left:
            return ()
        for key in left:
            if key >= 0:
                self._fail(key, "is unknown")
        return tuple(left)


def texts(value: Mapping[Any, Any], what: str) -> None:
    """Refuse a map whose keys are not text (an empty map passes)."""
    if value and type(next(iter(value))) is not str:
        raise MalformedError(f"{what} must have text keys")
