# SPDX-License-Identifier: Apache-2.0
"""Says what an event of a boot is about, so that two boots can be compared event by event.

What an event is *about* (a file's name, a label, a device path, a variable's name where the digest is of its content
only) is hearsay: it sorts events, names them for people, and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from quotary_cli.devicepath import device_path
from quotary_verifier.errors import QuotaryError
from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.tcg import Event
from quotary_verifier.logs.tcg_types import type_name
from quotary_verifier.logs.uefi import (
    Variable,
    file_names,
    parse_gpt,
    parse_image_load,
    parse_signature_lists,
    parse_variable,
)
from quotary_verifier.policy.names import entry_name

SECTION_NAME: Final = "section name"
"""Of an event that only announces a section of a unified kernel image; the next one is of the section itself."""
DATABASES: Final = ("PK", "KEK", "db", "dbx")
_GPT = frozenset({t.EV_EFI_GPT_EVENT, t.EV_EFI_GPT_EVENT2})
_BLOBS = frozenset({t.EV_EFI_PLATFORM_FIRMWARE_BLOB, t.EV_EFI_PLATFORM_FIRMWARE_BLOB2})
_LOADERS: Final = (
    ("systemd-boot", "systemd-boot"),
    ("bootx64.efi", "the default boot loader"),
    ("bootaa64.efi", "the default boot loader"),
    ("shim", "shim"),
    ("grub", "GRUB"),
    ("fwupd", "fwupd"),
    ("vmlinuz", "the kernel"),
    ("linux", "the kernel"),
    ("mmx64.efi", "MokManager"),
)
"""What a part of an image's file name stands for, first match first."""
_UNIFIED: Final = "/efi/linux/"
"""Where systemd-boot looks for unified kernel images."""
_MAX_LABEL: Final = 160


@dataclass(frozen=True, slots=True)
class Subject:
    """What an event is about. `kind` and `name` say which events of two boots are compared with each other.

    `text` is what the digest covers where that is a text, `entries` the members of what it covers where that is a set,
    `setting` the one value where there is one.
    """

    event: Event
    kind: str
    name: str
    text: str | None = None
    entries: tuple[str, ...] | None = None
    setting: str | None = None

    @property
    def slot(self) -> tuple[str, str]:
        """What is compared with what."""
        return self.kind, self.name

    @property
    def title(self) -> str:
        """The subject for people."""
        if self.kind == "application":
            return _image(self.name)
        if self.kind == "variable":
            return {"SecureBoot": "Secure Boot", "BootOrder": "the boot order"}.get(self.name, self.name)
        if self.kind in {"command line", "command", "firmware version", "separator", "partition table"}:
            return f"the {self.kind}" + (f" ({self.name})" if self.name else "")
        return f"{self.kind} {self.name}".rstrip()


def subject_of(event: Event) -> Subject:
    """Return what an event of a firmware's log is about."""
    kind = event.untrusted_type
    try:
        if kind in t.VARIABLE_TYPES:
            return _variable(event)
        if kind in t.IMAGE_TYPES:
            device = parse_image_load(event.untrusted_data).device_path
            path = file_names(device) or device_path(device)
            application = kind == t.EV_EFI_BOOT_SERVICES_APPLICATION
            return Subject(event, "application" if application else "driver", path[-_MAX_LABEL:])
        if kind in _GPT:
            gpt = parse_gpt(event.untrusted_data)
            names = tuple(f"partition {one.name or one.type} ({one.unique})" for one in gpt.partitions)
            return Subject(event, "partition table", "", entries=names)
    except QuotaryError:
        return Subject(event, type_name(kind).removeprefix("EV_").lower(), "")
    if kind in {t.EV_IPL, t.EV_EVENT_TAG}:
        return _loader_event(event)
    return _other(event)


def _variable(event: Event) -> Subject:
    data = event.untrusted_data if event.covered is None else event.covered
    if event.coverage is t.Coverage.VARIABLE_DATA:
        data = event.untrusted_data
    variable = parse_variable(data)
    if event.untrusted_type == t.EV_EFI_VARIABLE_AUTHORITY:
        return Subject(event, "authority", variable.name)
    return Subject(
        event, "variable", variable.name, entries=_entries(variable), setting=_setting(variable, event)
    )


def _entries(variable: Variable) -> tuple[str, ...] | None:
    if variable.name not in DATABASES:
        return None
    return tuple(entry_name(entry) for entry in parse_signature_lists(variable.data))


def _setting(variable: Variable, event: Event) -> str | None:
    if event.covered is None:
        return None
    data = variable.data
    if variable.name == "SecureBoot":
        return {b"\0": "off", b"\1": "on"}.get(data, data.hex())
    if variable.name == "BootOrder" and len(data) % 2 == 0:
        return ", ".join(
            f"{int.from_bytes(data[at : at + 2], 'little'):04x}" for at in range(0, len(data), 2)
        )
    return None


def _loader_event(event: Event) -> Subject:
    from quotary_verifier.logs.tcg_loaders import Kind, loader_event

    found = loader_event(event)
    text, label = found.text, found.untrusted_label[:_MAX_LABEL]
    if found.untrusted_kind is Kind.COMMAND_LINE:
        return Subject(event, "command line", "", text=text)
    if found.untrusted_kind is Kind.COMMAND:
        return Subject(event, "command", label, text=text)
    if found.untrusted_kind is Kind.SECTION:
        return Subject(event, SECTION_NAME if event.coverage is t.Coverage.NAME else "section", label)
    if found.untrusted_kind is Kind.MOK:
        return Subject(event, "shim's list", label)
    if found.untrusted_kind is Kind.TAG:
        return Subject(event, "what was measured as", label.partition(": ")[0])
    return Subject(event, "file", label, text=text if event.coverage is t.Coverage.DATA else None)


def _other(event: Event) -> Subject:
    kind = event.untrusted_type
    if kind == t.EV_SEPARATOR:
        return Subject(event, "separator", "")
    if kind == t.EV_S_CRTM_VERSION:
        return Subject(event, "firmware version", "", text=_text(event))
    if kind in _BLOBS:
        return Subject(event, "firmware volume", "")
    if kind in {t.EV_ACTION, t.EV_EFI_ACTION}:
        return Subject(event, "action", (_text(event) or "")[:_MAX_LABEL])
    return Subject(event, type_name(kind).removeprefix("EV_").lower().replace("_", " "), "")


def _text(event: Event) -> str | None:
    if event.covered is None:
        return None
    data = event.covered
    encoding = "utf-16-le" if len(data) % 2 == 0 and len(data) >= 2 and not any(data[1::2]) else "utf-8"
    return data.decode(encoding, "backslashreplace").rstrip("\0")


def _image(path: str) -> str:
    """Name an image by its file, as its path says."""
    whole = path.replace("\\", "/").lower()
    file = whole.rpartition("/")[2]
    if _UNIFIED in whole:
        return f"the unified kernel image ({path})"
    for part, name in _LOADERS:
        if part in file:
            return f"{name} ({path})"
    return f"the application {path}".rstrip()
