# SPDX-License-Identifier: Apache-2.0
"""One GET to a maker's server: bounded in size and silence, without redirects, and said before it is done."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from quotary_cli.output import ExitCode, Failure
from quotary_cli.sources.http import SILENCE, BoundedResponse, read_body
from quotary_verifier.wire.tee_support import MAX_PART

_OK: Final = 200
_MISSING: Final = 404
_BUSY: Final = 429
_HEADERS: Final = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "quotary-attest"}


@dataclass(frozen=True, slots=True)
class Answer:
    """Body and headers (names in lower case) of an answer."""

    body: bytes
    headers: Mapping[str, str]


class NotPublished(Failure):
    """The maker has nothing at this address."""


Fetch = Callable[[str], Answer]


def web_fetch(tell: Callable[[str], object]) -> Fetch:
    """Return what fetches a URL; `tell` is given each URL before it is contacted."""

    def fetch(url: str) -> Answer:
        tell(url)
        try:
            return _get(url)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
            raise Failure(
                f"{url}: {reason}",
                code=ExitCode.FAILURE,
                hint="does this host reach the maker's server? another can fetch for it, from the same evidence",
            ) from None

    return fetch


def _get(url: str) -> Answer:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Failure(f"{url} is no http address", code=ExitCode.USAGE)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=SILENCE, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=SILENCE)
    with closing(connection):
        connection.response_class = BoundedResponse
        connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""), headers=_HEADERS)
        answer = connection.getresponse()
        body = read_body(answer, MAX_PART)
        headers = {name.lower(): value for name, value in answer.getheaders()}
    _check(url, answer.status, len(body))
    return Answer(body, headers)


def _check(url: str, status: int, size: int) -> None:
    if status == _MISSING:
        raise NotPublished(f"{url}: nothing is published there", code=ExitCode.NOT_CHECKED)
    if status != _OK:
        hint = "the maker's server takes few requests: try again in a minute" if status == _BUSY else ""
        raise Failure(f"{url}: the server answered {status}", code=ExitCode.FAILURE, hint=hint)
    if size > MAX_PART:
        raise Failure(f"{url}: the answer has more than {MAX_PART} bytes", code=ExitCode.REJECTED)
