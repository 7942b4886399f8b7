# SPDX-License-Identifier: Apache-2.0
"""Roots by their names, as a configuration and the command line have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from quotary_attest.tee.configfs import KernelFiles, TsmFiles
from quotary_attest.tee.errors import TeeMissing
from quotary_attest.tee.nsm import NSM, Ask, NitroTpmDevice, NsmDevice
from quotary_attest.tee.nvml import NvidiaDevices, Nvml
from quotary_attest.tee.root import Device, DeviceRoot, TeeOptions
from quotary_attest.tee.tsm import CcaDevice, SnpDevice, TdxDevice


@dataclass(frozen=True, slots=True)
class Places:
    """Where this host's devices are; tests put their own in place of the kernel's.

    `nsm_ask`: in place of the ioctl. `nitro_tpm`: the command. `nvml`: in place of the installed package.
    """

    tsm: TsmFiles = field(default_factory=KernelFiles)
    nsm: Path = NSM
    nsm_ask: Ask | None = None
    nitro_tpm: tuple[str, ...] = NitroTpmDevice().command
    nvml: Nvml | None = None
    system: Path = Path("/")


_DEVICES: Final[Mapping[str, Callable[[Places, int | None], Device]]] = {
    "sev-snp": lambda places, privlevel: SnpDevice(places.tsm, privlevel),
    "tdx": lambda places, _: TdxDevice(places.tsm),
    "nitro": lambda places, _: NsmDevice(places.nsm, places.nsm_ask),
    "nitro-tpm": lambda places, _: NitroTpmDevice(places.nitro_tpm),
    "nvidia": lambda places, _: NvidiaDevices(places.nvml),
    "cca": lambda places, _: CcaDevice(places.tsm),
}

ROOTS: Final = tuple(_DEVICES)
"""The names of roots that a commit can have a line of."""


def open_device(name: str, *, privlevel: int | None = None, places: Places | None = None) -> Device:
    """Return a device by its root's name; no I/O. TeeMissing where there is no such root.

    `privlevel`: the VMPL to ask as, of "sev-snp" alone.
    """
    make = _DEVICES.get(name)
    if make is None:
        raise TeeMissing(f"there is no root {name!r}", hint=f"there are {', '.join(ROOTS)}")
    return make(places or Places(), privlevel)


def open_root(
    name: str,
    options: TeeOptions | None = None,
    *,
    privlevel: int | None = None,
    places: Places | None = None,
) -> DeviceRoot:
    """Return a root by its name; no I/O, so whether its device is there shows with its first evidence."""
    return DeviceRoot(open_device(name, privlevel=privlevel, places=places), options)
