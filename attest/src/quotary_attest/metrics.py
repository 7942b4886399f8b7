# SPDX-License-Identifier: Apache-2.0
"""What engine and serving count, without naming who collects it (docs/reference/metrics.md).

Nothing of a request or an answer is ever a label: every label is a word of this page or of the code. An engine counts
once a commit, not once an output. Where serving runs in a process of its own, a `Tally` collects and hands over sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from quotary_verifier.wire.records import Source, State


class Carried(Enum):
    """How an attestation was handed to the client of a proxy or of middleware."""

    INBAND = "inband"
    BY_ID = "by_id"
    HEADER = "header"
    DEFERRED = "deferred"


class Unattested(Enum):
    """Why an answer went out without an attestation."""

    PATH = "path"
    """The path is not one that is attested."""
    CODING = "coding"
    """The engine sent a content coding although none was asked for."""
    OUTAGE = "outage"
    """Nothing could be attested, and the operator lets answers pass."""


class ServingMetrics(Protocol):
    """What serving counts. Cheap, and never raises."""

    def delivered(self, how: Carried, count: int = 1) -> None:
        """Count attested answers by how the client gets the attestation."""
        ...

    def refused(self, code: str, count: int = 1) -> None:
        """Count answers of our own that are errors, by their `code` (docs/spec/serving.md)."""
        ...

    def unattested(self, why: Unattested, count: int = 1) -> None:
        """Count answers that went out without an attestation."""
        ...


class Metrics(ServingMetrics, Protocol):
    """What engine and serving count."""

    def committed(self, commit: Committed) -> None:
        """Count a commit that is in the history."""
        ...

    def failed(self, error: Exception) -> None:
        """Count a failure of TPM, disk or start that the engine met."""
        ...


@dataclass(frozen=True, slots=True)
class Committed:
    """One commit: how many outputs of each state and source it holds, and times in seconds.

    `whole` is from its begin until it was in the history, `root` what extend and quote took of it, `oldest` how long
    the output that waited longest had waited by then.
    """

    outputs: Counter[tuple[State, Source]]
    whole: float
    root: float
    oldest: float

    @classmethod
    def of(
        cls, kinds: Iterable[tuple[State, Source]], *, whole: float, root: float, oldest: float
    ) -> Committed:
        """Return what there is to count of a commit whose outputs are of these kinds."""
        return cls(Counter(kinds), whole, root, oldest)


class NoMetrics:
    """Counts nothing."""

    def delivered(self, how: Carried, count: int = 1) -> None:
        """Do nothing."""

    def refused(self, code: str, count: int = 1) -> None:
        """Do nothing."""

    def unattested(self, why: Unattested, count: int = 1) -> None:
        """Do nothing."""

    def committed(self, commit: Committed) -> None:
        """Do nothing."""

    def failed(self, error: Exception) -> None:
        """Do nothing."""


NO_METRICS: Final = NoMetrics()
"""For whoever was given none."""


class Tally:
    """Sums of what serving counted, for a process that has nobody to collect them: `take` and send them on."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def delivered(self, how: Carried, count: int = 1) -> None:
        """Count; see `ServingMetrics`."""
        self._counts["delivered", how.value] += count

    def refused(self, code: str, count: int = 1) -> None:
        """Count; see `ServingMetrics`."""
        self._counts["refused", code] += count

    def unattested(self, why: Unattested, count: int = 1) -> None:
        """Count; see `ServingMetrics`."""
        self._counts["unattested", why.value] += count

    def take(self) -> list[tuple[str, str, int]]:
        """Return what was counted since the last call: event, label, count."""
        counts, self._counts = self._counts, Counter()
        return [(event, label, count) for (event, label), count in counts.items()]


def count_sums(metrics: ServingMetrics, sums: Iterable[tuple[str, str, int]]) -> None:
    """Count what another process's `Tally` took. Raises ValueError for an event or label that there is not."""
    for event, label, count in sums:
        if event == "delivered":
            metrics.delivered(Carried(label), count)
        elif event == "refused":
            metrics.refused(label, count)
        elif event == "unattested":
            metrics.unattested(Unattested(label), count)
        else:
            raise ValueError(f"there is no event {event!r} to count")
