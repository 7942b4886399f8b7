# SPDX-License-Identifier: Apache-2.0
"""What scripts/bench prints has the promised shape, and says of a bar only what the value shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import auditing
import figures
import main as bench
from figures import Bar, Measured, NotMeasured, as_json, by_turns, not_measured

PROGRAM = Path(bench.__file__)
KEYS = {"value", "bar", "holds", "spread", "how"}
CHEAP = ("verify_floor_ratio", "verify_warm_per_s", "tdx_verify_ratio")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put one figure of the test's own in the place of all."""

    def put(measure: Any) -> None:
        monkeypatch.setattr(bench, "FIGURES", {"figure": (Bar(2, at_least=True), lambda _: measure())})

    return put


def test_one_object_on_stdout_has_the_machine_and_the_figures_that_were_asked_for() -> None:
    asked = [part for name in CHEAP for part in ("--only", name)]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--quick", *asked], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert set(result) == {"machine", "figures"}
    assert {"cpu", "cores", "python"} <= set(result["machine"])
    assert tuple(result["figures"]) == CHEAP
    for figure in result["figures"].values():
        assert set(figure) == KEYS
        assert figure["spread"][0] <= figure["value"] <= figure["spread"][1]
        word, limit = figure["bar"].split()
        met = figure["value"] >= float(limit) if word == ">=" else figure["value"] <= float(limit)
        assert figure["holds"] is met


def test_a_figure_is_the_median_of_its_rounds() -> None:
    figure = as_json(Bar(1.5, at_least=False), Measured([1.6, 1.2, 1.4], "three rounds"))
    assert figure == {
        "value": 1.4,
        "bar": "<= 1.5",
        "holds": True,
        "spread": [1.2, 1.6],
        "how": "three rounds",
    }


@pytest.mark.parametrize(
    ("bar", "value", "holds"),
    [
        (Bar(20_000, at_least=True), 20_000, True),
        (Bar(20_000, at_least=True), 19_999, False),
        (Bar(1.5, at_least=False), 1.5, True),
        (Bar(1.5, at_least=False), 1.501, False),
    ],
)
def test_whether_a_bar_holds_follows_from_value_and_bar(bar: Bar, value: float, holds: bool) -> None:
    assert as_json(bar, Measured([value], ""))["holds"] is holds


def test_rounding_for_print_does_not_lift_a_value_over_its_bar() -> None:
    figure = as_json(Bar(1.5, at_least=False), Measured([1.50001], ""))
    assert (figure["value"], figure["holds"]) == (1.50001, False)


def test_a_figure_without_a_bar_is_for_information() -> None:
    figure = as_json(None, Measured([2.0], "how"))
    assert (figure["value"], figure["bar"], figure["holds"]) == (2.0, "none", None)
    assert not_measured(None, "x")["bar"] == "none"


def test_what_could_not_be_measured_neither_holds_nor_fails(only: Any, capsys: Any) -> None:
    def absent() -> Measured:
        raise NotMeasured("the corpus is not there")

    only(absent)
    assert bench.main(["--quick"]) == 0
    (figure,) = json.loads(capsys.readouterr().out)["figures"].values()
    assert figure == not_measured(Bar(2, at_least=True), "the corpus is not there")
    assert (figure["value"], figure["holds"]) == (None, None)


def test_an_audit_is_timed_from_the_start_of_its_command_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "COMMITS", 9)
    monkeypatch.setattr(auditing, "_HASHED", 1000)
    measured = auditing.throughput(tmp_path, 1, large=50_000)
    assert 0 < measured.value < 50_000_000
    assert "50000 leaves in 9 commits" in measured.how
    assert "at 5000 leaves" in measured.how


def test_a_bar_that_does_not_hold_is_no_failure(only: Any, capsys: Any) -> None:
    only(lambda: Measured([1.0], "once"))
    assert bench.main(["--quick"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["figure"]["holds"] is False


def test_a_measurement_that_fails_is_told_by_the_exit_code(only: Any, capsys: Any) -> None:
    def broken() -> Measured:
        raise OSError("no such TPM")

    only(broken)
    assert bench.main(["--quick"]) == bench.EXIT_FAILED
    (figure,) = json.loads(capsys.readouterr().out)["figures"].values()
    assert "no such TPM" in figure["how"]


def test_only_a_known_figure_can_be_asked_for(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        bench.main(["--only", "speed_of_light"])
    assert stop.value.code == 2
    assert "verify_floor_ratio" in capsys.readouterr().err


def test_every_bar_of_the_design_is_there() -> None:
    assert {name: str(bar) for name, (bar, _) in bench.FIGURES.items() if bar is not None} == {
        "commit_ratio": ">= 2000",
        "commit_latency_ratio": "<= 2.2",
        "verify_floor_ratio": "<= 1.5",
        "verify_vs_sigstore": ">= 5",
        "verify_warm_per_s": ">= 20000",
        "cold_verify_ratio": "<= 1.5",
        "append_flatness": "<= 1.3",
        "agent_bytes_per_output": "<= 1",
        "attestation_bytes": "<= 3072",
        "proxy_first_token_ms": "<= 1",
        "proxy_chunk_ratio": "<= 1.25",
        "audit_leaves_per_s": ">= 1000000",
        "snp_verify_ratio": "<= 2",
        "tdx_verify_ratio": "<= 2",
        "azure_verify_ratio": "<= 2",
        "nitro_verify_ratio": "<= 2",
        "nvidia_verify_ratio": "<= 2",
        "cca_verify_ratio": "<= 2",
    }
    assert figures.ROUNDS >= 7


def test_the_two_sides_of_a_ratio_run_equally_often_and_by_turns() -> None:
    calls: list[str] = []
    spent = by_turns(lambda: calls.append("a"), lambda: calls.append("b"), rounds=2, slices=4)
    assert len(spent) == 2
    assert calls[:2] == ["a", "b"]  # once before anything counts
    assert calls[2:] == ["b", "a", "a", "b"] * 4
