# SPDX-License-Identifier: Apache-2.0
"""Writing entries of the kernel's IMA log."""

from __future__ import annotations

import hashlib


def ima_entry(data: bytes, *, pcr: int = 10, violation: bool = False) -> bytes:
    """One entry of the template ima-ng with `data` as its template data."""
    template_hash = bytes(20) if violation else hashlib.sha1(data).digest()
    name = b"ima-ng"
    return (
        pcr.to_bytes(4, "little")
        + template_hash
        + len(name).to_bytes(4, "little")
        + name
        + len(data).to_bytes(4, "little")
        + data
    )
