# SPDX-License-Identifier: Apache-2.0
"""Runs fuzz targets for a time each and records what came of it; `scripts/fuzz` calls it.

Each target runs in a process of its own, its corpus is kept in .cache/fuzz/TARGET and grows from run to run. An input
that fails becomes a regression seed beside this file and is replayed by the test suite from then on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
sys.path[:0] = [str(_HERE), str(_HERE.parent / "support")]

from fuzz_table import REGRESSIONS, RESULTS, TARGETS, write_seeds  # noqa: E402 - the path is set above

MEMORY_MB = 1024
HANG_SECONDS = 30
SCHEMA = "quotary-fuzz/v1"
_STATUS = re.compile(
    r"#(?P<executions>\d+)\s+\S+\s+cov: (?P<coverage>\d+) ft: (?P<features>\d+) corp: (?P<corpus>\d+)/\S+ .*?"
    r"rss: (?P<memory>\d+)Mb"
)


def run_target(name: str, seconds: int, work: Path) -> dict[str, Any]:
    """Fuzz one target; what its entry in the results says."""
    folder, artifacts = work / name, work / "found" / name
    shutil.rmtree(artifacts, ignore_errors=True)
    artifacts.mkdir(parents=True)
    seeds = write_seeds(name, folder)
    command = [
        sys.executable, str(_HERE / "fuzz_child.py"), name, str(folder), f"-max_total_time={seconds}",
        f"-max_len={TARGETS[name].most}", f"-rss_limit_mb={MEMORY_MB}", f"-timeout={HANG_SECONDS}",
        f"-artifact_prefix={artifacts}/", "-print_final_stats=1", "-use_value_profile=0",
    ]  # fmt: skip
    began = time.monotonic()
    with (work / f"{name}.log").open("w+b") as log:
        done = subprocess.run(command, stdout=log, stderr=log, cwd=work, check=False)
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    entry: dict[str, Any] = {"seconds": round(time.monotonic() - began), "seeds": seeds}
    entry |= reading(said)
    entry["findings"] = keep_findings(name, artifacts)
    entry["result"] = "holds" if done.returncode == 0 else "found" if entry["findings"] else "broken"
    return entry | {"commit": commit(), "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def reading(said: str) -> dict[str, int]:
    """What the fuzzer's last status line says, and the memory of its first."""
    lines = [match.groupdict() for match in _STATUS.finditer(said)]
    if not lines:
        return {}
    last = {key: int(value) for key, value in lines[-1].items()}
    started = next((line for line in said.splitlines() if " INITED " in line), "")
    inited = _STATUS.search(started)
    memory = last.pop("memory")
    return last | {"memory_mb_after_seeds": int(inited["memory"]) if inited else memory, "memory_mb": memory}


def keep_findings(name: str, artifacts: Path) -> list[str]:
    """Copy the inputs that failed to the regression seeds; their names."""
    found = []
    for file in sorted(artifacts.iterdir()):
        (REGRESSIONS / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, REGRESSIONS / name / file.name)
        found.append(file.name)
    return found


def commit() -> str:
    """The commit that is checked out, with a plus sign where the verifier's files are not as in it."""
    head = _git("rev-parse", "HEAD")
    return head + "+" if _git("status", "--porcelain", "--", "verifier/src") else head


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def record(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Put one target's entry into the results; those of other targets stay. Seconds and executions add up where the
    commit is the same, for one target's time may be spent in several runs."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"targets": {}}
    before = found["targets"].get(name)
    if before and before["commit"] == entry["commit"] and before["result"] == entry["result"] == "holds":
        entry = entry | {key: entry.get(key, 0) + before.get(key, 0) for key in ("seconds", "executions")}
    found = {
        "schema": SCHEMA,
        "machine": {
            "python": platform.python_version(),
            "atheris": version("atheris"),
            "cores": os.cpu_count(),
        },
        "targets": dict(sorted((found["targets"] | {name: entry}).items())),
    }
    path.write_text(json.dumps(found, indent=2) + "\n")


def main() -> int:
    """Run the targets that were named, or all; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzzes the verifier's parsers.")
    parser.add_argument("--seconds", type=int, default=60, help="time for each target (default 60)")
    parser.add_argument("--jobs", type=int, default=1, help="targets at once (default 1)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results are kept")
    parser.add_argument(
        "--work", type=Path, default=_ROOT / ".cache" / "fuzz", help="where the corpus is kept"
    )
    parser.add_argument("target", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    chosen = parser.parse_args()
    if unknown := set(chosen.target) - TARGETS.keys():
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    names = chosen.target or list(TARGETS)
    chosen.work.mkdir(parents=True, exist_ok=True)
    failed = False
    with ThreadPoolExecutor(max(1, chosen.jobs)) as pool:
        runs = {name: pool.submit(run_target, name, chosen.seconds, chosen.work) for name in names}
        for number, (name, run) in enumerate(runs.items(), 1):
            entry = run.result()
            record(chosen.results, name, entry)
            failed = failed or entry["result"] != "holds"
            counts = f"{entry.get('executions', 0):>10} runs, {entry.get('features', 0):>6} features"
            print(
                f"[{number}/{len(names)}] {name:<14} {entry['result']:<6} {counts}",
                file=sys.stderr,
                flush=True,
            )
            for finding in entry["findings"]:
                print(f"  tests/fuzz/regressions/{name}/{finding}", file=sys.stderr)
            if entry["result"] != "holds":
                print(f"  what it said: {chosen.work / name}.log", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
