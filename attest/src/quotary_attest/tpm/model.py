# SPDX-License-Identifier: Apache-2.0
"""Plain data about a TPM and an origin's keys in it. No TPM software is needed to import this module."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TpmProperties:
    """What the TPM says of itself, unsigned.

    `manufacturer` is the four-letter TCG vendor id, `vendor` the vendor string, `firmware` the 64-bit
    version. `is_software` is True for an emulator (libtpms, swtpm): its evidence binds to no hardware.
    """

    manufacturer: str
    vendor: str
    firmware: int
    is_software: bool


@dataclass(frozen=True, slots=True)
class TpmIdentity:
    """An origin's keys in a TPM, as `agent init` makes or finds them and the state folder keeps them (mode 0600).

    `ak_public` is TPMT_PUBLIC, `ak_private` the contents of TPM2B_PRIVATE (useless outside this TPM),
    `ak_auth` and `nv_auth` 32 random bytes each, `parent_name` the 34-byte Name of the storage primary,
    `nv_public` TPMS_NV_PUBLIC of the start counter as it is after its first increment (COUNTER, WRITTEN).

    A persistent key that the agent did not make has its handle in `ak_handle`, an empty `ak_private`, the authorisation
    that the operator gave, and as `parent_name` the 4-byte handle of its hierarchy.
    """

    ak_public: bytes
    ak_private: bytes = field(repr=False)
    ak_auth: bytes = field(repr=False)
    parent_name: bytes
    nv_public: bytes
    nv_auth: bytes = field(repr=False)
    chain_pcr: int
    workload_pcr: int
    properties: TpmProperties
    ak_handle: int = 0

    @property
    def is_foreign(self) -> bool:
        """Whether the AK is a persistent key that the agent did not make: it stays when the agent goes."""
        return self.ak_handle != 0

    @property
    def nv_index(self) -> int:
        """Handle of the start counter: the first field of TPMS_NV_PUBLIC."""
        return int.from_bytes(self.nv_public[:4], "big")


@dataclass(frozen=True, slots=True)
class Authorizations:
    """Hierarchy authorisations of a host that has set them; empty by default. Only `owner` and `endorsement`
    are ever needed: the first to define and remove the counter, the second to make the primary."""

    owner: bytes = field(default=b"", repr=False)
    endorsement: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class EkCertificate:
    """An endorsement key certificate from NV. `kind` is `rsa-2048`, `ecc-p256` or `ecc-p384`; `der` is
    trimmed to the certificate (some TPMs pad the index)."""

    kind: str
    nv_index: int
    der: bytes
