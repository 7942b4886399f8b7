# SPDX-License-Identifier: Apache-2.0
"""Names and numbers of TCG event logs (TCG PC Client Platform Firmware Profile 1.06, sections 10.2 and 10.4)."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

EV_PREBOOT_CERT: Final = 0x00
EV_POST_CODE: Final = 0x01
EV_UNUSED: Final = 0x02
EV_NO_ACTION: Final = 0x03
EV_SEPARATOR: Final = 0x04
EV_ACTION: Final = 0x05
EV_EVENT_TAG: Final = 0x06
EV_S_CRTM_CONTENTS: Final = 0x07
EV_S_CRTM_VERSION: Final = 0x08
EV_CPU_MICROCODE: Final = 0x09
EV_PLATFORM_CONFIG_FLAGS: Final = 0x0A
EV_TABLE_OF_DEVICES: Final = 0x0B
EV_COMPACT_HASH: Final = 0x0C
EV_IPL: Final = 0x0D
EV_IPL_PARTITION_DATA: Final = 0x0E
EV_NONHOST_CODE: Final = 0x0F
EV_NONHOST_CONFIG: Final = 0x10
EV_NONHOST_INFO: Final = 0x11
EV_OMIT_BOOT_DEVICE_EVENTS: Final = 0x12
EV_POST_CODE2: Final = 0x13
EV_TXT_STM_HASH: Final = 0x40E
EV_EFI_VARIABLE_DRIVER_CONFIG: Final = 0x80000001
EV_EFI_VARIABLE_BOOT: Final = 0x80000002
EV_EFI_BOOT_SERVICES_APPLICATION: Final = 0x80000003
EV_EFI_BOOT_SERVICES_DRIVER: Final = 0x80000004
EV_EFI_RUNTIME_SERVICES_DRIVER: Final = 0x80000005
EV_EFI_GPT_EVENT: Final = 0x80000006
EV_EFI_ACTION: Final = 0x80000007
EV_EFI_PLATFORM_FIRMWARE_BLOB: Final = 0x80000008
EV_EFI_HANDOFF_TABLES: Final = 0x80000009
EV_EFI_PLATFORM_FIRMWARE_BLOB2: Final = 0x8000000A
EV_EFI_HANDOFF_TABLES2: Final = 0x8000000B
EV_EFI_VARIABLE_BOOT2: Final = 0x8000000C
EV_EFI_GPT_EVENT2: Final = 0x8000000D
EV_EFI_HCRTM_EVENT: Final = 0x80000010
EV_EFI_VARIABLE_AUTHORITY: Final = 0x800000E0
EV_EFI_SPDM_FIRMWARE_BLOB: Final = 0x800000E1
EV_EFI_SPDM_FIRMWARE_CONFIG: Final = 0x800000E2
EV_EFI_SPDM_DEVICE_POLICY: Final = 0x800000E3
EV_EFI_SPDM_DEVICE_AUTHORITY: Final = 0x800000E4

TYPE_NAMES: Final[dict[int, str]] = {
    value: name for name, value in sorted(globals().items()) if name.startswith("EV_")
}
"""The name of each event type. EV_TXT_STM_HASH is Intel's: the SMI transfer monitor, which firmware measures into PCR 0
(EDK II, UefiCpuPkg, SmmStm.c)."""

VARIABLE_TYPES: Final = frozenset(
    {EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_VARIABLE_BOOT, EV_EFI_VARIABLE_BOOT2, EV_EFI_VARIABLE_AUTHORITY}
)
"""Types whose data is a UEFI_VARIABLE_DATA."""

IMAGE_TYPES: Final = frozenset(
    {EV_EFI_BOOT_SERVICES_APPLICATION, EV_EFI_BOOT_SERVICES_DRIVER, EV_EFI_RUNTIME_SERVICES_DRIVER}
)
"""Types whose data is a UEFI_IMAGE_LOAD_EVENT and whose digest is that of a PE image."""


def type_name(kind: int) -> str:
    """Return the name of an event type, or its number."""
    return TYPE_NAMES.get(kind, f"0x{kind:08x}")


class Registers(StrEnum):
    """What the register numbers of a log mean: PCRs, or the measurement registers of a confidential VM.

    In a CC event log 0 is the launch measurement and 1 to 4 are RTMR 0 to 3 (Intel TDX guest interface 1.5, 4.3).
    """

    TPM = "tpm"
    CC = "cc"


class Tolerance(StrEnum):
    """A departure from the specification that a caller may accept by its name; results list those that were used."""

    SHA1 = "sha-1"
    """The log is replayed into a SHA-1 bank."""
    PADDING = "padding"
    """Zeros or 0xff bytes follow the last event: a log area that was copied whole."""
    NO_CALLING_ACTION = "no-calling-action"
    """Applications in PCR 4 without the event that says that the firmware began to boot."""
    NO_EXIT_BOOT_SERVICES = "no-exit-boot-services"
    """No event says that the firmware's boot services ended."""
    FAILED_BOOT_ATTEMPTS = "failed-boot-attempts"
    """The firmware came back from boot options before one succeeded."""
    NO_SECURE_BOOT_STATE = "no-secure-boot-state"
    """A Secure Boot variable is missing from PCR 7."""


class Coverage(StrEnum):
    """Which bytes of an event its digest was computed over, as found by hashing; the type is never among them."""

    NOTHING = "nothing"
    """The digest is of something that is not in the log: an image, a blob, a file."""
    DATA = "data"
    """The whole event data."""
    STRUCTURE = "structure"
    """The whole UEFI variable, behind which the log has a few more bytes."""
    VARIABLE_DATA = "variable-data"
    """The content of a UEFI variable, and neither its name nor its vendor."""
    TEXT = "text"
    """The text without the label that the boot loader wrote before it and the zero behind it."""
    NAME = "name"
    """The ASCII form of a name that the event gives in UTF-16."""
