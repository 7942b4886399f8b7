# SPDX-License-Identifier: Apache-2.0
"""Writing TCG event logs, as firmware and boot loaders do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.uefi import GLOBAL, IMAGE_SECURITY

HASHES = {0x04: "sha1", 0x0B: "sha256", 0x0C: "sha384", 0x0D: "sha512"}
SEPARATOR = bytes(4)


def guid_bytes(text: str) -> bytes:
    """The 16 bytes of a GUID in its usual form."""
    first, second, third, fourth, fifth = (bytes.fromhex(part) for part in text.split("-"))
    return first[::-1] + second[::-1] + third[::-1] + fourth + fifth


def variable(vendor: str, name: str, content: bytes) -> bytes:
    """A UEFI_VARIABLE_DATA."""
    sizes = len(name).to_bytes(8, "little") + len(content).to_bytes(8, "little")
    return guid_bytes(vendor) + sizes + name.encode("utf-16-le") + content


def signature_list(kind: str, entries: Iterable[bytes], owner: str = GLOBAL) -> bytes:
    """An EFI_SIGNATURE_LIST of entries of one size."""
    items = list(entries)
    size = 16 + len(items[0])
    head = (
        guid_bytes(kind)
        + (28 + size * len(items)).to_bytes(4, "little")
        + bytes(4)
        + size.to_bytes(4, "little")
    )
    return head + b"".join(guid_bytes(owner) + item for item in items)


def image_load(path: bytes = b"\x7f\xff\x04\x00") -> bytes:
    """A UEFI_IMAGE_LOAD_EVENT."""
    return b"".join(number.to_bytes(8, "little") for number in (0x1000, 0x2000, 0, len(path))) + path


@dataclass(frozen=True)
class Written:
    """One event: `measured` is what was hashed, the data itself unless something else was."""

    register: int
    type: int
    data: bytes
    measured: bytes | None = None

    def digest(self, bank: int) -> bytes:
        """The digest of the event for a bank."""
        measured = self.data if self.measured is None else self.measured
        return hashlib.new(HASHES[bank], measured).digest()


@dataclass
class TcgWriter:
    """A log under construction. `logged` overrides what the log says of an event, so that it can be false."""

    banks: tuple[int, ...] = (0x04, 0x0B)
    events: list[Written] = field(default_factory=list)

    def add(self, register: int, kind: int, data: bytes, measured: bytes | None = None) -> TcgWriter:
        """Append an event; returns the writer."""
        self.events.append(Written(register, kind, data, measured))
        return self

    def altered(self, number: int, **changes: object) -> TcgWriter:
        """A copy whose event `number` is another; the writer's `values` stay those of the original."""
        events = list(self.events)
        events[number] = replace(events[number], **changes)
        return replace(self, events=events)

    def without(self, number: int) -> TcgWriter:
        """A copy that lacks an event."""
        return replace(self, events=[*self.events[:number], *self.events[number + 1 :]])

    def agile(self) -> bytes:
        """The log in the crypto-agile format."""
        return self.header() + b"".join(self.encode(event) for event in self.events)

    def header(self) -> bytes:
        """The Spec ID event."""
        banks = b"".join(
            bank.to_bytes(2, "little") + hashlib.new(HASHES[bank]).digest_size.to_bytes(2, "little")
            for bank in self.banks
        )
        data = (
            b"Spec ID Event03\0"
            + bytes(4)
            + b"\0\x02\0\x02"
            + len(self.banks).to_bytes(4, "little")
            + banks
            + b"\0"
        )
        return (
            bytes(4)
            + t.EV_NO_ACTION.to_bytes(4, "little")
            + bytes(20)
            + len(data).to_bytes(4, "little")
            + data
        )

    def encode(self, event: Written) -> bytes:
        """One TCG_PCR_EVENT2."""
        none = event.type == t.EV_NO_ACTION
        digests = b"".join(
            bank.to_bytes(2, "little") + (bytes(len(event.digest(bank))) if none else event.digest(bank))
            for bank in self.banks
        )
        head = event.register.to_bytes(4, "little") + event.type.to_bytes(4, "little")
        size = len(event.data).to_bytes(4, "little")
        return head + len(self.banks).to_bytes(4, "little") + digests + size + event.data

    def old(self) -> bytes:
        """The log in the SHA-1 format."""
        return b"".join(
            event.register.to_bytes(4, "little")
            + event.type.to_bytes(4, "little")
            + event.digest(0x04)
            + len(event.data).to_bytes(4, "little")
            + event.data
            for event in self.events
        )

    def values(self, bank: int = 0x0B, locality: int = 0) -> dict[int, bytes]:
        """What a TPM's PCRs hold that was extended with these events."""
        name = HASHES[bank]
        size = hashlib.new(name).digest_size
        found: dict[int, bytes] = {}
        for event in self.events:
            if event.type != t.EV_NO_ACTION:
                start = locality.to_bytes(size) if event.register == 0 else bytes(size)
                before = found.get(event.register, start)
                found[event.register] = hashlib.new(name, before + event.digest(bank)).digest()
        return found


STATE = {"SecureBoot": b"\x01", "PK": None, "KEK": None, "db": None, "dbx": None}
X509 = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072"
SHA256 = "c1c41626-504c-4092-aca9-41f936934328"


def secure_boot_variables(enabled: bool = True) -> dict[str, bytes]:
    """The five variables of PCR 7 with one key each and two refused images."""
    keys = {name: signature_list(X509, [name.encode() * 40]) for name in ("PK", "KEK", "db")}
    refused = [hashlib.sha256(b"refused %d" % number).digest() for number in range(2)]
    return {"SecureBoot": bytes([enabled])} | keys | {"dbx": signature_list(SHA256, refused)}


def vendor_of(name: str) -> str:
    """The vendor GUID of a Secure Boot variable."""
    return IMAGE_SECURITY if name.startswith("db") else GLOBAL


def good_boot(enabled: bool = True, banks: tuple[int, ...] = (0x04, 0x0B)) -> TcgWriter:
    """A boot as a PC measures it: firmware, Secure Boot, a boot loader, GRUB, a kernel."""
    writer = TcgWriter(banks)
    writer.add(0, t.EV_S_CRTM_VERSION, "1.0".encode("utf-16-le"))
    writer.add(0, t.EV_EFI_PLATFORM_FIRMWARE_BLOB, bytes(16), b"the firmware's volume")
    for name, content in secure_boot_variables(enabled).items():
        writer.add(7, t.EV_EFI_VARIABLE_DRIVER_CONFIG, variable(vendor_of(name), name, content))
    writer.add(1, t.EV_EFI_VARIABLE_BOOT, variable(GLOBAL, "BootOrder", b"\1\0"), b"\1\0")
    writer.add(4, t.EV_EFI_ACTION, b"Calling EFI Application from Boot Option")
    for register in range(8):
        writer.add(register, t.EV_SEPARATOR, SEPARATOR)
    authority = variable(IMAGE_SECURITY, "db", guid_bytes(GLOBAL) + b"db" * 40)
    writer.add(7, t.EV_EFI_VARIABLE_AUTHORITY, authority)
    writer.add(4, t.EV_EFI_BOOT_SERVICES_APPLICATION, image_load(), b"shimx64.efi")
    writer.add(14, t.EV_IPL, b"MokList\0", b"the owner's keys")
    writer.add(4, t.EV_EFI_BOOT_SERVICES_APPLICATION, image_load(), b"grubx64.efi")
    writer.add(8, t.EV_IPL, b"grub_cmd: linux /vmlinuz quiet\0", b"linux /vmlinuz quiet")
    writer.add(9, t.EV_IPL, b"/vmlinuz\0", b"the kernel")
    writer.add(8, t.EV_IPL, b"kernel_cmdline: /vmlinuz quiet\0", b"/vmlinuz quiet")
    writer.add(5, t.EV_EFI_ACTION, b"Exit Boot Services Invocation")
    return writer.add(5, t.EV_EFI_ACTION, b"Exit Boot Services Returned with Success")
