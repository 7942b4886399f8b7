# SPDX-License-Identifier: Apache-2.0
"""Immutable data classes that are cheap to define and to make.

`@frozen` stands for `@dataclass(frozen=True, slots=True)`, which compiles six methods for each class and sets each
field by name through `object.__setattr__`. The verifier has some seventy such classes, and half of the time of a
cold `attest verify` went into defining them; a verification makes forty objects, of half of the classes. Here a
definition only names the slots: the constructor is compiled when the first object is made, and what `dataclasses`
keeps of a class is worked out when somebody asks for it. Slots are set directly. docs/reference/performance.md has
the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from typing import Any, Final, NoReturn, TypeVar, dataclass_transform

T = TypeVar("T")

_FIELDS: Final = "__dataclass_fields__"
_PARAMETERS: Final = "__dataclass_params__"


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make a class a frozen data class with slots, which `dataclasses.replace` and `fields` take as any other."""
    known = _Known(cls)
    metaclass: Any = type(cls)
    made: Any = metaclass(cls.__name__, cls.__bases__, _namespace(cls, known))
    compared = tuple(name for name, value in known.values.items() if _takes(value, "compare"))
    contents = attrgetter(*compared) if compared else _nothing

    def equal(self: object, other: object) -> bool:
        return contents(self) == contents(other) if other.__class__ is self.__class__ else NotImplemented

    def digest(self: object) -> int:
        return hash((self.__class__, contents(self)))

    def first(self: object, *arguments: object, **named: object) -> None:
        made.__init__ = compiled = _initialiser(made, known.values)
        compiled(self, *arguments, **named)

    made.__init__ = first
    made.__eq__, made.__hash__ = equal, digest
    made.__repr__ = _represent
    made.__setattr__ = made.__delattr__ = _refuse
    made.__getstate__, made.__setstate__ = _get_state, _set_state
    return made  # type: ignore[no-any-return]


class _Known:
    """The fields of a class, those of the classes above it first: their annotations, and what stands beside them.

    A value is a default, what `field` returned, or MISSING.
    """

    __slots__ = ("_as_data_class", "annotations", "cls", "values")

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self._as_data_class: Any = None
        self.annotations: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        for above in reversed(cls.__mro__[1:]):
            asked = above.__dict__.get(_FIELDS)
            if isinstance(asked, _Asked):
                self.annotations |= asked.known.annotations
                self.values |= asked.known.values
        self.annotations |= cls.__annotations__
        self.values |= {name: cls.__dict__.get(name, MISSING) for name in cls.__annotations__}

    def as_data_class(self) -> Any:
        """Return a data class of the same fields, which lends its description to ours."""
        if self._as_data_class is None:
            defaults = {name: value for name, value in self.values.items() if value is not MISSING}
            described = {
                "__annotations__": self.annotations,
                "__module__": self.cls.__module__,
                "__doc__": "",
            }
            bare = type(self.cls.__name__, (), {**described, **defaults})
            self._as_data_class = dataclass(init=False, repr=False, eq=False, frozen=True)(bare)
        return self._as_data_class


class _Asked:
    """What `dataclasses` keeps of a class under `name`, worked out when it is asked for."""

    __slots__ = ("known", "name")

    def __init__(self, known: _Known, name: str) -> None:
        self.known, self.name = known, name

    def __get__(self, _instance: object, _owner: object = None) -> Any:
        """Return it, of the class as of its objects."""
        return getattr(self.known.as_data_class(), self.name)


def _namespace(cls: type[Any], known: _Known) -> dict[str, Any]:
    """What the class is made of that has slots: without the defaults, which would stand where slots belong."""
    own = cls.__annotations__
    inherited = {name for above in cls.__mro__[1:] for name in above.__dict__.get("__slots__", ())}
    kept = {name: value for name, value in cls.__dict__.items() if name not in own and name not in _OF_A_DICT}
    return {
        **kept,
        "__doc__": cls.__doc__ or cls.__name__,
        "__qualname__": cls.__qualname__,
        "__slots__": tuple(name for name in own if name not in inherited),
        "__match_args__": tuple(name for name, value in known.values.items() if _takes(value, "init")),
        _FIELDS: _Asked(known, _FIELDS),
        _PARAMETERS: _Asked(known, _PARAMETERS),
    }


_OF_A_DICT: Final = ("__dict__", "__weakref__")
"""What a class without slots has and one with them has not."""


def _takes(value: object, purpose: str) -> bool:
    """Whether a field is for `purpose` ("init", "compare"), as it is unless `field` said otherwise."""
    return not isinstance(value, Field) or bool(getattr(value, purpose))


def _initialiser(made: type[Any], values: Mapping[str, Any]) -> Callable[..., None]:
    """Compile `__init__`: a parameter for each field, and one call of its slot's setter."""
    names: dict[str, Any] = {"_missing_": MISSING}  # no field may have a name that stands here
    parameters, lines = [], []
    for name, beside in values.items():
        value = name
        default = beside.default if isinstance(beside, Field) else beside
        names[f"set_{name}"] = getattr(made, name).__set__
        if default is not MISSING:
            names[f"default_{name}"] = default
            parameter, value = f"{name}=default_{name}", name if _takes(beside, "init") else f"default_{name}"
        elif isinstance(beside, Field) and beside.default_factory is not MISSING:
            names[f"default_{name}"] = beside.default_factory
            parameter = f"{name}=_missing_"
            value = f"default_{name}() if {name} is _missing_ else {name}"
        else:
            parameter = name
        if _takes(beside, "init"):
            parameters.append(parameter)
        lines.append(f"    set_{name}(self, {value})\n")
    if hasattr(made, "__post_init__"):
        lines.append("    self.__post_init__()\n")
    source = f"def __init__(self, {', '.join(parameters)}):\n{''.join(lines) or '    pass'}"
    exec(source, names)  # noqa: S102 - the names of fields are identifiers of this package, as for `dataclass`
    made_init: Callable[..., None] = names["__init__"]
    return made_init


def _nothing(_: object) -> tuple[()]:
    return ()


def _represent(self: Any) -> str:
    shown = ", ".join(f"{item.name}={getattr(self, item.name)!r}" for item in fields(self) if item.repr)
    return f"{self.__class__.__qualname__}({shown})"


def _refuse(_self: object, name: str, _value: object = None) -> NoReturn:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _get_state(self: Any) -> list[Any]:
    return [getattr(self, item.name) for item in fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for item, value in zip(fields(self), state, strict=True):
        object.__setattr__(self, item.name, value)
