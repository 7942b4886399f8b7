# SPDX-License-Identifier: Apache-2.0
"""Which socket of this host is at the other end of a TCP connection (Linux, sock_diag(7); procfs where it is closed
to us).

A socket is named by its inode, which is what `/proc/PID/fd` shows of it. Sockets of other network namespaces are not
seen, so an engine in a container with a network of its own is not found.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from quotary_attest.enginelink import Address, TcpPeer

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST: Final = 1
_DUMP: Final = 0x300
_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")
_QUERY: Final = struct.Struct("=BBBxI")
_PORTS: Final = struct.Struct(">HH")
_ANY: Final = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_INODE: Final = 4 + 48 + 16
_LISTENS: Final = 10
_ALL_STATES: Final = 0xFFFFFFFF
_TIMEOUT: Final = 1.0


def peer_inodes(peer: TcpPeer) -> frozenset[int]:
    """Return the inodes of the sockets that can be at the other end of a connection: that of the connection, or,
    where its process has not taken it up yet or has closed it already, all that listen at its address. Empty where
    the other end is not in this network namespace, or the kernel does not say."""
    try:
        inode = _connection(peer)
        return frozenset((inode,)) if inode else frozenset(_listeners(peer.theirs))
    except (OSError, ValueError, struct.error):
        pass
    try:
        return _from_procfs(peer)
    except (OSError, ValueError, IndexError):
        return frozenset()


def _connection(peer: TcpPeer) -> int:
    """Return the inode of the engine's end; 0 where no process has it, or the kernel knows no such socket."""
    family, address = _packed(peer.theirs[0])
    other_family, other = _packed(peer.ours[0])
    if family != other_family:
        raise ValueError("the two ends have addresses of two kinds")
    identity = _PORTS.pack(peer.theirs[1], peer.ours[1]) + address + other + _ANY
    for found, ports, _, inode in _ask(family, identity, _ALL_STATES, 0):
        if found != _LISTENS and ports == (peer.theirs[1], peer.ours[1]):
            return inode
    return 0


def _listeners(address: Address) -> Iterator[int]:
    """Yield the inodes of the sockets that listen at an address, those for any address included."""
    wanted, packed = _packed(address[0])
    # for any address, for this one, for this one as an IPv6 address
    reached = {bytes(16), packed, bytes(10) + b"\xff\xff" + packed[:4]}
    families = (socket.AF_INET, socket.AF_INET6) if wanted == socket.AF_INET else (socket.AF_INET6,)
    for family in families:
        identity = _PORTS.pack(address[1], 0) + bytes(32) + _ANY
        for _, ports, local, inode in _ask(family, identity, 1 << _LISTENS, _DUMP):
            if ports[0] == address[1] and inode and local in reached:
                yield inode


@lru_cache(maxsize=1024)
def _packed(address: str) -> tuple[socket.AddressFamily, bytes]:
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    family = socket.AF_INET if isinstance(parsed, IPv4Address) else socket.AF_INET6
    return family, parsed.packed.ljust(16, b"\0")


def _ask(
    family: socket.AddressFamily, identity: bytes, states: int, flags: int
) -> Iterator[tuple[int, tuple[int, int], bytes, int]]:
    """Yield state, ports, own address and inode of each socket that the kernel finds. Raises OSError."""
    body = _QUERY.pack(family, socket.IPPROTO_TCP, 0, states) + identity
    message = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST | flags, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as link:
        link.settimeout(_TIMEOUT)
        link.send(message)
        while True:
            data = link.recv(1 << 16)
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, _, _, _ = _HEADER.unpack_from(data, at)
                if kind != _SOCK_DIAG_BY_FAMILY:
                    _end(data, at, length, kind, flags)
                    return
                start = at + _HEADER.size
                ports = _PORTS.unpack_from(data, start + 4)
                (inode,) = struct.unpack_from("=I", data, start + _INODE)
                yield data[start + 1], ports, data[start + 8 : start + 24], inode
                at += (length + 3) & ~3
            if not flags & _DUMP:
                return


def _end(data: bytes, at: int, length: int, kind: int, flags: int) -> None:
    """Raise OSError unless a message says that all was told.

    ENOENT is how the kernel says that no socket has these addresses, and also that it has no module for TCP (tcp_diag,
    inet_diag). Only of a list it can mean nothing but the second.
    """
    begin = at + _HEADER.size
    (number,) = struct.unpack_from("=i", data, begin) if length >= _HEADER.size + 4 else (0,)
    if number < 0 and (kind == _DONE or number != -errno.ENOENT or flags & _DUMP):
        raise OSError(-number, os.strerror(-number))


def _from_procfs(peer: TcpPeer) -> frozenset[int]:
    """The same from /proc/net/tcp and tcp6: slower, for where the kernel does not answer netlink. Raises OSError."""
    connected: set[int] = set()
    listening: set[int] = set()
    theirs, ours = _canonical(peer.theirs), _canonical(peer.ours)
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            local, inode = _decoded(fields[1]), int(fields[9])
            if not inode or local[1] != theirs[1]:
                continue
            if int(fields[3], 16) == _LISTENS:
                if local[0] in (theirs[0], "0.0.0.0", "::"):  # noqa: S104 - what others listen at
                    listening.add(inode)
            elif local == theirs and _decoded(fields[2]) == ours:
                connected.add(inode)
    return frozenset(connected or listening)


def _canonical(address: Address) -> Address:
    family, packed = _packed(address[0])
    return str(ip_address(packed[: 4 if family == socket.AF_INET else 16])), address[1]


def _decoded(text: str) -> Address:
    """Read an address of /proc/net/tcp: words of 32 bits in the machine's order, and a port."""
    words, port = text.split(":")
    raw = b"".join(
        int(words[at : at + 8], 16).to_bytes(4, "little" if _LITTLE else "big")
        for at in range(0, len(words), 8)
    )
    return _canonical((str(ip_address(raw)), int(port, 16)))


_LITTLE: Final = struct.pack("=H", 1) == b"\x01\x00"
