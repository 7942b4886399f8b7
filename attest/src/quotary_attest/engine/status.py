# SPDX-License-Identifier: Apache-2.0
"""What an operator wants to see of a running agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quotary_attest.engine.host import Host, TpmHost
from quotary_attest.engine.loop import Engine

_NO_TPM = "no chain and no start counter: only witnesses tell a second history, nothing tells a restored state folder"


def status_of(host: Host, engine: Engine, models: Sequence[str]) -> dict[str, Any]:
    """Return the state of an agent, as JSON can hold it; `models` are the names that it serves."""
    message, hint = engine.reason or ("", "")
    return {
        "origin": host.origin,
        **(_on_tpm(host, engine) if isinstance(host, TpmHost) else _without_tpm()),
        "state": engine.state,
        "reason": message,
        "hint": hint,
        "size": host.store.size,
        "commits": host.store.commits,
        "waiting": len(engine.waiting),
        "models": list(models),
        "certificates": len(host.certificates),
        "commit_seconds": round(engine.pulse.seconds, 4),
        "commit_interval": engine.pulse.interval,
        "queued": engine.queued,
        "epochs": engine.epochs.generation,
        "certificate_expiry": host.certificate_expiry,
        "roots": host.further.status(),
    }


def _on_tpm(host: TpmHost, engine: Engine) -> dict[str, Any]:
    position = engine.committer.position
    return {
        "tpm": "software TPM" if host.software_tpm else "TPM",
        "boot": list(position.boot),
        "chain": position.chain.hex(),
        "chain_pcr": host.tpm.chain_pcr,
        "workload_pcr": host.tpm.workload_pcr,
        "starts": host.state.read_starts(),
        "boot_logs": host.boot_logs.status(),
        "ak_endorsement": host.endorsements.status(),
    }


def _without_tpm() -> dict[str, Any]:
    """The same keys, and what an operator has to know."""
    absent = dict.fromkeys(("boot", "chain", "chain_pcr", "workload_pcr", "starts", "ak_endorsement"))
    return {"tpm": "none", "weaker": _NO_TPM, **absent, "boot_logs": {}}
