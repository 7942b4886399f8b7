# SPDX-License-Identifier: Apache-2.0
"""What `attest agent doctor` says of the logs of the boot: can they be read, and do they replay to the TPM's PCRs?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from quotary_attest.bootlogs import BootLogSettings
from quotary_attest.doctor import Finding, Health, good
from quotary_attest.growing import read_whole
from quotary_attest.roots import RootError
from quotary_attest.state import HostIdentity
from quotary_verifier.errors import QuotaryError
from quotary_verifier.recipe.boot_logs import replay_firmware
from quotary_verifier.wire.bindings import ZERO
from quotary_verifier.wire.limits import MAX_BOOT_LOG

if TYPE_CHECKING:
    from pathlib import Path

_FIRMWARE: Final = "firmware's log"
_IMA: Final = "ima log"
_UNREADABLE: Final = (
    "give the agent the right to read it (docs/howto/operations.md), or set boot_logs.read = false"
)
_LEFT_OUT: Final = "commits leave it out, and verifiers will not see what booted (docs/howto/operations.md)"


def examine_boot_logs(identity: HostIdentity, tcti: str, settings: BootLogSettings) -> Iterator[Finding]:
    """Look at both logs. Nothing is said of a TPM into which nobody measured, nor where there is no log."""
    from quotary_attest.tpm.connection import Connection
    from quotary_attest.tpm.reading import read_pcrs

    if settings.tcg is None and settings.ima is None:
        return
    try:
        with Connection(tcti) as connection:
            pcrs = read_pcrs(connection)
    except RootError:
        return  # another finding says so
    own = (identity.tpm_keys.chain_pcr, identity.tpm_keys.workload_pcr)
    foreign = {pcr: value for pcr, value in pcrs.items() if pcr not in own}
    if settings.tcg is not None and any(foreign.get(pcr, ZERO) != ZERO for pcr in range(8)):
        yield from _firmware(settings.tcg, foreign)
    if settings.ima is not None:
        yield from _ima(settings.ima, own, pcrs)


def _firmware(path: Path, pcrs: Mapping[int, bytes]) -> Iterator[Finding]:
    try:
        data = read_whole(path, MAX_BOOT_LOG)
    except OSError as error:
        text = f"{path}: {(error.strerror or str(error)).lower()}"
        yield Finding(_FIRMWARE, Health.WARNING, text, _UNREADABLE)
        return
    if not data:
        hint = "in a container the file must be mounted: see boot_logs.tcg in the configuration"
        yield Finding(
            _FIRMWARE, Health.WARNING, f"firmware measured this boot, and {path} is not there", hint
        )
        return
    try:
        log = replay_firmware(data, pcrs)
    except QuotaryError as error:
        yield Finding(_FIRMWARE, Health.WARNING, str(error), _LEFT_OUT)
        return
    yield good(_FIRMWARE, f"{len(log.events)} events replay to the tpm's pcrs")


def _ima(path: Path, own: tuple[int, int], pcrs: Mapping[int, bytes]) -> Iterator[Finding]:
    from quotary_attest.tpm.ima import ImaReplay

    replay = ImaReplay(path, own)
    try:
        prefix, flaw = replay.prefix(pcrs)
    finally:
        replay.close()
    if prefix is not None:
        yield good(_IMA, f"its first {prefix.size} bytes replay to the tpm's pcrs")
    elif flaw.startswith("it cannot be read"):
        yield Finding(_IMA, Health.WARNING, f"{path}: {flaw}", _UNREADABLE)
    elif flaw:
        yield Finding(_IMA, Health.WARNING, flaw, _LEFT_OUT)
