# SPDX-License-Identifier: Apache-2.0
"""Attestations with their boot logs in full, for whoever asks so for one by id (docs/spec/serving.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from quotary_attest.log.errors import NotFound
from quotary_attest.serving.attester import LogReader
from quotary_attest.serving.refusals import Refusal
from quotary_verifier.wire.attestation import DIGEST_BYTES, Attestation
from quotary_verifier.wire.limits import MAX_ATTESTATION, MAX_BOOT_LOG

LOGS: Final = "logs"
"""The parameter of a request for an attestation."""

_RESERVED: Final = 1 << 20


def wants_logs(values: Sequence[str]) -> bool:
    """Tell whether a request asks for the logs in full; `values` are all of its parameter. Raises Refusal."""
    if any(value not in ("full", "digest") for value in values) or len(values) > 1:
        raise Refusal(400, "bad_logs", "logs is full or digest, once")
    return list(values) == ["full"]


def with_logs(attestation: bytes, log: LogReader) -> bytes:
    """Return the attestation with the bytes of every log that it names by a digest.

    One that is longer than an attestation may carry, or is there no more, stays a digest. It reads whole logs: call it
    in a thread.
    """
    parsed = Attestation.decode(attestation)
    logs, room = dict(parsed.boot_logs), MAX_ATTESTATION - _RESERVED
    for name, value in logs.items():
        if len(value) != DIGEST_BYTES:
            continue
        try:
            data = log.serve(f"blob/{value.hex()}")
        except NotFound:
            continue
        if DIGEST_BYTES < len(data) <= min(MAX_BOOT_LOG, room):
            logs[name] = data
            room -= len(data)
    return replace(parsed, boot_logs=logs).encode()
