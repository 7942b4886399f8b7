# SPDX-License-Identifier: Apache-2.0
"""How the clocks of two attestations by one key have to follow each other (design, section 4).

A boot is a pair (resetCount, restartCount). Counts are compared as differences modulo 2^32, so that neither a
wrap-around nor the constant that a TPM adds for keys outside the endorsement hierarchy is taken for a
rollback.
"""

from __future__ import annotations

from typing import Final

from quotary_verifier.errors import EvidenceError
from quotary_verifier.wire.frozen import frozen
from quotary_verifier.wire.tpm import ClockInfo

_MODULUS: Final = 1 << 32
_HALF: Final = 1 << 31


@frozen
class ClockStep:
    """From one attestation to a later one: how often the TPM was reset, and restarted since.

    `restarts` is the rise of restartCount, and None across a reset, which sets that count back.
    """

    resets: int
    restarts: int | None

    @property
    def same_boot(self) -> bool:
        """Whether both attestations are of one boot: neither reset nor restart between them."""
        return self.resets == 0 and self.restarts == 0


def check_clock_step(before: ClockInfo, after: ClockInfo) -> ClockStep:
    """What lies between two attestations of one key, the first of which must be the older one.

    EvidenceError if a count fell, if the clock ran back within a boot, or if it ran back across boots where
    the TPM claims (`safe`) that it did not. An unsafe clock is no failure here: it is the caller's to show.
    """
    step = _count_step(before, after)
    if after.clock < before.clock and (step.same_boot or after.safe):
        where = "within one boot" if step.same_boot else "across boots, although it is claimed safe"
        raise EvidenceError(f"the clock ran back {where}: {before.clock} ms, then {after.clock} ms")
    return step


def _count_step(before: ClockInfo, after: ClockInfo) -> ClockStep:
    resets = (after.reset_count - before.reset_count) % _MODULUS
    if resets >= _HALF:
        raise EvidenceError(f"the reset count fell: {before.reset_count}, then {after.reset_count}")
    if resets:
        return ClockStep(resets, None)
    restarts = (after.restart_count - before.restart_count) % _MODULUS
    if restarts >= _HALF:
        raise EvidenceError(f"the restart count fell: {before.restart_count}, then {after.restart_count}")
    return ClockStep(0, restarts)
