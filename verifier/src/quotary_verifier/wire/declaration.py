# SPDX-License-Identifier: Apache-2.0
"""The text of a statement: which answers of a host are attested (docs/spec/records.md, "Statement").

Canonical JSON: RFC 8785 over objects with the members below and no other, which for such values is JSON without
white space, with members in alphabetical order. A text in any other spelling is malformed.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, Final

from quotary_verifier.errors import MalformedError, UnsupportedError
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.limits import MAX_TEXT

SCHEMA: Final = "quotary-statement/v1"
SCHEMA_STEM: Final = "quotary-statement/"

CODED: Final = "content-coding"
"""An exception: answers that the engine sends with a content coding although none was asked for."""

UNAVAILABLE: Final = "unavailable"
"""An exception: answers given while nothing can be attested."""

_EXCEPTIONS: Final = (CODED, UNAVAILABLE)
_MEMBERS: Final = ("paths", "unless", "without")
_ANY: Final = "*"


@frozen
class Service:
    """One door of the host: every answer to a POST on `paths` is attested, but for the exceptions in `unless`.

    A segment `*` of a path stands for any one segment. `without` are paths that a pattern would cover and that are
    left out. Lists are in ascending order.
    """

    paths: tuple[str, ...]
    unless: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def covers(self, path: str) -> bool:
        """Tell whether an answer to a POST on `path`, as it stands in the request without query, is promised."""
        if path in self.paths or path in self.without:
            return path in self.paths
        segments = path.split("/")
        rules = [(pattern.split("/"), attested) for pattern, attested in self._patterns()]
        fitting = [(rule.count(_ANY), rule, attested) for rule, attested in rules if _fits(rule, segments)]
        return bool(fitting) and min(fitting)[2]  # the pattern that names most segments counts

    def _patterns(self) -> list[tuple[str, bool]]:
        return [(path, True) for path in self.paths] + [(path, False) for path in self.without]

    def fields(self) -> dict[str, Any]:
        """Return the object as it stands in the text."""
        return {"paths": list(self.paths), "unless": list(self.unless), "without": list(self.without)}

    @classmethod
    def read(cls, value: Any) -> Service:
        """Read one object. Raises MalformedError, UnsupportedError."""
        if type(value) is not dict or tuple(sorted(value)) != _MEMBERS:
            raise MalformedError("statement: a service has the members paths, unless, without")
        paths, unless, without = (_ascending(value[name], name) for name in _MEMBERS)
        if not paths or set(paths) & set(without):
            raise MalformedError(
                "statement: a service has at least one path, and none of those it leaves out"
            )
        for path in (*paths, *without):
            _check_path(path)
        for exception in unless:
            if exception not in _EXCEPTIONS:
                raise UnsupportedError(f"statement: the exception {exception!r} is not known")
        return cls(paths, unless, without)


@frozen
class Declaration:
    """What a host states of the answers that its doors give; no service at all means that nothing is promised."""

    services: tuple[Service, ...]

    @classmethod
    def of(cls, services: list[Service]) -> Declaration:
        """Return the declaration of services in any order, each once."""
        return cls(tuple(sorted(set(services), key=_text_of)))

    @property
    def text(self) -> str:
        """The text of the statement."""
        return _canonical({"schema": SCHEMA, "services": [each.fields() for each in self.services]})

    @classmethod
    def parse(cls, text: str) -> Declaration:
        """Read a statement's text.

        Raises:
            MalformedError: it is not of this form, or not in its one spelling.
            UnsupportedError: its schema is a later one, or it names an exception that is not known.
        """
        if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT:
            raise MalformedError("statement: the text is too long")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise MalformedError("statement: the text is not json") from None
        schema = value.get("schema") if type(value) is dict else None
        if type(schema) is str and schema != SCHEMA and schema.startswith(SCHEMA_STEM):
            raise UnsupportedError(f"statement: the schema {schema!r} is not known")
        if schema != SCHEMA or sorted(value) != ["schema", "services"]:
            raise MalformedError("statement: the text is not a statement")
        if type(value["services"]) is not list:
            raise MalformedError("statement: services is not a list")
        declaration = cls(tuple(Service.read(item) for item in value["services"]))
        if declaration.services != cls.of(list(declaration.services)).services or declaration.text != text:
            raise MalformedError("statement: the text is not in its one spelling")
        return declaration


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _text_of(service: Service) -> str:
    return _canonical(service.fields())


def _ascending(value: Any, name: str) -> tuple[str, ...]:
    if type(value) is not list or not all(type(item) is str for item in value):
        raise MalformedError(f"statement: {name} is not a list of texts")
    if any(left >= right for left, right in pairwise(value)):
        raise MalformedError(f"statement: {name} is not in ascending order")
    return tuple(value)


def _check_path(path: str) -> None:
    usable = path.isascii() and path.isprintable() and not set(path) & set(" ?#")
    if not usable or not path.startswith("/") or (path != "/" and "" in path.split("/")[1:]):
        raise MalformedError("statement: a path does not begin with a slash, has a query or an empty segment")


def _fits(pattern: list[str], segments: list[str]) -> bool:
    if len(pattern) != len(segments):
        return False
    pairs = zip(pattern, segments, strict=True)
    return all(wanted == segment or (wanted == _ANY and segment != "") for wanted, segment in pairs)
