# SPDX-License-Identifier: Apache-2.0
"""How the engine does: how long its commits take, since when it is at something, and what there is to count of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from quotary_attest.engine.host import Host
from quotary_attest.engine.outputs import Pending
from quotary_attest.metrics import Committed

SLOW_SECONDS: Final = 0.05
"""Where extend and quote take longer than this, commits follow each other at once."""

COMMIT_INTERVAL: Final = 0.05
"""The least seconds between the begins of two commits where the TPM is faster than that."""

_SMOOTHING: Final = 0.2


class Pulse:
    """The engine tells it what it begins and ends; `stuck` tells whether one thing has taken too long."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.commits = 0
        self.seconds = 0.0
        """Extend and quote of a commit, smoothed."""
        self._begun_at = 0.0
        self._busy_since: float | None = None

    @property
    def interval(self) -> float:
        """Seconds that a commit begins after the last one at the earliest."""
        return 0.0 if self.seconds > SLOW_SECONDS else COMMIT_INTERVAL

    @property
    def due_in(self) -> float:
        """Seconds until the next commit may begin; not positive where it may at once."""
        return self._begun_at + self.interval - self._host.world.monotonic()

    def work(self) -> None:
        """Note that something begins: a job, an attempt to reach the TPM."""
        self._busy_since = self._host.world.monotonic()

    def rest(self) -> None:
        """Note that there is nothing to do."""
        self._busy_since = None

    def begin(self) -> None:
        """Note that a commit begins."""
        self._begun_at = self._busy_since = self._host.world.monotonic()

    def learn(self, seconds: float) -> None:
        """Follow how long extend and quote take on this TPM."""
        self.commits += 1
        self.seconds = seconds if self.commits == 1 else self.seconds + _SMOOTHING * (seconds - self.seconds)

    def committed(self, outputs: Sequence[Pending], seconds: float) -> None:
        """Count a commit; the first output is the one that waited longest, `seconds` are extend and quote."""
        self.learn(seconds)
        world = self._host.world
        kinds = [(pending.output.state, pending.output.source) for pending in outputs]
        whole = world.monotonic() - self._begun_at
        waited = max(0, world.now() - outputs[0].time) / 1000
        self._host.metrics.committed(Committed.of(kinds, whole=whole, root=seconds, oldest=waited))

    def failed(self, error: Exception) -> None:
        """Count a failure, after which something new begins."""
        self.work()
        self._host.metrics.failed(error)

    def stuck(self, limit: float) -> bool:
        """Tell whether one thing has taken longer than `limit` seconds."""
        since = self._busy_since
        return since is not None and self._host.world.monotonic() - since > limit
