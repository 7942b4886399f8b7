# SPDX-License-Identifier: Apache-2.0
"""Makes HCL reports of Azure's confidential VMs, around SNP reports of `amd_pki` or around any TDREPORT."""

from __future__ import annotations

import functools
import hashlib
import json
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from typing import Any

from amd_pki import AmdForge
from cryptography.hazmat.primitives.asymmetric import rsa

from quotary_verifier.wire.tpm_public import Public, RsaKey, encode_public, parse_public

VM = "911B0EF8-9DBA-48B0-B275-4E4DF2D39252"


def base64url(value: bytes) -> str:
    """Base64url without padding."""
    return urlsafe_b64encode(value).rstrip(b"=").decode()


@functools.cache
def vtpm_key(_role: str) -> rsa.RSAPrivateKey:
    """The key of the vTPM, one for each role and test run."""
    return rsa.generate_private_key(65537, 2048)


def modulus(role: str = "ak") -> bytes:
    """The modulus of a key."""
    return vtpm_key(role).public_key().public_numbers().n.to_bytes(256, "big")


def vtpm_public(role: str = "ak") -> Public:
    """The public area of the vTPM's AK, as a TPM shows it."""
    area = encode_public(
        attributes=0x50072, key=RsaKey(2048, 65537, modulus(role)), scheme=0x14, scheme_hash=0x0B
    )
    return parse_public(area)


def ak_jwk(**changes: Any) -> dict[str, Any]:
    """The AK as a JSON Web Key."""
    key = {"kid": "HCLAkPub", "key_ops": ["sign"], "kty": "RSA", "e": "AQAB", "n": base64url(modulus())}
    return {name: value for name, value in (key | changes).items() if value is not None}


@dataclass
class AzureForge:
    """A confidential VM; fields are what a test changes. `text` stands in the place of the whole JSON if given."""

    amd: AmdForge = field(default_factory=AmdForge)
    keys: list[dict[str, Any]] = field(default_factory=lambda: [ak_jwk()])
    settings: dict[str, Any] = field(
        default_factory=lambda: {
            "console-enabled": True, "secure-boot": True, "tpm-enabled": True, "vmUniqueId": VM,
        }
    )  # fmt: skip
    user_data: Any = "00" * 64
    text: bytes | None = None
    kind: int = 2
    header: bytes = b"HCLA"
    version: int = 1
    request: int = 2
    status: int = 0
    hash_type: int = 1
    data_version: int = 1
    tail: bytes = bytes(200)

    def body(self) -> bytes:
        """The JSON text."""
        if self.text is not None:
            return self.text
        fields = {"keys": self.keys, "vm-configuration": self.settings, "user-data": self.user_data}
        return json.dumps(fields, separators=(",", ":")).encode()

    def report_data(self) -> bytes:
        """What the hardware binds."""
        return hashlib.sha256(self.body()).digest() + bytes(32)

    def slot(self) -> bytes:
        """The hardware's report, which fills its place."""
        if self.kind == 4:
            tdreport = bytes(128) + self.report_data() + bytes(832)
            return tdreport.ljust(1184, b"\0")
        return self.amd.report({0x50: self.report_data()})

    def report(self, *, slot: bytes | None = None, size: int = 0, data_size: int = 0) -> bytes:
        """The HCL report; `size` and `data_size` are added to what they should be."""
        text = self.body()
        head = (1236 + len(text) + size, self.request, self.status, 0, 0, 0)
        data = (20 + len(text) + data_size, self.data_version, self.kind, self.hash_type, len(text))
        numbers = [b"".join(number.to_bytes(4, "little") for number in part) for part in (head, data)]
        front = self.header + self.version.to_bytes(4, "little") + numbers[0]
        return front + (slot or self.slot()) + numbers[1] + text + self.tail
