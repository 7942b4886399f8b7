# SPDX-License-Identifier: Apache-2.0
"""What an operator wants to see of a running agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quotary_attest.engine.host import Host
from quotary_attest.engine.loop import Engine


def status_of(host: Host, engine: Engine, models: Sequence[str]) -> dict[str, Any]:
    """Return the state of an agent, as JSON can hold it; `models` are the names that it serves."""
    message, hint = engine.reason or ("", "")
    return {
        "origin": host.origin,
        "tpm": "software TPM" if host.software_tpm else "TPM",
        "state": engine.state,
        "reason": message,
        "hint": hint,
        "size": host.store.size,
        "commits": host.store.commits,
        "waiting": len(engine.waiting),
        "boot": list(engine.committer.position.boot),
        "chain": engine.committer.position.chain.hex(),
        "chain_pcr": host.tpm.chain_pcr,
        "workload_pcr": host.tpm.workload_pcr,
        "models": list(models),
        "certificates": len(host.certificates),
        "commit_seconds": round(engine.pulse.seconds, 4),
        "commit_interval": engine.pulse.interval,
        "queued": engine.queued,
        "epochs": engine.epochs.generation,
        "starts": host.state.read_starts(),
        "certificate_expiry": host.certificate_expiry,
        "boot_logs": host.boot_logs.status(),
        "roots": host.further.status(),
    }
