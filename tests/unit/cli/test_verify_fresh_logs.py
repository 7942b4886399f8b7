# SPDX-License-Identifier: Apache-2.0
"""`attest verify --fresh --with-logs`: a fresh quote names no logs, and is verified with those of its boot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from quotary_cli.verify import verify

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "vm"


def judge(tmp_path: Path, *places: Path) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Exit code, verdict and state by step of the first boot's fresh quote, with the logs at some places."""
    said = json.loads((VECTORS / "first-boot" / "about.json").read_text())
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'schema = "quotary-policy/v1"\n[[pin]]\norigin = "{said["origin"]}"\n[tpm]\nsoftware = true\n'
    )
    arguments = [VECTORS / "first-boot" / "fresh.quote", "--fresh", "--nonce", said["nonce"], "--json"]
    arguments += ["--at", said["at"], "--policy", policy]
    for place in places:
        arguments += ["--with-logs", place]
    done = CliRunner().invoke(verify, list(map(str, arguments)), standalone_mode=False)
    found = json.loads(done.stdout)
    verdict = found["results"][0]["verdict"]
    return found["exit"], verdict, {check["code"]: check["state"] for check in verdict["checks"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The logs of both boots, and what is no log, in one folder."""
    made = tmp_path / "logs"
    made.mkdir()
    for boot in ("second-boot", "first-boot"):
        for name in ("tcg", "ima"):
            shutil.copy(VECTORS / boot / f"{name}.bin", made / f"{boot}.{name}")
    (made / "notes.txt").write_text("no log")
    return made


def test_the_logs_of_the_quotes_own_boot_are_found_among_others(tmp_path: Path, folder: Path) -> None:
    code, verdict, steps = judge(tmp_path, folder)
    assert (code, steps["boot-logs"]) == (0, "passed")
    assert {"boot_log.tcg", "boot_log.ima"} <= {claim["name"] for claim in verdict["claims"]}


def test_the_logs_of_another_boot_alone_are_refused(tmp_path: Path) -> None:
    code, verdict, _ = judge(tmp_path, VECTORS / "second-boot" / "ima.bin")
    assert (code, verdict["failing"]) == (1, "boot-logs")


def test_without_logs_a_fresh_quote_is_verified_as_before(tmp_path: Path) -> None:
    code, _, steps = judge(tmp_path)
    assert (code, steps["boot-logs"]) == (0, "not-checked")
