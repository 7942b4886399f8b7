# SPDX-License-Identifier: Apache-2.0
"""A model server that writes scripted bytes, so that each way in which real servers behave on the wire can be had.

It speaks just enough HTTP/1.1 to read a request; what it answers is up to the script, byte for byte, and the script
may close or abort the connection where real servers do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Call:
    """One request as it arrived, and the means to answer it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int
    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader
    close: bool = False

    def header(self, name: str) -> str | None:
        """Return the first field of that name."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    async def write(self, data: bytes) -> None:
        """Write bytes at once."""
        self.writer.write(data)
        await self.writer.drain()

    async def begin_stream(self, *extra: bytes, status: bytes = b"200 OK") -> None:
        """Write the header of a chunked event stream."""
        lines = [b"Content-Type: text/event-stream", b"Transfer-Encoding: chunked", *extra]
        await self.write(b"HTTP/1.1 " + status + b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        """Write one HTTP chunk."""
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        """Write the last chunk."""
        await self.write(b"0\r\n\r\n")

    async def stream(self, *pieces: bytes) -> None:
        """Write a whole chunked event stream, one HTTP chunk for each piece."""
        await self.begin_stream()
        for piece in pieces:
            await self.chunk(piece)
        await self.end()

    async def answer(self, body: bytes, kind: bytes = b"application/json", status: bytes = b"200 OK") -> None:
        """Write a whole answer of known length."""
        head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(body))
        await self.write(head + body)

    async def until_gone(self) -> None:
        """Wait until the proxy has closed the connection."""
        while await self.reader.read(65536):
            pass


Script = Callable[[Call], Awaitable[None]]


@dataclass
class ScriptedEngine:
    """Listens on a port of the loopback interface and answers every request with `script`."""

    script: Script
    calls: list[Call] = field(default_factory=list)
    connections: int = 0
    url: str = ""
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while (call := await self._read(reader, writer, number)) is not None:
                self.calls.append(call)
                await self.script(call)
                if call.close:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> Call | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        request, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = request.split(" ")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        call = Call(method, target, headers, b"", number, writer, reader)
        if call.header("Transfer-Encoding") == "chunked":
            call.body = await self._read_chunked(reader)
        else:
            call.body = await reader.readexactly(int(call.header("Content-Length") or 0))
        return call

    async def _read_chunked(self, reader: asyncio.StreamReader) -> bytes:
        body = b""
        while size := int((await reader.readline()).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
        return body


@asynccontextmanager
async def scripted_engine(script: Script) -> AsyncIterator[ScriptedEngine]:
    """Run a scripted engine."""
    engine = ScriptedEngine(script)
    server = await asyncio.start_server(engine._serve, "127.0.0.1", 0)
    engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield engine
    finally:
        server.close()


def chunk_event(number: int = 0, *, end: bytes = b"\n", **members: Any) -> bytes:
    """Return one chunk of a chat completion as an event."""
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1764000000,
        "model": "m",
        **members,
    }
    return b"data: " + json.dumps(chunk).encode() + end + end


def delta_event(text: str | None, *, finish: str | None = None, end: bytes = b"\n", **delta: Any) -> bytes:
    """Return a chunk with a piece of content."""
    choice = {
        "index": 0,
        "delta": {**({} if text is None else {"content": text}), **delta},
        "finish_reason": finish,
    }
    return chunk_event(end=end, choices=[choice])


def completion(text: str, **members: Any) -> bytes:
    """Return a whole chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1764000000,
            "model": "m",
            "choices": [choice],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            **members,
        }
    ).encode()


DONE = b"data: [DONE]\n\n"
