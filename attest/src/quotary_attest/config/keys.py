# SPDX-License-Identifier: Apache-2.0
"""Reads tables of a TOML file into frozen dataclasses, and reports everything that is wrong with them at once.

A section is a dataclass whose fields are made with `key`, `table`, `tables` or `mapping`: each says what it allows,
which is what error messages and `docs/reference/configuration.md` repeat. A value is never quoted in a message: it may
be a secret.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

S = TypeVar("S")

REQUIRED: Final[Any] = dataclasses.MISSING
"""The default of a key that must be given."""

_RULE: Final = "rule"
_WRONG: Final[Any] = object()
_KINDS: Final[tuple[tuple[type, str], ...]] = (
    (bool, "a boolean"),
    (str, "a text"),
    (int, "an integer"),
    (float, "a number with a point"),
    (list, "a list"),
    (dict, "a table"),
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the key's path, what is wrong there, and what is allowed."""

    path: str
    what: str
    allowed: str = ""

    def __str__(self) -> str:
        allowed = f"; allowed: {self.allowed}" if self.allowed else ""
        return f"{self.path}: {self.what}{allowed}" if self.path else f"{self.what}{allowed}"


class ConfigError(Exception):
    """A configuration that cannot be used. `problems` is everything that is wrong with it, in the file's order."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class Unfit(Exception):  # noqa: N818 - a value is
    """Raised by a rule for a value that it does not take. The text says what is wrong, without the value."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a key takes: `allowed` for people, `read` to turn the TOML value into ours (raises Unfit)."""

    allowed: str
    read: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Key:
    rule: Rule


@dataclass(frozen=True, slots=True)
class _Table:
    section: type


@dataclass(frozen=True, slots=True)
class _Tables:
    section: type


@dataclass(frozen=True, slots=True)
class _Mapping:
    name: Rule
    value: Rule


def key(rule: Rule, default: Any = REQUIRED) -> Any:
    """A key of a section, which takes what `rule` takes."""
    return field(default=default, metadata={_RULE: _Key(rule)})


def table(section: type) -> Any:
    """A table inside a section or at the top; one that is left out has all its defaults."""
    return field(default_factory=section, metadata={_RULE: _Table(section)})


def tables(section: type) -> Any:
    """An array of tables (`[[name]]`); a tuple, empty where there is none."""
    return field(default=(), metadata={_RULE: _Tables(section)})


def mapping(name: Rule, value: Rule) -> Any:
    """A table whose keys are the operator's own, such as paths; `name` is what a key must be."""
    return field(default_factory=dict, metadata={_RULE: _Mapping(name, value)})


def unfit(value: object, expected: str) -> Unfit:
    """Return the error for a value of another type."""
    kind = next((words for type_, words in _KINDS if isinstance(value, type_)), "something else")
    return Unfit(f"is {kind}, not {expected}")


class Reader:
    """Reads one file; `problems` grows as it goes."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.incomplete = False
        """Whether an array of tables was left out, so that what others say of it cannot be checked."""

    def wrong(self, path: str, what: str, allowed: str = "") -> None:
        """Note a problem."""
        self.problems.append(Problem(path, what, allowed))

    def section(self, section: type[S], found: object, path: str) -> S | None:
        """Read a table into a section; None if it lacks what has no default.

        What is wrong is noted, and left out of the section, so that the rest of the file can be checked, too.
        """
        if not isinstance(found, Mapping):
            self.wrong(path, str(unfit(found, "a table")))
            return None
        values: dict[str, Any] = {}
        fields = {each.name: each for each in dataclasses.fields(section)}  # type: ignore[arg-type]
        for name in found:
            if name not in fields:
                self._unknown(_join(path, name), name, fields)
        for name, each in fields.items():
            if name in found:
                value = self._value(each.metadata[_RULE], found[name], _join(path, name))
                if value is not _WRONG:
                    values[name] = value
            elif each.default is REQUIRED and each.default_factory is REQUIRED:
                self.wrong(_join(path, name), "is missing", each.metadata[_RULE].rule.allowed)
        try:
            return section(**values)
        except TypeError:  # of a key without a default nothing is left
            return None

    def _unknown(self, path: str, name: str, fields: Mapping[str, Any]) -> None:
        near = difflib.get_close_matches(name, fields, 1)
        what = (
            f"is no key of the configuration, did you mean {near[0]}?"
            if near
            else "is no key of the configuration"
        )
        self.wrong(path, what, ", ".join(fields))

    def _value(self, rule: Any, found: object, path: str) -> Any:
        if isinstance(rule, _Table):
            inner: Any = self.section(rule.section, found, path)
            return _WRONG if inner is None else inner
        if isinstance(rule, _Tables):
            return self._array(rule.section, found, path)
        if isinstance(rule, _Mapping):
            if not isinstance(found, Mapping):
                self.wrong(path, str(unfit(found, "a table")))
                return {}
            return {
                self._key(rule.name, name, _join(path, name)): self._key(rule.value, item, _join(path, name))
                for name, item in found.items()
            }
        return self._key(rule.rule, found, path)

    def _array(self, section: type, found: object, path: str) -> Any:
        if not isinstance(found, list | tuple):
            self.wrong(path, str(unfit(found, "an array of tables")), f"[[{path}]]")
            return _WRONG
        read = [self.section(section, item, f"{path}[{at}]") for at, item in enumerate(found)]
        self.incomplete = self.incomplete or None in read
        return _WRONG if None in read else tuple(read)

    def _key(self, rule: Rule, found: object, path: str) -> Any:
        try:
            return rule.read(found)
        except Unfit as error:
            self.wrong(path, str(error), rule.allowed)
            return _WRONG


def _join(path: str, name: str) -> str:
    quoted = name if name.replace("-", "_").isidentifier() else f'"{name}"'
    return f"{path}.{quoted}" if path else quoted


def describe(section: type, path: str = "") -> Iterator[tuple[str, str, object]]:
    """Yield path, what is allowed, and default of every key below a section; REQUIRED where there is no default."""
    for each in dataclasses.fields(section):
        rule = each.metadata[_RULE]
        here = f"{path}.{each.name}" if path else each.name
        if isinstance(rule, _Table):
            yield from describe(rule.section, here)
        elif isinstance(rule, _Tables):
            yield from describe(rule.section, f"{here}[]")
        elif isinstance(rule, _Mapping):
            yield f"{here}.*", rule.value.allowed, {}
        else:
            yield here, rule.rule.allowed, each.default
