# SPDX-License-Identifier: Apache-2.0
"""Choosing the chain and the workload PCR: zero now, and used by nothing else on this host.

Design section 3, "TPM": among 15, 13, 9 and 8; systemd uses 11 and 15, GRUB 8 and 9, shim 14. A PCR that the
firmware owns, that IMA extends, or that anybody can reset (16, 23; 17-22 by a late launch) is never taken.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from quotary_attest.tpm.errors import TpmConflict
from quotary_attest.tpm.ima import entries

CANDIDATES: Final = (15, 13, 9, 8)
"""In the order in which they are tried."""

_ZERO: Final = bytes(32)
_STUB_VARIABLE: Final = "sys/firmware/efi/efivars/StubPcrKernelImage-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_MEASURE_LOG: Final = "run/log/systemd/tpm2-measure.log"
_GRUB: Final = ("boot/grub/grub.cfg", "boot/grub2/grub.cfg")
_IMA_LOG: Final = "sys/kernel/security/ima/binary_runtime_measurements"
_IMA_POLICIES: Final = ("sys/kernel/security/ima/policy", "etc/ima/ima-policy")

_YES: Final = frozenset({"1", "yes", "y", "true", "t", "on"})

Uses = Mapping[int, Sequence[str]]
"""PCR → who uses it, in words."""


def known_uses(root: Path = Path("/")) -> dict[int, list[str]]:
    """Look at this host for services and boot loaders that extend PCRs 8-15.

    `root` is where the host's file system is (a container mounts it elsewhere). What cannot be read is taken
    as not there.
    """
    uses: defaultdict[int, list[str]] = defaultdict(list)
    if (root / _STUB_VARIABLE).exists():
        uses[11].append("systemd measures boot phases into it (systemd-pcrphase)")
        uses[15].append("systemd measures the machine id and file systems into it (systemd-pcrmachine)")
    for pcr in _measured_volumes(_text(root / "etc/crypttab")):
        uses[pcr].append("systemd-cryptsetup measures volume keys into it (/etc/crypttab)")
    for pcr in _numbers(r'"pcr"\s*:\s*(\d+)', _text(root / _MEASURE_LOG)):
        uses[pcr].append(f"systemd has measured into it (/{_MEASURE_LOG})")
    if (root / "sys/firmware/efi").exists() and any((root / path).exists() for path in _GRUB):
        uses[8].append("GRUB measures its commands into it")
        uses[9].append("GRUB measures the files that it reads into it")
    if any((root / "boot/efi/EFI").glob("*/shim*.efi")):
        uses[14].append("shim measures its keys into it")
    for pcr in _ima_pcrs(root) - {10}:
        uses[pcr].append("IMA measures into it")
    return dict(uses)


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def _numbers(pattern: str, text: str) -> set[int]:
    return {int(number) for number in re.findall(pattern, text)}


def _measured_volumes(crypttab: str) -> set[int]:
    """PCRs of `tpm2-measure-pcr=`: a number, or a yes that means 15."""
    lines = "\n".join(line for line in crypttab.splitlines() if not line.lstrip().startswith("#"))
    values = set(re.findall(r"\btpm2-measure-pcr=(\w+)", lines))
    numbers = {int(value) for value in values if value.isdecimal() and value not in ("0", "1")}
    return numbers | ({15} if values & _YES else set())


def _ima_pcrs(root: Path) -> set[int]:
    """PCRs of the IMA policy and of the IMA log."""
    pcrs: set[int] = set()
    for path in _IMA_POLICIES:
        pcrs |= _numbers(r"\bpcr=(\d+)", _text(root / path))
    with contextlib.suppress(OSError):
        log = (root / _IMA_LOG).read_bytes()
        pcrs |= {entry.pcr for entry in entries(log)}
    return pcrs


def choose_pcrs(
    pcrs: Mapping[int, bytes], uses: Uses, *, chain: int | None = None, workload: int | None = None
) -> tuple[int, int]:
    """Choose (chain PCR, workload PCR). A number given by the operator is checked and kept.

    `pcrs` are the present values of the SHA-256 bank. Raises TpmConflict that says for each PCR what speaks
    against it.
    """
    check_choice(chain, workload)
    taken = {pcr for pcr in (chain, workload) if pcr is not None}
    for pcr in sorted(taken):
        if reason := objection(pcr, pcrs, uses):
            raise TpmConflict(
                f"pcr {pcr} cannot be used: {reason}",
                hint="leave the choice to the agent",
            )
    free = [pcr for pcr in CANDIDATES if pcr not in taken and not objection(pcr, pcrs, uses)]
    if len(free) + len(taken) < 2:
        reasons = ((pcr, objection(pcr, pcrs, uses)) for pcr in CANDIDATES)
        told = "; ".join(f"pcr {pcr}: {reason}" for pcr, reason in reasons if reason)
        raise TpmConflict(
            f"two pcrs are needed and this host has not two to spare ({told})",
            hint="after a reboot an earlier origin's pcrs are zero again; "
            "else name pcrs that you know to be unused, such as 12 or 14",
        )
    return (
        chain if chain is not None else free.pop(0),
        workload if workload is not None else free.pop(0),
    )


def check_choice(chain: int | None, workload: int | None) -> None:
    """Refuse numbers given by an operator that no host could use. Raises TpmConflict."""
    if chain is not None and chain == workload:
        raise TpmConflict(
            f"pcr {chain} cannot be chain and workload pcr at once", hint="choose two different pcrs"
        )
    for pcr in (chain, workload):
        if pcr is not None and (reason := _forbidden(pcr)):
            raise TpmConflict(f"pcr {pcr} cannot be used: {reason}", hint="leave the choice to the agent")


def objection(pcr: int, pcrs: Mapping[int, bytes], uses: Uses) -> str:
    """Why a PCR cannot be used, in words; empty when it can."""
    if reason := _forbidden(pcr):
        return reason
    if pcr in uses:
        return "; ".join(uses[pcr])
    if pcrs[pcr] != _ZERO:
        return "it is not zero: something extended it since the last reset"
    return ""


def _forbidden(pcr: int) -> str:
    """Why a PCR is never taken, whatever its value."""
    if 0 <= pcr <= 7:
        return "it belongs to the firmware"
    if pcr == 10:
        return "it belongs to IMA"
    if pcr in (16, 23):
        return "any process with the tpm can reset it"
    if 17 <= pcr <= 22:
        return "a late launch resets it"
    return "" if 8 <= pcr <= 15 else "there is no such pcr"
