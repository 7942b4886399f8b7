# SPDX-License-Identifier: Apache-2.0
"""What a process that serves sets of Python's garbage collector."""

from __future__ import annotations

import gc

_THRESHOLDS = (50_000, 20, 100)


def settle() -> None:
    """Keep what start-up made out of the collector's way, and let it run rarely. Call it once all stands.

    Thousands of requests wait for a commit at a time, and none of what they hold is a cycle: each of the collector's
    passes over them is a pause for all (measured: docs/reference/performance.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
