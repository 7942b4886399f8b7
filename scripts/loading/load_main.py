# SPDX-License-Identifier: Apache-2.0
"""Puts the agent under load and verifies every answer; prints one JSON object on stdout, progress on stderr.

    scripts/load [--rate N] [--streams N] [--seconds N] [--workers N] [--find]

200 streams of 5 chunks a second and 2,000 short requests a second for a minute by default, on a simulated discrete
TPM. `--find` looks for the highest rate that is sustained, by bisection, and then runs at that one. The exit
code is 0 if every request was answered and every answer verified, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "scripts" / "benchmarks")]

from figures import progress  # noqa: E402
from load_check import Checked, check  # noqa: E402 - the path comes first
from load_host import Host, host  # noqa: E402
from load_watch import Watch  # noqa: E402
from main import machine  # noqa: E402

STREAMS, CHUNKS, PACE_MS = 200, 50, 200
RATE, SECONDS = 2000.0, 60.0
SUSTAINED_P99_MS = 1000.0
"""The 99th percentile of a rate that is sustained: two commits and as long again; a queue that grows passes it soon."""

_TRIAL_SECONDS = 15.0
_STEPS = 5


@dataclass(frozen=True)
class Load:
    """What is asked of the host."""

    rate: float = RATE
    streams: int = STREAMS
    seconds: float = SECONDS
    workers: int = 0


def run_once(load: Load, folder: Path) -> dict[str, Any]:
    """Run one load on a new host and verify what came."""
    out = folder / "answers"
    with host(folder, workers=load.workers) as running:
        summary, watch = _drive(running, load, out)
        policy = running.policy
        stopped = running.stop_agent()
    checked = check(out, policy, int(time.time()))
    out.unlink()
    return _result(load, summary, watch, checked, stopped)


def _drive(running: Host, load: Load, out: Path) -> tuple[dict[str, Any], Watch]:
    processes = running.processes
    client = running.client(
        out, rate=load.rate, streams=load.streams, seconds=load.seconds, chunks=CHUNKS, pace_ms=PACE_MS
    )
    with Watch({**processes, "client": client.pid}, load.seconds) as watch:
        said, _ = client.communicate()
    if client.returncode:
        raise RuntimeError("the load's client failed")
    return json.loads(said), watch


def _result(
    load: Load, summary: dict[str, Any], watch: Watch, checked: Checked, stopped: int
) -> dict[str, Any]:
    lost = summary["asked"] - checked.verified
    p99 = (summary["short_ms"] or {"p99": 0.0})["p99"]
    fine = lost == 0 and checked.distinct and not checked.failures and stopped == 0
    return {
        "rate": load.rate,
        "streams": load.streams,
        "seconds": load.seconds,
        "workers": load.workers,
        "asked": summary["asked"],
        "verified": checked.verified,
        "lost": lost,
        "not_answered": dict(checked.others) | summary["errors"],
        "failures": checked.failures,
        "sustained": fine and p99 <= SUSTAINED_P99_MS,
        "answers_a_second": _middle(summary["answers_by_second"], load.seconds),
        **{name: summary[name] for name in ("short_ms", "first_chunk_ms", "launch_lag_ms")},
        "cpu_cores": watch.cpu(),
        "memory_mb": watch.memory(),
    }


def _middle(by_second: list[int], seconds: float) -> float:
    """Answers a second, without the first and the last tenth of the time."""
    edge = int(seconds / 10)
    kept = by_second[edge : int(seconds) - edge] or by_second
    return round(sum(kept) / max(1, len(kept)), 1)


def find(load: Load, folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """Look for the highest sustained rate between a tenth of the wanted one and twice it."""
    low, high, trials = load.rate / 10, load.rate * 2, []
    for step in range(_STEPS):
        rate = round((low + high) / 2)
        trial = run_once(
            Load(rate, load.streams, _TRIAL_SECONDS, load.workers),
            Path(tempfile.mkdtemp(dir=folder)),
        )
        kept = {name: trial[name] for name in ("rate", "sustained", "lost", "answers_a_second", "short_ms")}
        trials.append(kept)
        progress(f"trial {step + 1}: {json.dumps(kept)}")
        low, high = (rate, high) if trial["sustained"] else (low, rate)
    return low, trials


def main(arguments: list[str] | None = None) -> int:
    """Run the load test and print its result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=RATE, help="short requests a second")
    parser.add_argument(
        "--streams", type=int, default=STREAMS, help="streams at a time, of 5 chunks a second"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument(
        "--workers", type=int, default=0, help="proxy workers; 0: the agent's process is the proxy"
    )
    parser.add_argument(
        "--find", action="store_true", help="find the highest sustained rate first, and run at it"
    )
    options = parser.parse_args(arguments)
    load = Load(options.rate, options.streams, options.seconds, options.workers)
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    result: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory(prefix="quotary-load-", dir=cache) as name:
        folder = Path(name)
        if options.find:
            rate, result["trials"] = find(load, folder)
            load = Load(rate, load.streams, load.seconds, load.workers)
        final = run_once(load, Path(tempfile.mkdtemp(dir=folder)))
    result |= final
    if options.find:
        result["highest_sustained"] = final["rate"] if final["sustained"] else None
    json.dump(result, sys.stdout, indent=2)
    print()
    return 0 if final["lost"] == 0 and not final["failures"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
