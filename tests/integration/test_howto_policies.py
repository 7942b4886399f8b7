# SPDX-License-Identifier: Apache-2.0
"""Every command of docs/howto/policies.md, in its order, with a software TPM as the TPM."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from forge import NOW, Forge
from measured_boots import BootOf
from tpms import Tpm

from quotary_cli import moments, policy_sign, policyfile
from quotary_cli.main import run

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "policies.md"
LATER = NOW + 60


def commands() -> list[tuple[str, int]]:
    """Each command line of the page, and the exit code that it is said to have."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    found = [(line.partition("#")[0], re.search(r"# exit code (\d)", line)) for line in lines]
    return [(line, int(code[1]) if code else 0) for line, code in found]


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page takes for granted."""
    monkeypatch.chdir(tmp_path)
    clock = SimpleNamespace(time=lambda: LATER)
    for module in (moments, policy_sign, policyfile):
        monkeypatch.setattr(module, "time", clock)
    host, boot = Forge(), BootOf()
    Path("base.toml").write_text(host.policy())
    Path("ca.pem").write_text(host.authority.pem)
    boots = {
        "monday": boot,
        "tuesday": replace(boot, order=b"\2\0", resets=8),
        "wednesday": replace(boot, order=b"\3\0", refused=4, resets=9),
        "updated": replace(boot, kernel=b"kernel 6.13", resets=10),
    }
    for name, one in boots.items():
        Path(f"{name}.attestation").write_bytes(one.attestation(host).encode())
    Path("answer.json").write_bytes(host.body)
    Path("answer.json.attestation").write_bytes(boots["wednesday"].attestation(host).encode())
    Path("SHA256SUMS").write_text(f"{'ab' * 32}  tool\n")
    Path("keylime.json").write_text(json.dumps({"digests": {"/usr/bin/tool": ["ab" * 32]}, "excludes": []}))


@pytest.mark.usefixtures("_files")
def test_the_commands_of_the_page_on_policies_do_what_it_says(tpm: Tpm) -> None:
    lines = commands()
    assert len(lines) > 12, "the pattern finds nothing any more"
    for line, code in lines:
        words = shlex.split(line.replace("--tpm", f"--tpm {tpm.tcti}"))
        assert words[0] == "attest"
        assert run(words[1:]) == code, line
