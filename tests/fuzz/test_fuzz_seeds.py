# SPDX-License-Identifier: Apache-2.0
"""Every fuzz target holds on what once made it fail and on its own seeds, and a short fuzzing run works as a whole."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from fuzz_table import FOLDER, MODULES, REGRESSIONS, RESULTS, TARGETS, regressions, target, write_seeds

ROOT = FOLDER.parents[1]
# Names of real CAs are longer than X.520 allows, which the certificate library warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length must be")


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_on_what_once_made_it_fail(name: str) -> None:
    for data in regressions(name):
        target(name).run(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds_and_what_is_cut_off_them(name: str, tmp_path: Path) -> None:
    assert write_seeds(name, tmp_path) > 1
    chosen = TARGETS[name]
    seeds = sorted(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    for file in seeds[:12]:
        data = file.read_bytes()
        for end in {len(data), len(data) * 2 // 3, len(data) // 3, 0}:
            chosen.run(data[:end])


def test_every_target_of_every_module_is_in_the_table() -> None:
    for module, names in MODULES.items():
        assert tuple(TARGETS.module(names[0]).TARGETS) == names, module
    assert {file.stem for file in FOLDER.glob("fuzz_*.py")} - MODULES.keys() == HELPERS


HELPERS = {"fuzz_base", "fuzz_campaign", "fuzz_child", "fuzz_mutate", "fuzz_table"}


def test_every_kept_input_belongs_to_a_target() -> None:
    kept = {folder.name for folder in REGRESSIONS.iterdir()} if REGRESSIONS.is_dir() else set()
    assert kept <= TARGETS.keys()


def test_the_recorded_results_are_of_these_targets_and_all_hold() -> None:
    found = json.loads(RESULTS.read_text())
    assert found["schema"] == "quotary-fuzz/v1"
    assert found["targets"].keys() <= TARGETS.keys()
    for entry in found["targets"].values():
        assert entry["result"] == "holds"
        assert entry["executions"] > 0
        assert entry["memory_mb"] <= entry["memory_mb_after_seeds"] + 256


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_short_run_of_every_target_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python")
    results = tmp_path / "RESULTS.json"
    command = [
        ROOT / "scripts" / "fuzz",
        "--seconds",
        "2",
        "--jobs",
        "2",
        "--results",
        results,
        "--work",
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(results.read_text())["targets"]
    assert found.keys() == TARGETS.keys()
    assert all(entry["executions"] > 0 and not entry["findings"] for entry in found.values())
