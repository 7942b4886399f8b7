# SPDX-License-Identifier: Apache-2.0
"""A log that a web server or an agent's own socket publishes, over HTTP/1.1.

Each thread keeps one connection. Nothing that the other side does makes a read larger or longer than its bounds,
leads it to another place (redirects are refused) or changes bytes on the way (no content codings).
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import quote, urlsplit

from quotary_cli.output import ExitCode
from quotary_cli.sources.base import Source, SourceFailed, SourceMissing, SourceTooLarge
from quotary_cli.sources.paths import LogPath, parse_path

SILENCE: Final = 30.0
"""Seconds that a server may be silent."""

OBJECT_SECONDS: Final = 300.0
"""Seconds that one file may take in all."""

PREFIX: Final = "/quotary/v1/"
"""Where an agent's proxy publishes its log."""

_PAUSES: Final = (0.25, 1.0, 4.0)
_BUSY: Final = frozenset((429, 502, 503, 504))
_GONE: Final = frozenset((404, 410))
_BLOCK: Final = 1 << 16
_ALLOWED: Final = "/._-~!$&'()*+,;=:@%"
_HEADERS: Final = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "User-Agent": "quotary-attest",
    "Connection": "keep-alive",
}


class _Timed(io.RawIOBase):
    """What a socket sends, for as long as its server is neither silent too long nor late in all."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._end = time.monotonic() + OBJECT_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no whole answer within {OBJECT_SECONDS:.0f} seconds")
        self._sock.settimeout(min(SILENCE, left))
        return self._raw.readinto(buffer) or 0

    def close(self) -> None:
        self._raw.close()
        super().close()

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What http.client asks of a socket."""
        return _Buffered(self, _BLOCK)


class _Buffered(io.BufferedReader):
    """http.client takes a negative size of a chunk for a number, and would read without end."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes."""
        if size is None or size < 0:
            raise http.client.HTTPException("a size below zero")
        return super().read(size)


class BoundedResponse(http.client.HTTPResponse):
    """An answer that ends: `response_class` of a connection whose server is not trusted."""

    def __init__(self, sock: socket.socket, *rest: Any, **named: Any) -> None:
        super().__init__(_Timed(sock), *rest, **named)  # type: ignore[arg-type]


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("agent", timeout=SILENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SILENCE)
        self.sock.connect(self._path)


class HttpSource(Source):
    """A web server or an agent. `prefixes` are tried in order by the first read; the one that has a log stays."""

    threads = 8

    def __init__(
        self,
        name: str,
        connect: Callable[[], http.client.HTTPConnection],
        prefixes: tuple[str, ...],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        self._connect = connect
        self._prefixes = prefixes
        self._pause = pause
        self._local = threading.local()
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._answered = False

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()

    def _get(self, path: LogPath, most: int) -> bytes:
        if len(self._prefixes) > 1:
            self._find()
        return self._fetch(self._prefixes[0] + path.text, path.text, most)

    def _find(self) -> None:
        """Settle on the first prefix that has a checkpoint; the last one where none has."""
        wanted = parse_path("checkpoint")
        with self._lock:
            prefixes = self._prefixes
        for prefix in prefixes[:-1]:
            try:
                self._fetch(prefix + wanted.text, wanted.text, wanted.most)
            except SourceMissing:
                continue
            self._prefixes = (prefix,)
            return
        self._prefixes = prefixes[-1:]

    def _fetch(self, target: str, path: str, most: int) -> bytes:
        for wait in (*_PAUSES, None):
            reused = self._connected()
            try:
                status, data = self._exchange(target, path, most)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._drop()
                if wait is None or not (reused or self._answered) or isinstance(error, ssl.SSLError):
                    self._give_up(error)
            else:
                if status == http.client.OK:
                    return data
                if status not in _BUSY or wait is None:
                    self._refused(status, path)
                reused = False
            if not reused:  # a connection that was kept may have ended for no reason but its age
                self._pause(wait)
        raise AssertionError

    def _exchange(self, target: str, path: str, most: int) -> tuple[int, bytes]:
        """Ask once. Returns the status, and the body where that is 200."""
        connection = self._connection()
        connection.request("GET", target, headers=_HEADERS)
        with closing(connection.getresponse()) as response:
            self._answered = True
            wanted = response.status == http.client.OK
            if wanted and response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
                self._drop()
                raise SourceFailed(f"{self.name}: {path} comes with a content coding that nobody asked for")
            limit = most if wanted else _BLOCK
            length = response.length or 0
            data = read_body(response, limit) if length <= limit else b""
            if max(length, len(data)) > limit:
                self._drop()
                if wanted:
                    raise SourceTooLarge(self.name, path, most)
            elif response.will_close:
                self._drop()
            return response.status, data

    def _refused(self, status: int, path: str) -> NoReturn:
        if status in _GONE:
            raise SourceMissing(path, self.name)
        if 300 <= status < 400:
            raise SourceFailed(
                f"{self.name}: the server points to another place for {path}, which is not followed",
                hint="name the address where the log is",
            )
        raise SourceFailed(
            f"{self.name}: the server answers {status} for {path}",
            hint="an agent's proxy has its log below /quotary/v1/",
        )

    def _give_up(self, error: Exception) -> NoReturn:
        if isinstance(error, ssl.SSLCertVerificationError):
            reason = f"its certificate is not trusted: {error.verify_message.lower()}"
        else:
            reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
        raise SourceFailed(f"{self.name} does not answer: {reason}") from None

    def _connected(self) -> bool:
        return getattr(self._local, "connection", None) is not None

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            connection.response_class = BoundedResponse
            with self._lock:
                self._open.add(connection)
        return connection

    def _drop(self) -> None:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            with self._lock:
                self._open.discard(connection)
            self._local.connection = None


def url_source(url: str, pause: Callable[[float], None] = time.sleep) -> HttpSource:
    """Return the source of an `http` or `https` URL, which names the prefix below which the log is published.

    A URL without a path may also name the host of an agent's proxy, which publishes below `/quotary/v1/`.

    Raises:
        SourceFailed: the URL has parts that a log's has not.
    """
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if (
        not host
        or not host.isascii()
        or parts.username is not None
        or parts.query
        or parts.fragment
        or not url.isprintable()
    ):
        raise SourceFailed(
            f"{url}: not the address of a log",
            code=ExitCode.USAGE,
            hint="for example https://gpu-07.example.net/quotary/v1/, without name, query or fragment",
        )
    path = quote(parts.path, safe=_ALLOWED).rstrip("/") + "/"
    prefixes = (path, PREFIX) if path == "/" else (path,)

    def connect() -> http.client.HTTPConnection:
        if parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=SILENCE, context=context)
        return http.client.HTTPConnection(host, port, timeout=SILENCE)

    return HttpSource(url, connect, prefixes, pause)


def agent_source(path: Path) -> HttpSource:
    """Return the source of a running agent's local interface, a Unix socket."""
    return HttpSource(f"unix:{path}", lambda: _UnixConnection(str(path)), ("/",))


def read_body(response: http.client.HTTPResponse, most: int) -> bytes:
    """Read a body of at most `most` bytes, or more of it than that."""
    blocks: list[bytes] = []
    left = most + 1
    while left > 0 and (block := response.read(min(left, _BLOCK))):
        blocks.append(block)
        left -= len(block)
    if left > 0 and response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(blocks)
