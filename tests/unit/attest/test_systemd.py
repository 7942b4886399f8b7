# SPDX-License-Identifier: Apache-2.0
"""What systemd and the agent tell each other, piece by piece; whole processes: test_agent_service.py."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from quotary_attest.systemd import (
    Notifier,
    PassedSockets,
    ServiceError,
    credential,
    keep_alive,
    watchdog_seconds,
)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.setblocking(False)
    yield listener
    listener.close()


def heard(manager: socket.socket) -> list[str]:
    """All that the manager was told."""
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_the_manager_is_told_in_its_words(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": str(manager.getsockname())}
    notifier = Notifier.of(environment)
    assert not environment, "an engine that the agent starts must not speak in its name"
    notifier.status("starting")
    notifier.ready()
    notifier.status("a line\nwith a break")
    notifier.status("a line with a break")
    notifier.extend(1.5)
    notifier.stopping()
    notifier.close()
    notifier.alive()
    assert heard(manager) == [
        "STATUS=starting",
        "READY=1",
        "STATUS=a line with a break",
        "EXTEND_TIMEOUT_USEC=1500000",
        "STOPPING=1",
    ]


def test_an_address_in_the_abstract_namespace_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0quotary-test-{os.getpid()}")
        with closing(Notifier(f"@quotary-test-{os.getpid()}")) as notifier:
            notifier.ready()
        assert manager.recv(100) == b"READY=1"


def test_a_manager_that_is_not_there_or_deaf_does_not_disturb(manager: socket.socket, tmp_path: Path) -> None:
    Notifier().ready()
    with closing(Notifier(str(tmp_path / "nobody"))) as notifier:
        notifier.ready()
    with closing(Notifier(str(manager.getsockname()))) as notifier:
        for _ in range(10_000):
            notifier.alive()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "7"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_for_the_process_that_it_names(
    environment: dict[str, str], seconds: float | None
) -> None:
    assert watchdog_seconds(environment, 7) == seconds
    assert not environment


async def test_a_sign_of_life_comes_twice_in_the_time_as_long_as_all_is_well(manager: socket.socket) -> None:
    well = [True, True, True, False, False, True]
    done = asyncio.Event()

    def healthy() -> bool:
        if len(well) == 1:
            done.set()
        return well.pop(0)

    with closing(Notifier(str(manager.getsockname()))) as notifier:
        chore = asyncio.create_task(keep_alive(notifier, 0.002, healthy))
        await done.wait()
        chore.cancel()
        await asyncio.gather(chore, return_exceptions=True)
    assert heard(manager) == ["WATCHDOG=1"] * 3 + ["STATUS=stuck", "WATCHDOG=1"]


def listeners(names: str, *kinds: str, pid: str = "own", count: int | None = None) -> str:
    """What a process of its own makes of descriptors from 3 on: `taken` or the error."""
    program = """
import os, socket, sys
from quotary_attest.systemd import PassedSockets, ServiceError
made = []
for kind in sys.argv[4:]:
    if kind == "tcp": made.append(socket.create_server(("127.0.0.1", 0)))
    elif kind == "unix":
        made.append(socket.socket(socket.AF_UNIX)); made[-1].bind("\\0" + str(os.getpid())); made[-1].listen()
    elif kind == "idle": made.append(socket.socket())
    else: made.append(open("/dev/null"))
high = [os.dup2(each.fileno(), 100 + at) for at, each in enumerate(made)]
for each in made: each.close()
for at, number in enumerate(high):
    os.dup2(number, 3 + at); os.close(number)
pid = str(os.getpid()) if sys.argv[2] == "own" else sys.argv[2]
environment = {"LISTEN_FDS": sys.argv[3], "LISTEN_PID": pid, "LISTEN_FDNAMES": sys.argv[1]}
try:
    found = PassedSockets.of(environment)
    assert not environment
    print(*found.left)
    for name in sorted(found.left): print(name, len(found.take(name)))
    found.close()
except ServiceError as error:
    print("refused:", error)
"""
    passed = str(len(kinds) if count is None else count)
    done = subprocess.run(
        [sys.executable, "-c", program, names, pid, passed, *kinds],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_sockets_are_found_by_name_and_one_name_may_have_several() -> None:
    assert listeners("door:other:door", "tcp", "tcp", "tcp") == "door other\ndoor 2\nother 1"


def test_sockets_that_are_for_another_process_are_not_touched() -> None:
    assert listeners("door", "tcp", pid="1") == ""


@pytest.mark.parametrize(
    ("names", "kinds", "count", "message"),
    [
        ("door", ["idle"], None, "does not listen"),
        ("door", ["file"], None, "is no socket"),
        ("door", ["tcp"], 2, "not one name for each"),
        ("door", ["tcp"], 99999, "LISTEN_FDS is damaged"),
        ("door", ["unix"], None, "of another kind"),
    ],
)
def test_what_is_no_listening_socket_is_refused(
    names: str, kinds: list[str], count: int | None, message: str
) -> None:
    assert message in listeners(names, *kinds, count=count)


def test_a_socket_is_taken_once() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        passed = PassedSockets({"local": [listener]})
        assert passed.take("local", Path) == [listener]
        with pytest.raises(ServiceError, match="no socket named local"):
            passed.take("local", Path)


def test_a_credential_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "auth").write_text("hunter2\r\nmore\n")
    assert credential("auth", {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == b"hunter2"


@pytest.mark.parametrize("content", [None, b"", b"\n", bytes(1025)])
def test_a_credential_that_is_none_is_refused_without_its_content(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "auth").write_bytes(content)
    with pytest.raises(ServiceError) as caught:
        credential("auth", {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert "credential auth" in str(caught.value)
    with pytest.raises(ServiceError, match="systemd passed none"):
        credential("auth", {})
