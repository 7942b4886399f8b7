# SPDX-License-Identifier: Apache-2.0
"""What gives a software TPM away. None of it proves hardware; only an endorsement does."""

from __future__ import annotations

from quotary_verifier.logs.workload import TYPE_AGENT, WorkloadLog
from quotary_verifier.recipe.endorsement import Endorsement
from quotary_verifier.wire.tpm import Attest

_SWTPM_MODEL = "swtpm"
_LIBTPMS_FIRMWARE = 0x2019_1023
"""First half of firmwareVersion of every libtpms so far: the date of the specification it implements."""


def software_signs(
    attest: Attest, endorsement: Endorsement | None, log: WorkloadLog | None
) -> tuple[str, ...]:
    """Return in words each sign that the TPM is a software one: its certificate, its firmware, the agent's word."""
    signs = []
    certificate = None if endorsement is None else endorsement.certificate
    if certificate is not None and (certificate.tpm_model or "").lower() == _SWTPM_MODEL:
        signs.append("its certificate says swtpm")
    if attest.firmware_version >> 32 == _LIBTPMS_FIRMWARE:
        signs.append("its firmware is libtpms")
    for logged in () if log is None else log.current:
        event = logged.event
        if event is not None and event.type == TYPE_AGENT and event.details.get("tpm") == "software":
            signs.append("the agent measured it as one")
    return tuple(signs)
