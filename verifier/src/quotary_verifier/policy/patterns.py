# SPDX-License-Identifier: Apache-2.0
"""Patterns for command lines: regular expressions without the parts that can take exponential time.

A policy may come from a stranger, and so may a command line, so neither may make a verifier think for long. Python's
`re` backtracks; the matcher here goes through a text once and keeps the set of states that the pattern can be in, so
that it takes time in proportion to pattern times text, both of which are bounded. What it knows means what it means in
`re`, and nothing else is taken:

    characters   any but \\ . [ ] ( ) { } * + ? | ^ $, and these behind a backslash
    .            any character but newline
    \\d \\s \\w     and their opposites in upper case, ASCII only; \\n and \\t
    [a-z_]       one of some characters, [^…] any other; classes may stand inside
    (…)  |       grouping (also written (?:…)), alternatives
    * + ? {n} {n,} {n,m}   repetition, up to 64 times where a number is given

A pattern must fit a whole text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from quotary_verifier.errors import MalformedError

MAX_PATTERN: Final = 4096
"""Characters of a pattern."""
MAX_TEXT: Final = 8 * 1024
"""Characters of a text; a longer one fits no pattern. Linux takes 2,048 to 4,096 bytes of a command line."""
_MAX_STATES: Final = 4 * 1024
_MAX_REPEAT: Final = 64
_MAX_DEPTH: Final = 16

_SPECIAL: Final = frozenset("\\.[](){}*+?|^$")
_CLASSES: Final[dict[str, frozenset[str]]] = {
    "d": frozenset("0123456789"),
    "s": frozenset(" \t\n\r\f\v"),
    "w": frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"),
}

_CONTROLS: Final = {"n": "\n", "t": "\t"}

_Test = Callable[[str], bool]


class Pattern:
    """A compiled pattern; two are equal if their texts are."""

    __slots__ = ("_eats", "_first", "_jumps", "text")

    def __init__(self, text: str) -> None:
        """Compile a pattern.

        Raises:
            MalformedError: it is too long or has something that is not known.
        """
        if len(text) > MAX_PATTERN:
            raise MalformedError(f"a pattern has at most {MAX_PATTERN} characters")
        self.text = text
        compiled = _Compiler(text)
        self._eats, self._jumps, self._first = compiled.eats, compiled.jumps, compiled.first

    def fits(self, text: str) -> bool:
        """Tell whether the pattern fits the whole of a text."""
        if len(text) > MAX_TEXT:
            return False
        states = self._closure({self._first})
        for character in text:
            after = {eater[1] for state in states if (eater := self._eats.get(state)) and eater[0](character)}
            if not after:
                return False
            states = self._closure(after)
        return _END in states

    def _closure(self, states: set[int]) -> set[int]:
        """Return the states that can be reached without a character."""
        reached, left = set(states), list(states)
        while left:
            for state in self._jumps.get(left.pop(), ()):
                if state not in reached:
                    reached.add(state)
                    left.append(state)
        return reached

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


_END: Final = 0


class _Compiler:
    """Turns a pattern into states, from its end to its beginning: each piece is compiled towards the state behind it.

    `eats` has for a state the test of a character and the next state, `jumps` the states that it is at once.
    """

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth = text, 0, 0
        self._states = 1
        self.eats: dict[int, tuple[_Test, int]] = {}
        self.jumps: dict[int, tuple[int, ...]] = {}
        piece = self._alternatives()
        if self._at < len(text):
            raise self._error("closes a group that is not open")
        self.first = piece(_END)

    def _alternatives(self) -> _Piece:
        pieces = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            pieces.append(self._sequence())
        if len(pieces) == 1:
            return pieces[0]
        return lambda after: self._fork(*[piece(after) for piece in pieces])

    def _sequence(self) -> _Piece:
        pieces: list[_Piece] = []
        while self._peek() not in ("", "|", ")"):
            pieces.append(self._repeated())

        def compiled(after: int) -> int:
            for piece in reversed(pieces):
                after = piece(after)
            return after

        return compiled

    def _repeated(self) -> _Piece:
        piece = self._atom()
        sign = self._peek()
        if sign not in ("*", "+", "?", "{"):
            return piece
        self._at += 1
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(sign) or self._counts()
        if self._peek() in ("*", "+", "?", "{"):
            raise self._error("repeats a repetition")
        return lambda after: self._repeat(piece, least, most, after)

    def _repeat(self, piece: _Piece, least: int, most: int | None, after: int) -> int:
        if most is None:
            loop = self._new()
            self.jumps[loop] = (piece(loop), after)
            first = loop
        else:
            first = after
            for _ in range(most - least):
                first = self._fork(piece(first), after)
        for _ in range(least):
            before, first = first, piece(first)
            if first == before:  # a piece without a character: any number of it is nothing
                break
        return first

    def _counts(self) -> tuple[int, int | None]:
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at : max(end, self._at)].partition(",")
        self._at = end + 1
        if not low.isdecimal() or (high and not high.isdecimal()) or len(low) > 2 or len(high) > 2:
            raise self._error("has a repetition that is not {n}, {n,} or {n,m}")
        least, most = int(low), (int(high) if high else None) if comma else int(low)
        if max(least, most or 0) > _MAX_REPEAT or (most is not None and most < least):
            raise self._error(f"has a repetition of more than {_MAX_REPEAT}, or of less than none")
        return least, most

    def _atom(self) -> _Piece:
        sign = self._take()
        if sign == "(":
            return self._group()
        if sign == "[":
            return self._eater(self._set())
        if sign == ".":
            return self._eater(lambda character: character != "\n")
        if sign == "\\":
            return self._eater(self._escaped())
        if sign in _SPECIAL:
            raise self._error(f"has a {sign} where none can stand (write \\{sign} for the character)")
        return self._eater(sign.__eq__)

    def _group(self) -> _Piece:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error(f"has groups in groups, more than {_MAX_DEPTH}")
        if self._peek() == "?":
            if self._text[self._at : self._at + 2] != "?:":
                raise self._error("has a group of a kind that is not known")
            self._at += 2
        piece = self._alternatives()
        if self._peek() != ")":
            raise self._error("opens a group that it does not close")
        self._at += 1
        self._depth -= 1
        return piece

    def _escaped(self) -> _Test:
        sign = self._take()
        members = _CLASSES.get(sign.lower())
        if members is not None:
            return members.__contains__ if sign.islower() else lambda character: character not in members
        return self._literally(sign).__eq__

    def _set(self) -> _Test:
        """Read `[…]`: characters, ranges, classes."""
        inverted = self._peek() == "^"
        self._at += inverted
        tests: list[_Test] = []
        while self._peek() != "]" or not tests:
            tests.append(self._member())
        self._at += 1
        return lambda character: any(test(character) for test in tests) is not inverted

    def _member(self) -> _Test:
        low = self._take()
        if low == "\\":
            if self._peek().lower() in _CLASSES:
                return self._escaped()
            low = self._literally(self._take())
        elif low in "[]":
            raise self._error(f"has a {low} in a set (write \\{low} for the character)")
        if self._text[self._at : self._at + 1] != "-" or self._text[self._at + 1 : self._at + 2] in ("", "]"):
            return low.__eq__
        self._at += 1
        high = self._take()
        if high == "\\":
            high = self._literally(self._take())
        if high < low or high == "[":
            raise self._error(f"has a range from {low} to {high}")
        return lambda character: low <= character <= high

    def _literally(self, sign: str) -> str:
        """Return the character that stands behind a backslash for itself, or for a newline or tab."""
        if sign in _CONTROLS:
            return _CONTROLS[sign]
        if sign.isalnum():
            raise self._error(f"has \\{sign}, which is not known")
        return sign

    def _eater(self, test: _Test) -> _Piece:
        def compiled(after: int) -> int:
            state = self._new()
            self.eats[state] = (test, after)
            return state

        return compiled

    def _fork(self, *states: int) -> int:
        state = self._new()
        self.jumps[state] = states
        return state

    def _new(self) -> int:
        if self._states >= _MAX_STATES:
            raise self._error("is too large: its repetitions multiply")
        self._states += 1
        return self._states - 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        sign = self._peek()
        if not sign:
            raise self._error("ends where something must follow")
        self._at += 1
        return sign

    def _error(self, why: str) -> MalformedError:
        return MalformedError(f"the pattern {why} (near character {self._at})")


_Piece = Callable[[int], int]
"""Makes the states of a piece of the pattern that go on with a given one; returns the first of them."""
