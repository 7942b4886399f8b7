# SPDX-License-Identifier: Apache-2.0
"""What an audit of a long history costs: leaves a second, and memory, which must not grow with the log.

The log is made here: synthetic commits of random entries, each with a quote that a key in memory signs in the place of
a TPM (tests/support/soft_log.py). To an auditor it is a history like any other; no TPM signs ten million leaves' worth
of commits in the minutes that a benchmark has.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from agents import policy_of
from soft_log import SoftLog

from figures import PAUSE, Measured, NotMeasured, progress
from quotary_cli.auditing import Wanted, audit_source

SMALL, LARGE = 1_000_000, 10_000_000
COMMITS = 5000
PROCESSES = 2
AT = 1_790_000_100
_GIB = 1 << 30
_HASHED = 1 << 18


def throughput(folder: Path, rounds: int, *, large: int = LARGE) -> Measured:
    """audit_leaves_per_s: an audit of `large` leaves by two processes, from the files to the report."""
    if shutil.disk_usage(folder).free < 3 * _GIB:
        raise NotMeasured("ten million leaves and their tiles need 3 GiB of free disk")
    logs = {leaves: make_log(folder / str(leaves), leaves) for leaves in (large // 10, large)}
    ratios, rates = [], []
    peaks: dict[int, list[int]] = {leaves: [] for leaves in logs}
    for _ in range(rounds):
        time.sleep(PAUSE)
        before = bare_hashing()
        for leaves, log in logs.items():
            seconds, peak = _audit(log, leaves)
            peaks[leaves].append(peak)
        rates.append(large / seconds)
        ratios.append(large / seconds / ((before + bare_hashing()) / 2))
        progress(f"audit_leaves_per_s: {rates[-1]:.0f}, {ratios[-1]:.2f} of bare hashing")
    shown = " and ".join(f"{max(values) >> 20} MiB at {leaves} leaves" for leaves, values in peaks.items())
    return Measured(
        rates,
        f"{large} leaves in {COMMITS} commits, {PROCESSES} processes beside the one that puts their results together,"
        f" from static files (page cache) to the report: every bundle and tile hashed and compared, every root, Ed25519"
        f" line, quote and chain link verified; synthetic commits that a key in memory signed in the place of a TPM;"
        f" peak memory of all processes together {shown}; {_median(ratios):.2f} of what bare hashing by {PROCESSES}"
        f" processes gave in the same rounds",
    )


def make_log(folder: Path, leaves: int) -> SoftLog:
    """A log of `leaves` leaves in 5,000 commits: one start, then outputs."""
    begun = time.monotonic()
    log = SoftLog(folder)
    log.start()
    commits = COMMITS - 1
    for number in range(commits):
        log.outputs((leaves - 2) * (number + 1) // commits - (leaves - 2) * number // commits)
    log.finish()
    progress(f"audit_leaves_per_s: a log of {log.size} leaves after {time.monotonic() - begun:.0f} s")
    return log


def _audit(log: SoftLog, leaves: int) -> tuple[float, int]:
    """Audit a log in a process of its own; return the seconds, and the peak memory of it and its workers in bytes."""
    done = subprocess.run(
        [sys.executable, __file__, str(log.files.folder), log.origin], check=True, capture_output=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    if result["outcome"] != "verified" or result["size"] != leaves:
        raise RuntimeError(f"the audit of {leaves} leaves did not verify them: {result}")
    return result["seconds"], result["peak"]


def bare_hashing() -> float:
    """Leaves a second that two processes hash, two SHA-256 each, with nothing else to do."""
    with get_context("spawn").Pool(PROCESSES) as pool:
        seconds = pool.map(_hash, range(PROCESSES))
    return sum(_HASHED / spent for spent in seconds)


def _hash(_: int) -> float:
    entries = [number.to_bytes(33) for number in range(_HASHED)]
    pairs = [number.to_bytes(65) for number in range(_HASHED)]
    begun = time.perf_counter()
    for items in (entries, pairs):
        b"".join([sha256(item).digest() for item in items])
    return time.perf_counter() - begun


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _peaks(own: int) -> Iterator[int]:
    """Yield the peak resident bytes of this process and of each worker that has ended."""
    yield own
    # ru_maxrss of children is that of the largest: two alike count twice
    yield PROCESSES * 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def main(folder: str, origin: str) -> None:
    """Audit a log and print what it took; the process of `_audit`."""
    wanted = Wanted(folder, policy_of(origin), AT, processes=PROCESSES)
    begun = time.perf_counter()
    report = audit_source(wanted)
    seconds = time.perf_counter() - begun
    own = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = 0 if report.log is None else report.log.size
    peak = sum(_peaks(own))
    json.dump({"outcome": report.outcome, "size": size, "seconds": seconds, "peak": peak}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
