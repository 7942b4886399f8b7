# SPDX-License-Identifier: Apache-2.0
"""The support of a TEE line: what vouches for its evidence, archived with it (docs/spec/tee.md, "Hardware lines").

What vouches for the AK of a TPM line has the same shape, as `read_endorsements` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quotary_verifier.errors import MalformedError
from quotary_verifier.wire import cbor
from quotary_verifier.wire.frozen import frozen

MAX_NAMES = 32
"""Names of a support: at most one for each device of a host."""

MAX_PARTS = 8
"""Byte strings under one name: at most the certificates of a path."""

MAX_PART = 1 << 20
"""Bytes of one certificate, CRL or document."""

_MAX_NAME = 32
_DIGEST = 32
_IDENTIFIER = 1
_ENDORSEMENTS = 6

Endorsements = Mapping[str, tuple[bytes, ...]]
"""Name → byte strings."""


@frozen
class TeeSupport:
    """Identifier of the line, and endorsements: name → byte strings. Which names there are is the kind's to say."""

    identifier: str
    endorsements: Mapping[str, tuple[bytes, ...]]

    def fields(self) -> dict[int, Any]:
        """Return the map as it stands beside a note."""
        return {_IDENTIFIER: self.identifier, _ENDORSEMENTS: endorsement_fields(self.endorsements)}

    @classmethod
    def read(cls, value: Any) -> TeeSupport:
        """Read one support.

        Raises:
            MalformedError: it is not one.
        """
        fields = cbor.Fields(value, "TEE support")
        identifier = fields.text(_IDENTIFIER, 255)
        endorsements = read_endorsements(fields.mapping(_ENDORSEMENTS, MAX_NAMES), "TEE support")
        fields.finish()
        return cls(identifier, endorsements)


def endorsement_fields(endorsements: Endorsements) -> dict[str, list[bytes]]:
    """Return endorsements as they stand in a support."""
    return {name: list(parts) for name, parts in endorsements.items()}


def read_endorsements(value: dict[Any, Any], what: str) -> dict[str, tuple[bytes, ...]]:
    """Read the endorsements of a support, of at most `MAX_NAMES` names.

    Raises:
        MalformedError: one is not a name and byte strings of allowed length.
    """
    cbor.texts(value, f"{what}: endorsements")
    return {name: _parts(name, parts, what) for name, parts in value.items()}


def require_names(endorsements: Endorsements, what: str) -> None:
    """Raise MalformedError unless every endorsement stands as the SHA-256 of a blob."""
    if any(len(digest) != _DIGEST for named in endorsements.values() for digest in named):
        raise MalformedError(f"{what}: an endorsement is not named by 32 bytes")


def _parts(name: str, parts: Any, what: str) -> tuple[bytes, ...]:
    if not 0 < len(name) <= _MAX_NAME or type(parts) is not list or not 0 < len(parts) <= MAX_PARTS:
        raise MalformedError(f"{what}: an endorsement is a name and 1 to {MAX_PARTS} byte strings")
    for part in parts:
        if type(part) is not bytes or not 0 < len(part) <= MAX_PART:
            raise MalformedError(f"{what}: an endorsement has 1 to {MAX_PART} bytes")
    return tuple(parts)
