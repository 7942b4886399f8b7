# SPDX-License-Identifier: Apache-2.0
"""The hash banks into which logs replay, and the way from a register's value to the next.

SHA-1 replays like the rest, because old logs exist that hold nothing else. It never counts on its own: whoever
replays into that bank has to name the tolerance (`WEAK_HASH`), which the result then lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from quotary_verifier.errors import EvidenceError, UnsupportedError
from quotary_verifier.wire.tpm_algorithms import ALG_SHA1, ALG_SHA256, ALG_SHA384, ALG_SHA512, HASH_NAMES

Hash = Callable[[bytes], Any]

WEAK_HASH: Final = "sha-1"
"""Name of the tolerance under which a log may be replayed into the SHA-1 bank."""

HASHES: Final[dict[int, Hash]] = {
    ALG_SHA1: partial(hashlib.sha1, usedforsecurity=False),
    ALG_SHA256: hashlib.sha256,
    ALG_SHA384: hashlib.sha384,
    ALG_SHA512: hashlib.sha512,
}


def bank_hash(bank: int, *, weak: bool) -> Hash:
    """Return the hash function of a bank; `weak` says whether the caller accepts SHA-1.

    Raises:
        EvidenceError: it is SHA-1 and not accepted.
        UnsupportedError: it is not known.
    """
    function = HASHES.get(bank)
    if function is None:
        raise UnsupportedError(f"the bank of hash algorithm 0x{bank:04x} is not supported")
    if bank == ALG_SHA1 and not weak:
        raise EvidenceError(f"the log would be replayed into a SHA-1 bank (tolerance {WEAK_HASH!r})")
    return function


def bank_name(bank: int) -> str:
    """Return the name of a bank in messages and results."""
    return HASH_NAMES.get(bank, f"0x{bank:04x}")
