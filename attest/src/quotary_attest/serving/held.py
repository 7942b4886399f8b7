# SPDX-License-Identifier: Apache-2.0
"""A common bound on the bytes that the proxy holds for all requests and answers together (docs/spec/serving.md)."""

from __future__ import annotations

from types import TracebackType

from aiohttp import web

from quotary_attest.engine.errors import Busy


class Budget:
    """So many bytes may be held at a time."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        """Bytes held now."""

    def share(self) -> Share:
        """Return what one exchange holds: nothing yet. Use it as a context manager."""
        return Share(self)


class Share:
    """The bytes that one exchange holds."""

    __slots__ = ("_budget", "_size")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._size = 0

    @property
    def room(self) -> int:
        """Bytes that may be held more, by all exchanges together."""
        return self._budget.limit - self._budget.held

    def fits(self, size: int) -> bool:
        """Hold `size` bytes more if there is room for them, and tell whether."""
        if size > self.room:
            return False
        self._budget.held += size
        self._size += size
        return True

    def release(self) -> None:
        """Hold nothing any more."""
        self._budget.held -= self._size
        self._size = 0

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


async def read_request(request: web.Request, limit: int, share: Share) -> bytes:
    """Read a request's body of at most `limit` bytes, held by `share`.

    Raises:
        HTTPRequestEntityTooLarge: it is longer; it is not read whole.
        Busy: there is no room for it now.
    """
    length = request.content_length
    if length is not None and length > limit:
        raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=length)
    if length is not None and length > share.room:
        raise _busy()
    pieces: list[bytes] = []
    size = 0
    while data := await request.content.readany():
        size += len(data)
        if size > limit:
            raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=size)
        # what was announced and has not come holds nothing: else a few who announce much would shut out all others
        if not share.fits(len(data)):
            raise _busy()
        pieces.append(data)
    return b"".join(pieces)


def _busy() -> Busy:
    return Busy("too many bytes of requests and answers are held at once", hint="try again in a moment")
