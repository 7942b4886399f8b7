# SPDX-License-Identifier: Apache-2.0
"""The collector comes when nobody waits, reaches what is old as well, and is not lost where nobody calls it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from quotary_attest import memory


class Ring:
    """Garbage that only the collector can find."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture
def generations() -> Iterator[list[int]]:
    found: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            found.append(info["generation"])

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


def make(count: int) -> None:
    for _ in range(count):
        Ring()


def test_every_generation_has_its_turn_and_the_collector_never_comes_by_itself(
    generations: list[int],
) -> None:
    memory.settle(spare=True)
    generations.clear()
    for _ in range(16 * 16 + 40):
        make(2_100)
        memory.collect()
    assert generations.count(2) == 1
    assert generations.count(1) >= 16
    assert len(generations) == 16 * 16 + 40
    assert not any(type(each) is Ring for each in gc.get_objects(generation=0))


def test_little_is_not_worth_a_collection(generations: list[int]) -> None:
    memory.settle(spare=True)
    generations.clear()
    for _ in range(3):
        memory.collect()
    assert generations == []


def test_where_nobody_calls_it_the_collector_comes_by_itself(generations: list[int]) -> None:
    memory.settle(spare=True)
    generations.clear()
    make(450_000)
    assert generations
    memory.settle()
    generations.clear()
    make(60_000)
    assert generations
