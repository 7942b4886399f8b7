# SPDX-License-Identifier: Apache-2.0
"""The proxy's side towards the engine (docs/spec/serving.md).

Engines close a connection after a stream without saying so, and a request that then goes out on it is lost. It could be
sent again only if it were known that the engine did not begin to work on it. So a request that is not idempotent is
sent once, and gets a connection of its own; only where neither it nor the one before asked for a stream may it follow
that one on the same connection, within a second, which every engine keeps it for (ADR 0044). Idempotent requests
share a pool, whose client sends them again on a fresh connection if a used one turned out closed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType

import aiohttp
from aiohttp import StreamReader, hdrs, web
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from multidict import CIMultiDict
from yarl import URL

from quotary_attest.enginelink import TcpPeer
from quotary_attest.serving.errors import Refusal

_IDEMPOTENT = frozenset((hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS))
_AUTOMATIC = frozenset((hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.CONTENT_TYPE))
_MAX_FIELD = 64 * 1024
_LONG_BODY = 256 * 1024
_KEPT_SECONDS = 1.0
_STREAM = b'"stream"'

Noted = Callable[[TcpPeer], None]
_noted: ContextVar[Noted | None] = ContextVar("quotary-upstream-peer", default=None)


class _Connector(aiohttp.TCPConnector):
    """A connector that tells whoever asks to which two ends a request's connection goes."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - the library's
    ) -> Connection:
        """Connect as the library does."""
        connection = await super().connect(req, traces, timeout)
        note = _noted.get()
        if note is not None and connection.transport is not None:
            ours = connection.transport.get_extra_info("sockname")
            theirs = connection.transport.get_extra_info("peername")
            if ours and theirs:
                note(TcpPeer((ours[0], ours[1]), (theirs[0], theirs[1])))
        return connection


class Upstream:
    """An OpenAI-compatible server. Use it as an async context manager."""

    def __init__(self, base: str, *, connect_timeout: float = 10.0) -> None:
        """`base` is the server's URL, such as `http://127.0.0.1:8000`; requests keep their own path and query.

        There is no limit to how long the engine may take to answer: a client that will not wait goes away.

        Raises:
            ValueError: the URL is not one of http or https, or has a query or fragment.
        """
        url = URL(base)
        if url.scheme not in ("http", "https") or not url.host or url.query_string or url.fragment:
            raise ValueError("the upstream is not an http or https URL without query and fragment")
        self._base = str(url).rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout)
        self._single: aiohttp.ClientSession | None = None
        self._kept: aiohttp.ClientSession | None = None
        self._pooled: aiohttp.ClientSession | None = None

    @property
    def base(self) -> str:
        """The server's URL, without a final slash."""
        return self._base

    async def __aenter__(self) -> Upstream:
        """Open the client sessions."""
        self._single = self._session(_Connector(limit=0, force_close=True))
        self._kept = self._session(_Connector(limit=0, keepalive_timeout=_KEPT_SECONDS))
        self._pooled = self._session(aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        for session in (self._single, self._kept, self._pooled):
            if session is not None:
                await session.close()

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),  # cookies belong to the clients, each its own
            timeout=self._timeout,
            auto_decompress=False,
            skip_auto_headers=_AUTOMATIC,
            max_line_size=_MAX_FIELD,
            max_field_size=_MAX_FIELD,
        )

    async def send(
        self,
        request: web.BaseRequest,
        headers: CIMultiDict[str],
        body: bytes | StreamReader | None,
        *,
        note: Noted | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a client's request on and return the answer once its header is here.

        `note` is called with the two ends of the connection that the request goes out on, as soon as it stands;
        not for one that is idempotent.

        The body of an attested request is bytes; of any other it is passed on as it comes.

        Raises:
            Refusal: the upstream could not be reached or did not answer in HTTP (502).
        """
        session = self._session_for(request.method, body)
        if session is None:
            raise RuntimeError("the upstream is not open")
        _noted.set(note)
        path = request.raw_path if request.raw_path.startswith("/") else request.rel_url.raw_path_qs
        try:
            answer = await session.request(
                request.method,
                URL(self._base + path, encoded=True),
                headers=headers,
                data=_payload(body),
                allow_redirects=False,
            )
            if answer.content_length is None and (connection := answer.connection) is not None:
                _never_again(connection)
            return answer
        except aiohttp.ClientConnectorError:
            raise Refusal(502, "upstream_unreachable", "the model server cannot be reached") from None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise Refusal(502, "upstream_failed", "the model server did not answer") from None

    def _session_for(self, method: str, body: bytes | StreamReader | None) -> aiohttp.ClientSession | None:
        if method in _IDEMPOTENT:
            return self._pooled
        # The library sends a POST once, on whatever connection.
        if method != hdrs.METH_POST or not isinstance(body, bytes) or len(body) > _LONG_BODY:
            return self._single
        return self._single if _STREAM in body else self._kept


def _never_again(connection: Connection) -> None:
    """Let nothing follow on a connection: an answer of no stated length may be a stream that nobody asked for."""
    if connection.protocol is not None:
        connection.protocol.force_close()


def _payload(body: bytes | StreamReader | None) -> bytes | StreamReader | io.BytesIO | None:
    """Return a body as the client library wants it: long bytes as a file, which it writes piece by piece."""
    return io.BytesIO(body) if isinstance(body, bytes) and len(body) > _LONG_BODY else body
