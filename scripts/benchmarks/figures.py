# SPDX-License-Identifier: Apache-2.0
"""What a figure is, and how ratios are measured so that a busy machine does not decide them.

Both sides of a ratio run in one process or on one machine by turns, in short slices; each round gives a ratio of its
own, and the figure is the median of the rounds.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

ROUNDS = 9
"""Rounds of every ratio; `--quick` takes three."""

PAUSE = 0.4
"""Seconds between two rounds: what disturbs the machine for a moment then disturbs few of them."""


@dataclass(frozen=True)
class Bar:
    """What a figure is held against: `at_least` or at most `limit`."""

    limit: float
    at_least: bool

    def holds(self, value: float) -> bool:
        """Tell whether a value meets the bar."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:.10g}"


@dataclass(frozen=True)
class Measured:
    """One value for each round, and in words how they came about."""

    values: Sequence[float]
    how: str

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.values)


class NotMeasured(Exception):  # noqa: N818 - an outcome, not a fault
    """What the figure needs is not there; the message says what."""


def as_json(bar: Bar | None, measured: Measured) -> dict[str, Any]:
    """Return a figure as it stands in the result; `spread` is the lowest and the highest round.

    A figure without a bar is for information: it neither holds nor fails.
    """
    value = measured.value
    shown = significant(value)
    if bar is not None and bar.holds(shown) != bar.holds(value):
        shown = value  # no rounding may lift a value over its bar
    return {
        "value": shown,
        "bar": "none" if bar is None else str(bar),
        "holds": None if bar is None else bar.holds(value),
        "spread": [significant(min(measured.values)), significant(max(measured.values))],
        "how": measured.how,
    }


def not_measured(bar: Bar | None, why: str) -> dict[str, Any]:
    """Return a figure that could not be measured."""
    bar_text = "none" if bar is None else str(bar)
    return {"value": None, "bar": bar_text, "holds": None, "spread": None, "how": f"not measured: {why}"}


def significant(value: float) -> float:
    """Return the value to four significant digits."""
    return float(f"{value:.4g}") if abs(value) < 10_000 else round(value)


def progress(text: str) -> None:
    """Say on stderr what is being done."""
    print(text, file=sys.stderr, flush=True)


def by_turns(
    first: Callable[[], object], second: Callable[[], object], *, rounds: int, slices: int = 20
) -> list[tuple[float, float]]:
    """Run two functions by turns; return for each round the seconds that either took in all its slices."""
    gc.collect()
    gc.disable()
    try:
        for function in (first, second):
            function()
        spent = []
        for _ in range(rounds):
            time.sleep(PAUSE)
            spent.append(_round(first, second, slices))
        return spent
    finally:
        gc.enable()


def _round(first: Callable[[], object], second: Callable[[], object], slices: int) -> tuple[float, float]:
    spent = [0.0, 0.0]
    for number in range(slices):
        order = ((0, first), (1, second))
        for place, function in order if number % 2 else reversed(order):
            begun = time.perf_counter()
            function()
            spent[place] += time.perf_counter() - begun
    return spent[0], spent[1]
