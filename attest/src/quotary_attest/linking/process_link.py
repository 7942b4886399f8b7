# SPDX-License-Identifier: Apache-2.0
"""What ties answers to a process that the agent started, in a form that a worker of the agent's own can be given.

A worker runs as the agent's user and sees what the agent sees, so it looks itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from quotary_attest.enginelink import Peer
from quotary_attest.linking.checked import CheckedLink
from quotary_attest.linking.processes import Process
from quotary_verifier.wire.records import Link


@dataclass(frozen=True, slots=True)
class ProcessLink:
    """The link to one process that the agent started (None: it does not run). `models` is how the model that it was
    started with may be called."""

    process: Process | None
    checked: CheckedLink
    models: frozenset[str]

    def link(self, model: str, peer: Peer | None = None) -> Link:
        """Return STARTED where what answers is that process or below it, else as `CheckedLink.link`."""
        ours = self.process if model in self.models else None
        process = self.checked.process(model, peer, below=ours)
        if process is None:
            return Link.CONFIGURED
        return Link.STARTED if ours is not None and process.descends_from(ours) else Link.CHECKED

    def holds(self, model: str) -> bool:
        """Tell whether the model's files are as they were measured."""
        return self.checked.holds(model)
