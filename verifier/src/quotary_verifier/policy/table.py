# SPDX-License-Identifier: Apache-2.0
"""Reads TOML tables strictly: what nobody asked for is an error, and so is a value of another type."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

from quotary_verifier.errors import MalformedError, PolicyError, QuotaryError

_RESETTABLE = range(16, 24)
T = TypeVar("T")


class Table:
    """One TOML table; `finish` refuses the keys that nobody took."""

    def __init__(self, value: dict[str, Any], path: str) -> None:
        self._left = dict(value)
        self.path = path

    def fail(self, key: str, why: str) -> NoReturn:
        """Refuse the policy for what it says at a key; raises PolicyError always."""
        raise PolicyError(f"policy: {self.path}{key} {why}")

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Take a value of exactly this type; without a default it must be there."""
        if key not in self._left:
            if default is None:
                self.fail(key, "is missing")
            return default
        value = self._left.pop(key)
        if type(value) is not kind:
            self.fail(key, f"must be of type {kind.__name__}")
        return value

    def maybe(self, key: str, kind: type[T]) -> T | None:
        """Take a value of exactly this type, None where there is none."""
        return self.take(key, kind) if key in self._left else None

    def texts(self, key: str) -> list[str] | None:
        """Take a list of strings, None where there is none."""
        value = self.maybe(key, list)
        if value is not None and any(type(item) is not str for item in value):
            self.fail(key, "must be a list of strings")
        return value

    def table(self, key: str) -> Table:
        """Take an inner table, an empty one where there is none."""
        return Table(self.take(key, dict, {}), f"{self.path}{key}.")

    def tables(self, key: str) -> list[Table]:
        """Take an array of tables."""
        items = self.take(key, list, [])
        if any(type(item) is not dict for item in items):
            self.fail(key, f"must be written as [[{key}]]")
        return [Table(item, f"{self.path}{key}[{number}].") for number, item in enumerate(items)]

    def moment(self, key: str) -> int:
        """Take a date and time with its offset from UTC, and return it in seconds since the epoch."""
        moment = self.take(key, datetime)
        if moment.tzinfo is None:
            self.fail(key, "must say its offset from UTC, as 2027-01-31T00:00:00Z does")
        try:
            seconds = math.floor(moment.timestamp())
            datetime.fromtimestamp(seconds, UTC)
        except (ValueError, OverflowError):  # its offset leads out of the calendar
            self.fail(key, "is no time that can be told in UTC")
        return seconds

    def names(self) -> list[str]:
        """Return the keys that nobody took yet."""
        return list(self._left)

    def convert(self, key: str, value: str, function: Callable[[str], T]) -> T:
        """Make of a string what it stands for; PolicyError where it stands for nothing."""
        try:
            return function(value)
        except (QuotaryError, ValueError) as error:
            self.fail(key, f"cannot be used: {error}")

    def finish(self) -> None:
        """Refuse the policy if it has a key here that nobody took."""
        for key in self._left:
            self.fail(key, "is not a key that this verifier knows")


def sha256_digest(text: str) -> bytes:
    """Read a SHA-256 digest in lower-case hexadecimal, `sha256:` before it or not; MalformedError if it is none."""
    text = text.removeprefix("sha256:")
    digest = bytes.fromhex(text)
    if len(digest) != 32 or digest.hex() != text:
        raise MalformedError("a SHA-256 digest has 64 lower-case hexadecimal digits")
    return digest


def pcr_values(table: Table) -> dict[int, frozenset[bytes]]:
    """Read a table of PCRs and the values that each may have."""
    pcrs: dict[int, frozenset[bytes]] = {}
    for key in table.names():
        if len(key) > 2 or not key.isdecimal() or key != str(int(key)) or int(key) > 23:
            table.fail(key, "is not a PCR")
        if int(key) in _RESETTABLE:
            table.fail(key, "can be reset without a reboot, so its value proves nothing")
        values = table.texts(key) or []
        if not values:
            table.fail(key, "allows no value")
        pcrs[int(key)] = frozenset(table.convert(key, value, sha256_digest) for value in values)
    return pcrs
