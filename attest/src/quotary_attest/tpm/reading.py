# SPDX-License-Identifier: Apache-2.0
"""Reading what a TPM says without signing it: PCRs, clock, properties, NV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quotary_attest.roots import QUOTED_PCRS, ClockReading
from quotary_attest.tpm.connection import Connection
from quotary_attest.tpm.errors import TpmConflict, TpmMissing, TpmUnsupported
from quotary_attest.tpm.model import TpmProperties
from quotary_attest.tpm.templates import pcr_selection
from quotary_attest.tpm.tss import lib
from quotary_verifier.wire.tpm_algorithms import ALG_SHA256, digest

_PT_MANUFACTURER = 0x105
_PT_VENDOR = range(0x106, 0x10A)
_PT_FIRMWARE = (0x10B, 0x10C)
_PT_NV_BUFFER_MAX = 0x12C
_SMALLEST_NV_BUFFER = 512
_ROUNDS = 8


def read_pcrs(connection: Connection) -> dict[int, bytes]:
    """Read PCRs 0-15 of the SHA-256 bank, 32 bytes each, all from one moment.

    A TPM hands out at most eight values a command; the update counter shows whether any PCR moved between two
    commands, and then all are read again.

    Raises TpmUnsupported when the SHA-256 bank is not active, TpmConflict when the PCRs never come to rest.
    """
    for _ in range(_ROUNDS):
        values = _read_pcrs_once(connection)
        if values is not None:
            return values
    raise TpmConflict(
        "the pcrs change faster than they can be read", hint="see which program extends pcrs all the time"
    )


def _read_pcrs_once(connection: Connection) -> dict[int, bytes] | None:
    """One pass over all PCRs; None when they moved meanwhile."""
    values: dict[int, bytes] = {}
    counters: set[int] = set()
    while missing := tuple(pcr for pcr in QUOTED_PCRS if pcr not in values):
        counter, selected, digests = connection.commands.pcr_read(pcr_selection(missing))
        counters.add(int(counter))
        numbers = _selected(selected)
        if not numbers or len(numbers) != len(digests):
            raise TpmUnsupported(
                "the tpm has no active sha-256 pcr bank",
                hint="activate the sha-256 bank in the firmware's setup",
            )
        values.update(zip(numbers, map(bytes, digests), strict=True))
    return values if len(counters) == 1 else None


def _selected(selection: Any) -> list[int]:
    """PCR numbers of a TPML_PCR_SELECTION, in order."""
    numbers: list[int] = []
    for bank in selection:
        bitmap = int.from_bytes(bytes(bank.pcrSelect)[: bank.sizeofSelect], "little")
        numbers += [pcr for pcr in range(24) if bitmap >> pcr & 1]
    return numbers


def pcr_digest(pcrs: Mapping[int, bytes], hash_alg: int = ALG_SHA256) -> bytes:
    """What a quote says over PCRs 0-15: the hash of their values in order, by the hash of the key's signatures."""
    return digest(hash_alg, b"".join(pcrs[pcr] for pcr in QUOTED_PCRS))


def read_clock(connection: Connection) -> ClockReading:
    """Read the TPM's clock and boot counts."""
    info = connection.commands.read_clock().clockInfo
    return ClockReading(int(info.clock), int(info.resetCount), int(info.restartCount), bool(info.safe))


def _property_values(connection: Connection) -> dict[int, int]:
    """All fixed TPM properties: property → value."""
    _, data = connection.commands.get_capability(lib.TPM2_CAP.TPM_PROPERTIES, 0x100, 0x100)
    return {int(entry.property): int(entry.value) for entry in data.data.tpmProperties}


def read_properties(connection: Connection) -> TpmProperties:
    """Read manufacturer, vendor string and firmware version."""
    values = _property_values(connection)

    def text(*properties: int) -> str:
        raw = b"".join(values.get(number, 0).to_bytes(4, "big") for number in properties)
        return raw.replace(b"\0", b"").decode("ascii", "replace").strip()

    vendor = " ".join(text(*_PT_VENDOR).split())
    high, low = (values.get(number, 0) for number in _PT_FIRMWARE)
    return TpmProperties(
        manufacturer=text(_PT_MANUFACTURER),
        vendor=vendor,
        firmware=high << 32 | low,
        is_software=_is_software(text(_PT_MANUFACTURER), vendor),
    )


def _is_software(manufacturer: str, vendor: str) -> bool:
    """Whether this is libtpms (swtpm), which presents itself so. Cloud vTPMs have names of their own."""
    return (manufacturer, vendor) == ("IBM", "SW TPM")


def used_nv_indices(connection: Connection) -> set[int]:
    """Handles of all NV indices that are defined."""
    handles: set[int] = set()
    start, more = 0x01000000, True
    while more:
        more, data = connection.commands.get_capability(lib.TPM2_CAP.HANDLES, start, 254)
        batch = [int(handle) for handle in data.data.handles]
        handles.update(batch)
        more = bool(more) and bool(batch)
        start = max(batch, default=start) + 1
    return handles


def loaded_handles(connection: Connection) -> list[int]:
    """Handles of transient objects and sessions in the TPM; behind a resource manager, of this client."""
    found: list[int] = []
    for first in (0x80000000, 0x02000000, 0x03000000):
        _, data = connection.commands.get_capability(lib.TPM2_CAP.HANDLES, first, 254)
        found += [int(handle) for handle in data.data.handles]
    return found


def read_nv(connection: Connection, index: int, *, reader: Any = None) -> bytes | None:
    """Contents of an NV index; None where it is not defined.

    `reader`: the hierarchy whose authorisation reads it, None for the index's own empty one. It is read in chunks of
    what the TPM allows. Raises TpmError where it may not be read.
    """
    with connection.scope() as scope:
        try:
            handle = scope.known(connection.commands.tr_from_tpmpublic(index))
        except TpmMissing:
            return None
        public, _ = connection.commands.nv_read_public(handle)
        chunk = (
            _property_values(connection).get(_PT_NV_BUFFER_MAX, _SMALLEST_NV_BUFFER) or _SMALLEST_NV_BUFFER
        )
        data = b""
        while (left := int(public.nvPublic.dataSize) - len(data)) > 0:
            part = connection.commands.nv_read(handle, min(left, chunk), len(data), auth_handle=reader)
            data += bytes(part)
        return data
