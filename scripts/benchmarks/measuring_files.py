# SPDX-License-Identifier: Apache-2.0
"""How fast the agent hashes weights, against `sha256sum`, the program that operators would use."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from figures import PAUSE, Measured, NotMeasured
from quotary_attest.measure import measure_files

SHARDS = 4
_BLOCK = 1 << 20


def ratio(folder: Path, rounds: int, *, shard_bytes: int) -> Measured:
    """Return, for each round, the seconds that `sha256sum` takes for four shards over ours; both read them from the
    page cache, where an engine would have them."""
    program = shutil.which("sha256sum")
    if program is None:
        raise NotMeasured("there is no sha256sum")
    model = folder / "model"
    _write_shards(model, shard_bytes)
    names = sorted(path.name for path in model.iterdir())

    def theirs() -> None:
        subprocess.run([program, *names], cwd=model, check=True, stdout=subprocess.DEVNULL)

    def ours() -> None:
        measure_files([model])

    values, rates, plain = [], [], []
    for function in (theirs, ours):
        function()
    for number in range(rounds):
        time.sleep(PAUSE)
        spent = {
            function: _seconds(function) for function in ((theirs, ours) if number % 2 else (ours, theirs))
        }
        values.append(spent[theirs] / spent[ours])
        rates.append(SHARDS * shard_bytes / spent[ours] / 1e9)
        plain.append(SHARDS * shard_bytes / spent[theirs] / 1e9)
    shutil.rmtree(model)
    total = rounds * SHARDS * shard_bytes / 1e9
    return Measured(
        values,
        f"seconds of sha256sum over ours, {SHARDS} shards of {shard_bytes >> 20} MiB in the page cache, {total:.1f} GB"
        f" each in {rounds} rounds by turns; ours {statistics.median(rates):.2f} GB/s on"
        f" {len(os.sched_getaffinity(0))} processors, sha256sum {statistics.median(plain):.2f} GB/s on one",
    )


def _write_shards(model: Path, shard_bytes: int) -> None:
    model.mkdir()
    for number in range(SHARDS):
        with (model / f"model-{number:05d}.safetensors").open("wb") as file:
            for _ in range(shard_bytes // _BLOCK):
                file.write(os.urandom(_BLOCK))


def _seconds(function: object) -> float:
    assert callable(function)
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun
