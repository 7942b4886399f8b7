# SPDX-License-Identifier: Apache-2.0
"""The Secure Boot state of a replayed log: PCR 7, or RTMR 0 of a confidential VM, which also holds what a PC extends
into PCR 1 (PFP 1.06 section 3.3.4.8; UEFI 2.10 chapter 32; UEFI 2.10 section 38.4.1).

Only variables whose digest covers vendor, name and content count, each of them once and before the separator. What
shim measures afterwards (`MokListTrusted`, `SbatLevel`, vendor certificates) is listed by name and content, and is
neither a signature database nor an error.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.logs.tcg import Event, ReplayedLog
from quotary_verifier.logs.tcg_boot import split_at_separator
from quotary_verifier.logs.tcg_types import (
    EV_EFI_ACTION,
    EV_EFI_SPDM_DEVICE_AUTHORITY,
    EV_EFI_SPDM_DEVICE_POLICY,
    EV_EFI_VARIABLE_AUTHORITY,
    EV_EFI_VARIABLE_DRIVER_CONFIG,
    EV_SEPARATOR,
    Coverage,
    Registers,
    Tolerance,
)
from quotary_verifier.logs.uefi import (
    GLOBAL,
    IMAGE_SECURITY,
    SHIM,
    Signature,
    Variable,
    parse_signature_lists,
    parse_variable,
)
from quotary_verifier.wire.frozen import frozen

_STATE: Final = {
    (GLOBAL, "SecureBoot"): "SecureBoot",
    (GLOBAL, "PK"): "PK",
    (GLOBAL, "KEK"): "KEK",
    (IMAGE_SECURITY, "db"): "db",
    (IMAGE_SECURITY, "dbx"): "dbx",
}
_REGISTER: Final = {Registers.TPM: 7, Registers.CC: 1}
_SPDM = frozenset({EV_EFI_SPDM_DEVICE_POLICY, EV_EFI_SPDM_DEVICE_AUTHORITY})


@frozen
class Authority:
    """What a signature was checked with, as PCR 7 was extended with it; `variable` None where the log lacks it."""

    number: int
    digest: bytes
    variable: Variable | None


@frozen
class SecureBoot:
    """The Secure Boot configuration at boot, and the authorities that were used.

    `db` and `dbx` are what firmware accepts and refuses, `others` further covered variables of PCR 7 (`dbr`,
    `DeployedMode`, …), `actions` firmware's remarks (`UEFI Debug Mode`). `authorities` vouched for drivers and option
    ROMs, `late_authorities` for boot loaders and what these start.
    """

    enabled: bool
    pk: tuple[Signature, ...]
    kek: tuple[Signature, ...]
    db: tuple[Signature, ...]
    dbx: tuple[Signature, ...]
    others: tuple[Variable, ...]
    actions: tuple[str, ...]
    authorities: tuple[Authority, ...]
    late_authorities: tuple[Authority, ...]
    tolerances: tuple[Tolerance, ...]


def read_secure_boot(log: ReplayedLog, *, tolerate: Collection[Tolerance] = ()) -> SecureBoot:
    """Read the Secure Boot state.

    Raises:
        EvidenceError: the register is not confirmed, a variable is missing, doubled, not covered, behind a separator
            or in another register, or Secure Boot is on without keys.
        MalformedError: a signature database is none.
    """
    register = _REGISTER[log.registers]
    _only_in(log, register)
    if log.registers is Registers.TPM:
        before, behind = split_at_separator(log, register)
    else:
        before, behind = _of_secure_boot(log, register)
    state, others, actions, authorities = _configuration(before)
    missing = set(_STATE.values()) - state.keys()
    if missing and Tolerance.NO_SECURE_BOOT_STATE not in tolerate:
        where = f"register {register} has no variable {min(missing)}"
        raise EvidenceError(f"{where} (tolerance {Tolerance.NO_SECURE_BOOT_STATE.value!r})")
    lists = {name: parse_signature_lists(state.get(name, b"")) for name in ("PK", "KEK", "db", "dbx")}
    enabled = _flag(state["SecureBoot"]) if "SecureBoot" in state else False
    if enabled and not (lists["PK"] and lists["KEK"] and lists["db"]):
        raise EvidenceError("Secure Boot is on without keys, which no firmware does")
    return SecureBoot(
        enabled=enabled,
        pk=lists["PK"],
        kek=lists["KEK"],
        db=lists["db"],
        dbx=lists["dbx"],
        others=tuple(others),
        actions=tuple(actions),
        authorities=tuple(authorities),
        late_authorities=_late(behind),
        tolerances=(Tolerance.NO_SECURE_BOOT_STATE,) if missing else (),
    )


def _only_in(log: ReplayedLog, register: int) -> None:
    for event in log.events:
        known = _known(_variable(event))
        if known is not None and event.register != register:
            raise EvidenceError(f"event {event.number} has variable {known} in register {event.register}")


def _of_secure_boot(log: ReplayedLog, register: int) -> tuple[tuple[Event, ...], tuple[Event, ...]]:
    """Return the variables and authorities of Secure Boot before and behind the first separator of a register that
    holds much else. A variable whose type or data was exchanged is then missing, or refused for its type."""
    found: tuple[list[Event], list[Event]] = ([], [])
    separated = False
    for event in log.of(register):
        if event.untrusted_type == EV_SEPARATOR:
            separated = True
        elif event.untrusted_type == EV_EFI_VARIABLE_AUTHORITY or _known(_variable(event)) is not None:
            found[separated].append(event)
    return tuple(found[False]), tuple(found[True])


def _configuration(
    events: Collection[Event],
) -> tuple[dict[str, bytes], list[Variable], list[str], list[Authority]]:
    """Sort what stands before the separator; whatever is neither covered nor an authority is an error."""
    state: dict[str, bytes] = {}
    others: list[Variable] = []
    actions: list[str] = []
    authorities: list[Authority] = []
    for event in events:
        kind, variable = event.untrusted_type, _variable(event)
        known = _known(variable)
        if kind == EV_EFI_VARIABLE_AUTHORITY:
            authorities.append(Authority(event.number, event.digest, variable))
        elif kind in _SPDM:
            authorities.append(Authority(event.number, event.digest, None))
        elif kind == EV_EFI_ACTION and event.coverage is Coverage.DATA and event.covered is not None:
            actions.append(event.covered.decode("ascii", "backslashreplace"))
        elif kind != EV_EFI_VARIABLE_DRIVER_CONFIG or variable is None:
            raise EvidenceError(
                f"event {event.number} in PCR 7 is not covered by its digest, or of another type"
            )
        elif known is None:
            others.append(variable)
        elif known in state:
            raise EvidenceError(f"the log has variable {known} twice")
        else:
            state[known] = variable.data
    return state, others, actions, authorities


def _late(events: Collection[Event]) -> tuple[Authority, ...]:
    found = []
    for event in events:
        kind, variable = event.untrusted_type, _variable(event)
        # Old versions of shim log their own lists as configuration.
        shims = kind == EV_EFI_VARIABLE_DRIVER_CONFIG and variable is not None and variable.vendor == SHIM
        if kind != EV_EFI_VARIABLE_AUTHORITY and not shims:
            raise EvidenceError(
                f"event {event.number} in PCR 7 stands behind the separator and is no authority"
            )
        found.append(Authority(event.number, event.digest, variable))
    return tuple(found)


def _variable(event: Event) -> Variable | None:
    """Return the variable that an event's digest covers with its name, None if it covers none."""
    if event.covered is None or event.coverage not in {Coverage.DATA, Coverage.STRUCTURE}:
        return None
    try:
        return parse_variable(event.covered)
    except MalformedError:
        return None


def _known(variable: Variable | None) -> str | None:
    """Return the short name of a Secure Boot variable, None for any other."""
    return None if variable is None else _STATE.get((variable.vendor, variable.name))


def _flag(value: bytes) -> bool:
    if len(value) != 1 or value[0] > 1:
        raise EvidenceError("the variable SecureBoot is neither 0 nor 1")
    return value == b"\x01"
