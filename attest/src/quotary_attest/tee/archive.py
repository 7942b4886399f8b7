# SPDX-License-Identifier: Apache-2.0
"""Endorsements that a maker published, kept in a folder beside evidence (docs/howto/tee.md).

A file `<SHA-256 of the evidence>.support` holds one support of a TEE line (docs/spec/tee.md), deterministic CBOR: what
vouches for that evidence, and for other evidence of the same machine for as long as the maker says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from quotary_attest.tee.errors import TeeMissing, TeeRefused
from quotary_verifier.errors import QuotaryError
from quotary_verifier.wire import cbor
from quotary_verifier.wire.tee_support import MAX_NAMES, MAX_PART, MAX_PARTS, TeeSupport

SUFFIX: Final = ".support"
MAX_SUPPORT: Final = 8 << 20
"""Bytes of a file; supports of today have at most some 50 KiB."""

_MOST: Final = 32
assert MAX_SUPPORT <= MAX_NAMES * MAX_PARTS * MAX_PART


def store(folder: Path, evidence: bytes, support: TeeSupport) -> Path:
    """Write what vouches for evidence, on disk before the name is there; return the file. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{hashlib.sha256(evidence).hexdigest()}{SUFFIX}"
    number, name = tempfile.mkstemp(dir=folder, prefix=".support-")
    try:
        with os.fdopen(number, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(cbor.encode(support.fields()))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    return target


def read_support(path: Path) -> TeeSupport:
    """Read one file. Raises OSError, MalformedError."""
    with path.open("rb") as file:
        data = file.read(MAX_SUPPORT + 1)
    return TeeSupport.read(cbor.decode(data, max_bytes=MAX_SUPPORT, what="the file of endorsements"))


def stored(folder: Path, identifier: str) -> Iterator[TeeSupport]:
    """Yield what is stored for lines of an identifier, newest first, at most 32; files of another form are left out.

    Raises TeeMissing or TeeRefused where the folder cannot be read.
    """
    try:
        files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        exists = folder.is_dir()
    except OSError as error:
        raise TeeRefused(
            f"the endorsements in {folder} cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None
    if not exists:
        raise TeeMissing(
            f"there is no folder {folder} of endorsements", hint="`attest tee fetch-collateral` makes it"
        )
    found = 0
    for file in files:
        with contextlib.suppress(OSError, QuotaryError):
            support = read_support(file)
            if support.identifier == identifier and found < _MOST:
                found += 1
                yield support
