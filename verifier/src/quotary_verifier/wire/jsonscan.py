# SPDX-License-Identifier: Apache-2.0
"""A strict scanner for the top-level members of one JSON object (RFC 8259; docs/spec/inband.md).

The in-band form copies values as they were written, byte for byte, so it needs to know where a value begins
and ends; parsing and writing again would not give the same bytes. A scan takes linear time and bounded depth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NoReturn

from quotary_verifier.errors import MalformedError

MAX_DEPTH = 64
"""Arrays and objects inside one another, the outermost object included. What is deeper is not scanned."""

_SPACE = re.compile(r"[ \t\n\r]*+")
_OPEN = re.compile(r"[ \t\n\r]*+\{[ \t\n\r]*+")
_COLON = re.compile(r"[ \t\n\r]*+:[ \t\n\r]*+")
_NEXT = re.compile(r"[ \t\n\r]*+([,}])[ \t\n\r]*+")
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?+|[\[\]{}]', re.DOTALL)
# A string that does not end reaches to the end of the text: to look for others inside of it would not be linear.


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError


def _leave_number(_: str) -> None:
    return None


# Numbers are only skipped: turning a million digits into an integer would not be linear.
_DECODER = json.JSONDecoder(
    parse_int=_leave_number, parse_float=_leave_number, parse_constant=_refuse_constant
)


def members(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield `(name, start, end)` for each member of the object that `text` is, in order, duplicates included.

    `name` is the unescaped name; the value is `text[start:end]`, without the space around it. Only space may
    surround the object.

    Raises:
        MalformedError: `text` is not one JSON object of at most `MAX_DEPTH` levels. The members before the
            place that shows it have been yielded by then.
    """
    _check_depth(text)
    opening = _OPEN.match(text)
    if opening is None:
        raise MalformedError("not a JSON object")
    position = opening.end()
    if text.startswith("}", position):
        position = _space_after(text, position + 1)
    else:
        separator = ","
        while separator == ",":
            name, position = _name(text, position)
            start, position = position, _value_end(text, position)
            yield name, start, position
            following = _NEXT.match(text, position)
            if following is None:
                raise MalformedError("a member of a JSON object is not followed by a comma or a brace")
            separator, position = following[1], following.end()
    if position != len(text):
        raise MalformedError("something follows a JSON object")


def _space_after(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    return space.end() if space else position


def _name(text: str, position: int) -> tuple[str, int]:
    """Read a member's name and the colon after it; return it and where the value begins."""
    if not text.startswith('"', position):
        raise MalformedError("a member of a JSON object has no name")
    name, position = _decode(text, position)
    colon = _COLON.match(text, position)
    if colon is None:
        raise MalformedError("a name in a JSON object is not followed by a colon")
    assert isinstance(name, str)
    return name, colon.end()


def _value_end(text: str, position: int) -> int:
    return _decode(text, position)[1]


def _decode(text: str, position: int) -> tuple[object, int]:
    try:
        return _DECODER.raw_decode(text, position)
    except ValueError:
        raise MalformedError("a value in a JSON object is malformed") from None


def _check_depth(text: str) -> None:
    """Refuse text whose brackets nest deeper than allowed, before the recursive decoder sees it."""
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        mark = text[token.start()]
        if mark in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise MalformedError(f"a JSON object nests deeper than {MAX_DEPTH} levels")
        elif mark != '"':
            depth -= 1
