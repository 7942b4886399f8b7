# SPDX-License-Identifier: Apache-2.0
"""A measured machine: QEMU without hardware acceleration, OVMF, and swtpm as its TPM.

Its disks, variables and TPM live in one folder. `Machine.boot` runs it until the block ends; booting again is a reboot.
Processes end and sockets go with the block, however it ends, and every failure shows the end of the serial console.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_engine import any_port
from vm_boot_disk import Boot, write_boot_disk, write_variables
from vm_image import FIRMWARE, Image
from vm_packages import run

from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.inband import strip

MODEL = b"measured weights, and more of them\n"
OTHER_MODEL = b"other weights, under the same name\n"
STATE_UUID = "6e1f2c1a-6f0e-4c36-9a55-7a0f3d2b9c14"
_BOOT_SECONDS = 600.0
_COMMAND_SECONDS = 180.0
_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
"""What ends a process with its parent, when that is killed."""
_LOGS = {
    "tcg": "/sys/kernel/security/tpm0/binary_bios_measurements",
    "ima": "/sys/kernel/security/ima/binary_runtime_measurements",
}


class GuestError(AssertionError):
    """The guest did not do as told; the message ends with what its serial console showed."""


class Machine:
    """A machine that is switched off."""

    def __init__(self, folder: Path, image: Image, boot: Boot, *, banks: str = "sha256") -> None:
        """Make one with new disks, variables and TPM, in a folder that need not exist."""
        self.folder = folder
        folder.mkdir(exist_ok=True)
        _own_copy(image.root, folder / "root.ext4")
        self.install(boot)
        write_variables(boot.keys, self.variables)
        with tempfile.TemporaryDirectory(dir=folder) as state:
            (Path(state) / "model.gguf").write_bytes(MODEL)
            (Path(state) / "other.gguf").write_bytes(OTHER_MODEL)
            run("mke2fs", "-q", "-t", "ext4", "-U", STATE_UUID, "-d", state, self.state, "32M")
        tpm = folder / "tpm"
        tpm.mkdir()
        run("swtpm_setup", "--tpm2", "--tpmstate", tpm, "--pcr-banks", banks, "--overwrite")

    @property
    def state(self) -> Path:
        """The disk that holds the agent's state and the model."""
        return self.folder / "state.ext4"

    @property
    def variables(self) -> Path:
        """The firmware's variables, Secure Boot's keys among them."""
        return self.folder / "variables.fd"

    @property
    def serial(self) -> Path:
        """What the serial console showed in the last boot."""
        return self.folder / "serial.log"

    def install(self, boot: Boot) -> None:
        """Put something else on the boot disk; the firmware's variables stay."""
        self.secure = boot.keys is not None
        write_boot_disk(boot, self.folder / "boot.disk")

    @contextlib.contextmanager
    def boot(self) -> Iterator[Guest]:
        """Switch on, and wait until the agent serves or has refused to."""
        self.serial.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="quotary-vm-") as short, contextlib.ExitStack() as stack:
            sockets = Path(short)
            stack.enter_context(self._tpm(sockets))
            port = any_port()
            machine = stack.enter_context(self._qemu(sockets, port))
            console = stack.enter_context(self._console(sockets / "console", machine))
            ready = console.readline(_BOOT_SECONDS)
            yield Guest(self, console, port, json.loads(ready) if ready else None)

    @contextlib.contextmanager
    def _tpm(self, sockets: Path) -> Iterator[None]:
        path = sockets / "tpm"
        command = [*_WITH_PARENT, "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.folder / 'tpm'}"]
        control = ["--ctrl", f"type=unixio,path={path}"]
        with subprocess.Popen(
            [*command, *control], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                deadline = time.monotonic() + _COMMAND_SECONDS
                while not path.exists():
                    assert process.poll() is None and time.monotonic() < deadline, "swtpm did not start"
                    time.sleep(0.01)  # it has no other way to say so
                yield
            finally:
                _end(process)

    @contextlib.contextmanager
    def _qemu(self, sockets: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
        with subprocess.Popen(
            self._command(sockets, port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield process
            finally:
                _end(process)

    def _command(self, sockets: Path, port: int) -> list[str]:
        code = FIRMWARE / ("OVMF_CODE_4M.secboot.fd" if self.secure else "OVMF_CODE_4M.fd")
        options = [
            f"-machine q35,accel=tcg{',smm=on' if self.secure else ''} -cpu max -m 768 -smp 1",
            "-nodefaults -no-user-config -no-reboot -display none",
            f"-drive if=pflash,unit=0,format=raw,readonly=on,file={code}",
            f"-drive if=pflash,unit=1,format=raw,file={self.variables}",
            f"-chardev socket,id=tpm,path={sockets / 'tpm'} -tpmdev emulator,id=tpm0,chardev=tpm",
            f"-device tpm-crb,tpmdev=tpm0 -serial file:{self.serial}",
            f"-chardev socket,id=console,path={sockets / 'console'},server=on,wait=off",
            "-device virtio-serial-pci -device virtserialport,chardev=console,name=console",
            f"-netdev user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:8000",
            "-device virtio-net-pci,netdev=net,romfile=",
        ]
        if self.secure:
            options.append("-global driver=cfi.pflash01,property=secure,value=on")
        disks = (("boot.disk", "on"), ("root.ext4", "on"), (self.state.name, "off"))
        for number, (disk, readonly) in enumerate(disks):
            kept = f"id=disk{number},format=raw,readonly={readonly},file={self.folder / disk}"
            options.append(
                f"-drive if=none,{kept} -device virtio-blk-pci,drive=disk{number},bootindex={number}"
            )
        return [*_WITH_PARENT, "qemu-system-x86_64", *" ".join(options).split()]

    @contextlib.contextmanager
    def _console(self, path: Path, machine: subprocess.Popen[bytes]) -> Iterator[Console]:
        with socket.socket(socket.AF_UNIX) as connection:
            deadline = time.monotonic() + _COMMAND_SECONDS
            while connection.connect_ex(str(path)):
                if machine.poll() is not None or time.monotonic() > deadline:
                    assert machine.stderr is not None
                    machine.kill()
                    raise GuestError(f"qemu did not start: {machine.stderr.read().decode(errors='replace')}")
                time.sleep(0.01)  # it has no other way to say so
            connection.sendall(b"hello\n")
            yield Console(connection, self.serial)


def _own_copy(file: Path, to: Path) -> None:
    """A link where that goes: the cache may drop an image that somebody still boots from."""
    try:
        to.hardlink_to(file)
    except OSError:
        shutil.copy(file, to)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


class Console:
    """The virtio port to the guest's init."""

    def __init__(self, connection: socket.socket, serial: Path) -> None:
        self._connection, self._serial, self._buffer = connection, serial, b""

    def readline(self, seconds: float) -> str:
        """A line, without its end."""
        self._connection.settimeout(seconds)
        while b"\n" not in self._buffer:
            self._more(seconds)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def run(self, command: str) -> tuple[int, bytes, bytes]:
        """Run a line of shell as root in the guest: exit code, output, errors."""
        self._connection.settimeout(_COMMAND_SECONDS)
        self._connection.sendall(command.encode() + b"\n")
        code, out, err = map(int, self.readline(_COMMAND_SECONDS).split())
        while len(self._buffer) < out + err:
            self._more(_COMMAND_SECONDS)
        both, self._buffer = self._buffer[: out + err], self._buffer[out + err :]
        return code, both[:out], both[out:]

    def _more(self, seconds: float) -> None:
        try:
            data = self._connection.recv(1 << 20)
        except TimeoutError:
            raise GuestError(f"the guest said nothing for {seconds:.0f} s; {self.shown()}") from None
        if not data:
            raise GuestError(f"the guest ended; {self.shown()}")
        self._buffer += data

    def shown(self) -> str:
        """The end of what the serial console showed."""
        text = self._serial.read_bytes()[-6000:].decode(errors="replace") if self._serial.exists() else ""
        return f"its serial console:\n{text}"


@dataclass(frozen=True)
class Guest:
    """A machine that runs."""

    machine: Machine
    console: Console
    port: int
    ready: dict[str, Any] | None
    """What the agent said when it was ready; None where it refused to start."""

    @property
    def origin(self) -> str:
        """The agent's log."""
        assert self.ready is not None, self.console.shown()
        return str(self.ready["origin"])

    @property
    def log_url(self) -> str:
        """Where the agent publishes its log."""
        return f"http://127.0.0.1:{self.port}/quotary/v1/"

    def run(self, command: str) -> bytes:
        """Run a line of shell as root, and return its output; what fails is an error."""
        code, out, err = self.console.run(command)
        if code:
            raise GuestError(
                f"{command!r} gave {code}: {err.decode(errors='replace')} {self.console.shown()}"
            )
        return out

    def log(self, name: str) -> bytes:
        """A boot log as the kernel has it now."""
        return self.run(f"cat {_LOGS[name]}")

    def ask(self, text: str = "hello") -> Answer:
        """Ask the guest's model server through the agent."""
        question = {"model": "guest", "messages": [{"role": "user", "content": text}]}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(question).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_COMMAND_SECONDS) as response:
            body, attestation = strip(response.read())
        assert attestation is not None, "the answer carries no attestation"
        return Answer(body, attestation)

    def logs_of(self, attestation: bytes) -> dict[str, bytes]:
        """The boot logs that an attestation names by their digests, as the agent serves them."""
        named = Attestation.decode(attestation).boot_logs
        return {name: self.get(f"/quotary/v1/blob/{digest.hex()}") for name, digest in named.items()}

    def get(self, path: str) -> bytes:
        """What the proxy answers there."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.port}{path}", timeout=_COMMAND_SECONDS
        ) as response:
            return bytes(response.read())

    def fresh_quote(self, nonce: bytes) -> bytes:
        """Have the agent quote the platform as it is now, over a nonce."""
        self.run(f"attest agent quote --state $STATE --nonce {nonce.hex()} --out /run/quotary/quote")
        return self.run("cat /run/quotary/quote")


@dataclass(frozen=True)
class Answer:
    """What came back from the model server, and the attestation that came with it."""

    body: bytes
    attestation: bytes


def copy_state(machine: Machine, to: Path) -> None:
    """Copy the state disk, as a backup would."""
    shutil.copy(machine.state, to)
