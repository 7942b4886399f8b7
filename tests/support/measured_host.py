# SPDX-License-Identifier: Apache-2.0
"""A host whose firmware and kernel measured what they did into a test's TPM, and logged it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from ima_logs import file_data, host_log, ima_entry
from tcg_logs import TcgWriter, good_boot
from tpms import Tpm

from quotary_attest.bootlogs import BootLogSettings

BOOT = good_boot(banks=(0x0B,))


@dataclass
class MeasuredHost:
    """Writes the two logs into `folder` and extends the TPM with what they say."""

    tpm: Tpm
    folder: Path
    boot: TcgWriter = field(default_factory=lambda: BOOT)
    records: list[bytes] = field(default_factory=list)

    @property
    def settings(self) -> BootLogSettings:
        """Where an agent finds the logs."""
        return BootLogSettings(self.folder / "tcg", self.folder / "ima")

    @property
    def ima(self) -> bytes:
        """The IMA log as it is now."""
        return (self.folder / "ima").read_bytes()

    @property
    def tcg(self) -> bytes:
        """The firmware's log."""
        return (self.folder / "tcg").read_bytes()

    def start(self, files: int = 3) -> MeasuredHost:
        """Boot: the firmware measures, then the kernel its aggregate and some files."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "tcg").write_bytes(self.boot.agile())
        (self.folder / "ima").write_bytes(b"")
        self.records = []
        for event in self.boot.events:
            self.tpm.extend(event.register, event.digest(0x0B))
        values = {pcr: self.boot.values().get(pcr, bytes(32)) for pcr in range(10)}
        self.measure(*host_log(values, files))
        return self

    def measure(self, *datas: bytes) -> None:
        """Let the kernel measure: into its log, and then into PCR 10."""
        for data in datas:
            self.log(data)
            self.tpm.extend(10, hashlib.sha256(data).digest())

    def run_files(self, count: int) -> None:
        """Run so many programs that did not run before."""
        first = len(self.records)
        self.measure(*[file_data(number) for number in range(first, first + count)])

    def log(self, data: bytes) -> None:
        """Write a record, and extend nothing yet."""
        self.records.append(data)
        with (self.folder / "ima").open("ab") as file:
            file.write(ima_entry(data))

    def reboot(self, boot: TcgWriter | None = None, files: int = 3) -> None:
        """Reset the TPM and boot again."""
        self.tpm.reset()
        self.boot = boot or self.boot
        self.start(files)
