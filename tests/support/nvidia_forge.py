# SPDX-License-Identifier: Apache-2.0
"""Makes reports of NVIDIA-like devices, and the paths of their keys, with every fault that a test asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from device_forge import DIGEST, Issued, device_root, issue, sign

from quotary_verifier.pki.der import encode

FWID = bytes(range(100, 148))
_SHA384 = encode(0x06, bytes.fromhex("608648016503040202"))


def little(value: int, size: int) -> bytes:
    """A little-endian number."""
    return value.to_bytes(size, "little")


def fwid(value: bytes = FWID) -> bytes:
    """A DICE FWID."""
    return encode(0x30, _SHA384 + encode(0x04, value))


def tcb_info(model: str, *values: bytes) -> x509.UnrecognizedExtension:
    """The DICE extension as Hopper writes it, or for other models as Blackwell does."""
    if model.startswith("GH"):
        content = encode(0x02, b"\1") + encode(0x30, b"") + b"".join(map(fwid, values))
        return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), encode(0x30, content))
    content = encode(0x80, b"NVIDIA") + encode(0xA6, b"".join(map(fwid, values)))
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1.1"), encode(0x30, content))


@dataclass
class NvidiaForge:
    """A device. Fields are what a test changes; `path` is leaf first, root left out."""

    model: str = "GH100"
    number: int = 20
    root: Issued = field(default_factory=device_root)
    certified: tuple[bytes, ...] = (FWID,)
    leaf: dict[str, Any] = field(default_factory=dict)
    nonce: bytes = DIGEST
    head: bytes = b"\x11\xe0\x01\xff"
    answer: bytes = b"\x11\x60\x00\x01"
    measurements: Mapping[int, bytes] = field(default_factory=lambda: {1: bytes(48), 2: b"\x02" * 48})
    fields: Mapping[int, bytes] = field(
        default_factory=lambda: {
            3: b"550.90.07\0", 6: b"\x00\x9f\x00\x96\x01\x00\x00\x00", 20: FWID, 36: b"\0\0",
        }
    )  # fmt: skip
    count: int | None = None
    blocks: bytes | None = None
    opaque: bytes | None = None
    tail: bytes = b""

    def path(self) -> tuple[Issued, ...]:
        """Leaf, the device's own CA, NVIDIA's CAs."""
        identity = issue(f"NVIDIA {self.model} Identity", 11, self.root)
        provisioner = issue("NVIDIA Provisioner", 12, identity)
        own = issue("BROM", self.number, provisioner)
        extra = (tcb_info(self.model, *self.certified),) if self.certified else ()
        options = {"ca": False, "extra": extra} | self.leaf
        return issue("FMC", self.number + 1, own, **options), own, provisioner, identity

    def certificates(self) -> list[bytes]:
        """The path in DER."""
        return [one.der for one in self.path()]

    def record(self) -> bytes:
        """The measurement blocks."""
        if self.blocks is not None:
            return self.blocks
        out = b""
        for index, value in self.measurements.items():
            inner = b"\1" + little(len(value), 2) + value
            out += bytes((index, 1)) + little(len(inner), 2) + inner
        return out

    def data(self) -> bytes:
        """NVIDIA's own fields."""
        if self.opaque is not None:
            return self.opaque
        return b"".join(
            little(kind, 2) + little(len(value), 2) + value for kind, value in self.fields.items()
        )

    def report(self) -> bytes:
        """The report, signed by the leaf's key."""
        record, data = self.record(), self.data()
        count = len(self.measurements) if self.count is None else self.count
        request = self.head + self.nonce + b"\0"
        response = self.answer + bytes((count,)) + little(len(record), 3) + record + b"\x33" * 32
        signed = request + response + little(len(data), 2) + data
        return signed + sign(self.path()[0].key, signed) + self.tail
