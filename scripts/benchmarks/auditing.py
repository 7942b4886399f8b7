# SPDX-License-Identifier: Apache-2.0
"""What an audit of a long history costs: leaves a second, and memory, which must not grow with the log.

The log is made here: synthetic commits of random entries, each with a quote that a key in memory signs in the place of
a TPM (tests/support/soft_log.py). To an auditor it is a history like any other; no TPM signs ten million leaves' worth
of commits in the minutes that a benchmark has.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from soft_log import SoftLog

from figures import PAUSE, Measured, NotMeasured, progress

SMALL, LARGE = 1_000_000, 10_000_000
COMMITS = 5000
PROCESSES = 2
_GIB = 1 << 30
_HASHED = 1 << 18

_PROGRAM = """
import resource, sys
from quotary_cli.main import run
code = run(sys.argv[1:])
print(*(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)), file=sys.stderr)
sys.exit(code)
"""
"""The command, and then how large its process was at most, and the largest of its workers, in KiB."""


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
        f" from the start of `attest audit` on static files (page cache) to its end: every bundle and tile hashed and"
        f" compared, every root, Ed25519 line, quote and chain link verified; synthetic commits that a key in memory"
        f" signed in the place of a TPM;"
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
    """Run `attest audit` on a log; return the seconds of its process, and the peak memory of it and its workers."""
    policy = log.files.folder.with_suffix(".toml")
    policy.write_text(f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{log.origin}"\n')
    words = ["audit", str(log.files.folder), "--policy", str(policy), "--jobs", str(PROCESSES), "--json"]
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *words], check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - begun
    report: dict[str, Any] = json.loads(done.stdout)
    if report["outcome"] != "verified" or report["log"]["size"] != leaves:
        raise RuntimeError(f"the audit of {leaves} leaves did not verify them: {report['findings'][:3]}")
    own, largest = (1024 * int(size) for size in done.stderr.split())
    return seconds, own + PROCESSES * largest


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
