# SPDX-License-Identifier: Apache-2.0
"""Shows the TEE lines of an attestation: what each says, unverified, and what stands beside it."""

from __future__ import annotations

from typing import Any

from quotary_cli.teekinds import tee_view
from quotary_cli.teeviews import endorsements_view
from quotary_verifier.errors import QuotaryError
from quotary_verifier.evidence.tee.nvidia import split_reports
from quotary_verifier.tlog.hardware import IDENTIFIER_NVIDIA, decode_hardware_line, hardware_key_id
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.attestation import Attestation
from quotary_verifier.wire.tee_support import TeeSupport

Content = dict[str, Any]


def tee_lines_view(attestation: Attestation, origin: str) -> list[Content]:
    """Show every TEE support and the line of its identifier; `error` says why evidence cannot be shown."""
    return [_support(attestation, origin, support) for support in attestation.tees]


def _support(attestation: Attestation, origin: str, support: TeeSupport) -> Content:
    content: Content = {"identifier": support.identifier}
    try:
        note = parse_note(attestation.note)
        line = note.line(origin, hardware_key_id(origin, support.identifier, b""))
        if line is None:
            content["error"] = "the note has no such line"
        else:
            found = decode_hardware_line(line, support.identifier)
            content |= {"first": found.first, "evidence": _evidence(support.identifier, found.evidence)}
    except QuotaryError as error:
        content["error"] = str(error)
    content["endorsements"] = endorsements_view(support.endorsements)
    return content


def support_file_view(value: Any) -> Content:
    """Show a file of endorsements, as `attest tee fetch-collateral` keeps it. MalformedError if it is none."""
    support = TeeSupport.read(value)
    return {"identifier": support.identifier, "endorsements": endorsements_view(support.endorsements)}


def _evidence(identifier: str, evidence: bytes) -> list[Content]:
    reports = split_reports(evidence) if identifier == IDENTIFIER_NVIDIA else [evidence]
    shown: list[Content] = []
    for report in reports:
        found = tee_view(report)
        shown.append({"bytes": len(report)} if found is None else {"kind": found[0], **found[1]})
    return shown
