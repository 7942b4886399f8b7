# SPDX-License-Identifier: Apache-2.0
"""What procfs tells of a process: who it is, what it runs, which sockets and files it has open (proc(5)).

Reading another user's process needs CAP_SYS_PTRACE; what cannot be read counts as not there. A process is named by
its number and the time it started, so a number that is used again is another process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quotary_attest.enginelink import ProcessPeer
from quotary_attest.measuring.files import Identity

_PROC: Final = Path("/proc")
_MOST_CHILDREN: Final = 512

Inode = tuple[int, int]
"""Device and inode of a file."""


def process_peer(pid: int) -> ProcessPeer:
    """Return who connects now under a number: whoever has it later is another process."""
    process = Process.of(pid)
    return ProcessPeer(pid, -1 if process is None else process.started)


@dataclass(frozen=True, slots=True)
class Process:
    """A process: its number, and when it started, in clock ticks since boot."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the process that has this number now."""
        fields = _stat(pid)
        return None if fields is None else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        """Tell whether it still runs, and is not a zombie."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[19]) == self.started and fields[0] not in ("Z", "X")

    def executable(self) -> Identity | None:
        """Return the identity of the file that it runs, whatever has become of the file's name."""
        try:
            return Identity.of(os.stat(_PROC / str(self.pid) / "exe"))  # noqa: PTH116 - follows the kernel's own link
        except OSError:
            return None

    @property
    def executable_path(self) -> Path:
        """Where the file that it runs can be opened."""
        return _PROC / str(self.pid) / "exe"

    def has_sockets(self, inodes: frozenset[int]) -> bool:
        """Tell whether its descriptors include all of these sockets: of those that listen at one address, any may
        have taken a connection up."""
        missing = {f"socket:[{inode}]" for inode in inodes}
        folder = f"{_PROC}/{self.pid}/fd"
        try:
            for descriptor in reversed(os.listdir(folder)):  # noqa: PTH208 - the newest connections come last
                with suppress(OSError):
                    missing.discard(os.readlink(f"{folder}/{descriptor}"))  # noqa: PTH115 - as above
                if not missing:
                    return True
        except OSError:
            pass
        return False

    def descends_from(self, ancestor: Process) -> bool:
        """Tell whether it is `ancestor` or was started below it."""
        pid = self.pid
        for _ in range(64):
            if pid == ancestor.pid:
                return ancestor.alive
            fields = _stat(pid)
            if fields is None or (pid := int(fields[1])) <= 1:
                return False
        return False

    def family(self) -> Iterator[Process]:
        """Yield it and what was started below it: model servers load weights in processes of their own."""
        pending, seen = [self.pid], 0
        while pending and seen < _MOST_CHILDREN:
            pid = pending.pop()
            process = Process.of(pid)
            if process is None:
                continue
            seen += 1
            yield process
            pending += _children(pid)

    def open_files(self, wanted: frozenset[Inode]) -> frozenset[Inode]:
        """Return which of these files it has mapped or open."""
        return frozenset(_mapped(self.pid, wanted) | _opened(self.pid, wanted))


def holder_of(inodes: frozenset[int]) -> Process | None:
    """Return a process of this host that has all of these sockets open; None where none is seen. Looks at all."""
    try:
        pids = [int(name) for name in os.listdir(_PROC) if name.isdecimal()]  # noqa: PTH208 - as above
    except OSError:
        return None
    for pid in pids:
        process = Process.of(pid)
        if process is not None and process.has_sockets(inodes):
            return process
    return None


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on: state, parent, group, session, …, started (the 20th)."""
    try:
        with open(f"{_PROC}/{pid}/stat", errors="replace") as file:  # noqa: PTH123 - asked for with every connection
            text = file.read()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return fields if len(fields) > 19 else None


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(_PROC / str(pid) / "task"):  # noqa: PTH208 - as above
            with suppress(OSError, ValueError):
                found += map(int, (_PROC / str(pid) / "task" / thread / "children").read_text().split())
    return found


def _mapped(pid: int, wanted: frozenset[Inode]) -> set[Inode]:
    numbers = {inode: device for device, inode in wanted}
    found: set[Inode] = set()
    with suppress(OSError):
        for line in (_PROC / str(pid) / "maps").read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            inode = int(fields[4])
            if inode not in numbers or (numbers[inode], inode) in found:
                continue
            major, _, minor = fields[3].partition(":")
            device = os.makedev(int(major, 16), int(minor, 16))
            if device != numbers[inode]:
                device = _device_of_mapping(pid, fields[0])
            if (device, inode) in wanted:
                found.add((device, inode))
    return found


def _device_of_mapping(pid: int, span: str) -> int:
    """Return the device of a mapped file as stat gives it: on btrfs and overlayfs it is not that of the maps. -1
    where the kernel does not say (it takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE)."""
    try:
        return os.stat(_PROC / str(pid) / "map_files" / span).st_dev  # noqa: PTH116 - as above
    except OSError:
        return -1


def _opened(pid: int, wanted: frozenset[Inode]) -> set[Inode]:
    found: set[Inode] = set()
    folder = f"{_PROC}/{pid}/fd"
    with suppress(OSError):
        for descriptor in os.listdir(folder):  # noqa: PTH208 - as above
            with suppress(OSError):
                if not os.readlink(f"{folder}/{descriptor}").startswith("/"):  # noqa: PTH115 - as above
                    continue
                status = os.stat(f"{folder}/{descriptor}")  # noqa: PTH116 - as above
                if (status.st_dev, status.st_ino) in wanted:
                    found.add((status.st_dev, status.st_ino))
    return found
