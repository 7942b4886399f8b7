# SPDX-License-Identifier: Apache-2.0
"""A web server on loopback for logs as static files, and for servers that do what they should not."""

from __future__ import annotations

import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Served:
    """A running server: its address, the paths that were asked for, and the connections that were made."""

    url: str
    asked: list[str] = field(default_factory=list)
    connections: int = 0


class _Quiet:
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that has heard enough."""


class _Web(_Quiet, ThreadingHTTPServer):
    """A web server."""


class _Raw(_Quiet, socketserver.ThreadingTCPServer):
    """A server of bytes."""


@contextmanager
def serving(answer: Callable[[str], Answer], tls: ssl.SSLContext | None = None) -> Iterator[Served]:
    """Serve what `answer` says for a path: status, header fields, body; over TLS if there is a context for it."""
    served = Served("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            served.connections += 1
            super().setup()

        def do_GET(self) -> None:
            served.asked.append(self.path)
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    server = _Web(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        served.url = f"https://localhost:{server.server_address[1]}"
    with _running(server):
        yield served


@contextmanager
def serving_files(files: Mapping[str, bytes], prefix: str = "/") -> Iterator[Served]:
    """Serve files below a prefix, and 404 elsewhere."""

    def answer(path: str) -> Answer:
        found = files.get(path.removeprefix(prefix)) if path.startswith(prefix) else None
        return (404, {}, b"no") if found is None else (200, {}, found)

    with serving(answer) as served:
        yield served


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """A server that reads one request and writes these very bytes; yields its address."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(reply)

    server = _Raw(("127.0.0.1", 0), Handler)
    with _running(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"


@contextmanager
def _running(server: socketserver.TCPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
