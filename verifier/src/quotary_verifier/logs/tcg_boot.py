# SPDX-License-Identifier: Apache-2.0
"""What a replayed log says of a PC's boot: separators, boot applications, and that nothing in it is unexplained.

An event's type is not covered by its digest, so everything here asks for agreement: a separator has the type *and* one
of the digests of a separator, a PCR of the firmware holds known types only, each where the profile allows it (PFP 1.06,
section 3.3.4), and nothing of the firmware's stands behind the separator. Departures are named (`Tolerance`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.banks import HASHES
from quotary_verifier.logs.tcg import Event, ReplayedLog
from quotary_verifier.logs.tcg_types import IMAGE_TYPES, Registers, Tolerance, type_name
from quotary_verifier.logs.uefi import parse_image_load
from quotary_verifier.wire.frozen import frozen

FIRMWARE_PCRS: Final = range(8)
CALLING: Final = b"Calling EFI Application from Boot Option"
RETURNING: Final = b"Returning from EFI Application from Boot Option"
EXIT_INVOKED: Final = b"Exit Boot Services Invocation"
EXIT_RETURNED: Final = b"Exit Boot Services Returned with Success"
SEPARATORS: Final = (bytes(4), b"\xff\xff\xff\xff")
"""What the separator of a boot that did not fail is of."""
_ERROR_SEPARATOR: Final = b"\x01\0\0\0"

_EVERYWHERE = frozenset({t.EV_SEPARATOR, t.EV_ACTION, t.EV_EFI_ACTION, t.EV_EVENT_TAG})
_BLOBS = frozenset({t.EV_EFI_PLATFORM_FIRMWARE_BLOB, t.EV_EFI_PLATFORM_FIRMWARE_BLOB2})
_TABLES = frozenset({t.EV_EFI_HANDOFF_TABLES, t.EV_EFI_HANDOFF_TABLES2, t.EV_TABLE_OF_DEVICES})
_NONHOST = frozenset({t.EV_NONHOST_CODE, t.EV_NONHOST_CONFIG, t.EV_NONHOST_INFO})
_CRTM = frozenset({t.EV_S_CRTM_CONTENTS, t.EV_S_CRTM_VERSION, t.EV_EFI_HCRTM_EVENT})
_CODE = frozenset({t.EV_POST_CODE, t.EV_POST_CODE2, t.EV_CPU_MICROCODE})
_BOOT_VARIABLES = frozenset(
    {t.EV_EFI_VARIABLE_BOOT, t.EV_EFI_VARIABLE_BOOT2, t.EV_EFI_VARIABLE_DRIVER_CONFIG}
)
_SPDM = frozenset({t.EV_EFI_SPDM_FIRMWARE_BLOB, t.EV_EFI_SPDM_FIRMWARE_CONFIG})
_GPT = frozenset({t.EV_EFI_GPT_EVENT, t.EV_EFI_GPT_EVENT2})
_LOADER = frozenset({t.EV_IPL, t.EV_IPL_PARTITION_DATA, t.EV_COMPACT_HASH, t.EV_OMIT_BOOT_DEVICE_EVENTS})

_ALLOWED: Final = {
    0: _CRTM | _CODE | _BLOBS | _TABLES | _NONHOST | IMAGE_TYPES | {t.EV_TXT_STM_HASH},
    1: _CODE | _TABLES | _NONHOST | _BOOT_VARIABLES | {t.EV_PLATFORM_CONFIG_FLAGS} | _SPDM,
    2: _BLOBS | _NONHOST | IMAGE_TYPES | _SPDM,
    3: _NONHOST | {t.EV_EFI_VARIABLE_DRIVER_CONFIG} | _SPDM,
    4: IMAGE_TYPES | _LOADER,
    5: _GPT | _BOOT_VARIABLES | _LOADER,
    6: _NONHOST | _LOADER,
    7: {
        t.EV_EFI_VARIABLE_DRIVER_CONFIG,
        t.EV_EFI_VARIABLE_AUTHORITY,
        t.EV_EFI_SPDM_DEVICE_POLICY,
        t.EV_EFI_SPDM_DEVICE_AUTHORITY,
    },
}
_FIRMWARE_ONLY = _CRTM | _CODE | _BLOBS | {t.EV_TXT_STM_HASH}
"""Types of what ran before anything that the firmware starts: never behind a separator."""


@frozen
class Application:
    """A UEFI image that was started: its Authenticode digest is what PCR 4 was extended with, its path is hearsay."""

    number: int
    digest: bytes
    untrusted_device_path: bytes


@frozen
class Boot:
    """The boot of a PC, as far as its firmware measured it.

    `firmware_applications` ran before the firmware began to boot (only with a tolerance), `applications` after.
    """

    applications: tuple[Application, ...]
    firmware_applications: tuple[Application, ...]
    exit_boot_services: bool
    tolerances: tuple[Tolerance, ...]


def read_boot(log: ReplayedLog, *, tolerate: Collection[Tolerance] = ()) -> Boot:
    """Check the order of a log's firmware events, and return what was started.

    Raises:
        EvidenceError: an event is of an unexpected type or at an unexpected place, a separator is missing or doubled,
            or a PCR of the firmware is not confirmed.
        UnsupportedError: the log is not of a TPM.
    """
    if log.registers is not Registers.TPM:
        raise UnsupportedError("the order of events is known for PCRs only")
    used: set[Tolerance] = set()
    for pcr in FIRMWARE_PCRS:
        if pcr != 5 or pcr not in log.unconfirmed:
            _check_register(log, pcr)
    _check_separator_digests(log)
    applications, early = _applications(log, tolerate, used)
    left = _exit(log, applications, tolerate, used)
    return Boot(applications, early, left, tuple(sorted(used)))


def split_at_separator(log: ReplayedLog, pcr: int) -> tuple[tuple[Event, ...], tuple[Event, ...]]:
    """Return the events of a PCR before and behind its one separator.

    Raises:
        EvidenceError: it has none or several, or one that says that the firmware failed.
    """
    events = log.of(pcr)
    places = [place for place, event in enumerate(events) if event.untrusted_type == t.EV_SEPARATOR]
    if len(places) != 1:
        raise EvidenceError(f"PCR {pcr} has {len(places)} separators")
    separator = events[places[0]]
    if separator.covered == _ERROR_SEPARATOR:
        raise EvidenceError(f"the separator of PCR {pcr} says that the firmware failed")
    if separator.covered not in SEPARATORS:
        raise EvidenceError(f"the separator of PCR {pcr} has a digest that no separator has")
    return events[: places[0]], events[places[0] + 1 :]


def _check_register(log: ReplayedLog, pcr: int) -> None:
    _, behind = split_at_separator(log, pcr)
    for event in log.of(pcr):
        if event.untrusted_type not in _ALLOWED[pcr] | _EVERYWHERE:
            raise EvidenceError(
                f"event {event.number} in PCR {pcr} has type {type_name(event.untrusted_type)}"
            )
    for event in behind:
        if event.untrusted_type in _FIRMWARE_ONLY:
            raise EvidenceError(f"event {event.number} in PCR {pcr} is of the firmware, behind the separator")


def _check_separator_digests(log: ReplayedLog) -> None:
    """Check that what has the digest of a separator also has its type."""
    function = HASHES[log.bank]
    digests = {function(value).digest() for value in (*SEPARATORS, _ERROR_SEPARATOR)}
    for event in log.events:
        if event.untrusted_type in _BOOT_VARIABLES and event.coverage is t.Coverage.VARIABLE_DATA:
            continue  # old firmware hashes a boot variable's content alone, which may be four zeros
        if event.digest in digests and event.untrusted_type != t.EV_SEPARATOR:
            raise EvidenceError(
                f"event {event.number} has a separator's digest and type {type_name(event.untrusted_type)}"
            )


def _applications(
    log: ReplayedLog, tolerate: Collection[Tolerance], used: set[Tolerance]
) -> tuple[tuple[Application, ...], tuple[Application, ...]]:
    """Return what was started once the firmware had begun to boot, and what before."""
    events = log.of(4)
    calling = [event.number for event in events if event.covered == CALLING]
    returning = [event.number for event in events if event.covered == RETURNING]
    if returning or len(calling) > 1:
        _tolerate(Tolerance.FAILED_BOOT_ATTEMPTS, tolerate, used, "the firmware came back from a boot option")
    begin = calling[0] if calling else -1
    started = [event for event in events if event.untrusted_type in IMAGE_TYPES]
    early = [event for event in started if event.number < begin]
    if started and (not calling or early):
        why = "PCR 4 has applications which no event says that the firmware called"
        _tolerate(Tolerance.NO_CALLING_ACTION, tolerate, used, why)
    late = [event for event in started if event.number >= begin]
    return _as_applications(late), _as_applications(early)


def _as_applications(events: Iterable[Event]) -> tuple[Application, ...]:
    found = []
    for event in events:
        try:
            path = parse_image_load(event.untrusted_data).device_path
        except MalformedError:
            path = b""
        found.append(Application(event.number, event.digest, path))
    return tuple(found)


def _exit(
    log: ReplayedLog,
    applications: Collection[Application],
    tolerate: Collection[Tolerance],
    used: set[Tolerance],
) -> bool:
    """Check that the log says that boot services ended, and has no application behind that."""
    events = [] if 5 in log.unconfirmed else log.of(5)
    left = [event.number for event in events if event.covered == EXIT_INVOKED]
    if not left:
        why = "no event in PCR 5 says that boot services ended"
        _tolerate(Tolerance.NO_EXIT_BOOT_SERVICES, tolerate, used, why)
        return False
    # Replay does not prove an order between two PCRs; a log that contradicts itself is refused all the same.
    if any(application.number > left[0] for application in applications):
        raise EvidenceError("PCR 4 has an application behind the end of boot services")
    return True


def _tolerate(tolerance: Tolerance, tolerate: Collection[Tolerance], used: set[Tolerance], why: str) -> None:
    if tolerance not in tolerate:
        raise EvidenceError(f"{why} (tolerance {tolerance.value!r})")
    used.add(tolerance)
