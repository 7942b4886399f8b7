# SPDX-License-Identifier: Apache-2.0
"""What a process that serves sets of Python's garbage collector.

Thousands of requests wait for a commit at a time, and none of what they hold is a cycle. Each of the collector's passes
over them is a pause for all, tens of milliseconds long, and shows in the 99th percentile
(docs/reference/performance.md).
"""

from __future__ import annotations

import gc
from typing import Final

_RARELY: Final = (50_000, 20, 100)
_AS_A_LAST_RESORT: Final = (400_000, 20, 100)
_WORTH_IT: Final = 2_000
_TURNS: Final = 16


def settle(*, spare: bool = False) -> None:
    """Keep what start-up made out of the collector's way, and let it run rarely. Call it once all stands.

    With `spare` something calls `collect` while nobody waits, and the collector comes by itself only if that fails.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*(_AS_A_LAST_RESORT if spare else _RARELY))


def collect() -> None:
    """Collect what is young, every sixteenth time what is middle-aged too, and of these every sixteenth time all."""
    young, middle, old = gc.get_count()
    if young >= _WORTH_IT or middle >= _TURNS:
        gc.collect(2 if old >= _TURNS else 1 if middle >= _TURNS else 0)
