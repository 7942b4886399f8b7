# SPDX-License-Identifier: Apache-2.0
"""What the chain PCR says about a staged batch: every case of design section 4, without a TPM."""

from __future__ import annotations

import pytest

from quotary_attest.engine.position import Course, Position, decide, explained, woke
from quotary_attest.log.journal import StagedBatch
from quotary_attest.roots import ClockReading, PlatformState
from quotary_verifier.wire.bindings import ZERO, chain_extend

BOOT = (3, 1)
LEFT = b"\1" * 32
D = b"\2" * 32
AFTER = chain_extend(LEFT, D)
OTHER = b"\3" * 32
POSITION = Position(b"\4" * 32, BOOT, LEFT)


def staged(before: bytes = LEFT) -> StagedBatch:
    return StagedBatch(5, 5, b"note", before, D, [b"record"], [b"i" * 24], [1], [None])


@pytest.mark.parametrize(
    ("position", "batch", "found", "course"),
    [
        (POSITION, staged(), LEFT, Course.EXTEND),
        (POSITION, staged(), AFTER, Course.QUOTE),
        (POSITION, staged(), OTHER, Course.FOREIGN),
        (POSITION, staged(), ZERO, Course.FOREIGN),
        (POSITION, None, LEFT, Course.GO_ON),
        (POSITION, None, OTHER, Course.FOREIGN),
        (POSITION, None, ZERO, Course.FOREIGN),
        (POSITION, staged(OTHER), LEFT, Course.GO_ON),
        (POSITION, staged(OTHER), OTHER, Course.FOREIGN),
        (POSITION, staged(OTHER), chain_extend(OTHER, D), Course.FOREIGN),
        (None, staged(), LEFT, Course.NEW_BOOT),
        (None, staged(ZERO), ZERO, Course.NEW_BOOT),
        (None, None, ZERO, Course.NEW_BOOT),
        (None, None, OTHER, Course.NEW_BOOT),
    ],
)
def test_the_chain_pcr_decides_and_only_within_the_boot_of_a_verified_commit(
    position: Position | None, batch: StagedBatch | None, found: bytes, course: Course
) -> None:
    assert decide(position, batch, found) is course


@pytest.mark.parametrize(
    ("last", "batch", "found", "own"),
    [
        (Position(D, (2, 1), LEFT), None, LEFT, False),  # a reset leaves nothing of the boot before
        (None, None, ZERO, True),
        (None, None, OTHER, False),
        (POSITION, None, LEFT, True),  # asleep while the agent was stopped
        (POSITION, None, OTHER, False),
        (None, staged(ZERO), chain_extend(ZERO, D), True),  # a boot's first commit died after its extend
        (POSITION, staged(), AFTER, True),
        (
            POSITION,
            staged(),
            chain_extend(ZERO, D),
            True,
        ),  # extended after the hibernation nobody had noticed
        (POSITION, staged(), OTHER, False),
        (None, staged(b""), chain_extend(b"", D), False),  # leaf 0 is staged and binds nothing
    ],
)
def test_a_new_boots_chain_is_explained_by_what_this_agent_can_have_done(
    last: Position | None, batch: StagedBatch | None, found: bytes, own: bool
) -> None:
    assert explained(last, batch, found, BOOT[0]) is own


def platform(found: bytes, boot: tuple[int, int]) -> PlatformState:
    return PlatformState(ClockReading(0, *boot, safe=True), {15: found})


@pytest.mark.parametrize(
    ("position", "batch", "found", "boot", "asleep"),
    [
        (POSITION, None, LEFT, (3, 2), True),
        (POSITION, staged(), LEFT, (3, 2), True),
        (POSITION, staged(), AFTER, (3, 2), True),
        (POSITION, None, AFTER, (3, 2), False),
        (POSITION, staged(OTHER), chain_extend(OTHER, D), (3, 2), False),
        (POSITION, None, ZERO, (3, 2), False),  # hibernation
        (POSITION, None, LEFT, (4, 0), False),  # reset
        (Position(D, BOOT, ZERO), None, ZERO, (3, 2), False),  # zero cannot tell sleep from hibernation
    ],
)
def test_sleep_is_a_moved_restart_count_with_the_chain_as_left(
    position: Position, batch: StagedBatch | None, found: bytes, boot: tuple[int, int], asleep: bool
) -> None:
    assert woke(position, batch, platform(found, boot), 15) is asleep
