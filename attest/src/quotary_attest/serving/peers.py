# SPDX-License-Identifier: Apache-2.0
"""A Unix socket that only its mode lets in, and who is at its other end (unix(7): SO_PEERCRED)."""

from __future__ import annotations

import os
import socket
import stat
import struct
from asyncio import BaseTransport
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CREDENTIALS: Final = struct.Struct("=iII")
_GID: Final = struct.Struct("=I")
_SO_PEERGROUPS: Final = 59  # Linux 4.13, the generic number; Python has no name for it
_MAX_GROUPS_BYTES: Final = (
    1024  # Python hands out no more; a peer in more than 256 groups counts by its primary one
)


class SocketInUse(Exception):  # noqa: N818 - the state reads as itself where it is caught
    """Another process listens on the path, or what stands there is no socket."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as the kernel saw it then: user, primary group, all groups, and its number (0 where
    it is not known, such as that of a process in another PID namespace)."""

    uid: int
    gid: int
    groups: frozenset[int]
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Allowed:
    """Who may use the socket: a user by uid, or a member of a group by gid (primary or supplementary)."""

    uids: frozenset[int]
    gids: frozenset[int] = frozenset()

    def admits(self, peer: Peer) -> bool:
        """Tell whether the peer is one of them."""
        return peer.uid in self.uids or not self.gids.isdisjoint(peer.groups | {peer.gid})


def peer_of(transport: BaseTransport | None) -> Peer | None:
    """Return who is at the other end of a connection, None if the kernel does not say."""
    connection = None if transport is None else transport.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return None
    try:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return None
    pid, uid, gid = _CREDENTIALS.unpack(credentials)
    groups: frozenset[int] = frozenset()
    with suppress(OSError):  # an old kernel, or too many: the primary group alone counts
        listed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
        groups = frozenset(number for (number,) in _GID.iter_unpack(listed))
    return Peer(uid, gid, groups, pid)


def listen_on(path: Path, *, mode: int = 0o660, group: int | None = None) -> socket.socket:
    """Bind a Unix socket at `path`, replacing one that nobody listens on; `group` owns it if given.

    Nobody that `mode` shuts out can connect at any moment: the mode is set before the name exists.

    Raises:
        SocketInUse: the path is taken.
        OSError: it cannot be made.
    """
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux makes the file with this mode less the umask; unix(7) leaves it to the umask alone elsewhere
        os.fchmod(listener.fileno(), mode)
        listener.bind(str(path))
        if group is not None:
            os.chown(path, -1, group)
        path.chmod(mode)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _clear(path: Path) -> None:
    """Remove a socket that a process left behind."""
    try:
        taken = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(taken):
        raise SocketInUse(f"{path.name} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise SocketInUse(f"another process listens on {path.name}")
