# SPDX-License-Identifier: Apache-2.0
"""Boots of a made-up host with systemd-boot, its kernel and an IMA log, in evidence that verifies.

`BootOf()` is a good boot; each field changes one thing, as an attack or an update would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from forge import Forge
from ima_logs import host_log, ima_entry, ng, replayed
from tcg_logs import (
    SEPARATOR,
    SHA256,
    TcgWriter,
    guid_bytes,
    image_load,
    secure_boot_variables,
    signature_list,
    variable,
    vendor_of,
)

from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.uefi import GLOBAL, IMAGE_SECURITY
from quotary_verifier.wire.attestation import Attestation

LOADER = "\\EFI\\systemd\\systemd-bootx64.efi"
KERNEL = "\\linux"
COMMAND_LINE = "root=/dev/vda2 ima_policy=tcb quiet"
PROGRAMS = {f"/usr/bin/program-{number}": b"program %d" % number for number in range(4)}


def file_path(text: str) -> bytes:
    """A device path that is a file's name alone."""
    name = text.encode("utf-16-le") + b"\0\0"
    return b"\x04\x04" + (4 + len(name)).to_bytes(2, "little") + name + b"\x7f\xff\x04\0"


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@dataclass(frozen=True)
class BootOf:
    """One boot. `files` is what ran, path → content, in order; `unmeasured` is what the kernel could not measure."""

    firmware: bytes = b"firmware 1"
    version: str = "1.0"
    secure_boot: bool = True
    refused: int = 2
    order: bytes = b"\1\0"
    loader: bytes = b"systemd-boot 257"
    kernel: bytes = b"kernel 6.12"
    command_line: str = COMMAND_LINE
    disk: bytes = b"GPT"
    files: Mapping[str, bytes] = field(default_factory=lambda: dict(PROGRAMS))
    unmeasured: tuple[str, ...] = ()
    late: Mapping[int, bytes] = field(default_factory=dict)
    resets: int = 7

    def log(self) -> TcgWriter:
        """The firmware's event log."""
        writer = TcgWriter((0x0B,))
        writer.add(0, t.EV_S_CRTM_VERSION, self.version.encode("utf-16-le"))
        writer.add(0, t.EV_EFI_PLATFORM_FIRMWARE_BLOB, bytes(16), self.firmware)
        variables = secure_boot_variables(self.secure_boot)
        variables["dbx"] = signature_list(SHA256, [sha256(b"refused %d" % n) for n in range(self.refused)])
        for name, content in variables.items():
            writer.add(7, t.EV_EFI_VARIABLE_DRIVER_CONFIG, variable(vendor_of(name), name, content))
        writer.add(1, t.EV_EFI_VARIABLE_BOOT, variable(GLOBAL, "BootOrder", self.order), self.order)
        writer.add(4, t.EV_EFI_ACTION, b"Calling EFI Application from Boot Option")
        for register in range(8):
            writer.add(register, t.EV_SEPARATOR, SEPARATOR)
        if self.secure_boot:
            authority = variable(IMAGE_SECURITY, "db", guid_bytes(GLOBAL) + b"db" * 40)
            writer.add(7, t.EV_EFI_VARIABLE_AUTHORITY, authority)
        writer.add(5, t.EV_EFI_ACTION, self.disk)
        application = t.EV_EFI_BOOT_SERVICES_APPLICATION
        writer.add(4, application, image_load(file_path(LOADER)), self.loader)
        writer.add(4, application, image_load(file_path(KERNEL)), self.kernel)
        writer.add(12, t.EV_IPL, (self.command_line + "\0").encode("utf-16-le"))
        initrd = (0x8F3B22EC).to_bytes(4, "little") + (13).to_bytes(4, "little") + b"Linux initrd\0"
        writer.add(9, t.EV_EVENT_TAG, initrd, b"initrd of " + self.kernel)
        writer.add(5, t.EV_EFI_ACTION, b"Exit Boot Services Invocation")
        return writer.add(5, t.EV_EFI_ACTION, b"Exit Boot Services Returned with Success")

    def records(self) -> list[bytes]:
        """The template data of the IMA log without violations."""
        values = self.log().values()
        aggregate = host_log({pcr: values.get(pcr, bytes(32)) for pcr in range(10)}, 0)
        return aggregate + [ng(path, sha256(content)) for path, content in self.files.items()]

    def ima(self) -> bytes:
        """The IMA log."""
        violations = [ima_entry(ng(path, bytes(32)), violation=True) for path in self.unmeasured]
        return b"".join([*map(ima_entry, self.records()), *violations])

    def pcrs(self) -> dict[int, bytes]:
        """What a TPM quotes."""
        return {
            **self.log().values(),
            10: replayed([*self.records(), *(b"" for _ in self.unmeasured)]),
            **self.late,
        }

    def attestation(self, host: Forge, *, logs: str = "tcg ima", clock: int = 1) -> Attestation:
        """Evidence of this boot from a host, with the logs that are named, quoted at a time of the TPM's clock."""
        measured = replace(host, pcrs=self.pcrs())
        found = {"tcg": self.log().agile(), "ima": self.ima()}
        given = {name: found[name] for name in logs.split()}
        return replace(measured.attestation(reset_count=self.resets, clock=clock), boot_logs=given)
