# SPDX-License-Identifier: Apache-2.0
"""What pages of other origins may read (Fetch standard, "CORS protocol"; ADR 31).

What the proxy answers itself is public, or the property of whoever names an id and a credential in the request; no
cookie and no network position gives a right to it. So any page may read it. What is relayed keeps what the engine
says of it; where the engine lets pages read an answer, they may read the fields that lead to its attestation, too.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from quotary_attest.serving.aliases import CREDENTIALS
from quotary_attest.serving.delivery import ATTESTATION
from quotary_attest.serving.headers import ATTESTED, OUTPUT

_ORIGIN: Final = "Access-Control-Allow-Origin"
_EXPOSED: Final = "Access-Control-Expose-Headers"
_FIELDS: Final = f"{OUTPUT}, {ATTESTED}, {ATTESTATION}"


def open_to_pages(app: web.Application, *prefixes: str) -> None:
    """Let pages read what `app` answers at paths that begin with one of `prefixes`. Call it before other routes."""

    async def mark(request: web.Request, response: web.StreamResponse) -> None:
        if request.path.startswith(prefixes):
            response.headers[_ORIGIN] = "*"
            response.headers.setdefault("Cache-Control", "no-store")  # a 404 may become an attestation
        if _ORIGIN in response.headers:
            response.headers.add(_EXPOSED, _FIELDS)

    for prefix in prefixes:
        app.router.add_route("OPTIONS", prefix + "{rest:.*}", _preflight)
    app.on_response_prepare.append(mark)


async def _preflight(_: web.Request) -> web.StreamResponse:
    """Allow a page to send a credential of its own along."""
    headers = {
        "Access-Control-Allow-Methods": "GET, HEAD",
        "Access-Control-Allow-Headers": ", ".join(sorted(CREDENTIALS)),
        "Access-Control-Max-Age": "86400",
    }
    return web.Response(status=204, headers=headers)
