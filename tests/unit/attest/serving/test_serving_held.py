# SPDX-License-Identifier: Apache-2.0
"""The common bound on bytes that are held."""

from __future__ import annotations

import pytest

from quotary_attest.serving.held import Budget


def test_what_is_held_is_let_go_of_whatever_happens() -> None:
    budget = Budget(10)
    with pytest.raises(ZeroDivisionError), budget.share() as share:
        raise ZeroDivisionError(share.fits(10))
    assert budget.held == 0
    with budget.share() as share:
        assert share.fits(10)
        assert budget.held == 10
    assert budget.held == 0


def test_what_does_not_fit_changes_nothing() -> None:
    budget = Budget(10)
    with budget.share() as one, budget.share() as other:
        assert one.fits(7)
        assert not other.fits(4)
        assert other.fits(3)
        assert not one.fits(1)
        assert budget.held == 10
        one.release()
        assert other.fits(7)
    assert budget.held == 0
