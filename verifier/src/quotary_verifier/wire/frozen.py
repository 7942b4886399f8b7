# SPDX-License-Identifier: Apache-2.0
"""Immutable data classes that are cheap to define and to make.

`@frozen` stands for `@dataclass(frozen=True, slots=True)`, which compiles six methods for each class and sets each
field by name through `object.__setattr__`. The verifier has some seventy such classes, and half of the time of a
cold `attest verify` went into defining them; a verification makes forty objects. Here one method is compiled, the
rest is shared, and slots are set directly. docs/reference/performance.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from typing import Any, NoReturn, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make a class a frozen data class with slots, which `dataclasses.replace` and `fields` take as any other."""
    cls.__doc__ = (
        cls.__doc__ or cls.__name__
    )  # else `dataclass` works out a signature, which takes milliseconds
    made: Any = dataclass(init=False, repr=False, eq=False, slots=True)(cls)
    compared = tuple(item.name for item in fields(made) if item.compare)
    values = attrgetter(*compared) if compared else _no_values

    def equal(self: object, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def digest(self: object) -> int:
        return hash((self.__class__, values(self)))

    made.__init__ = _initialiser(made)
    made.__eq__, made.__hash__ = equal, digest
    made.__repr__ = _represent
    made.__setattr__ = made.__delattr__ = _refuse
    made.__getstate__, made.__setstate__ = _get_state, _set_state
    return made  # type: ignore[no-any-return]


def _initialiser(made: type[Any]) -> Callable[..., None]:
    """Compile `__init__`: a parameter for each field, and one call of its slot's setter."""
    names: dict[str, Any] = {"_missing_": MISSING}  # no field may have a name that stands here
    parameters, lines = [], []
    for item in fields(made):
        name, value = item.name, item.name
        names[f"set_{name}"] = getattr(made, name).__set__
        if item.default is not MISSING:
            names[f"default_{name}"] = item.default
            parameter, value = f"{name}=default_{name}", name if item.init else f"default_{name}"
        elif item.default_factory is not MISSING:
            names[f"default_{name}"] = item.default_factory
            parameter = f"{name}=_missing_"
            value = f"default_{name}() if {name} is _missing_ else {name}"
        else:
            parameter = name
        if item.init:
            parameters.append(parameter)
        lines.append(f"    set_{name}(self, {value})\n")
    if hasattr(made, "__post_init__"):
        lines.append("    self.__post_init__()\n")
    source = f"def __init__(self, {', '.join(parameters)}):\n{''.join(lines) or '    pass'}"
    exec(source, names)  # noqa: S102 - the names of fields are identifiers of this package, as for `dataclass`
    made_init: Callable[..., None] = names["__init__"]
    return made_init


def _no_values(_: object) -> tuple[()]:
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
