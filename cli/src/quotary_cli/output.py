# SPDX-License-Identifier: Apache-2.0
"""Rules of the terminal: stdout is the result, everything else is stderr, and text from evidence is escaped.

Messages are lower case without a final full stop; a failure that has a way out carries a `hint:` line. With
`--json` stdout holds exactly one object, on failure too.
"""

from __future__ import annotations

import json
import os
import sys
from enum import IntEnum
from typing import Any

import click

ERROR_SCHEMA = "quotary-error/v1"


class ExitCode(IntEnum):
    """The exit codes of every command (design section 7)."""

    OK = 0
    REJECTED = 1
    USAGE = 2
    NOT_CHECKED = 3
    FAILURE = 4


class Failure(Exception):  # noqa: N818 - it carries the outcome of a command, which need not be an error
    """A command cannot go on: a message for people, the exit code, and a hint where there is a way out."""

    def __init__(self, message: str, *, code: ExitCode, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


def clean(text: str) -> str:
    """Return text with every character that a terminal could act on written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def wants_json(arguments: list[str]) -> bool:
    """Tell whether the command line asks for JSON, also where it did not parse."""
    head = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in head


def print_json(value: dict[str, Any]) -> None:
    """Print one object on stdout, non-ASCII and control characters escaped, keys in the order given."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def print_failure(failure: Failure, *, as_json: bool) -> None:
    """Print a failure: for people on stderr, as one object on stdout if JSON was asked for."""
    message = clean(str(failure))
    if as_json:
        print_json(
            {"schema": ERROR_SCHEMA, "error": message, "hint": clean(failure.hint), "exit": int(failure.code)}
        )
        return
    click.echo(f"{style('error:', 'red')} {message}", err=True)
    if failure.hint:
        click.echo(f"{style('hint:', 'cyan')} {clean(failure.hint)}", err=True)


def style(text: str, colour: str, *, stream: Any = None) -> str:
    """Colour text for a terminal; click takes the codes out elsewhere, NO_COLOR always."""
    stream = sys.stderr if stream is None else stream
    if os.environ.get("NO_COLOR") or not stream.isatty():
        return text
    return click.style(text, fg=colour, bold=True)


def note(message: str) -> None:
    """Tell people on stderr what is going on."""
    click.echo(clean(message), err=True)
