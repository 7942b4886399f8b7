# SPDX-License-Identifier: Apache-2.0
"""Shows a UEFI device path as text (UEFI 2.10, section 10). It comes from a log that does not cover it: hearsay."""

from __future__ import annotations

from typing import Final

from quotary_verifier.logs.uefi import guid

_END: Final = 0x7F
_MAX_NODES: Final = 64
_HEAD = 4


def device_path(data: bytes) -> str:
    """Return the nodes of a device path with `/` between them; what is not well formed ends the text."""
    nodes: list[str] = []
    at = 0
    while at + _HEAD <= len(data) and len(nodes) < _MAX_NODES:
        kind, subtype = data[at], data[at + 1]
        size = int.from_bytes(data[at + 2 : at + 4], "little")
        if kind == _END or size < _HEAD or at + size > len(data):
            break
        nodes.append(_node(kind, subtype, data[at + _HEAD : at + size]))
        at += size
    return "/".join(nodes)


def _node(kind: int, subtype: int, body: bytes) -> str:
    if (kind, subtype) == (4, 4):
        return body.decode("utf-16-le", "backslashreplace").rstrip("\0")
    if (kind, subtype) == (4, 1) and len(body) >= 38:
        return f"HD({int.from_bytes(body[:4], 'little')},{guid(body[20:36])})"
    if (kind, subtype) in {(4, 6), (4, 7)} and len(body) == 16:
        return f"{'FvFile' if subtype == 6 else 'Fv'}({guid(body)})"
    if (kind, subtype) == (2, 1) and len(body) == 8:
        return f"Acpi(0x{int.from_bytes(body[:4], 'little'):x},0x{int.from_bytes(body[4:], 'little'):x})"
    if (kind, subtype) == (1, 1) and len(body) == 2:
        return f"Pci(0x{body[1]:x},0x{body[0]:x})"
    return f"{kind}.{subtype}({body[:16].hex()})"
