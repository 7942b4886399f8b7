# SPDX-License-Identifier: Apache-2.0
"""Patterns of command lines mean what they mean in `re`, in time that nobody can blow up."""

from __future__ import annotations

import random
import re

import pytest

from quotary_verifier import MalformedError
from quotary_verifier.policy.patterns import MAX_PATTERN, MAX_TEXT, Pattern

ATOMS = [
    "a",
    "b",
    ".",
    "\\.",
    "[ab]",
    "[^a]",
    "\\d",
    "\\W",
    "[a-c]",
    "\\-",
    "[\\w-]",
    "[^\\s.]",
    "ab",
    "[a\\]]",
]


def made(chance: random.Random, depth: int = 0) -> str:
    kind = chance.random()
    if depth > 3 or kind < 0.4:
        return chance.choice(ATOMS)
    if kind < 0.6:
        sign = chance.choice(["", "*", "+", "?", "{2}", "{1,3}", "{0,}"])
        return f"({made(chance, depth + 1)}){sign}"
    if kind < 0.8:
        return made(chance, depth + 1) + made(chance, depth + 1)
    return f"(?:{made(chance, depth + 1)}|{made(chance, depth + 1)})"


def test_a_pattern_fits_exactly_what_the_same_regular_expression_fits() -> None:
    chance = random.Random(20_261_123)
    for _ in range(3000):
        text = made(chance)
        line = "".join(chance.choice("abc1.-]\n") for _ in range(chance.randrange(7)))
        assert Pattern(text).fits(line) == bool(re.fullmatch(text, line, re.ASCII)), (text, line)


def test_it_must_fit_the_whole_of_a_text() -> None:
    assert Pattern("ro quiet").fits("ro quiet")
    assert not Pattern("ro quiet").fits("ro quiet init=/bin/sh")
    assert not Pattern("ro quiet").fits("init=/bin/sh ro quiet")
    assert not Pattern("ro quiet").fits("ro quiet\n")


@pytest.mark.parametrize(
    "text",
    [
        "a**", "a+?", "*a", "(", "a)", "[a", "[]", "[b-a]", "\\", "\\b", "\\1", "\\x41", "a{", "a{65}", "a{2,1}", "{3}",
        "(?=a)", "(?P<x>a)", "(?i)a", "^a", "a$", "a" * (MAX_PATTERN + 1), "(" * 17 + "a" + ")" * 17, "[[a]", "[a-[]",
    ],
)  # fmt: skip
def test_it_refuses(text: str) -> None:
    with pytest.raises(MalformedError, match="pattern"):
        Pattern(text)


def test_repetitions_of_repetitions_cannot_make_a_pattern_large() -> None:
    with pytest.raises(MalformedError, match="multiply"):
        Pattern("(((a{60}){60}){60})")


@pytest.mark.parametrize("nothing", ["()", "(a{0})"])
def test_repetitions_of_nothing_take_no_time(nothing: str) -> None:
    """Each level once took 64 times as long as the one in it: hours for a line of a policy."""
    pattern = Pattern("(" * 13 + nothing + "{64})" * 13)
    assert (pattern.fits(""), pattern.fits("a")) == (True, False)


def test_a_pattern_that_is_exponential_elsewhere_is_not_here() -> None:
    """`re` takes longer than the age of the universe for this one."""
    pattern = Pattern("(a*)*(a|aa)*(a|a?)*b")
    assert not pattern.fits("a" * 1000)
    assert pattern.fits("a" * 100 + "b")


def test_a_text_that_is_too_long_fits_nothing() -> None:
    assert Pattern(".*").fits("a" * MAX_TEXT)
    assert not Pattern(".*").fits("a" * (MAX_TEXT + 1))


def test_patterns_are_equal_by_their_text() -> None:
    assert Pattern("a.*") == Pattern("a.*")
    assert len({Pattern("a.*"), Pattern("a.*"), Pattern("b")}) == 2
    assert repr(Pattern("a")) == "Pattern('a')"
