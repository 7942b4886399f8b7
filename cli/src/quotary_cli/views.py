# SPDX-License-Identifier: Apache-2.0
"""Shows parsed artefacts as plain values: hexadecimal for bytes, names for numbers. It verifies nothing."""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from quotary_verifier.errors import MalformedError
from quotary_verifier.logs.workload import WorkloadEvent
from quotary_verifier.pki.anchors import UNREADABLE
from quotary_verifier.tlog.checkpoint import parse_checkpoint
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire.attestation import TpmSupport
from quotary_verifier.wire.history import Commit
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.records import Genesis, Output, entry_of
from quotary_verifier.wire.tpm import parse_attest, parse_signature, unpack_evidence
from quotary_verifier.wire.tpm_public import parse_public

Content = dict[str, Any]

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s([A-Za-z0-9+/=\s]++)-----END CERTIFICATE-----", re.ASCII)
_LENGTH = rb"(?:\x82..|\x81.|[^\x80-\xff])"
_AMD_LEAF = re.compile(
    rb"\x30"
    + _LENGTH
    + rb"\x30"
    + _LENGTH
    + rb"\xa0\x03\x02\x01\x02\x02\x01\x00\x30.\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a",
    re.DOTALL,
)
"""The beginning of a certificate of version 3 with the serial number 0, signed with RSA-PSS."""


def record_view(data: bytes) -> Content:
    """Show an output record."""
    record = Output.decode(data)
    model = record.model
    return {
        "entry": entry_of(data).hex(),
        "output_id": format_output_id(record.output_id),
        "time": time_view(record.time),
        "state": record.state.name.lower(),
        "source": record.source.name.lower(),
        "digests": {key: value.hex() for key, value in record.digests.items()},
        "request": None if record.request is None else record.request.hex(),
        "nonce": None if record.nonce is None else record.nonce.hex(),
        "model": None
        if model is None
        else {
            "name": model.name,
            "weights": model.weights.hex(),
            "event": model.event,
            "event_digest": None if model.event_digest is None else model.event_digest.hex(),
            "link": model.link.name.lower(),
        },
        "context": plain(record.context),
    }


def genesis_view(data: bytes) -> Content:
    """Show a genesis record."""
    genesis = Genesis.decode(data)
    content: Content = {
        "origin": genesis.origin(data),
        "host": genesis.host,
        "time": time_view(genesis.time),
        "note_key": genesis.note_key.hex(),
    }
    if genesis.tpm is None:
        content["tpm"] = "none"
    else:
        public = parse_public(genesis.tpm.ak)
        content |= {
            "ak_name": public.name.hex(),
            "ak_attributes": f"0x{public.attributes:08x}",
            "chain_pcr": genesis.tpm.chain_pcr,
            "workload_pcr": genesis.tpm.workload_pcr,
            "counter": genesis.tpm.counter.hex(),
        }
    return content


def event_content_view(event: WorkloadEvent) -> Content:
    """Show a workload event."""
    return {
        "type": event.type,
        "name": event.name,
        "digest": event.digest.hex(),
        "details": plain(event.details),
    }


def commit_view(commit: Commit) -> Content:
    """Show a commit of the history."""
    return {
        "first": commit.first,
        "note": note_view(commit.note),
        "supports": [
            {
                "identifier": support.identifier,
                "pcrs": {str(pcr): value.hex() for pcr, value in support.pcrs.items()},
                "chain_before": support.chain_before.hex(),
                "certificates": [digest.hex() for digest in support.certificates],
                "workload_log": None if support.workload_log is None else _blob(support.workload_log),
                "endorsements": _named(support.endorsements),
            }
            for support in commit.supports
        ],
        "tees": [
            {
                "identifier": tee.identifier,
                "endorsements": _named(tee.endorsements),
            }
            for tee in commit.tees
        ],
        "boot_logs": {name: _blob(blob) for name, blob in commit.boot_logs.items()},
    }


def _named(endorsements: Mapping[str, tuple[bytes, ...]]) -> Content:
    return {name: [digest.hex() for digest in named] for name, named in endorsements.items()}


def _blob(blob: tuple[bytes, int]) -> Content:
    return {"sha256": blob[0].hex(), "bytes": blob[1]}


def support_view(support: TpmSupport) -> Content:
    """Show a TPM support; what endorses its AK only where there is something, as its code is large."""
    content: Content = {
        "identifier": support.identifier,
        "pcrs": {str(pcr): value.hex() for pcr, value in support.pcrs.items()},
        "chain_before": support.chain_before.hex(),
        "certificates": [certificate_view(der) for der in support.certificates],
        "workload_log": [
            {"opaque": item.hex()} if len(item) == 32 else event_content_view(WorkloadEvent.decode(item))
            for item in support.workload_log
        ],
    }
    if support.endorsements:
        from quotary_cli.teeviews import endorsements_view

        content["endorsements"] = endorsements_view(support.endorsements)
    return content


def note_view(data: bytes) -> Content:
    """Show a signed note."""
    note = parse_note(data)
    content: Content = {
        "lines": [
            {"name": line.name, "key_id": line.key_id.hex(), "payload_bytes": len(line.payload)}
            for line in note.lines
        ]
    }
    try:
        checkpoint = parse_checkpoint(note.text, allow_extensions=True)
    except MalformedError:
        return content | {"text": note.text.decode()}
    return content | {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}


def attest_view(data: bytes) -> Content:
    """Show a TPMS_ATTEST."""
    attest = parse_attest(data)
    clock = attest.clock
    content: Content = {
        "type": f"0x{attest.type:04x}",
        "qualified_signer": attest.qualified_signer.hex(),
        "extra_data": attest.extra_data.hex(),
        "clock_ms": clock.clock,
        "reset_count": clock.reset_count,
        "restart_count": clock.restart_count,
        "safe": bool(clock.safe),
        "firmware_version": f"{attest.firmware_version:016x}",
    }
    if attest.quote is not None:
        content["selections"] = [
            {"bank": f"0x{selection.hash_alg:04x}", "pcrs": list(selection.pcrs)}
            for selection in attest.quote.selections
        ]
        content["pcr_digest"] = attest.quote.pcr_digest.hex()
    if attest.nv is not None:
        content["nv_index_name"] = attest.nv.index_name.hex()
        content["nv_contents"] = attest.nv.contents.hex()
    return content


def evidence_view(data: bytes) -> Content:
    """Show TPM evidence."""
    attest, signature = unpack_evidence(data)
    parsed = parse_signature(signature)
    return {
        **attest_view(attest),
        "signature": {
            "algorithm": f"0x{parsed.alg:04x}",
            "hash": f"0x{parsed.hash_alg:04x}",
            "bytes": len(signature),
        },
    }


def certificates_view(data: bytes) -> Content:
    """Show certificates in PEM, or one in DER."""
    try:
        ders = [binascii.a2b_base64(block) for block in _PEM.findall(data)] if data[:1] == b"-" else [data]
        if not ders:
            raise MalformedError("not a certificate that can be read: no block of pem is whole")
        return {"certificates": [_certificate(der) for der in ders]}
    except UNREADABLE as error:
        raise MalformedError(f"not a certificate that can be read: {error}") from None


def certificate_view(der: bytes) -> Content:
    """Show one certificate in DER."""
    content: Content = certificates_view(der)["certificates"][0]
    return content


def _certificate(der: bytes) -> Content:
    """Describe one certificate; the library reads its parts only when asked, and may refuse any of them."""
    from cryptography import x509

    if _AMD_LEAF.match(der):  # the chip's certificate: AMD's are odd, and read in one place
        from quotary_verifier.evidence.tee.amd_certs import read_amd_certificate

        certificate, serial = read_amd_certificate(der).certificate, 0
    else:
        certificate = x509.load_der_x509_certificate(der)
        serial = certificate.serial_number
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "serial": f"{serial:x}",
        "names": _names(certificate),
    }


def _names(certificate: Any) -> list[str]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    values = [name.value for name in names]
    return [value.rfc4514_string() if isinstance(value, x509.Name) else str(value) for value in values]


def time_view(milliseconds: int) -> str:
    """Show milliseconds since 1970."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"


def plain(value: Any) -> Any:
    """Return decoded CBOR with byte strings in hexadecimal and text keys, so that JSON can hold it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    return value
