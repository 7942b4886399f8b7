# SPDX-License-Identifier: Apache-2.0
"""Software TPMs in a container without a network, reached over unix sockets (tests/docker/compose.yml).

One container serves a whole session. A shell in it starts and kills swtpm, so that a power cut is SIGKILL
here too.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPOSE_FILE = Path(__file__).resolve().parents[1] / "docker" / "compose.yml"
_CONTROL_INIT = 2
_START_SECONDS = 20.0


@dataclass(frozen=True)
class Container:
    """A running container: a shell in it, and the folder that has the same path inside and outside."""

    shell: subprocess.Popen[str]
    folder: Path

    def ask(self, command: str) -> str:
        """Let the shell run a command that prints one line, and return that line."""
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        self.shell.stdin.write(command + "\n")
        self.shell.stdin.flush()
        line = self.shell.stdout.readline().strip()
        assert line, f"the container's shell ended at: {command}"
        return line


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """Yield a folder for sockets and state, and tell the compose file about it.

    Its path is short, as a unix socket's may have 107 bytes only.
    """
    folder = Path(tempfile.mkdtemp(prefix="quotary-tpms-"))
    os.environ["QUOTARY_TPM_DIR"] = str(folder)
    os.environ["QUOTARY_TPM_USER"] = f"{os.getuid()}:{os.getgid()}"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def container(project: str) -> Iterator[Container]:
    """Yield the running container of a compose project."""
    compose = ["docker-compose", "-f", str(COMPOSE_FILE), "-p", project, "ps", "-q", "tpm"]
    name = subprocess.run(compose, check=True, capture_output=True, text=True).stdout.strip()
    assert name, "the container of tests/docker/compose.yml does not run"
    with subprocess.Popen(
        ["docker", "exec", "-i", name, "sh"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as shell:
        yield Container(shell, Path(os.environ["QUOTARY_TPM_DIR"]))
        shell.kill()


class ContainerMachine:
    """A swtpm in the container, over a copy of the template state. It is a `tpms.Machine`."""

    def __init__(self, container: Container, template: Path) -> None:
        self._container = container
        self._folder = Path(tempfile.mkdtemp(dir=container.folder))
        self._state = self._folder / "state"
        self._control = self._folder / "tpm.ctrl"
        self._process: str | None = None
        shutil.copytree(template, self._state)

    @property
    def socket(self) -> Path:
        """The data socket; stays the same over power cuts."""
        return self._folder / "tpm"

    @property
    def ek_root(self) -> Path:
        """PEM file of the root above the EK certificates."""
        return self._state / "ca" / "swtpm-localca-rootca-cert.pem"

    @property
    def ek_issuer(self) -> Path:
        """PEM file of the intermediate that issued the EK certificates."""
        return self._state / "ca" / "issuercert.pem"

    def start(self) -> None:
        """Power on; a TPM Reset, with the state that was there before."""
        if self._process is not None:
            return
        for stale in (self.socket, self._control):
            stale.unlink(missing_ok=True)
        command = shlex.join(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self._state / 'tpm'},mode=0600"),
                *("--server", f"type=unixio,path={self.socket},mode=0600"),
                *("--ctrl", f"type=unixio,path={self._control},mode=0600"),
                *("--flags", "not-need-init,startup-clear"),
            ]
        )
        self._process = self._container.ask(f"{command} </dev/null >{self._folder}/log 2>&1 & echo $!")
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._alive():
            with contextlib.suppress(OSError), _connected(self._control):
                return
            time.sleep(0.002)
        log = self._folder / "log"
        raise AssertionError(f"swtpm did not start: {log.read_text() if log.exists() else 'no log'}")

    def _alive(self) -> bool:
        alive = self._container.ask(f"kill -0 {self._process} 2>/dev/null && echo alive || echo dead")
        return alive == "alive"

    def init(self) -> None:
        """Pulse the reset line; TPM2_Startup must follow."""
        with _connected(self._control) as control:
            control.sendall(struct.pack(">II", _CONTROL_INIT, 0))
            assert control.recv(4) == bytes(4)

    def power_cut(self) -> None:
        """Power off at once, without TPM2_Shutdown."""
        if self._process is not None:
            self._container.ask(f"kill -9 {self._process}; wait {self._process}; echo gone")
            self._process = None

    def stop(self) -> None:
        """End for good, and remove sockets and state."""
        self.power_cut()
        shutil.rmtree(self._folder, ignore_errors=True)  # a test may have ended it already


def _connected(path: Path) -> socket.socket:
    """A connected unix socket. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_START_SECONDS)
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection
