# SPDX-License-Identifier: Apache-2.0
"""The parts of an engine, by what its origin lives on: the one place where that is asked."""

from __future__ import annotations

from dataclasses import dataclass

from quotary_attest.engine.binding import TeeBinder, TpmBinder
from quotary_attest.engine.commit import Committer
from quotary_attest.engine.epochs import Epochs, LoggedEpochs
from quotary_attest.engine.host import Host, TeeHost, TpmHost
from quotary_attest.engine.start import Starter, TeeStarter, TpmStarter


@dataclass(frozen=True, slots=True)
class Parts:
    """What lists the models in force, what commits, and what starts and takes up again."""

    epochs: Epochs
    committer: Committer
    starter: Starter


def parts_of(host: Host) -> Parts:
    """Return new parts for a host. Raises TypeError for one that is neither kind."""
    if isinstance(host, TpmHost):
        logged = LoggedEpochs(host)
        committer = Committer(host, logged, TpmBinder(host, logged))
        return Parts(logged, committer, TpmStarter(host, logged, committer))
    if isinstance(host, TeeHost):
        epochs = Epochs()
        committer = Committer(host, epochs, TeeBinder(host))
        return Parts(epochs, committer, TeeStarter(host, epochs, committer))
    raise TypeError("a host lives on a tpm or on confidential-computing hardware")
