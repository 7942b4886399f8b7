# SPDX-License-Identifier: Apache-2.0
"""Short commands look for no garbage while they start; those that run for long go back to Python's own measure."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from quotary_cli.main import main

PINNED = 'schema = "quotary-policy/v1"\n[[pin]]\norigin = "h.example/' + "a" * 32 + '"\n'


@pytest.fixture(autouse=True)
def as_before() -> Iterator[tuple[int, int, int]]:
    thresholds = gc.get_threshold()
    yield thresholds
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def after(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, int, int]:
    """The collector's measure when a command has ended, as it would have stayed for hours."""
    monkeypatch.setattr("sys.argv", ["attest", *map(str, arguments)])
    with pytest.raises(SystemExit):
        main()
    return gc.get_threshold()


def test_a_command_that_runs_for_long_collects_as_python_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_before: tuple[int, int, int]
) -> None:
    (tmp_path / "policy.toml").write_text(PINNED)
    assert after(monkeypatch, "audit", tmp_path, "-p", tmp_path / "policy.toml") == as_before
    assert after(monkeypatch, "agent", "run", "--state", tmp_path) == as_before


def test_a_short_command_collects_as_good_as_never(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert after(monkeypatch, "inspect", tmp_path / "absent")[0] > 50_000
