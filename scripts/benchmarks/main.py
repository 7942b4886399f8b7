# SPDX-License-Identifier: Apache-2.0
"""Measures the bars of the design (section 8) and prints one JSON object on stdout; progress goes to stderr.

    scripts/bench [--only NAME]... [--quick]

The exit code is 0 whenever every figure that was asked for could be measured or says why it could not, whether
or not its bar holds; 4 where a measurement failed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from os import sched_getaffinity
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

import attesting  # noqa: E402 - the path comes first
import auditing  # noqa: E402
import growing  # noqa: E402
import measuring_files  # noqa: E402
import programs  # noqa: E402
import proxying  # noqa: E402
import tee_verifying  # noqa: E402
import verifying  # noqa: E402
from figures import ROUNDS, Bar, Measured, NotMeasured, as_json, not_measured, progress  # noqa: E402
from sample import Sample, make_sample  # noqa: E402

QUICK_ROUNDS = 3
EXIT_FAILED = 4


@dataclass
class Bench:
    """One run: how many rounds, and what several figures share."""

    quick: bool
    folder: Path
    rounds: int = field(init=False)

    def __post_init__(self) -> None:
        self.rounds = QUICK_ROUNDS if self.quick else ROUNDS

    @property
    def seconds(self) -> float:
        """Seconds of load in a round."""
        return 1.0 if self.quick else 4.0

    @property
    def large(self) -> int:
        """Leaves of a large log."""
        return 200_000 if self.quick else growing.LARGE

    @property
    def shard_bytes(self) -> int:
        """Bytes of each shard of a model that is hashed."""
        return (16 if self.quick else 128) << 20

    def subfolder(self) -> Path:
        """A new, empty folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    @cached_property
    def long_run(self) -> dict[str, Measured]:
        """What a long run of one agent shows."""
        first, last = (20_000, 60_000) if self.quick else (1_000_000, 3_000_000)
        return growing.long_run(self.subfolder(), first=first, last=last)

    @cached_property
    def proxy(self) -> dict[str, Measured]:
        """What the proxy adds to a stream."""
        chunks = 50 if self.quick else proxying.CHUNKS
        return proxying.measure(self.subfolder(), self.rounds, chunks=chunks)

    @cached_property
    def sample(self) -> Sample:
        """The attestations that the verifier's figures verify."""
        return make_sample()


FIGURES: dict[str, tuple[Bar | None, Callable[[Bench], Measured]]] = {
    "verify_floor_ratio": (
        Bar(1.5, at_least=False),
        lambda bench: verifying.floor(bench.sample, bench.rounds),
    ),
    "verify_warm_per_s": (
        Bar(20_000, at_least=True),
        lambda bench: verifying.warm(bench.sample, bench.rounds),
    ),
    "verify_vs_sigstore": (
        Bar(5, at_least=True),
        lambda bench: programs.versus_sigstore(bench.sample, bench.rounds),
    ),
    "cold_verify_ratio": (
        Bar(1.5, at_least=False),
        lambda bench: programs.cold(bench.sample, bench.folder, bench.rounds),
    ),
    "commit_ratio": (
        Bar(2000, at_least=True),
        lambda bench: attesting.throughput(bench.subfolder(), bench.rounds, bench.seconds),
    ),
    "commit_latency_ratio": (
        Bar(2.2, at_least=False),
        lambda bench: attesting.latency(bench.subfolder(), bench.rounds, bench.seconds),
    ),
    "append_flatness": (
        Bar(1.3, at_least=False),
        lambda bench: growing.flatness(bench.subfolder(), bench.rounds, large=bench.large),
    ),
    "agent_bytes_per_output": (
        Bar(1, at_least=False),
        lambda bench: bench.long_run["agent_bytes_per_output"],
    ),
    "attestation_bytes": (
        Bar(3072, at_least=False),
        lambda bench: bench.long_run["attestation_bytes"],
    ),
    "proxy_first_token_ms": (Bar(1, at_least=False), lambda bench: bench.proxy["proxy_first_token_ms"]),
    "proxy_chunk_ratio": (Bar(1.25, at_least=False), lambda bench: bench.proxy["proxy_chunk_ratio"]),
    "audit_leaves_per_s": (
        Bar(1_000_000, at_least=True),
        lambda bench: auditing.throughput(bench.subfolder(), bench.rounds, large=bench.large),
    ),
    "snp_verify_ratio": (Bar(2, at_least=False), lambda bench: tee_verifying.snp(bench.rounds)),
    "tdx_verify_ratio": (Bar(2, at_least=False), lambda bench: tee_verifying.tdx(bench.rounds)),
    "azure_verify_ratio": (Bar(2, at_least=False), lambda bench: tee_verifying.azure(bench.rounds)),
    "nitro_verify_ratio": (Bar(2, at_least=False), lambda bench: tee_verifying.nitro(bench.rounds)),
    "nvidia_verify_ratio": (Bar(2, at_least=False), lambda bench: tee_verifying.nvidia(bench.rounds)),
    "cca_verify_ratio": (Bar(2, at_least=False), lambda bench: tee_verifying.cca(bench.rounds)),
    "measure_ratio": (
        None,
        lambda bench: measuring_files.ratio(bench.subfolder(), bench.rounds, shard_bytes=bench.shard_bytes),
    ),
}


def machine() -> dict[str, Any]:
    """Return what a figure depends on and can be told without naming a host."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    packages = ("cryptography", "cbor2", "PyNaCl")
    return {
        "cpu": model,
        "cores": len(sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def measure(bench: Bench, name: str) -> tuple[dict[str, Any], bool]:
    """Measure one figure; also tell whether nothing went wrong."""
    bar, function = FIGURES[name]
    begun = time.monotonic()
    failed = False
    try:
        figure = as_json(bar, function(bench))
    except NotMeasured as error:
        figure = not_measured(bar, str(error))
    except Exception as error:
        traceback.print_exc()
        figure, failed = not_measured(bar, f"{type(error).__name__}: {error}"), True
    state = {True: "holds", False: "does not hold", None: "not measured"}[figure["holds"]]
    if bar is None and figure["value"] is not None:
        state = "for information"
    progress(f"{name}: {figure['value']} ({figure['bar']}, {state}), {time.monotonic() - begun:.0f} s")
    return figure, not failed


def main(arguments: list[str] | None = None) -> int:
    """Measure what was asked for and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only", action="append", choices=FIGURES, metavar="NAME", help="one of: " + ", ".join(FIGURES)
    )
    parser.add_argument(
        "--quick", action="store_true", help="three rounds and small logs: to try the programs, not to judge"
    )
    options = parser.parse_args(arguments)
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quotary-bench-", dir=cache) as folder:
        bench = Bench(options.quick, Path(folder))
        results = {name: measure(bench, name) for name in options.only or FIGURES}
    figures = {name: figure for name, (figure, _) in results.items()}
    json.dump({"machine": machine(), "figures": figures}, sys.stdout, indent=2, ensure_ascii=False)
    print()
    return 0 if all(fine for _, fine in results.values()) else EXIT_FAILED


if __name__ == "__main__":
    raise SystemExit(main())
