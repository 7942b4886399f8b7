# SPDX-License-Identifier: Apache-2.0
"""Words of ASGI 3 (asgi.readthedocs.io), and its header fields: pairs of bytes, names in lower case."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from quotary_attest.serving.delivery import ATTESTATION
from quotary_attest.serving.fields import ATTESTED, BODY_DIGESTS, OUTPUT

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Fields = list[tuple[bytes, bytes]]

OURS: Final = frozenset(name.lower().encode() for name in (OUTPUT, ATTESTED, ATTESTATION))
DIGESTS: Final = frozenset(name.lower().encode() for name in BODY_DIGESTS)
LENGTH: Final = frozenset((b"content-length",))


def values(fields: Iterable[tuple[bytes, bytes]], name: str) -> list[str]:
    """Return the values of a field."""
    wanted = name.lower().encode()
    return [bytes(value).decode("latin-1") for key, value in fields if bytes(key).lower() == wanted]


def without(fields: Iterable[tuple[bytes, bytes]], names: frozenset[bytes]) -> Fields:
    """Return the fields but for those of some names, which are in lower case."""
    return [(bytes(key), bytes(value)) for key, value in fields if bytes(key).lower() not in names]


def field(name: str, value: str) -> tuple[bytes, bytes]:
    """Return a field as ASGI has it."""
    return name.lower().encode(), value.encode("latin-1")


def media_type(fields: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the media type of an answer without its parameters, in lower case; empty where it has none."""
    found = values(fields, "content-type")
    return found[0].partition(";")[0].strip().lower() if found else ""


def length(fields: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Return the length that an answer says it has."""
    found = values(fields, "content-length")
    return int(found[0]) if found and found[0].isdecimal() else None


def route_of(scope: Scope) -> str:
    """Return the path of a request as it was sent, without the application's own prefix, nothing decoded."""
    raw = scope.get("raw_path")
    path = scope["path"] if raw is None else bytes(raw).partition(b"?")[0].decode("latin-1")
    root = scope.get("root_path") or ""
    below = root and path.startswith(root) and path[len(root) : len(root) + 1] == "/"
    return str(path[len(root) :] if below else path)


async def answer(send: Send, status: int, fields: Fields, body: bytes) -> None:
    """Send a whole answer."""
    fields = [*fields, field("content-length", str(len(body)))]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": False})
