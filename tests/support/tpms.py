# SPDX-License-Identifier: Apache-2.0
"""A TPM for a test: swtpm behind a switchboard, with a power switch.

`Tpm` is what the fixture `tpm` hands out. It has two parts:

- a *machine*: where the TPM runs. `Machine` says what that must offer; `quotary_attest.tpm.emulator.Emulator`
  (a local swtpm process) offers it, and so does `container_tpm.ContainerMachine`. A *provider* makes machines
  out of a folder and the template state; the fixture `tpm_provider` chooses it by `--tpm-provider`.
- a `Switchboard` (the benchmarks' dtpm.py), a unix socket that passes commands to the machine. It lets several
  clients share the TPM as they share a device, counts commands, cuts the transport, and injects answers.
"""

from __future__ import annotations

import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dtpm import HEADER, Switchboard
from quotary_attest.roots import CommitSteps
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.emulator import Emulator
from quotary_attest.tpm.keys import make_identity
from quotary_attest.tpm.model import TpmIdentity

CC_QUOTE, CC_PCR_EXTEND, CC_PCR_READ = 0x158, 0x182, 0x17E
_CC_STARTUP, _CC_SHUTDOWN = 0x144, 0x145
_SU_CLEAR, _SU_STATE = 0, 1


class Between(CommitSteps):
    """Does something between the extend and the quote of a commit."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action

    def between(self) -> None:
        """Do it."""
        self._action()


class Machine(Protocol):
    """Where a TPM runs. After `start` it is started (TPM2_Startup) and serves the unix socket `socket`, with
    swtpm's control channel at the same path plus `.ctrl`."""

    @property
    def socket(self) -> Path:
        """The data socket; stays the same over power cuts."""
        ...

    @property
    def ek_root(self) -> Path:
        """PEM file of the root above the EK certificates."""
        ...

    @property
    def ek_issuer(self) -> Path:
        """PEM file of the intermediate that issued the EK certificates."""
        ...

    def start(self) -> None:
        """Power on; a TPM Reset, with the state that was there before."""
        ...

    def init(self) -> None:
        """Pulse the reset line; TPM2_Startup must follow."""
        ...

    def power_cut(self) -> None:
        """Power off at once, without TPM2_Shutdown."""
        ...

    def stop(self) -> None:
        """End for good, and remove sockets."""
        ...


def process_machine(folder: Path, template: Path) -> Machine:
    """A swtpm process of this host, over a copy of the template state."""
    shutil.copytree(template, folder / "tpm-state")
    return Emulator(folder / "tpm-state")


def extend_command(pcr: int, digest: bytes) -> bytes:
    """TPM2_PCR_Extend of the SHA-256 bank with an empty password."""
    password = bytes.fromhex("00000009 40000009 0000 00 0000")
    body = pcr.to_bytes(4, "big") + password + bytes.fromhex("00000001 000b") + digest
    return HEADER.pack(0x8002, HEADER.size + len(body), CC_PCR_EXTEND) + body


def _succeed(response: bytes) -> bytes:
    """The parameters of a response; an assertion that it is no error."""
    assert HEADER.unpack_from(response)[2] == 0, f"the tpm answered {response.hex()}"
    return response[HEADER.size :]


class Tpm:
    """One TPM of one test. `tcti` is what to connect to; it stays the same over power cuts."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.start()
        self.board = Switchboard(machine.socket.with_name("board"), machine.socket, answer=self._answer)
        self.board.start()
        self._injected: list[tuple[int, int]] = []
        self._before: dict[int, list[bytes | None]] = {}
        self._flow: dict[int, threading.Event] = {}
        self.stalled = threading.Event()
        """Set once a command that is held back was sent."""

    @property
    def tcti(self) -> str:
        """TSS string of the switchboard."""
        return f"swtpm:path={self.board.listen}"

    def identity(self, chain_pcr: int = 15, workload_pcr: int = 13) -> TpmIdentity:
        """Make an identity."""
        with Connection(self.tcti) as connection:
            return make_identity(connection, chain_pcr=chain_pcr, workload_pcr=workload_pcr)

    @contextmanager
    def counted(self) -> Iterator[list[int]]:
        """The codes of the commands that reach the TPM inside the block, sorted, in the list it yields."""
        before = self.board.counts.copy()
        codes: list[int] = []
        yield codes
        codes += sorted((self.board.counts - before).elements())

    def inject(self, code: int, rc: int, times: int = 1) -> None:
        """Let the next `times` commands of a code fail with `rc`; they do not reach the TPM."""
        self._injected += [(code, rc)] * times

    @contextmanager
    def stall(self, code: int) -> Iterator[None]:
        """Hold back commands of a code inside the block, as a TPM that is busy with itself does."""
        self._flow[code] = threading.Event()
        self.stalled.clear()
        try:
            yield
        finally:
            self._flow.pop(code).set()

    def before(self, code: int, *commands: bytes | None) -> None:
        """Send `commands` ahead of the next ones of a code, one ahead of each (None: nothing)."""
        self._before.setdefault(code, []).extend(commands)

    def _answer(self, code: int, _command: bytes) -> bytes | None:
        if (flow := self._flow.get(code)) is not None:
            self.stalled.set()
            flow.wait()
        if (waiting := self._before.get(code)) and (other := waiting.pop(0)) is not None:
            _succeed(self.board.exchange(other))
        for entry in self._injected:
            if entry[0] == code:
                self._injected.remove(entry)
                return HEADER.pack(0x8001, HEADER.size, entry[1])
        return None

    def command(self, code: int, parameters: bytes = b"") -> bytes:
        """Send a raw command without sessions; raises AssertionError unless it succeeds."""
        message = HEADER.pack(0x8001, HEADER.size + len(parameters), code) + parameters
        return _succeed(self.board.send(message))

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend a PCR as another program would."""
        _succeed(self.board.send(extend_command(pcr, digest)))

    def reset(self) -> None:
        """A reboot: TPM2_Shutdown(CLEAR), reset line, TPM2_Startup(CLEAR). Connections stay open."""
        self._cycle(_SU_CLEAR, _SU_CLEAR)

    def suspend(self) -> None:
        """Sleep (S3): PCRs are kept, the restart count moves."""
        self._cycle(_SU_STATE, _SU_STATE)

    def hibernate(self) -> None:
        """Hibernation (S4): PCRs are zero, the restart count moves."""
        self._cycle(_SU_STATE, _SU_CLEAR)

    def _cycle(self, down: int, up: int) -> None:
        self.command(_CC_SHUTDOWN, struct.pack(">H", down))
        self.machine.init()
        self.command(_CC_STARTUP, struct.pack(">H", up))

    def power_cut(self) -> None:
        """The power fails: the TPM is gone in the middle of whatever it does. `start` brings it back."""
        self.machine.power_cut()
        self.board.drop()

    def start(self) -> None:
        """The power comes back, and the firmware starts the TPM."""
        self.machine.start()

    def gone(self) -> None:
        """The transport fails; the TPM itself keeps its state. `back` restores it."""
        self.board.stop()

    def back(self) -> None:
        """The transport is there again."""
        self.board.start()

    def stop(self) -> None:
        """End of the test."""
        self.board.stop()
        self.machine.stop()
