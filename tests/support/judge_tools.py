# SPDX-License-Identifier: Apache-2.0
"""Programs that are not ours and judge what we make: installed once, under `.cache/judges`, then reused.

None of them is a dependency of the project. Where one cannot be installed, the tests that need it are
skipped with a reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import go_toolchain
import pytest


def venv_with(requirement: str, python: str = sys.executable) -> Path:
    """The folder of a virtual environment that has `requirement` installed; skips the test if it cannot be."""
    try:
        return go_toolchain.venv_with(requirement, python)
    except go_toolchain.NotInstalled as error:
        pytest.skip(str(error))


def newer_python(minor: int) -> str:
    """A Python 3.`minor` or later on this machine; skips the test where there is none."""
    names = [f"python3.{number}" for number in range(minor, minor + 8)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(name) for name in names]
    candidates += [str(found) for name in names for found in sorted(pyenv.glob(f"*/bin/{name}"))]
    for candidate in candidates:
        # A shim of a version manager is on the path but does not run where its version is not selected.
        if (
            candidate
            and not subprocess.run([candidate, "-c", ""], check=False, capture_output=True).returncode
        ):
            return candidate
    pytest.skip(f"this judge needs Python 3.{minor} or later, and none is found")


def go_program(sources: Path, vendored: Mapping[str, str]) -> Path:
    """Build a Go program and return its path (`go_toolchain.go_program`); skips the test if it cannot be built."""
    try:
        return go_toolchain.go_program(sources, vendored)
    except go_toolchain.NotInstalled as error:
        pytest.skip(str(error))


def debian_program(package: str, name: str) -> Path:
    """A program of a Debian package, as installed or unpacked beside the other judges; skips the test if neither."""
    if (installed := shutil.which(name)) is not None:
        return Path(installed)
    folder = go_toolchain.CACHE / f"debian-{package}"
    program = folder / "usr" / "bin" / name
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
            (archive,) = folder.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, folder], check=True, capture_output=True)
            archive.unlink()
        except (OSError, ValueError, subprocess.CalledProcessError):
            pytest.skip(f"{name} is not installed, and Debian's package {package} cannot be had")
    return program
