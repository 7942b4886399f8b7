# SPDX-License-Identifier: Apache-2.0
"""What boot loaders and kernels put into a log: GRUB, shim, systemd-boot, unified kernel images, Linux's EFI stub.

| writer | registers | event | the digest is of |
|---|---|---|---|
| GRUB | 8 | EV_IPL `grub_cmd: …`, `kernel_cmdline: …` | the text behind the label |
| GRUB | 9 | EV_IPL, a file's name | the file |
| shim | 14 | EV_IPL `MokList`, `MokListX`, `SbatLevel`, … | the variable's content |
| systemd-boot, -stub | 12 | EV_IPL, the command line in UTF-16 | the command line |
| systemd-stub | 11 | EV_IPL, a section's name in UTF-16, twice | the name in ASCII; then the section |
| systemd | 5, 12 | EV_EVENT_TAG with a UTF-16 text | what the text names |
| Linux's EFI stub | 9 | EV_EVENT_TAG `LOADED_IMAGE::LoadOptions`, `Linux initrd` | command line; initrd |

A label, a file's name and a tag are never covered: they help people, and whoever can write the log can exchange them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from quotary_verifier.errors import MalformedError
from quotary_verifier.logs.little import Reader
from quotary_verifier.logs.tcg import Event, ReplayedLog
from quotary_verifier.logs.tcg_types import EV_EVENT_TAG, EV_IPL, Coverage, Registers
from quotary_verifier.wire.frozen import frozen

TAGS: Final = {
    0x8F3B22EC: "initrd of the Linux EFI stub",
    0x8F3B22ED: "command line of the Linux EFI stub",
    0xF5BC582A: "loader.conf of systemd-boot",
    0x6C46F751: "device tree of systemd-stub",
    0x49DFFE0F: "initrd add-on of systemd-stub",
    0xDAC08E1A: "microcode add-on of systemd-stub",
    0x13AED6DB: "profile of a unified kernel image",
}
"""Identifiers of tagged events (Linux, drivers/firmware/efi/libstub/efistub.h; systemd, src/fundamental/tpm2-pcr.h)."""

_COMMANDS: Final = ("grub_cmd",)
_LINES: Final = ("kernel_cmdline", "grub_kernel_cmdline", "module_cmdline")
_MOK_PCR: Final = 14
_UKI_PCR: Final = 11
_CONFIGURATION_PCRS: Final = frozenset({8, 12})
_CC_REGISTER: Final = 3


class Kind(StrEnum):
    """What a loader's event is, as the log labels it."""

    COMMAND = "command"
    COMMAND_LINE = "command-line"
    FILE = "file"
    MOK = "mok-variable"
    SECTION = "uki-section"
    TAG = "tag"


@frozen
class LoaderEvent:
    """One event of a boot loader. `text` is what the digest covers, None where it covers no text; `untrusted_label` and
    `untrusted_kind` are how the log names it."""

    number: int
    register: int
    digest: bytes
    text: str | None
    untrusted_kind: Kind
    untrusted_label: str


def read_loader_events(log: ReplayedLog) -> tuple[LoaderEvent, ...]:
    """Return the events of boot loaders and kernel stubs in the confirmed registers, in order.

    Whoever appraises a command line should ask that *every* covered text of its register fits, since labels can be
    exchanged: `LoaderEvent.text` is then proved, whatever it was called.
    """
    found = []
    for event in log.events:
        if event.untrusted_type not in {EV_IPL, EV_EVENT_TAG} or not _is_loader(log, event.register):
            continue
        found.append(loader_event(event))
    return tuple(found)


def loader_event(event: Event) -> LoaderEvent:
    """Read one event that the log says is of a boot loader or kernel stub: EV_IPL or EV_EVENT_TAG."""
    return _ipl(event) if event.untrusted_type == EV_IPL else _tag(event)


def _is_loader(log: ReplayedLog, register: int) -> bool:
    return register >= 8 if log.registers is Registers.TPM else register == _CC_REGISTER


def _ipl(event: Event) -> LoaderEvent:
    text, shown = _covered_text(event), _text(event.untrusted_data)
    label, found, _ = shown.partition(": ")
    if not found:
        label = shown.partition(" ")[0]
    if label in _COMMANDS:
        return _event(event, text, Kind.COMMAND, label)
    if label in _LINES:
        return _event(event, text, Kind.COMMAND_LINE, label)
    if event.coverage is Coverage.NAME or (event.register == _UKI_PCR and shown.startswith(".")):
        return _event(event, text, Kind.SECTION, shown)
    if event.register == _MOK_PCR:
        return _event(event, text, Kind.MOK, shown)
    if text is not None and (event.register in _CONFIGURATION_PCRS or event.coverage is Coverage.DATA):
        return _event(event, text, Kind.COMMAND_LINE, "")
    return _event(event, text, Kind.FILE, shown)


def _tag(event: Event) -> LoaderEvent:
    reader = Reader(event.untrusted_data, "a tagged event")
    try:
        number = reader.number(4)
        content = reader.take(reader.number(4))
    except MalformedError:
        return _event(event, None, Kind.TAG, "")
    if number not in TAGS:
        return _event(event, None, Kind.TAG, f"0x{number:08x}")
    return _event(event, None, Kind.TAG, f"{TAGS[number]}: {_text(content)}")


def _event(event: Event, text: str | None, kind: Kind, label: str) -> LoaderEvent:
    return LoaderEvent(event.number, event.register, event.digest, text, kind, label)


def _covered_text(event: Event) -> str | None:
    return None if event.covered is None else _text(event.covered)


def _text(data: bytes) -> str:
    """Return a text in UTF-16 or UTF-8 without its final zero; bytes that are neither stand as escapes."""
    if len(data) >= 4 and len(data) % 2 == 0 and not any(data[1::2]):
        return data.decode("utf-16-le", "backslashreplace").removesuffix("\0")
    return data.decode("utf-8", "backslashreplace").removesuffix("\0")
