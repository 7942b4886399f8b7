# SPDX-License-Identifier: Apache-2.0
"""Clocks and counts of two attestations by one key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotary_verifier.errors import EvidenceError
from quotary_verifier.evidence.tpm_clock import ClockStep, check_clock_step
from quotary_verifier.wire.tpm import ClockInfo

BEFORE = ClockInfo(1_000, 7, 2, True)


@pytest.mark.parametrize(
    ("after", "step"),
    [
        (ClockInfo(1_000, 7, 2, True), ClockStep(0, 0)),
        (ClockInfo(1_001, 7, 2, False), ClockStep(0, 0)),
        (ClockInfo(1_001, 7, 3, True), ClockStep(0, 1)),
        (ClockInfo(1_001, 8, 0, True), ClockStep(1, None)),
        (ClockInfo(1_001, 17, 9, True), ClockStep(10, None)),
    ],
)
def test_what_lies_between_two_attestations_is_told(after: ClockInfo, step: ClockStep) -> None:
    assert check_clock_step(BEFORE, after) == step
    assert step.same_boot == (after.reset_count == 7 and after.restart_count == 2)


@pytest.mark.parametrize("safe", [True, False])
def test_within_a_boot_the_clock_never_runs_back(safe: bool) -> None:
    with pytest.raises(EvidenceError, match="within one boot"):
        check_clock_step(BEFORE, ClockInfo(999, 7, 2, safe))


@pytest.mark.parametrize(("resets", "restarts"), [(8, 0), (7, 3)])
def test_across_boots_a_safe_clock_does_not_run_back(resets: int, restarts: int) -> None:
    with pytest.raises(EvidenceError, match="claimed safe"):
        check_clock_step(BEFORE, ClockInfo(999, resets, restarts, True))


@pytest.mark.parametrize(("resets", "restarts"), [(8, 0), (7, 3)])
def test_after_a_power_cut_an_unsafe_clock_may_step_back(resets: int, restarts: int) -> None:
    check_clock_step(BEFORE, ClockInfo(999, resets, restarts, False))


@pytest.mark.parametrize(
    ("resets", "restarts", "what"), [(6, 2, "reset"), (6, 9, "reset"), (7, 1, "restart")]
)
def test_counts_do_not_fall(resets: int, restarts: int, what: str) -> None:
    with pytest.raises(EvidenceError, match=f"the {what} count fell"):
        check_clock_step(BEFORE, ClockInfo(2_000, resets, restarts, True))


def test_a_wrap_around_is_not_a_rollback() -> None:
    last = 0xFFFF_FFFF
    assert check_clock_step(ClockInfo(1, last, 0, True), ClockInfo(2, 0, 0, True)) == ClockStep(1, None)
    assert check_clock_step(ClockInfo(1, 4, last, True), ClockInfo(2, 4, 1, True)) == ClockStep(0, 2)


@given(st.integers(0, 2**32 - 1), st.integers(0, 1000), st.integers(0, 1000))
def test_a_constant_added_to_the_counts_changes_nothing(offset: int, resets: int, restarts: int) -> None:
    def moved(reset: int, restart: int) -> ClockInfo:
        return ClockInfo(5, (reset + offset) % 2**32, (restart + offset) % 2**32, True)

    expected = ClockStep(resets, None) if resets else ClockStep(0, restarts)
    assert check_clock_step(moved(10, 20), moved(10 + resets, 20 + restarts)) == expected
