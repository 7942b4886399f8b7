# SPDX-License-Identifier: Apache-2.0
"""Which roots this machine has, and what keeps the others from being used: for `attest tee status` and the doctor.

Nothing is asked to make evidence. Only of configfs-tsm is a folder made and removed again, as nothing else says which
driver answers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from quotary_attest.tee.configfs import provider_of
from quotary_attest.tee.errors import TeeError, TeeMissing
from quotary_attest.tee.nsm import nsm_error
from quotary_attest.tee.nvml import load_nvml, opened
from quotary_attest.tee.opening import Places
from quotary_attest.tee.tsm import CCA_GUEST, SEV_GUEST, TDX_GUEST

_AZURE_TAG: Final = "7783-7084-3265-9085-8269-3286-77"
"""Chassis asset tag of every Azure VM."""

_OLD_DEVICES: Final = ("dev/sev-guest", "dev/tdx_guest")
_DRIVERS: Final = {"sev-snp": SEV_GUEST, "tdx": TDX_GUEST, "cca": CCA_GUEST}


class Presence(Enum):
    """What a probe found."""

    USABLE = "usable"
    UNUSABLE = "unusable"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Probe:
    """One root: whether this machine has it and this process can use it, and what to do where not."""

    root: str
    presence: Presence
    text: str
    hint: str = ""


def probe(places: Places | None = None) -> tuple[Probe, ...]:
    """Look for every root that is known."""
    where = places or Places()
    return (
        *_tsm(where),
        _nitro(where),
        _nitro_tpm(where),
        _nvidia(where),
        _azure(where),
    )


def _tsm(places: Places) -> Iterator[Probe]:
    try:
        provider = provider_of(places.tsm)
    except TeeError as error:
        old = [name for name in _OLD_DEVICES if (places.system / name).exists()]
        missing = isinstance(error, TeeMissing)
        presence = Presence.ABSENT if missing and not old else Presence.UNUSABLE
        text = f"{error}, but there is /{old[0]}" if missing and old else str(error)
        for root in _DRIVERS:
            yield Probe(root, presence, text, error.hint)
        return
    for root, driver in _DRIVERS.items():
        if provider != driver:
            yield Probe(root, Presence.ABSENT, f"reports of this machine are made by {provider!r}")
        else:
            yield Probe(root, Presence.USABLE, f"{provider} makes reports")


def _nitro(places: Places) -> Probe:
    def look() -> str:
        if places.nsm_ask is None:
            try:
                os.close(os.open(places.nsm, os.O_RDWR | os.O_CLOEXEC))
            except OSError as error:
                raise nsm_error(places.nsm, error) from None
        return f"{places.nsm} is there"

    return _one("nitro", look)


def _nitro_tpm(places: Places) -> Probe:
    def look() -> str:
        found = shutil.which(places.nitro_tpm[0])
        if found is None:
            raise TeeMissing(
                f"there is no {places.nitro_tpm[0]}",
                hint="on an ec2 instance with a nitrotpm, install aws-nitro-tpm-tools",
            )
        return f"{found} is installed; whether the instance has a nitrotpm shows with its first document"

    return _one("nitro-tpm", look)


def _nvidia(places: Places) -> Probe:
    def look() -> str:
        with opened(places.nvml or load_nvml()) as devices:
            return f"{len(devices)} devices; whether they are in confidential mode shows with a report"

    return _one("nvidia", look)


def _azure(places: Places) -> Probe:
    """The vTPM of such a VM is an ordinary TPM to the agent; whether a report endorses its key, the doctor looks."""
    try:
        tag = (places.system / "sys/class/dmi/id/chassis_asset_tag").read_text("ascii", "replace").strip()
    except OSError:
        tag = ""
    if tag != _AZURE_TAG:
        return Probe("azure", Presence.ABSENT, "this is no azure vm")
    text = "an azure vm; whether it is a confidential one shows with the report in its vtpm"
    return Probe(
        "azure", Presence.USABLE, text, "`attest agent init --ak 0x81000003` makes an origin on its key"
    )


def _one(root: str, look: Callable[[], str]) -> Probe:
    try:
        return Probe(root, Presence.USABLE, look())
    except TeeMissing as error:
        return Probe(root, Presence.ABSENT, str(error), error.hint)
    except TeeError as error:
        return Probe(root, Presence.UNUSABLE, str(error), error.hint)
