# SPDX-License-Identifier: Apache-2.0
"""What tests do with a measured machine from outside: keep its evidence, learn a policy from it, and verify."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vm_guest import Guest

from quotary_cli.policyfile import read_policy
from quotary_verifier import NotChecked, Rejected, Report, verify_fresh

_SECONDS = 300
_NONCE = bytes(range(16))


@dataclass(frozen=True)
class Judged:
    """What the command said: exit code, its JSON, and for people."""

    code: int
    said: dict[str, Any]

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The departures of the one attestation that `policy check` was given."""
        (result,) = self.said["results"]
        return list(result["findings"])

    @property
    def words(self) -> str:
        """All that it said."""
        return json.dumps(self.said)


def keep(guest: Guest, folder: Path) -> Path:
    """Ask the guest, and keep answer, attestation and boot logs in a new folder."""
    answer = guest.ask()
    folder.mkdir(parents=True)
    (folder / "output").write_bytes(answer.body)
    (folder / "output.attestation").write_bytes(answer.attestation)
    for name, data in guest.logs_of(answer.attestation).items():
        (folder / f"{name}.bin").write_bytes(data)
    return folder


def attest(*arguments: str | Path) -> Judged:
    """Run the command with `--json`."""
    command = [sys.executable, "-m", "quotary_cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_SECONDS)
    assert done.stdout, done.stderr
    return Judged(done.returncode, json.loads(done.stdout))


def learn(kept: Sequence[Path], policy: Path, origin: str) -> None:
    """Make a policy of good boots of one host."""
    logs = [option for folder in kept for option in ("--with-logs", folder)]
    evidence = [folder / "output.attestation" for folder in kept]
    judged = attest("policy", "learn", "--pin", origin, "--software-tpm", *logs, "--out", policy, *evidence)
    assert judged.code == 0, judged.words


def run_unknown_program(guest: Guest) -> str:
    """Run a program that no boot had, with nothing else that none had, and return its path."""
    path = "/var/lib/quotary/unknown"
    guest.run(f"printf '#!/bin/sh\\n:\\n' >{path}; busybox chmod 755 {path}; {path}")
    return path


def check(kept: Path, policy: Path) -> Judged:
    """Hold one boot's evidence against a policy."""
    return attest("policy", "check", kept / "output.attestation", "--policy", policy, "--with-logs", kept)


def verify(kept: Path, policy: Path) -> Judged:
    """Verify one boot's output, with its logs."""
    return attest("verify", kept / "output", "--policy", policy, "--with-logs", kept)


def verdict(judged: Judged) -> dict[str, Any]:
    """The verdict on the one output that was verified."""
    (result,) = judged.said["results"]
    return dict(result["verdict"])


def fresh(guest: Guest, policy: Path) -> Report:
    """Have the guest quote its platform now, and verify that under a policy with the logs as the kernel has them."""
    logs = {name: guest.log(name) for name in ("tcg", "ima")}
    try:
        return verify_fresh(
            guest.fresh_quote(_NONCE), _NONCE, int(time.time()), read_policy(policy), logs
        ).report
    except (Rejected, NotChecked) as error:
        return error.report
