# SPDX-License-Identifier: Apache-2.0
"""What a consumer gets: two wheels, no C library to build, and nothing of the host side."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "tests" / "vectors" / "attestations"

pytestmark = [pytest.mark.fresh, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Consumer:
    """An environment that holds `quotary` and what it needs, and nothing of this workspace."""

    home: Path

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, away from the sources and without the caller's settings."""
        environment = {"PATH": f"{self.home / 'bin'}{os.pathsep}{os.defpath}", "LC_ALL": "C.UTF-8"}
        program, *arguments = map(str, command)
        return subprocess.run(
            [self.home / "bin" / program, *arguments],
            cwd=self.home,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


def _run(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _constraints() -> str:
    """Return the locked versions without their hashes, which pip would then demand of our own wheels too."""
    lock = (ROOT / "requirements.lock").read_text()
    return (
        "\n".join(match.rstrip(" \\") for match in re.findall(r"^[A-Za-z0-9].*==.*$", lock, re.MULTILINE))
        + "\n"
    )


@pytest.fixture(scope="module")
def consumer(tmp_path_factory: pytest.TempPathFactory) -> Consumer:
    """Return an empty environment into which the two wheels, freshly built, were installed by pip."""
    base = tmp_path_factory.mktemp("consumer")
    for member in ("verifier", "cli"):
        _run(
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            "--wheel",
            "--outdir",
            base / "wheels",
            ROOT / member,
        )
    (base / "constraints.txt").write_text(_constraints())
    home = base / "home"
    _run(sys.executable, "-m", "venv", home)
    wheels = sorted((base / "wheels").glob("*.whl"))
    assert len(wheels) == 2
    install = [home / "bin" / "python", "-m", "pip", "install", "-q", "--only-binary", ":all:"]
    _run(*install, "-c", base / "constraints.txt", *wheels)
    return Consumer(home)


def test_the_command_says_its_version_and_its_help(consumer: Consumer) -> None:
    version = consumer.run("attest", "--version")
    assert version.returncode == 0, version.stderr
    assert "0.1.0" in version.stdout
    listing = consumer.run("attest", "--help")
    assert listing.returncode == 0, listing.stderr
    assert "verify" in listing.stdout


def test_only_what_a_consumer_needs_is_installed(consumer: Consumer) -> None:
    listing = consumer.run("python", "-m", "pip", "list", "--format", "json", "--disable-pip-version-check")
    installed = {entry["name"].lower().replace("_", "-") for entry in json.loads(listing.stdout)}
    assert {"quotary", "quotary-verifier", "cryptography", "cbor2", "pynacl"} <= installed
    assert not installed & {"quotary-attest", "tpm2-pytss", "aiohttp", "pytest", "hatchling"}


def test_the_commands_of_the_host_say_which_extra_they_need(consumer: Consumer) -> None:
    done = consumer.run("attest", "agent", "init", "--state", "state", "--host", "h.example")
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    assert "pip install 'quotary[" in done.stderr


def test_every_module_of_the_verifier_can_be_imported(consumer: Consumer) -> None:
    done = consumer.run(
        "python",
        "-W",
        "error",
        "-c",
        "import importlib, pkgutil, quotary_verifier as top\n"
        "for module in pkgutil.walk_packages(top.__path__, 'quotary_verifier.'):\n"
        "    importlib.import_module(module.name)\n",
    )
    assert done.returncode == 0, done.stderr


def test_the_consumers_library_says_which_extra_a_client_needs(consumer: Consumer) -> None:
    done = consumer.run(
        "python", "-W", "error", "-c", "import quotary; print(quotary.Checks('policy.toml').on_failure)"
    )
    assert (done.returncode, done.stdout) == (0, "raise\n"), done.stderr
    done = consumer.run("python", "-c", "import quotary.openai")
    assert done.returncode == 1
    assert "pip install 'quotary[openai]'" in done.stderr


def test_the_command_line_loads_nothing_of_the_host_side_where_it_is_installed() -> None:
    # In this environment quotary_attest is there to be loaded, in the consumer's it could not be.
    code = (
        "import importlib.util, sys, quotary_cli.main\n"
        "assert importlib.util.find_spec('quotary_attest')\n"
        "host = {'quotary_attest', 'tpm2_pytss'}\n"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] in host))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_stored_attestations_verify_there(consumer: Consumer) -> None:
    stored = sorted(STORED.glob("*/policy.toml"))
    if not stored:
        pytest.skip(f"no stored attestation under {STORED.relative_to(ROOT)}")
    for policy in stored:
        folder = policy.parent
        done = consumer.run(
            "attest",
            "verify",
            folder / "output",
            "--attestation",
            folder / "output.attestation",
            "--policy",
            policy,
            "--at",
            (folder / "at").read_text().strip(),
        )
        assert done.returncode == 0, f"{folder.name}: {done.stdout}{done.stderr}"
