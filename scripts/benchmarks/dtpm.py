# SPDX-License-Identifier: Apache-2.0
"""A discrete TPM, simulated: a proxy in front of swtpm that makes its commands as slow as a chip's.

    python scripts/benchmarks/dtpm.py --listen S --swtpm S2

listens on the unix sockets `S` and `S.ctrl` (use it as `swtpm:path=S`) and speaks to the swtpm behind `S2`
and `S2.ctrl`. Each TPM2_Quote takes 100 ms longer and each TPM2_PCR_Extend 12 ms longer, as on discrete TPMs
of the market's middle. It says `ready` on stderr when it listens. When SIGTERM or SIGINT ends it, it prints
one JSON object: how many commands of each code it passed on.

It is a process of its own, so that its work does not count as the agent's. The class `Switchboard` serves the
integration tests too: several clients share a TPM through it, as they share a device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

QUOTE = 0x158
PCR_EXTEND = 0x182
DELAYS = {QUOTE: 0.100, PCR_EXTEND: 0.012}
"""Seconds added to a command, by command code."""

HEADER = struct.Struct(">HII")
"""tag, size of the whole message, command or return code."""

Answer = Callable[[int, bytes], bytes | None]


class Closed(Exception):  # noqa: N818 - an event, not a fault
    """The other side closed its connection."""


def receive(connection: socket.socket, size: int) -> bytes:
    """Read exactly `size` bytes. Raises Closed."""
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise Closed
        data += piece
    return bytes(data)


def receive_message(connection: socket.socket) -> bytes:
    """Read one TPM command or response. Raises Closed."""
    header = receive(connection, HEADER.size)
    return header + receive(connection, HEADER.unpack(header)[1] - HEADER.size)


class Switchboard:
    """Passes TPM commands of any number of clients to one TPM, one at a time.

    `delays` are seconds by command code. `answer`, if given, sees each command first and may answer it in the
    TPM's place (tests inject faults so). `counts` counts the commands that reached the TPM, by code.
    """

    def __init__(
        self,
        listen: Path,
        upstream: Path,
        *,
        delays: Mapping[int, float] | None = None,
        answer: Answer | None = None,
    ) -> None:
        self.listen = listen
        self.upstream = upstream
        self.delays = dict(delays or {})
        self.answer = answer
        self.counts: Counter[int] = Counter()
        self._busy = threading.Lock()
        self._tpm: socket.socket | None = None
        self._listeners: list[socket.socket] = []
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()

    def start(self) -> None:
        """Listen; clients are served by daemon threads."""
        for path, serve in ((self.listen, self._serve_data), (_control(self.listen), self._serve_control)):
            path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(16)
            self._listeners.append(listener)
            threading.Thread(target=self._accept, args=(listener, serve), daemon=True).start()

    def stop(self) -> None:
        """Stop listening and drop all connections."""
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._listeners.clear()
        for path in (self.listen, _control(self.listen)):
            path.unlink(missing_ok=True)
        self.drop()

    def drop(self) -> None:
        """Cut every connection: clients see their transport fail."""
        with self._open_lock:
            victims, self._open = self._open, set()
        if (tpm := self._tpm) is not None:
            victims.add(tpm)  # a command that hangs must not keep us waiting for its turn to end
        for connection in victims:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with self._busy:
            self._hang_up()

    def send(self, command: bytes) -> bytes:
        """Send one command and return the response. Raises OSError or Closed when the TPM is not there."""
        code = HEADER.unpack_from(command)[2]
        with self._busy:
            if self.answer is not None and (answered := self.answer(code, command)) is not None:
                return answered
            self.counts[code] += 1
            if delay := self.delays.get(code):
                time.sleep(delay)
            return self.exchange(command)

    def exchange(self, command: bytes) -> bytes:
        """Pass a command on, now: for `answer`, which is called when it is this client's turn already."""
        try:
            if self._tpm is None:
                self._tpm = _connect(self.upstream)
            self._tpm.sendall(command)
            return receive_message(self._tpm)
        except (OSError, Closed):
            self._hang_up()
            raise

    def _hang_up(self) -> None:
        if self._tpm is not None:
            self._tpm.close()
            self._tpm = None

    def _accept(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with self._open_lock:
                    self._open.add(client)
                threading.Thread(target=self._guard, args=(client, serve), daemon=True).start()

    def _guard(self, client: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        try:
            with client, contextlib.suppress(OSError, Closed):
                serve(client)
        finally:
            with self._open_lock:
                self._open.discard(client)

    def _serve_data(self, client: socket.socket) -> None:
        while True:
            client.sendall(self.send(receive_message(client)))

    def _serve_control(self, client: socket.socket) -> None:
        """Pass a control connection through: requests have no length, so bytes are pumped both ways."""
        with _connect(_control(self.upstream)) as upstream:
            back = threading.Thread(target=_pump, args=(upstream, client), daemon=True)
            back.start()
            _pump(client, upstream)
            back.join()


def _control(path: Path) -> Path:
    return path.with_name(path.name + ".ctrl")


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(4096):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def main(arguments: list[str] | None = None) -> int:
    """Run until a signal ends it; then print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--listen", required=True, type=Path, help="socket for clients (and .ctrl beside it)")
    parser.add_argument(
        "--swtpm", required=True, type=Path, help="data socket of the swtpm (and .ctrl beside it)"
    )
    parser.add_argument("--quote-ms", type=float, default=DELAYS[QUOTE] * 1000)
    parser.add_argument("--extend-ms", type=float, default=DELAYS[PCR_EXTEND] * 1000)
    options = parser.parse_args(arguments)
    delays = {QUOTE: options.quote_ms / 1000, PCR_EXTEND: options.extend_ms / 1000}
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    board = Switchboard(options.listen, options.swtpm, delays=delays)
    board.start()
    print("ready", file=sys.stderr, flush=True)
    signal.sigwait(signals)
    board.stop()
    json.dump({f"0x{code:x}": count for code, count in sorted(board.counts.items())}, sys.stdout)
    print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
