# SPDX-License-Identifier: Apache-2.0
"""Runs steps one after the other and keeps what came of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.recipe.steps import Step
from quotary_verifier.recipe.verdict import Check, CheckState

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - control flow inside the recipe; never leaves it
    """A step failed; what follows is not worth doing."""


class Run:
    """The steps of one verification: the first false one ends it, one that could not be done does not.

    A step that could not be done must not hide a later one that is false (exit code 1 goes before 3), so the
    recipe goes on with what it has.
    """

    __slots__ = (
        "failing",
        "not_understood",
        "notices",
        "outcomes",
        "quoted",
        "reason",
        "tolerances",
        "unchecked",
    )

    def __init__(self) -> None:
        self.outcomes: list[tuple[Step, CheckState, str]] = []
        self.failing: Step | None = None
        self.unchecked: Step | None = None
        self.reason = ""
        self.notices: list[str] = []
        self.tolerances: list[str] = []
        self.not_understood: list[str] = []
        self.quoted: dict[int, bytes] | None = None
        """The sixteen PCR values, once step `quote.pcrs` found that they are the quoted ones."""

    @property
    def checks(self) -> list[Check]:
        """What came of each step so far, in the order in which they were done."""
        return [Check(*outcome) for outcome in self.outcomes]

    def do(self, step: Step, function: Callable[..., T], *args: object) -> T | None:
        """Run one step and return what it returns, or None where it could not be done.

        Raises:
            Stopped: the step failed.
        """
        return self._do(step, function, args, whole=True)

    def begin(self, step: Step, function: Callable[..., T], *args: object) -> T | None:
        """Do the first part of a step, which has not passed with it; in all else as `do`.

        Raises:
            Stopped: the step failed.
        """
        return self._do(step, function, args, whole=False)

    def _do(
        self, step: Step, function: Callable[..., T], args: tuple[object, ...], *, whole: bool
    ) -> T | None:
        try:
            value = function(*args)
        except (MalformedError, EvidenceError) as error:
            self.fail(step, str(error))
        except UnsupportedError as error:
            self.could_not(step, str(error))
            return None
        if whole:
            self.outcomes.append((step, CheckState.PASSED, ""))
        return value

    def fail(self, step: Step, why: str) -> None:
        """Note that a step failed.

        Raises:
            Stopped: always.
        """
        self.outcomes.append((step, CheckState.FAILED, why))
        self.failing, self.reason = step, why
        raise Stopped

    def could_not(self, step: Step, why: str) -> None:
        """Note that a required step could not be done."""
        self.outcomes.append((step, CheckState.COULD_NOT_CHECK, why))
        if self.unchecked is None:
            self.unchecked, self.reason = step, why

    def passed(self, step: Step, over: str = "") -> None:
        """Note that a step passed, and in words over what."""
        self.outcomes.append((step, CheckState.PASSED, over))

    def skip(self, step: Step, why: str) -> None:
        """Note that a step was not asked for."""
        self.outcomes.append((step, CheckState.NOT_CHECKED, why))


NOT_ASKED: Final = "not asked for"
