# SPDX-License-Identifier: Apache-2.0
"""CPU and memory of processes while a load runs, from /proc."""

from __future__ import annotations

import os
import statistics
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_INTERVAL = 0.5


def children(pid: int) -> list[int]:
    """Return the processes that a process started, itself not among them, and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *children(int(child))]
    return found


class Watch:
    """Samples processes on a thread of its own. Use it as a context manager; a process that ends is left out.

    CPU counts for the first `seconds`, memory for as long as the block lasts.
    """

    def __init__(self, processes: dict[str, int], seconds: float) -> None:
        self._processes = processes
        self._seconds = seconds
        self._begun = {name: cpu_of(pid) for name, pid in processes.items()}
        self._cpu = dict(self._begun)
        self._memory: dict[str, list[tuple[float, int]]] = {name: [] for name in processes}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._since = time.monotonic()
        self._lasted = 0.0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self._sample()

    def _sample(self) -> None:
        now = time.monotonic() - self._since
        counts = now <= self._seconds + _INTERVAL or not self._lasted
        if counts:
            self._lasted = now
        for name, pid in self._processes.items():
            with suppress(OSError):  # it has ended
                self._memory[name].append((now, resident_of(pid)))
                self._cpu[name] = cpu_of(pid) if counts else self._cpu[name]

    def cpu(self) -> dict[str, float]:
        """Return each process's CPU time over the time watched: 1.0 is one core."""
        return {name: round((self._cpu[name] - self._begun[name]) / self._lasted, 3) for name in self._cpu}

    def memory(self) -> dict[str, dict[str, Any]]:
        """Return each process's MB: at the start, the most, at the end, and the second half's slope a minute."""
        return {name: _memory(samples) for name, samples in self._memory.items() if samples}


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU that a process took, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def resident_of(pid: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def _memory(samples: list[tuple[float, int]]) -> dict[str, Any]:
    sizes = [size / 1e6 for _, size in samples]
    later = [(when / 60, size / 1e6) for when, size in samples[len(samples) // 2 :]]
    slope = statistics.linear_regression(*zip(*later, strict=True)).slope if len(later) > 1 else 0.0
    return {
        "start": round(sizes[0], 1),
        "most": round(max(sizes), 1),
        "end": round(sizes[-1], 1),
        "slope_a_minute": round(slope, 1),
    }
