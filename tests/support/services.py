# SPDX-License-Identifier: Apache-2.0
"""`attest agent run` as a service manager starts it: told where to report, with sockets that listen already."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# systemd numbers what it passes from 3 on and names the process that it is for, whose id is known once it runs
_START = """
import os, sys
count = int(sys.argv[1])
moved = [os.dup(int(number)) for number in sys.argv[2:2 + count]]
high = [os.dup2(number, 200 + at) for at, number in enumerate(moved)]
for at, number in enumerate(high):
    os.dup2(number, 3 + at, inheritable=True)
    os.close(number)
if count:
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(count)
os.execv(sys.executable, [sys.executable, "-m", "quotary_cli", *sys.argv[2 + count:]])
"""


@dataclass
class Running:
    """An agent's process: what it said when it was ready, what it reports, what it writes to standard error."""

    process: asyncio.subprocess.Process
    reports: socket.socket
    ready: dict[str, Any] = field(default_factory=dict)
    reported: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    async def report(self, wanted: str, timeout: float = 20) -> str:  # noqa: ASYNC109
        """Wait for the next report that begins with `wanted`, and return it."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout):
            while True:
                message = (await loop.sock_recv(self.reports, 4096)).decode()
                self.reported.append(message)
                if message.startswith(wanted):
                    return message

    async def logged(self, wanted: str) -> str:
        """Wait for a line of the log that holds `wanted`, and return it."""
        async with asyncio.timeout(20):
            while True:
                line = await self._line()
                if wanted in line:
                    return line

    async def _line(self) -> str:
        assert self.process.stderr is not None
        line = (await self.process.stderr.readline()).decode()
        assert line, "the agent ended: " + "".join(self.errors)
        self.errors.append(line)
        return line

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def ended(self, timeout: float = 60) -> int:  # noqa: ASYNC109
        """Wait for the end of the process and return its exit code."""
        assert self.process.stderr is not None
        async with asyncio.timeout(timeout):
            rest = await self.process.stderr.read()
            self.errors += rest.decode().splitlines(keepends=True)
            return await self.process.wait()

    @property
    def log(self) -> str:
        """What was read of standard error so far; all of it once the process ended."""
        return "".join(self.errors)


@asynccontextmanager
async def service(
    folder: Path,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    sockets: Mapping[str, socket.socket] | None = None,
    wait: bool = True,
    through: Sequence[str] = (),
) -> AsyncIterator[Running]:
    """Run `attest agent run` with these arguments; `folder` is for the socket of its reports.

    `sockets` are passed on by name. With `wait` the block begins when the agent has said that it is ready. `through`
    is a command that runs what follows it; it must be Python's own interpreter where it ends in a script.
    """
    address = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reports:
        reports.bind(str(address))
        reports.setblocking(False)
        passed = dict(sockets or {})
        numbers = [str(each.fileno()) for each in passed.values()]
        process = await asyncio.create_subprocess_exec(
            *through,
            *([] if through and through[0] == sys.executable else [sys.executable]),
            *("-c", _START, str(len(passed)), *numbers),
            *("agent", "run", *map(str, arguments)),
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(address),
                "LISTEN_FDNAMES": ":".join(passed),
                **(environment or {}),
            },
            pass_fds=[each.fileno() for each in passed.values()],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        running = Running(process, reports)
        try:
            if wait:
                running.ready = await _ready(process)
            yield running
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                try:
                    await running.ended()
                finally:
                    if process.returncode is None:
                        process.kill()
                        await process.wait()
            address.unlink()


async def _ready(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.timeout(60):
        line = await process.stdout.readline()
        if not line:
            raise AssertionError((await process.stderr.read()).decode())
    found: dict[str, Any] = json.loads(line)
    return found
