# SPDX-License-Identifier: Apache-2.0
"""What Debian's `tpm2_eventlog` says of an event log, and what our parser says, in one form.

Its output is YAML of a fixed shape; the few lines compared here are read as text.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from quotary_verifier.logs.banks import bank_name
from quotary_verifier.logs.tcg import RawEvent, TcgLog
from quotary_verifier.logs.tcg_types import EV_NO_ACTION, type_name

Described = tuple[list[dict[str, Any]], dict[str, dict[int, str]]]
_FIELD = re.compile(r"^(?:  |- )(PCRIndex|EventType|EventSize): (.+)$")
_OLD_DIGEST = re.compile(r'^  Digest: "([0-9a-f]*)"$')
_ALGORITHM = re.compile(r"^  - AlgorithmId: (\S+)$")
_DIGEST = re.compile(r'^    Digest: "([0-9a-f]*)"$')
_BANK = re.compile(r"^  (\S+):$")
_PCR = re.compile(r"^    (\d+)\s*: 0x([0-9a-f]+)$")


def run_judge(file: Path) -> str | None:
    """The judge's output, None where it cannot read the log; skips the test where the program is absent."""
    program = shutil.which("tpm2_eventlog")
    if program is None:
        pytest.skip("tpm2_eventlog (package tpm2-tools) is not installed")
    done = subprocess.run([program, str(file)], check=False, capture_output=True, timeout=60)
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def run_judge_on(data: bytes, file: Path) -> str | None:
    """As `run_judge`, of bytes that are put into a file first."""
    file.write_bytes(data)
    return run_judge(file)


def read_judge(text: str) -> Described:
    """The events (number, register, type, digests, size) and the replayed PCRs in the judge's output."""
    events: list[dict[str, Any]] = []
    pcrs: dict[str, dict[int, str]] = {}
    bank = ""
    body, _, values = text.partition("\npcrs:\n")
    for line in body.splitlines():
        if found := _FIELD.match(line):
            if found[1] == "PCRIndex":
                events.append({"number": len(events), "digests": {}})
            events[-1][found[1]] = found[2].removesuffix(" event type")
        elif found := _OLD_DIGEST.match(line):
            events[-1]["digests"]["sha1"] = found[1]
        elif found := _ALGORITHM.match(line):
            bank = found[1]
        elif found := _DIGEST.match(line):
            events[-1]["digests"][bank] = found[1]
    for line in values.splitlines():
        if found := _BANK.match(line):
            bank = found[1]
        elif found := _PCR.match(line):
            pcrs.setdefault(bank, {})[int(found[1])] = found[2]
    return events, pcrs


def read_ours(log: TcgLog) -> Described:
    """The same of a log that our parser read."""
    pcrs: dict[str, dict[int, str]] = {}
    extended = [event for event in log.unverified_events_do_not_trust() if event.type != EV_NO_ACTION]
    for bank in log.banks:
        if extended and all(bank in event.digests for event in extended):
            values = log.unverified_values_do_not_trust(bank, weak=True)
            pcrs[bank_name(bank)] = {pcr: value.hex() for pcr, value in sorted(values.items())}
    return [_ours(event) for event in log.unverified_events_do_not_trust()], pcrs


def _ours(event: RawEvent) -> dict[str, Any]:
    return {
        "number": event.number,
        "PCRIndex": str(event.register),
        "EventType": type_name(event.type) if event.type in _KNOWN else "Unknown",
        "EventSize": str(len(event.data)),
        "digests": {bank_name(bank): digest.hex() for bank, digest in event.digests.items()},
    }


_KNOWN = {*range(0x13), *range(0x80000001, 0x8000000C), 0x80000010, 0x800000E0}
"""Types that the judge's version has a name for."""
