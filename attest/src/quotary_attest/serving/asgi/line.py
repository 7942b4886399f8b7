# SPDX-License-Identifier: Apache-2.0
"""The server's two callables of one request, as the middleware uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from quotary_attest.serving.asgi.types import Message, Receive, Send

T = TypeVar("T")
_LONG_BODY: Final = 256 * 1024


class Cut(OSError):  # noqa: N818 - it is what ended, not what failed
    """What an application meets whose answer is broken off; ASGI has OSError for a client that is gone."""


class Line:
    """Hands the application its request, and sees when the client goes away."""

    def __init__(
        self, receive: Receive, send: Send, *, took: Callable[[bytes], None], left: Callable[[], None]
    ) -> None:
        """`took` is told each piece of the request, `left` that the client is gone, perhaps more than once."""
        self._receive, self._send = receive, send
        self._took, self._left = took, left
        self._watcher: asyncio.Task[None] | None = None
        self.read_whole = False
        """True once the application has read the request to its end."""
        self.gone = asyncio.Event()
        """Set once there is nobody to answer any more; the application is told so by `read`."""

    async def read(self) -> Message:
        """Return what the application's `receive` returns: its request, then only that the client is gone."""
        if not self.read_whole and not self.gone.is_set():
            message = await self._receive()
            if message["type"] == "http.request":
                self._took(message.get("body", b""))
                self.read_whole = not message.get("more_body", False)
            elif message["type"] == "http.disconnect":
                self._lost()
            return message
        self.watch()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    def watch(self) -> None:
        """Look out for the client's going from now on; only one task may ask the server."""
        if self._watcher is None and not self.gone.is_set():
            self._watcher = asyncio.create_task(self._await_disconnect())

    async def send(self, message: Message) -> None:
        """Send a message; a server that says by OSError that the client is gone is believed."""
        try:
            await self._send(message)
        except OSError:
            self._lost()
            raise

    def close(self) -> None:
        """Look out no more."""
        if self._watcher is not None:
            self._watcher.cancel()

    async def _await_disconnect(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._lost()
                return

    def _lost(self) -> None:
        self.gone.set()
        self._left()


async def off_loop(body: bytes, work: Callable[[], T]) -> T:
    """Do `work` on a body, in a thread if it is long: other streams go on meanwhile."""
    return work() if len(body) <= _LONG_BODY else await asyncio.to_thread(work)
