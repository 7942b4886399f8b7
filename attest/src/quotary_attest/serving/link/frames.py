# SPDX-License-Identifier: Apache-2.0
"""Frames of the serving link: u32 length ‖ one CBOR array, deterministic, decoded strictly, limits first.

Frames that are made in one turn of the event loop go out in one write, so that a commit of a thousand outputs costs
a system call and not a thousand.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from quotary_verifier.errors import MalformedError
from quotary_verifier.wire import cbor
from quotary_verifier.wire.limits import MAX_ATTESTATION

MAX_REQUEST: Final = 512 * 1024
"""Bytes of a frame to the agent: an output with 256 digests and a full context has 150 KB."""

MAX_REPLY: Final = 2 * MAX_ATTESTATION
"""Bytes of a frame from the agent: an attestation, or a file of the published log (256 commits)."""

_LENGTH: Final = struct.Struct(">I")
_HEAD: Final = _LENGTH.size


def frame(message: list[Any]) -> bytes:
    """Return a message as it goes over the link. Maps in it must stand in order (`cbor.encode_ordered`)."""
    body = cbor.encode_ordered(message)
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Takes bytes in as they come and hands whole messages out."""

    __slots__ = ("_buffer", "_limit", "_wanted")

    def __init__(self, limit: int) -> None:
        """`limit` is the greatest length of a frame, in bytes."""
        self._limit = limit
        self._buffer = bytearray()
        self._wanted = _HEAD

    def feed(self, data: bytes) -> Iterator[list[Any]]:
        """Take in `data`; yield the messages that are whole now.

        Raises:
            MalformedError: a frame is longer than the limit, or no deterministic CBOR array that begins with a
                number that is not negative, and an operation.
        """
        buffer = self._buffer
        buffer += data
        if len(buffer) < self._wanted:
            return
        position = 0
        while True:
            start = position + _HEAD
            if start > len(buffer):
                self._wanted = _HEAD
                break
            (length,) = _LENGTH.unpack_from(buffer, position)
            if length > self._limit:
                raise MalformedError(f"a frame has {length} bytes, {self._limit} are allowed")
            end = start + length
            if end > len(buffer):
                self._wanted = end - position
                break
            yield _message(bytes(buffer[start:end]), self._limit)
            position = end
        del buffer[:position]


def _message(body: bytes, limit: int) -> list[Any]:
    message = cbor.decode(body, max_bytes=limit, what="a frame")
    if type(message) is not list or len(message) < 2:
        raise MalformedError("a frame is not an array of two items or more")
    number, operation = message[:2]
    if type(number) is not int or number < 0 or type(operation) is not int:
        raise MalformedError("a frame does not begin with a number and an operation")
    return message


class FrameWriter:
    """Writes frames to a transport: all of one turn at once, and none while the other side does not read."""

    __slots__ = ("_flushing", "_loop", "_make", "_paused", "_queue", "_transport")

    def __init__(self, transport: asyncio.Transport, make: Callable[[Any], bytes]) -> None:
        """`make` turns what was queued into a frame when its turn comes, so that what waits is not encoded yet."""
        self._transport = transport
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Any] = deque()
        self._flushing = False
        self._paused = False

    def put(self, item: Any) -> None:
        """Queue an item."""
        self._queue.append(item)
        if not self._flushing and not self._paused:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def pause(self) -> None:
        """The transport's buffer is full."""
        self._paused = True

    def resume(self) -> None:
        """The transport's buffer has room again."""
        self._paused = False
        if self._queue and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def flush(self) -> None:
        """Write what is queued, as far as the transport takes it."""
        self._flush()

    @property
    def waiting(self) -> int:
        """How many items are queued."""
        return len(self._queue)

    def _flush(self) -> None:
        self._flushing = False
        queue, make = self._queue, self._make
        while queue and not self._paused and not self._transport.is_closing():
            frames, size = [], 0
            while queue and size < _WRITE_BYTES:
                made = make(queue.popleft())
                frames.append(made)
                size += len(made)
            self._transport.write(b"".join(frames))


_WRITE_BYTES: Final = 256 * 1024
