# SPDX-License-Identifier: Apache-2.0
"""Which logs of this boot evidence names: the firmware's and the kernel's (docs/spec/boot-logs.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

FIRMWARE_LOG: Final = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
IMA_LOG: Final = Path("/sys/kernel/security/ima/binary_runtime_measurements")

OFF: Final = "off"
ABSENT: Final = "absent"
NAMED: Final = "named"
LEFT_OUT: Final = "left out"
BOOT_LOG_STATES: Final = (OFF, ABSENT, NAMED, LEFT_OUT)
"""What can become of a log: it is not looked at; this TPM has none; commits name it; or it is not as it should be."""


@dataclass(frozen=True, slots=True)
class BootLogSettings:
    """Where the logs are; in a container they may be mounted elsewhere. None: that log is not looked at.

    `carried` says whether attestations carry their digests; the published history names them in any case.
    """

    tcg: Path | None = FIRMWARE_LOG
    ima: Path | None = IMA_LOG
    carried: bool = True


NO_BOOT_LOGS: Final = BootLogSettings(None, None)
"""No log is looked at."""
