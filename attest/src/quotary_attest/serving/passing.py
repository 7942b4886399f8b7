# SPDX-License-Identifier: Apache-2.0
"""Answers that pass through unattested, and connections that end without their answer (docs/spec/serving.md)."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Final

import aiohttp
from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from quotary_attest.metrics import Unattested
from quotary_attest.serving.headers import ATTESTED
from quotary_attest.serving.notes import note_unattested

READ_ERRORS: Final = (aiohttp.ClientError, TimeoutError, OSError)
"""What reading an upstream's body raises when it does not end as it must."""

_RESET: Final = struct.pack("ii", 1, 0)  # linger for no time: closing sends a reset (socket(7))


def hang_up(request: web.BaseRequest) -> None:
    """End the connection but not the answer, after what was written has gone out: the client sees it cut off.

    In HTTP/1.0 an answer may end with its connection, so there only a reset tells the two apart.
    """
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if request.version < HttpVersion11 and connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.close()


async def pass_through(
    request: web.Request,
    answer: aiohttp.ClientResponse,
    headers: CIMultiDict[str],
    why: Unattested = Unattested.PATH,
) -> web.StreamResponse:
    """Pass on an answer that is not attested, and say so in its header."""
    headers[ATTESTED] = "no"
    if "Content-Length" in answer.headers:
        headers["Content-Length"] = answer.headers["Content-Length"]
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    note_unattested(response, why)
    with suppress(ConnectionError):  # the client left
        await response.prepare(request)
        while data := await _next(answer):
            await response.write(data)
        if data is None:
            hang_up(request)
        else:
            await response.write_eof()
    return response


async def _next(answer: aiohttp.ClientResponse) -> bytes | None:
    """Return the next bytes of a body, none at its end, None where it breaks off."""
    try:
        return await answer.content.readany()
    except READ_ERRORS:
        return None
