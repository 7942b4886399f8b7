# SPDX-License-Identifier: Apache-2.0
"""Requests to the local interface: read within a limit, parsed strictly, their fields taken one by one."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Final, NoReturn

from aiohttp import web

from quotary_attest.serving.errors import Refusal
from quotary_verifier.wire.limits import MAX_NONCE, MIN_NONCE

_HEX: Final = re.compile(r"(?:[0-9a-f]{2})*")
_MAX_DIGITS: Final = 20


def malformed(why: str) -> Refusal:
    """Return the refusal of a request that is not of the form it must have; `why` quotes nothing of it."""
    return Refusal(400, "malformed_request", why)


async def read_limited(request: web.Request, limit: int) -> bytes:
    """Read a request's body of at most `limit` bytes; a longer one is refused before it is read whole.

    Raises:
        Refusal: it is longer (413).
    """
    if (request.content_length or 0) > limit:
        raise Refusal(413, "request_too_large", f"the request may have {limit} bytes")
    body = bytearray()
    async for data in request.content.iter_any():
        body += data
        if len(body) > limit:
            raise Refusal(413, "request_too_large", f"the request may have {limit} bytes")
    return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object: UTF-8, no name twice, no NaN, no integer of more than 20 digits.

    Raises:
        Refusal: it is none (400).
    """
    try:
        value = json.loads(
            body.decode(), object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_short_int
        )
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise malformed("the request is not a strict JSON object") from None
    if type(value) is not dict:
        raise malformed("the request is not a JSON object")
    return value


def take(value: dict[str, Any], allowed: frozenset[str], what: str) -> dict[str, Any]:
    """Return `value` if all its names are allowed ones. Raises Refusal if not."""
    if not allowed.issuperset(value):
        raise malformed(f"{what} has an unknown member")
    return value


def hexadecimal(value: Any, low: int, high: int, what: str) -> bytes:
    """Return `low` to `high` bytes from lower-case hexadecimal text. Raises Refusal if it is not that."""
    if type(value) is not str or not 2 * low <= len(value) <= 2 * high or not _HEX.fullmatch(value):
        raise malformed(f"{what} is not {low} to {high} bytes in lower-case hexadecimal")
    return bytes.fromhex(value)


def nonce(value: Any) -> bytes:
    """Return a nonce. Raises Refusal if it is not 8 to 64 bytes in lower-case hexadecimal."""
    return hexadecimal(value, MIN_NONCE, MAX_NONCE, "the nonce")


def octets(value: Any, what: str) -> bytes:
    """Return bytes from canonical, padded base64. Raises Refusal if it is not that."""
    if type(value) is not str:
        raise malformed(f"{what} is not base64 text")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise malformed(f"{what} is not base64 text") from None
    if base64.b64encode(data).decode() != value:
        raise malformed(f"{what} is not canonical base64 text")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError
    return value


def _refuse(_: str) -> NoReturn:
    raise ValueError


def _short_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError
    return int(text)
