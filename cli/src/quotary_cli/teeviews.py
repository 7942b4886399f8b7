# SPDX-License-Identifier: Apache-2.0
"""Shows evidence of confidential-computing hardware as plain values. No signature is looked at, so nothing is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from quotary_cli.views import certificate_view, certificates_view
from quotary_verifier.errors import MalformedError, QuotaryError, UnsupportedError
from quotary_verifier.evidence.tee.azure_hcl import SNP, parse_hcl_report
from quotary_verifier.evidence.tee.cca_token import parse_cca_token
from quotary_verifier.evidence.tee.intel_pki import IntelPath, read_chain, read_pck
from quotary_verifier.evidence.tee.nitro_document import parse_nitro_document
from quotary_verifier.evidence.tee.nvidia import split_reports
from quotary_verifier.evidence.tee.nvidia_spdm import parse_spdm_report
from quotary_verifier.evidence.tee.snp_report import (
    PlatformInfo,
    Policy,
    SnpReport,
    parse_snp_report,
    parse_tcb,
)
from quotary_verifier.evidence.tee.tdx_quote import parse_tdx_quote
from quotary_verifier.pki.anchors import UNREADABLE
from quotary_verifier.pki.revocation import read_crl

Content = dict[str, Any]

_GUEST_POLICY = slice(0x08, 0x10)
_DOCUMENT = ("id", "version", "issueDate", "nextUpdate", "fmspc", "pceId", "tcbEvaluationDataNumber")


def snp_view(data: bytes) -> Content:
    """Show a SEV-SNP report."""
    report = parse_snp_report(data)
    try:
        generation = report.generation()
    except UnsupportedError:
        generation = None
    return {
        "version": report.version,
        "generation": "not said" if generation is None else generation.value,
        "signing_key": report.signing_key.value,
        "debug": bool(report.policy & Policy.DEBUG),
        "migration_agent": bool(report.policy & Policy.MIGRATION_AGENT),
        "vmpl": report.vmpl,
        "guest_svn": report.guest_svn,
        "policy": f"0x{int.from_bytes(data[_GUEST_POLICY], 'little'):x}",
        "platform_info": f"0x{int(report.platform_info):x}",
        "smt": bool(report.platform_info & PlatformInfo.SMT),
        "alias_check": bool(report.platform_info & PlatformInfo.ALIAS_CHECK_COMPLETE),
        "report_data": report.report_data.hex(),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "id_key": _set(report.id_key_digest),
        "author_key": _set(report.author_key_digest),
        "chip_id": report.chip_id.hex() if any(report.chip_id) else "left out",
        "tcb": {name: _tcb(report, name) for name in ("current", "reported", "committed", "launch")},
    }


def _tcb(report: SnpReport, name: str) -> Content | str:
    raw: bytes = getattr(report, f"{name}_tcb")
    try:
        generation = report.generation()
    except UnsupportedError:
        generation = None
    if generation is None:  # its layout depends on the generation
        return raw.hex()
    return parse_tcb(raw, generation).components()


def tdx_view(data: bytes) -> Content:
    """Show a TDX quote."""
    quote = parse_tdx_quote(data)
    body = quote.body
    return {
        "version": quote.version,
        "debug": bool(body.td_attributes[0]),
        "report_data": body.report_data.hex(),
        "mrtd": body.mr_td.hex(),
        **{f"rtmr{number}": value.hex() for number, value in enumerate(body.rtmrs)},
        "mrseam": body.mr_seam.hex(),
        "mrconfigid": body.mr_config_id.hex(),
        "mrowner": body.mr_owner.hex(),
        "mrownerconfig": body.mr_owner_config.hex(),
        "service_td": "none" if body.mr_service_td is None else _set(body.mr_service_td),
        "td_attributes": body.td_attributes.hex(),
        "xfam": body.xfam.hex(),
        "tee_tcb_svn": body.tee_tcb_svn.hex(),
        **_platform(quote.chain),
        "sha256": quote.sha256.hex(),
        "trailing_bytes": quote.trailing,
    }


def _platform(chain: bytes) -> Content:
    """What the PCK certificate that came along says of the processor; it need not lead to Intel's root."""
    try:
        pck = read_pck(IntelPath(tuple(read_chain(chain))))
    except QuotaryError as error:
        return {"platform": f"cannot be read: {error}"}
    return {"platform": pck.fmspc.hex(), "device": pck.ppid.hex()}


def nitro_view(data: bytes) -> Content:
    """Show a document of AWS Nitro."""
    document = parse_nitro_document(data)
    made = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=document.timestamp)
    pcrs = {str(index): value.hex() for index, value in sorted(document.pcrs.items()) if any(value)}
    return {
        "of": "NitroTPM" if document.tpm else "Nitro Enclave",
        "module_id": document.module_id,
        "made": made.isoformat(timespec="milliseconds"),
        "debug": not {"0", "1", "2"} & pcrs.keys(),
        "pcrs": pcrs,
        "zero_pcrs": [index for index, value in sorted(document.pcrs.items()) if not any(value)],
        "user_data": _hex(document.user_data),
        "nonce": _hex(document.nonce),
        "public_key": _hex(document.public_key),
        "certificates": 1 + len(document.bundle),
    }


def hcl_view(data: bytes) -> Content:
    """Show an HCL report with the hardware's report in it."""
    report = parse_hcl_report(data)
    content: Content = {
        "version": report.version,
        "ak": report.ak.hex(),
        "vm": dict(report.settings),
        "user_data": report.user_data.hex(),
        "expected_report_data": report.expected_report_data.hex(),
    }
    if report.hardware_type == SNP:
        return content | {"hardware": snp_view(report.hardware)}
    return content | {"hardware": "a TDREPORT", "report_data": report.report_data.hex()}


def spdm_view(data: bytes) -> Content:
    """Show a report of a GPU or switch."""
    report = parse_spdm_report(data)
    return {
        "nonce": report.nonce.hex(),
        "driver": report.driver,
        "vbios": report.vbios,
        "firmware_id": _hex(report.fwid),
        "measurements": {str(index): value.hex() for index, value in report.measurements.items()},
    }


def cca_view(data: bytes) -> Content:
    """Show an Arm CCA token."""
    token = parse_cca_token(data)
    return {
        "profile": token.profile,
        "realm_profile": token.realm_profile or "none: the older form",
        "challenge": token.challenge.hex(),
        "lifecycle": f"0x{token.lifecycle:x}, {token.state.name.lower().replace('_', ' ')}",
        "hash": token.hash_name,
        "rim": token.initial.hex(),
        **{f"rem{number}": value.hex() for number, value in enumerate(token.extensible)},
        "personalization": token.personalization.hex(),
        "implementation": token.implementation.hex(),
        "device": token.instance.hex(),
        "components": [
            {
                "name": one.name,
                "version": one.version,
                "measurement": one.measurement.hex(),
                "signer": one.signer.hex(),
            }
            for one in token.components
        ],
    }


def nvidia_view(data: bytes) -> Content:
    """Show the reports of several devices, each behind its length, as a line has them."""
    return {"devices": [spdm_view(report) for report in split_reports(data)]}


def endorsements_view(endorsements: Mapping[str, Sequence[bytes]]) -> Content:
    """Show what stands beside evidence by name: certificates and lists with their dates, and digests of all."""
    return {name: [_endorsement(part) for part in parts] for name, parts in endorsements.items()}


def _endorsement(part: bytes) -> Content:
    content: Content = {"sha256": hashlib.sha256(part).hexdigest(), "bytes": len(part)}
    try:
        if part[:4] == b"HCLA":
            return content | {"report": hcl_view(part)}
        if part[:1] == b"{":
            return content | _document(part)
        if part.startswith(b"-----BEGIN CERTIFICATE"):
            return content | certificates_view(part)
        if part[:1] == b"\x30":
            return content | _certificate_or_crl(part)
    except (QuotaryError, *UNREADABLE):  # it is shown by its digest
        pass
    return content


def _certificate_or_crl(part: bytes) -> Content:
    try:
        return certificate_view(part)
    except MalformedError:
        crl = read_crl(part)
    until = crl.next_update_utc
    return {
        "issuer": crl.issuer.rfc4514_string(),
        "last_update": crl.last_update_utc.isoformat(),
        "next_update": None if until is None else until.isoformat(),
        "revoked": len(crl),
    }


def _document(part: bytes) -> Content:
    """What Intel's documents say of themselves: which they are, for which platforms and until when."""
    try:
        fields = json.loads(part)
    except (ValueError, RecursionError):
        return {}
    return {name: fields[name] for name in _DOCUMENT if isinstance(fields.get(name), (str, int))}


def _set(value: bytes) -> str:
    return value.hex() if any(value) else "none"


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
