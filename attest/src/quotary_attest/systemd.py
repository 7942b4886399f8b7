# SPDX-License-Identifier: Apache-2.0
"""What systemd and a service tell each other: readiness, watchdog, sockets passed on, credentials.

Written from sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3) and systemd.exec(5) ("Credentials"): four
environment variables and one datagram. Without systemd all of it is silent. The variables are taken out of the
environment, since what they say is meant for this process and not for an engine that it starts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Final

FIRST_DESCRIPTOR: Final = 3
"""SD_LISTEN_FDS_START."""

_LOG = logging.getLogger("quotary.agent")
_MAX_STATUS: Final = 400
_MAX_CREDENTIAL: Final = 1024

Environment = MutableMapping[str, str]


class ServiceError(Exception):
    """What systemd handed over is not what the configuration asks for. `hint` says what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Notifier:
    """Tells the service manager how the service is. Never raises: a manager that is deaf must not stop the service."""

    def __init__(self, address: str = "") -> None:
        """`address` is a Unix datagram socket, with a leading `@` in the abstract namespace; empty: nobody listens."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        )
        if self._socket is not None:
            self._socket.setblocking(False)
        self._status = ""

    @classmethod
    def of(cls, environment: Environment = os.environ) -> Notifier:
        """Take the address out of the environment."""
        return cls(environment.pop("NOTIFY_SOCKET", ""))

    def ready(self) -> None:
        """Say that the start is over."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the service stops."""
        self._send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """Ask that starting or stopping may take so much longer from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def alive(self) -> None:
        """Keep the watchdog quiet."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`; sent only where it changed."""
        line = " ".join(text.split())[:_MAX_STATUS]
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def close(self) -> None:
        """Close the socket; later calls say nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is not None:
            try:
                self._socket.sendto(message.encode(), self._address)
            except OSError:
                return


def watchdog_seconds(environment: Environment = os.environ, pid: int | None = None) -> float | None:
    """Return how long the service manager waits for a sign of life, None if it does not; taken out of `environment`."""
    microseconds, meant = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or meant not in ("", str(pid or os.getpid())):
        return None
    return int(microseconds) / 1e6


async def keep_alive(notifier: Notifier, seconds: float, healthy: Callable[[], bool]) -> None:
    """Give a sign of life twice in `seconds` for as long as `healthy` says so. Runs until it is cancelled."""
    well = True
    while True:
        was, well = well, healthy()
        if well:
            notifier.alive()
        elif was:
            _LOG.error("the engine is stuck, and the watchdog hears no more of it")
            notifier.status("stuck")
        await asyncio.sleep(seconds / 2)


class PassedSockets:
    """The listening sockets that systemd passed on, by name (`FileDescriptorName=`). Each is taken once."""

    def __init__(self, sockets: dict[str, list[socket.socket]] | None = None) -> None:
        self._sockets = sockets or {}

    @classmethod
    def of(cls, environment: Environment = os.environ, pid: int | None = None) -> PassedSockets:
        """Take them out of the environment; none where they are meant for another process.

        Raises:
            ServiceError: the variables are damaged, or a descriptor is no listening socket.
        """
        meant, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
        names = environment.pop("LISTEN_FDNAMES", "")
        if not count or meant != str(pid or os.getpid()):
            return cls()
        if not count.isdecimal() or int(count) > 1024:
            raise ServiceError("LISTEN_FDS is damaged")
        listed = names.split(":") if names else ["unknown"] * int(count)
        if len(listed) != int(count):
            raise ServiceError("LISTEN_FDNAMES has not one name for each socket")
        found: dict[str, list[socket.socket]] = {}
        for descriptor, name in enumerate(listed, FIRST_DESCRIPTOR):
            found.setdefault(name, []).append(_listener(descriptor, name))
        return cls(found)

    def take(self, name: str, family: type[Path] | None = None) -> list[socket.socket]:
        """Return the sockets of that name; with `family` Path all must be Unix sockets, without it none may be.

        Raises:
            ServiceError: there is none, or it is of the other kind.
        """
        sockets = self._sockets.pop(name, [])
        if not sockets:
            raise ServiceError(
                f"systemd passed no socket named {name}",
                hint=f"a .socket unit with FileDescriptorName={name}, and Sockets= in the service",
            )
        if any((each.family == socket.AF_UNIX) != (family is Path) for each in sockets):
            raise ServiceError(
                f"the socket named {name} is of another kind",
                hint="doors for requests and figures are TCP sockets, the local interface is a Unix socket",
            )
        return sockets

    @property
    def left(self) -> tuple[str, ...]:
        """Names of what nobody took."""
        return tuple(self._sockets)

    def close(self) -> None:
        """Close what nobody took."""
        for sockets in self._sockets.values():
            for each in sockets:
                each.close()
        self._sockets = {}


def _listener(descriptor: int, name: str) -> socket.socket:
    try:
        found = socket.socket(fileno=descriptor)
        listens = (
            found.type == socket.SOCK_STREAM
            and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        )
    except OSError:
        raise ServiceError(f"descriptor {descriptor}, named {name}, is no socket") from None
    if not listens:
        found.detach()
        raise ServiceError(
            f"the socket named {name} does not listen for streams", hint="ListenStream=, Accept=no"
        )
    found.set_inheritable(False)
    found.setblocking(False)
    return found


def credential(name: str, environment: Environment = os.environ) -> bytes:
    """Return the first line of a credential (LoadCredential=, SetCredentialEncrypted=).

    Raises:
        ServiceError: there is none, or its first line is empty or longer than 1,024 bytes.
    """
    folder = environment.get("CREDENTIALS_DIRECTORY", "")
    hint = f"LoadCredential={name}:FILE in the unit"
    if not folder:
        raise ServiceError(f"there is no credential {name}: systemd passed none", hint=hint)
    try:
        with (Path(folder) / name).open("rb") as file:
            line = file.read(_MAX_CREDENTIAL + 2).split(b"\n", 1)[0].rstrip(b"\r")
    except OSError as error:
        raise ServiceError(f"credential {name}: {(error.strerror or '').lower()}", hint=hint) from None
    if not 0 < len(line) <= _MAX_CREDENTIAL:
        raise ServiceError(f"credential {name}: the first line is not a passphrase")
    return line
