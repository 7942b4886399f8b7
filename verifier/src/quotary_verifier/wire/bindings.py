# SPDX-License-Identifier: Apache-2.0
"""The domain-separated digests that hardware binds (docs/spec/bindings.md, design section 3).

Each label ends in a newline and a zero byte, which no text of ours has, so that no digest of one purpose can
be taken for one of another.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

_COMMIT = b"quotary/commit/v1\n\0"
_START = b"quotary/start/v1\n\0"
_FRESH = b"quotary/fresh/v1\n\0"
_TOKEN_IDS = b"quotary/token-ids/v1\n\0"

ZERO = bytes(32)
"""A SHA-256 PCR after reset, and the "last commit" of a history that has none."""


def _short(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def commit_digest(origin: str, first: int, note_text: bytes) -> bytes:
    """Return D, the 32 bytes that every root binds for a commit: `first` is the index it claims from."""
    return hashlib.sha256(_COMMIT + first.to_bytes(8) + _short(origin.encode()) + note_text).digest()


def start_digest(origin: str, last_commit: bytes, salt: bytes) -> bytes:
    """Return what the counter certification of a boot record carries as extraData."""
    return hashlib.sha256(_START + _short(origin.encode()) + last_commit + salt).digest()


def fresh_digest(origin: str, nonce: bytes) -> bytes:
    """Return what a fresh quote over a caller's nonce (8 to 64 bytes) carries as extraData."""
    return hashlib.sha256(_FRESH + _short(origin.encode()) + _short(nonce)).digest()


def chain_extend(before: bytes, digest: bytes) -> bytes:
    """Return the value of a SHA-256 PCR holding `before` after TPM2_PCR_Extend with `digest`."""
    return hashlib.sha256(before + digest).digest()


def request_commitment(request_key: bytes, body: bytes) -> bytes:
    """Return `HMAC-SHA-256(request key, request body)`, 32 bytes."""
    return hmac.digest(request_key, body, "sha256")


def token_ids_label(name: str) -> bytes:
    """Return what stands before the ids in the commitment of that name; the name has at most 255 bytes."""
    return _TOKEN_IDS + _short(name.encode())


def token_ids_commitment(request_key: bytes, name: str, ids: Iterable[int]) -> bytes:
    """Return the commitment to token ids of 32 bits each, which stands under `name` in a record's context."""
    listed = b"".join(each.to_bytes(4) for each in ids)
    return hmac.digest(request_key, token_ids_label(name) + listed, "sha256")
