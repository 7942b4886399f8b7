# SPDX-License-Identifier: Apache-2.0
"""Tells event logs apart by their first bytes; the code that reads them is loaded only where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quotary_verifier.wire.attestation import BOOT_LOG_FIRMWARE, BOOT_LOG_IMA, DIGEST_BYTES

Content = dict[str, Any]

_SPEC_ID = b"Spec ID Event"
_IMA_NAMES = (b"ima", b"d-ng", b"d|n", b"evm")
_OLD_HEADER = 32
_FIRST_RECORD = 19
_LAUNCHER_CONTENT = 80


def log_view(data: bytes) -> tuple[str, Content] | None:
    """Return the kind and content of an event log; None where the first bytes are of none.

    Raises:
        MalformedError: it begins as a log and is none.
        UnsupportedError: it is one of an unknown version.
    """
    if data[:4] == b"CCEL":
        from quotary_cli.logviews import CCEL_TABLE, ccel_table_view

        return CCEL_TABLE, ccel_table_view(data)
    if _is_launcher(data):
        from quotary_cli.logviews import LAUNCHER_LOG, launcher_view

        return LAUNCHER_LOG, launcher_view(data)
    if data[:3] == b"10 " or _is_ima(data):
        from quotary_cli.logviews import IMA_LOG, ima_ascii_view, ima_binary_view

        return IMA_LOG, (ima_ascii_view if data[:3] == b"10 " else ima_binary_view)(data)
    if data[_OLD_HEADER : _OLD_HEADER + len(_SPEC_ID)] == _SPEC_ID or _is_old(data):
        from quotary_cli.logviews import EVENT_LOG, event_log_view

        return EVENT_LOG, event_log_view(data)
    return None


def boot_log_name(data: bytes) -> str | None:
    """Return under which name attestations carry such a log (docs/spec/boot-logs.md), by its first bytes; or None."""
    if _is_ima(data):
        return BOOT_LOG_IMA
    if data[_OLD_HEADER : _OLD_HEADER + len(_SPEC_ID)] == _SPEC_ID or _is_old(data):
        return BOOT_LOG_FIRMWARE
    return None


def log_lines(kind: str, content: Content) -> tuple[Content, Iterator[str]]:
    """Split a log's content into what is shown of the whole and one line for each event; no lines for other kinds."""
    if not kind.endswith(" log") or kind == "workload log":
        return content, iter(())
    from quotary_cli import logviews

    return logviews.log_lines(kind, content)


def boot_log_view(log: bytes) -> Content:
    """Show what an attestation carries of a boot log; `attest inspect` shows the whole of one in a file of its own."""
    return {"sha256": log.hex()} if len(log) == DIGEST_BYTES else {"bytes": len(log)}


def _is_launcher(data: bytes) -> bool:
    """Tell whether the first CEL record has content of the launcher's type; our workload log begins alike."""
    if data[:13] != b"\0\0\0\0\x08" + bytes(8) or len(data) < _FIRST_RECORD + 5:
        return False
    content = _FIRST_RECORD + 5 + int.from_bytes(data[_FIRST_RECORD + 1 : _FIRST_RECORD + 5])
    return data[content : content + 1] == bytes((_LAUNCHER_CONTENT,))


def _is_ima(data: bytes) -> bool:
    """Tell whether a template's name stands behind the first template hash."""
    if data[1:4] != bytes(3):
        return False
    return any(data[8 + size : 8 + size + 4].startswith(_IMA_NAMES) for size in (20, 32, 48, 64))


def _is_old(data: bytes) -> bool:
    """Tell whether a log of the SHA-1 format begins here: a register, a type of the specification, a size that fits."""
    if (
        len(data) < _OLD_HEADER
        or data[1:4] != bytes(3)
        or data[0] > 23
        or data[:13] == b"\0\0\0\0\x08" + bytes(8)
    ):
        return False
    kind, size = int.from_bytes(data[4:8], "little"), int.from_bytes(data[28:32], "little")
    known = kind < 0x14 or 0x80000001 <= kind <= 0x800000E4
    return known and size <= len(data) - _OLD_HEADER
