# SPDX-License-Identifier: Apache-2.0
"""What an operator sets of the middleware: by environment variables, or in a file that one of them names.

Servers make middleware without arguments, so there is no other way. A variable stands above the file's key of the same
name in lower case.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from quotary_attest.serving.paths import Api, PathTable

PREFIX: Final = "QUOTARY_"
DEFAULT_SOCKET: Final = Path("/run/quotary/link.sock")

_MAX_BYTES: Final = 1 << 30
_MAX_SECONDS: Final = 600
_WORDS: Final = ("refuse", "pass")


@dataclass(frozen=True, slots=True)
class Settings:
    """How the middleware of one server attests. Sizes are in bytes, as those of the proxy are.

    `model` is the name under which the agent measured the weights that this server serves, None to claim no model;
    `engine` is the server's name as the record's context states it.
    """

    socket: Path = DEFAULT_SOCKET
    model: str | None = None
    engine: str | None = None
    when_unavailable: str = "refuse"
    """`refuse` answers 503 while nothing can be attested, `pass` lets answers out and marks them."""
    max_held: int = 16 * 1024 * 1024
    max_inband: int = 256 * 1024
    fetch_seconds: float = 30.0
    paths: PathTable = field(default_factory=PathTable)


def settings_of(environment: Mapping[str, str]) -> Settings:
    """Read the settings out of an environment.

    Raises:
        ValueError: something in it, or in the file that it names, cannot be used; every error is told at once.
    """
    errors: list[str] = []
    found = {**_file(environment, errors), **_variables(environment)}
    made: dict[str, Any] = {}
    for name, value in found.items():
        reader = _READERS.get(name)
        if reader is None:
            errors.append(f"{name}: there is no such setting")
            continue
        try:
            made[name] = reader(value)
        except ValueError as error:
            errors.append(f"{name}: {error}")
    if errors:
        raise ValueError("the middleware cannot be set up: " + "; ".join(errors))
    return Settings(**made)


def _variables(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what variables say; those that other parts of Quotary read are left alone."""
    return {
        name: environment[PREFIX + name.upper()] for name in _READERS if PREFIX + name.upper() in environment
    }


def _file(environment: Mapping[str, str], errors: list[str]) -> dict[str, Any]:
    path = environment.get(PREFIX + "CONFIG")
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        errors.append(f"{path}: {(error.strerror or 'cannot be read').lower()}")
    except ValueError as error:
        errors.append(f"{path}: not toml: {error}")
    return {}


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError("not a path")
    return Path(value)


def _name(value: Any) -> str | None:
    if not isinstance(value, str) or len(value.encode()) > 512:
        raise ValueError("not a name of at most 512 bytes")
    return value or None


def _word(value: Any) -> str:
    if value not in _WORDS:
        raise ValueError("neither refuse nor pass")
    return str(value)


def _size(value: Any) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if type(value) is not int or not 0 <= value <= _MAX_BYTES:
        raise ValueError(f"not a number of bytes from 0 to {_MAX_BYTES}")
    return value


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds <= _MAX_SECONDS:
        raise ValueError(f"not a number of seconds from 0 to {_MAX_SECONDS}")
    return seconds


def _paths(value: Any) -> PathTable:
    """Read `path=api,path=api`, or a table of them."""
    if isinstance(value, str):
        value = dict(rule.strip().rpartition("=")[::2] for rule in value.split(",") if rule.strip())
    if not isinstance(value, dict):
        raise ValueError("not a table of paths and their apis")
    words = {api.value: api for api in Api}
    unknown = [word for word in value.values() if word not in words]
    if unknown:
        raise ValueError(f"there is no api {unknown[0]!r}; there are {', '.join(words)}")
    return PathTable({path: words[word] for path, word in value.items()})


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "socket": _path,
    "model": _name,
    "engine": _name,
    "when_unavailable": _word,
    "max_held": _size,
    "max_inband": _size,
    "fetch_seconds": _seconds,
    "paths": _paths,
}


def from_environment() -> Settings:
    """Read the settings of this process. Raises ValueError as `settings_of`."""
    return settings_of(os.environ)
