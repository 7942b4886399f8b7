# SPDX-License-Identifier: Apache-2.0
"""What single keys of the configuration take: numbers in a range, paths, addresses, names, lists of them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from quotary_attest.config.keys import Rule, Unfit, unfit
from quotary_attest.serving.paths import Api, PathTable
from quotary_attest.workload import check_name

_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen on: host name or IP address, and port (0: any that is free)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read `HOST:PORT` or `[IPV6]:PORT`. Raises ValueError."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdecimal() or len(port) > 5 or int(port) > 0xFFFF:
        raise ValueError("is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        return Address(str(ipaddress.IPv6Address(host[1:-1])), int(port))
    if not _HOST.fullmatch(host):
        raise ValueError("has no usable host")
    return Address(host, int(port))


def _text(value: Any, expected: str = "a text") -> str:
    if not isinstance(value, str):
        raise unfit(value, expected)
    if not value or "\0" in value:
        raise Unfit("is empty or holds a zero byte")
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise unfit(value, "true or false")
    return value


def integer(low: int, high: int, unit: str = "") -> Rule:
    """A whole number from `low` to `high`."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise unfit(value, "an integer")
        if not low <= value <= high:
            raise Unfit("is out of range")
        return value

    return Rule(f"{low} to {high}{' ' + unit if unit else ''}", read)


def seconds(low: float, high: float) -> Rule:
    """A time in seconds, whole or not."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise unfit(value, "a number")
        if not low <= value <= high:
            raise Unfit("is out of range")
        return float(value)

    return Rule(f"{low:g} to {high:g} seconds", read)


def choice(values: Mapping[str, Any] | type[Enum]) -> Rule:
    """One of some words; an enumeration's values, or a mapping's keys."""
    words = {str(item.value): item for item in values} if isinstance(values, type) else dict(values)

    def read(value: Any) -> Any:
        text = _text(value, "one of the words")
        if text not in words:
            raise Unfit("is none of the words")
        return words[text]

    return Rule(", ".join(f'"{word}"' for word in words), read)


def list_of(rule: Rule, *, least: int = 0, most: int = 1024) -> Rule:
    """A list; a tuple here."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise unfit(value, "a list")
        if not least <= len(value) <= most:
            raise Unfit(f"has {len(value)} entries")
        return tuple(rule.read(item) for item in value)

    return Rule(f"a list of {least} to {most}: {rule.allowed}", read)


def _path(value: Any) -> Path:
    path = Path(_text(value, "a path"))
    if not path.is_absolute():
        raise Unfit("is not absolute")
    return path


def _address(value: Any) -> Address:
    try:
        return parse_address(_text(value, "an address"))
    except ValueError as error:
        raise Unfit(str(error)) from None


def _url(value: Any) -> str:
    text = _text(value, "a URL")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username is not None:
        raise Unfit("is not the address of a server")
    return text


def _model_name(value: Any) -> str:
    text = _text(value)
    try:
        check_name(text)
    except ValueError as error:
        raise Unfit(str(error)) from None
    return text


def _claimed(value: Any) -> str:
    return value if value == "" else _model_name(value)


def _label(value: Any) -> str:
    if not _LABEL.fullmatch(text := _text(value)):
        raise Unfit("is not a plain name")
    return text


def _request_path(value: Any) -> str:
    text = _text(value, "a path")
    if not text.startswith("/") or not text.isascii() or any(char in text for char in " ?#%{}"):
        raise Unfit("is not a request's path")
    return text


def _mapped_path(value: Any) -> str:
    text = _text(value, "a path")
    try:
        PathTable({text: Api.NONE})
    except ValueError:
        raise Unfit("is not a path that can be mapped") from None
    return text


TEXT: Final = Rule("a text", _text)
SWITCH: Final = Rule("true, false", _switch)
PATH: Final = Rule("an absolute path", _path)
ADDRESS: Final = Rule('"HOST:PORT"', _address)
URL: Final = Rule('a URL such as "http://127.0.0.1:8080"', _url)
NAME: Final = Rule("a name of 1 to 500 bytes", _model_name)
CLAIMED: Final = Rule('the name of a [[model]], or "" to claim none', _claimed)
LABEL: Final = Rule("letters, digits and . _ -, at most 64", _label)
REQUEST_PATH: Final = Rule('a path such as "/v1/chat/completions"', _request_path)
MAPPED_PATH: Final = Rule('a path such as "/v1/rerank", where "*" is any one segment', _mapped_path)
ID: Final = integer(0, (1 << 32) - 2)
