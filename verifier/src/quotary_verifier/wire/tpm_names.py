# SPDX-License-Identifier: Apache-2.0
"""Names and qualified names of TPM entities (TPM 2.0 Library, Part 1, "Names" and "Qualified Name").

A name is always computed here from a public area. No name that somebody sent is ever taken for one.
"""

from __future__ import annotations

from typing import Final

from quotary_verifier.errors import MalformedError
from quotary_verifier.wire.tpm_algorithms import HASH_SIZES, digest
from quotary_verifier.wire.tpm_reader import u16, u32

RH_OWNER: Final = 0x40000001
RH_ENDORSEMENT: Final = 0x4000000B
RH_PLATFORM: Final = 0x4000000C

HIERARCHIES: Final = {RH_OWNER: "owner", RH_ENDORSEMENT: "endorsement", RH_PLATFORM: "platform"}
"""The hierarchies whose keys outlive a reset, by handle."""


def entity_name(name_alg: int, public: bytes) -> bytes:
    """The name of the entity with the marshalled public area `public`: nameAlg, then its hash of the area."""
    return u16(name_alg) + digest(name_alg, public)


def hierarchy_qn(handle: int) -> bytes:
    """The qualified name of a hierarchy: its handle, four bytes."""
    return u32(handle)


def qualified_name(parent_qn: bytes, name: bytes) -> bytes:
    """The qualified name of the entity `name` under a parent: nameAlg, then its hash of both names.

    `name` is two bytes of nameAlg and a digest of that hash's size; MalformedError otherwise.
    """
    alg = name_algorithm(name)
    return u16(alg) + digest(alg, parent_qn + name)


def name_algorithm(name: bytes) -> int:
    """The hash algorithm that leads `name`; MalformedError where the length does not fit it."""
    alg = int.from_bytes(name[:2], "big")
    size = HASH_SIZES.get(alg)
    if size is None or len(name) != 2 + size:
        raise MalformedError(f"{len(name)} bytes are not a TPM name")
    return alg
