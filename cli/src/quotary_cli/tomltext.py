# SPDX-License-Identifier: Apache-2.0
"""Writing TOML with remarks, as people would: only what policies need."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from quotary_cli.output import clean

_WIDTH = 100


def string(text: str) -> str:
    """Return a basic string, in which a terminal finds nothing to act on and a reader nothing that he cannot see."""
    written = json.dumps(text, ensure_ascii=False)
    return "".join([char if char.isprintable() else _escape(char) for char in written])


def _escape(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def strings(values: Iterable[str], *, sort: bool = True) -> str:
    """Return an array of strings, one to a line where there are several."""
    items = [string(value) for value in (sorted(values) if sort else values)]
    if len(items) < 2:
        return f"[{''.join(items)}]"
    return "[\n" + "".join(f"    {item},\n" for item in items) + "]"


def remark(text: str) -> str:
    """Return a text as remarks of bounded width."""
    lines: list[str] = []
    for word in clean(text).split(" "):
        if lines and len(lines[-1]) + len(word) < _WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "".join(f"# {line}\n" for line in lines)


def table(name: str, entries: Sequence[tuple[str, str]], *, remarks: Iterable[str] = ()) -> str:
    """Return a table with its entries, whose values are TOML already; remarks stand before them."""
    body = "".join(f"{key} = {value}\n" for key, value in entries)
    return f"{name}\n{''.join(map(remark, remarks))}{body}"
