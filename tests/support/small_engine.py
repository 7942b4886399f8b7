# SPDX-License-Identifier: Apache-2.0
"""A model server as a process of its own, small enough for every test: `python small_engine.py --model F --port P`.

It maps its model file, as real ones do, and answers with the file's first bytes, so that an answer tells which weights
gave it. A streamed answer begins at once and ends when `POST /release` was asked for.

The rest of this module starts such processes for tests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(__file__).resolve()
PYTHON = Path(os.path.realpath(sys.executable))
_SECONDS = 20.0


# -- the server


class _Server:
    def __init__(self, words: str) -> None:
        self._words = words
        self._released = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = [
                line.partition(":")[2]
                for line in head.split("\r\n")
                if line.lower().startswith("content-length")
            ]
            body = await reader.readexactly(int(length[0])) if length else b""
            target = head.split(" ")[1]
            if target == "/release":
                self._released.set()
            if target.endswith("/completions") and b'"stream":true' in body:
                await self._stream(writer)
            else:
                await self._answer(writer)
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": self._words},
        }
        body = json.dumps(
            {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        )
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body.encode()
        )
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self._chunk(writer, {"delta": {"content": self._words}, "finish_reason": None})
        await writer.drain()
        await self._released.wait()
        self._chunk(writer, {"delta": {"content": "."}, "finish_reason": "stop"})
        done = b"data: [DONE]\n\n"
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(done), done))
        await writer.drain()

    def _chunk(self, writer: asyncio.StreamWriter, choice: dict[str, object]) -> None:
        event = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        data = f"data: {json.dumps(event | {'choices': [{'index': 0} | choice]})}\n\n".encode()
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument(
        "--read", action="store_true", help="read the model, and leave it neither open nor mapped"
    )
    parser.add_argument("--fail", action="store_true")
    chosen = parser.parse_args()
    if chosen.fail:
        sys.exit(3)
    path = Path(chosen.model)
    if path.is_dir():
        path = sorted(path.glob("*.safetensors"))[0]
    with path.open("rb") as file:
        weights = None if chosen.read else mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        words = file.read(16).decode()
    asyncio.run(_serve(words, chosen.host, chosen.port))
    del weights


async def _serve(words: str, host: str, port: int) -> None:
    async with await asyncio.start_server(_Server(words).serve, host, port) as server:
        await server.serve_forever()


# -- for tests


@dataclass(frozen=True)
class Running:
    """A small engine that listens."""

    process: subprocess.Popen[bytes]
    port: int
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def kill(self) -> None:
        """End it at once, and wait until it is gone."""
        self.process.kill()
        self.process.wait()


def any_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def small_engine(model: Path, *options: str, port: int = 0, host: str = "127.0.0.1") -> Iterator[Running]:
    """Run a small engine until the block ends; it listens when the block begins."""
    port = port or any_port(host)
    command = [PYTHON, "-I", PROGRAM, "--model", model, "--port", str(port), "--host", host, *options]
    with subprocess.Popen(command) as process:
        try:
            await_listening(process, host, port)
            yield Running(process, port, host)
        finally:
            process.kill()


def await_listening(process: subprocess.Popen[bytes], host: str, port: int) -> None:
    """Wait until something listens there."""
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1" if host == "::" else host, port), 1).close()
            return
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)  # it has no other way to say so


if __name__ == "__main__":
    _main()
