# SPDX-License-Identifier: Apache-2.0
"""Path globs, matched in time in proportion to the path: `*` stands for any bytes, also `/`, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterable


class Globs:
    """Some globs; a path fits if one of them fits the whole of it."""

    __slots__ = ("_exact", "_parts")

    def __init__(self, globs: Iterable[str]) -> None:
        parts = [tuple(glob.encode().split(b"*")) for glob in globs]
        self._exact = frozenset([first for first, *rest in parts if not rest])
        self._parts = tuple([(first, rest[:-1], rest[-1]) for first, *rest in parts if rest])

    def fit(self, path: bytes) -> bool:
        """Tell whether one of the globs fits a path."""
        if path in self._exact:
            return True
        for first, middle, last in self._parts:
            if path.startswith(first) and path.endswith(last) and _between(path, first, middle, last):
                return True
        return False


def _between(path: bytes, first: bytes, middle: Iterable[bytes], last: bytes) -> bool:
    """Tell whether the middle parts stand between the first and the last, in order and without overlap."""
    at, end = len(first), len(path) - len(last)
    for part in middle:
        found = path.find(part, at, max(at, end))
        if found < 0:
            return False
        at = found + len(part)
    return at <= end
