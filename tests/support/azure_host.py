# SPDX-License-Identifier: Apache-2.0
"""A host that is an Azure confidential VM: an origin on its vTPM's AK, which minted hardware endorses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from azure_forge import AzureForge, vtpm_key
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.hashes import SHA256
from forge import Forge
from tee_defects import AMD, LAUNCH, ROOTS

from quotary_verifier.evidence.tee.azure_support import azure_endorsements
from quotary_verifier.wire.tpm_names import RH_ENDORSEMENT, qualified_name
from quotary_verifier.wire.tpm_public import RsaKey, encode_public, parse_public
from quotary_verifier.wire.tpm_reader import sized, u16, u32

AZURE_RULES = f"""
[tee]
required = ["azure"]
[tee.azure.sev-snp]
generations = ["genoa"]
measurements = ["{LAUNCH}"]
"""


def endorsed(**options: Any) -> dict[str, tuple[bytes, ...]]:
    """The endorsements of an AK; options are those of `AzureForge`."""
    forge = AzureForge(**({"amd": AMD, "tail": b""} | options))
    return dict(azure_endorsements(forge.report(), forge.amd.endorsements()))


@dataclass
class AzureHost(Forge):
    """A host whose AK is the paravisor's: RSA-2048, a primary of the endorsement hierarchy, without authorisation."""

    role: str = "ak"
    endorsements: Mapping[str, tuple[bytes, ...]] = field(default_factory=endorsed)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.certificate = None

    def area(self) -> bytes:
        """The AK as TPMT_PUBLIC."""
        modulus = vtpm_key(self.role).public_key().public_numbers().n.to_bytes(256)
        key = RsaKey(2048, 65537, modulus)
        return encode_public(attributes=0x50472, key=key, scheme=0x14, scheme_hash=0x0B)

    def ak_parent(self) -> bytes:
        """The handle of the hierarchy."""
        return u32(RH_ENDORSEMENT)

    def signer_name(self) -> bytes:
        """The qualified name of a primary."""
        return qualified_name(self.parent, parse_public(self.public).name)

    def sign(self, attest: bytes) -> bytes:
        """RSASSA with SHA-256."""
        signature = vtpm_key(self.role).sign(attest, padding.PKCS1v15(), SHA256())
        return u16(0x14) + u16(0x0B) + sized(signature)

    def accepted(self, rules: str = AZURE_RULES, *, pin: str = "", roots: str = ROOTS) -> str:
        """A policy that pins the origin and has rules."""
        return (
            f'schema = "quotary-policy/v1"\n[tpm]\nunauthenticated_ak = true\n'
            f'[[pin]]\norigin = "{pin or self.origin}"\n{rules}{roots}'
        )
