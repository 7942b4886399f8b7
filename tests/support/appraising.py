# SPDX-License-Identifier: Apache-2.0
"""Evidence of a made-up host and policies over it, so that one rule at a time can be appraised."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from boot_defects import BOOT, RECORDS, ima
from forge import NOW
from ima_logs import replayed
from tcg_logs import TcgWriter

from quotary_verifier import Policy, load_policy
from quotary_verifier.logs.cel import content_digest
from quotary_verifier.logs.ima import parse_ima_binary
from quotary_verifier.logs.tcg import parse_tcg_log
from quotary_verifier.logs.workload import WorkloadEvent, WorkloadLog, read_log, separator
from quotary_verifier.policy.appraise import appraise_platform
from quotary_verifier.policy.findings import Appraisal, Finding, PlatformEvidence, Severity
from quotary_verifier.wire.tpm import ClockInfo

ORIGIN = "h.example/" + "a" * 32
HEAD = f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{ORIGIN}"\n'
CHAIN, WORKLOAD = 15, 13


def digest(content: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(content).digest()


def policy(text: str, lists: dict[bytes, bytes] | None = None) -> Policy:
    """A policy that pins the host and has these rules."""
    return load_policy((HEAD + text).encode(), lists)


def evidence(
    boot: TcgWriter = BOOT,
    records: list[bytes] = RECORDS,
    *,
    logged: TcgWriter | None = None,
    entries: bytes | None = None,
) -> PlatformEvidence:
    """A host that booted and ran these; `logged` is what its log says instead, where it is false and yet replays.

    `entries` is the IMA log, where it is not of the template `ima-ng` throughout.
    """
    values = {pcr: bytes(32) for pcr in range(16)} | boot.values() | {10: replayed(records)}
    values |= {CHAIN: digest(b"chain"), WORKLOAD: digest(b"workload")}
    quoted = {pcr: value for pcr, value in values.items() if pcr not in {CHAIN, WORKLOAD}}
    return PlatformEvidence(
        origin=ORIGIN,
        pcrs=values,
        moving=frozenset({CHAIN, WORKLOAD}),
        clock=ClockInfo(1000, 7, 0, True),
        own_key=True,
        workload=workload(),
        firmware=parse_tcg_log((logged or boot).agile()).replay(quoted),
        ima=parse_ima_binary(ima(records) if entries is None else entries).replay(quoted),
    )


def without_logs(of: PlatformEvidence) -> PlatformEvidence:
    """The same quote with no log beside it."""
    return replace(of, firmware=None, ima=None)


def workload(*more: WorkloadEvent, opaque: bool = False) -> WorkloadLog:
    """The workload log of a host with agent, engine and model, and perhaps more."""
    events = [
        WorkloadEvent("agent", "quotary-attest", digest(b"agent"), {}),
        WorkloadEvent("engine", "llama-server", digest(b"engine"), {}),
        WorkloadEvent("model", "SmolLM2-135M", digest(b"weights"), {}),
        *more,
    ]
    contents = [event.encode() for event in events]
    digests = [content_digest(content) for content in contents]
    return read_log([*(digests if opaque else contents), separator(0, digests)])


def appraised(
    text: str, of: PlatformEvidence, at: int = NOW, lists: dict[bytes, bytes] | None = None
) -> Appraisal:
    """The appraisal of some evidence under these rules."""
    return appraise_platform(policy(text, lists), of, at)


def only(appraisal: Appraisal) -> Finding:
    """The one finding that there is."""
    (finding,) = appraisal.findings
    return finding


def accepted(appraisal: Appraisal) -> bool:
    """Whether nothing is false and nothing was left open."""
    return not appraisal.of(Severity.FAIL) and not appraisal.of(Severity.COULD_NOT)
