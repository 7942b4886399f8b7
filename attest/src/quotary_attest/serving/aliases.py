# SPDX-License-Identifier: Apache-2.0
"""Aliases: an output found by the id that its engine gave it, for whoever asked for the output.

An engine's ids are short, and some are counters, so knowing one is no right to anything. An alias is therefore
made of it and of the credential that the request carried, under a secret of the origin: who asks with another
credential finds nothing, and the host keeps neither ids nor credentials.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

ALIAS_BYTES: Final = 32

MAX_UPSTREAM_ID: Final = 256
"""Characters of an engine's id; a longer one makes no alias."""

CREDENTIALS: Final = frozenset(("authorization", "x-api-key", "api-key"))
"""Header fields with which clients of the APIs that are relayed identify themselves."""

_SECRET_LABEL: Final = b"quotary/alias-secret/v1\n\0"
_ALIAS_LABEL: Final = b"quotary/alias/v1\n\0"


def alias_secret_of(note_seed: bytes) -> bytes:
    """Return an origin's secret for aliases, 32 bytes, from the seed of its note key, which it does not reveal."""
    return hmac.digest(note_seed, _SECRET_LABEL, "sha256")


def alias_of(secret: bytes, authorization: str, upstream_id: str) -> bytes:
    """Return the alias of an engine's id for one credential, 32 bytes.

    `authorization` is what `credential_of` returns of the request, the empty string for one without.
    """
    mac = hmac.new(secret, _ALIAS_LABEL, sha256)
    for field in (authorization, upstream_id):
        encoded = field.encode("utf-8", "surrogateescape")
        mac.update(len(encoded).to_bytes(4))
        mac.update(encoded)
    return mac.digest()


def credential_of(headers: Mapping[str, str]) -> str:
    """Return what a request identifies its client by, one text of all fields that do; empty where there are none.

    With `Authorization` alone it is that field's value.
    """
    named = [(name.lower(), value) for name, value in headers.items()]
    found = sorted(item for item in named if item[0] in CREDENTIALS)
    if [name for name, _ in found] == ["authorization"]:
        return found[0][1]
    return "".join(f"\n{name}: {value}" for name, value in found)  # no field's value begins with a newline


def is_upstream_id(value: Any) -> bool:
    """Tell whether what an engine sent as its id can be the name of an output."""
    if type(value) is not str or not 0 < len(value) <= MAX_UPSTREAM_ID:
        return False
    return value.isascii() and value.isprintable() and "/" not in value
