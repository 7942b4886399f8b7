# SPDX-License-Identifier: Apache-2.0
"""A private software TPM: swtpm with a state folder of its own, for trying out, demos and tests.

An emulator proves nothing about hardware; its identity says `is_software`, and so does a verdict. Everything
lives in one folder: the TPM's state, and a small certificate authority that signs the emulator's endorsement
keys, so that enrolment can be tried as with a real TPM. The sockets live in a short-named folder, because a
unix socket's path may have 107 bytes only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from quotary_attest.tpm.errors import TpmConflict, TpmError, TpmGone, TpmUnsupported

SOCKET_PATH_LIMIT: Final = 107
_CONTROL_CAPABILITY, _CONTROL_INIT, _CONTROL_SHUTDOWN = 1, 2, 3
_SHUTDOWN_CLEAR: Final = bytes.fromhex("8001 0000000c 00000145 0000")
_SOCKETS_PREFIX: Final = "quotary-"
_PID_FILE: Final = "swtpm.pid"
_START_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 5.0


class Emulator:
    """swtpm over a state folder. `start` makes the state at first use; `stop` it, or use `with`.

    Starting again over the same state is what a reboot is to a TPM: the PCRs are zero, the reset count is one
    higher. `state` is any folder; what is in it is secret to the emulator's user (mode 0700).
    """

    def __init__(self, state: Path) -> None:
        self.state = state.absolute()
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: Path | None = None
        self._lock: int | None = None

    @property
    def socket(self) -> Path:
        """The data socket; the control socket is beside it with `.ctrl` added."""
        if self._sockets is None:
            raise TpmGone("the emulator is not running", hint="start it first")
        return self._sockets / "tpm"

    @property
    def tcti(self) -> str:
        """What to give to `open_root` or `Connection`."""
        return f"swtpm:path={self.socket}"

    @property
    def running(self) -> bool:
        """Whether the swtpm process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def ek_root(self) -> Path:
        """PEM certificate of the root that stands above the emulator's EK certificates."""
        return self.state / "ca" / "swtpm-localca-rootca-cert.pem"

    @property
    def ek_issuer(self) -> Path:
        """PEM certificate of the intermediate authority that signed the EK certificates."""
        return self.state / "ca" / "issuercert.pem"

    def manufacture(self) -> None:
        """Make the TPM's state with endorsement keys and certificates (about a second). Done once per folder.

        Raises TpmUnsupported when swtpm is not installed, TpmError when its set-up program fails.
        """
        tpm = self.state / "tpm"
        if (tpm / "tpm2-00.permall").exists():
            return
        setup = _program("swtpm_setup", "swtpm-tools")
        localca = _program("swtpm_localca", "swtpm-tools")
        try:
            for folder in (self.state, tpm, self.state / "ca"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            config = self._write_configuration(localca)
        except OSError as error:
            raise self._unusable(error) from error
        command = [setup, "--tpm2", "--tpmstate", str(tpm), "--config", str(config), "--create-ek-cert"]
        done = subprocess.run(
            [*command, "--pcr-banks", "sha256"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise TpmError(f"swtpm_setup failed: {last[0]}", hint=f"see whether {self.state} is writable")

    def _write_configuration(self, localca: str) -> Path:
        """Point swtpm_setup to a certificate authority inside the state folder, away from the system's."""
        authority = self.state / "ca"
        (authority / "localca.conf").write_text(
            f"statedir = {authority}\n"
            f"signingkey = {authority}/signkey.pem\n"
            f"issuercert = {authority}/issuercert.pem\n"
            f"certserial = {authority}/certserial\n"
        )
        (authority / "localca.options").write_text(
            "--platform-manufacturer Quotary\n--platform-version 1\n--platform-model emulator\n"
        )
        config = authority / "setup.conf"
        config.write_text(
            f"create_certs_tool = {localca}\n"
            f"create_certs_tool_config = {authority}/localca.conf\n"
            f"create_certs_tool_options = {authority}/localca.options\n"
        )
        return config

    def start(self) -> None:
        """Power the TPM on. Raises TpmUnsupported, TpmGone when swtpm ends at once, TpmConflict when another
        process runs this emulator, or TpmError.

        A swtpm that a killed process left behind over this state is ended first.
        """
        if self.running:
            return
        program = _program("swtpm", "swtpm")
        self._hold()
        try:
            self._power_on(program)
        except BaseException:
            self.stop()
            raise

    def _power_on(self, program: str) -> None:
        self.manufacture()
        self._sockets = self._sockets or _socket_folder()
        path = self.socket
        control = path.with_name("tpm.ctrl")
        for stale in (path, control):
            stale.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                *(program, "socket", "--tpm2", "--tpmstate", f"dir={self.state / 'tpm'},mode=0600"),
                *("--server", f"type=unixio,path={path},mode=0600"),
                *("--ctrl", f"type=unixio,path={control},mode=0600"),
                *("--flags", "not-need-init,startup-clear"),
                *("--log", f"file={self.state / 'swtpm.log'},truncate"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (self.state / _PID_FILE).write_text(f"{self._process.pid}\n")
        self._await_start(path, control)

    def _hold(self) -> None:
        """Take the state folder for this process, and end what a process that was killed left in it."""
        if self._lock is not None:
            return
        try:
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise TpmConflict(
                f"the emulator in {self.state} is used by another process",
                hint="is an agent running? stop it first",
            ) from None
        self._lock = lock
        _end_leftover(self.state)

    def _unusable(self, error: OSError) -> TpmError:
        return TpmError(
            f"{self.state} cannot be used for the emulator's state: {(error.strerror or 'error').lower()}",
            hint="name a folder that this user may write",
        )

    def _await_start(self, data: Path, control: Path) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while self.running and time.monotonic() < deadline:
            if _answers(data) and _serves(control):
                return
            time.sleep(0.002)
        self.power_cut()
        log = self.state / "swtpm.log"
        last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        raise TpmGone(f"swtpm did not start: {(last or ['no message'])[0]}", hint=f"see {log}")

    def init(self) -> None:
        """Pulse the TPM's reset line (_TPM_Init): afterwards it waits for TPM2_Startup."""
        self._control(struct.pack(">II", _CONTROL_INIT, 0))

    def _control(self, request: bytes) -> None:
        with _connected(self.socket.with_name("tpm.ctrl")) as control:
            control.settimeout(_STOP_SECONDS)
            control.sendall(request)
            answer = control.recv(4)
        if answer != bytes(4):
            raise TpmError(f"the emulator refused a control command: {answer.hex() or 'no answer'}")

    def stop(self) -> None:
        """Shut down in order (TPM2_Shutdown, then the process). Never raises; twice is fine.

        Close other connections first: swtpm serves one client at a time, and without TPM2_Shutdown the next
        start finds the clock not safe.
        """
        if self.running:
            with contextlib.suppress(OSError, TpmError):
                with _connected(self.socket) as client:
                    client.settimeout(1.0)
                    client.sendall(_SHUTDOWN_CLEAR)
                    client.recv(16)
                self._control(struct.pack(">I", _CONTROL_SHUTDOWN))
            self._end(_STOP_SECONDS)
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def power_cut(self) -> None:
        """End swtpm by SIGKILL, without farewell; `start` is the power coming back, at the same address."""
        self._end(0.0)

    def _end(self, patience: float) -> None:
        """Wait for the process to end, then kill it."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        process.kill()
        process.wait()

    def __enter__(self) -> Emulator:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _connected(path: Path) -> socket.socket:
    """A connected unix socket. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _end_leftover(state: Path) -> None:
    """End a swtpm over this state whose owner was killed; its sockets are nobody's any more."""
    try:
        pid = int((state / _PID_FILE).read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        handle = os.pidfd_open(pid)
    except (OSError, ValueError):
        return
    try:
        if f"dir={state / 'tpm'},mode=0600" in command:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], _STOP_SECONDS)
            for argument in command:
                if argument.startswith("type=unixio,path=") and f"/{_SOCKETS_PREFIX}" in argument:
                    path = Path(argument.removeprefix("type=unixio,path=").partition(",")[0])
                    shutil.rmtree(path.parent, ignore_errors=True)
    except ProcessLookupError:  # it ended meanwhile
        return
    finally:
        os.close(handle)


def _answers(path: Path) -> bool:
    """Whether somebody listens there."""
    try:
        _connected(path).close()
    except OSError:
        return False
    return True


def _serves(control: Path) -> bool:
    """Whether swtpm answers a control command: it listens before it has read its state, and answers after."""
    try:
        with _connected(control) as connection:
            connection.settimeout(_STOP_SECONDS)
            connection.sendall(struct.pack(">I", _CONTROL_CAPABILITY))
            return bool(connection.recv(4))
    except OSError:
        return False


def _socket_folder() -> Path:
    """A private folder with a path short enough for unix sockets."""
    longest = len("/quotary-xxxxxxxx/tpm.ctrl")
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp is private
        if base and Path(base).is_dir() and len(os.fsencode(base)) + longest <= SOCKET_PATH_LIMIT:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix=_SOCKETS_PREFIX, dir=base))
    raise TpmError("no folder for the emulator's sockets", hint="set TMPDIR to a short, writable path")


def _program(name: str, package: str) -> str:
    """Where a program of swtpm is. Raises TpmUnsupported with the package to install."""
    path = shutil.which(name)
    if path is None:
        raise TpmUnsupported(f"{name} is not installed", hint=f"apt install {package}")
    return path
