# SPDX-License-Identifier: Apache-2.0
"""Finds out what kind of artefact some bytes are, and puts its content into plain values.

Binary formats are told apart by their first bytes and their kind field, never by trying until something fits.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from quotary_verifier.errors import MalformedError, PolicyError
from quotary_verifier.logs.cel import parse_log
from quotary_verifier.logs.workload import WorkloadEvent, read_log
from quotary_verifier.pki.anchors import UNREADABLE
from quotary_verifier.tlog.checkpoint import parse_checkpoint
from quotary_verifier.tlog.note import parse_note
from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import KIND_ATTESTATION, Attestation, TpmSupport
from quotary_verifier.wire.fresh import KIND_FRESH, FreshQuote
from quotary_verifier.wire.history import KIND_COMMIT, Commit, split
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.names import format_output_id
from quotary_verifier.wire.records import (
    KIND_BOOT,
    KIND_GENESIS,
    KIND_OUTPUT,
    KIND_STATEMENT,
    Boot,
    Genesis,
    Output,
    Statement,
    entry_of,
)
from quotary_verifier.wire.tpm import parse_attest, parse_signature, unpack_evidence
from quotary_verifier.wire.tpm_public import parse_public

Content = dict[str, Any]
_MAX = 64 * 1024 * 1024
_TPM_MAGIC = b"\xffTCG"
_ENROLMENT = {
    20: "enrolment request",
    21: "enrolment challenge",
    22: "enrolment activation",
    23: "enrolment grant",
}


def describe(data: bytes) -> tuple[str, Content]:
    """Return the kind of an artefact, and its content as plain values for people and JSON.

    Raises:
        MalformedError: it is of no known kind, or not what its first bytes say.
        UnsupportedError: it is of a known kind and an unknown version or algorithm.
        PolicyError: it is a policy that does not parse.
    """
    if not data:
        raise MalformedError("the file is empty")
    if data.startswith(_TPM_MAGIC):
        return "TPM attestation structure", _attest(data)
    if data[2:6] == _TPM_MAGIC:
        return "TPM evidence", _evidence(data)
    if data.startswith(b"-----BEGIN CERTIFICATE") or data[:1] == b"\x30":
        return "certificate", _certificates(data)
    if data[0] >> 5 == 5:
        return _artefact(data)
    if data[:5] == b"\x00\x00\x00\x00\x08":
        return "workload log", _workload_log(data)
    return _text(data)


def _artefact(data: bytes) -> tuple[str, Content]:
    """Describe a CBOR artefact, or a history file, which is a sequence of them."""
    first = data[: cbor.item_end(data, 0, max_bytes=_MAX, what="artefact")]
    value = cbor.decode(first, max_bytes=_MAX, what="artefact")
    kind = value.get(cbor.KIND)
    if kind == KIND_COMMIT:
        return "history", {"commits": [_commit(Commit.decode(item)) for item in split(data)]}
    if kind in _ENROLMENT:
        return _ENROLMENT[kind], {"fields": _plain(value)}
    if kind not in _READERS:
        raise MalformedError(f"an artefact of kind {kind!r} is not known")
    name, reader = _READERS[kind]
    return name, reader(data)


def _attestation(data: bytes) -> Content:
    attestation = Attestation.decode(data)
    genesis = Genesis.decode(attestation.genesis)
    return {
        "bytes": len(data),
        "origin": genesis.origin(attestation.genesis),
        "index": attestation.index,
        "path_hashes": len(attestation.path) // 32,
        "record": _record(attestation.record),
        "genesis": _genesis(attestation.genesis),
        "note": _note(attestation.note),
        "supports": [_support(support) for support in attestation.supports],
        "request_key": "present" if attestation.request_key else "dropped",
        "boot_logs": {name: len(log) for name, log in attestation.boot_logs.items()},
        "later_checkpoints": [_note(later.note) for later in attestation.later],
        "not_understood": list(attestation.not_understood),
    }


def _record(data: bytes) -> Content:
    record = Output.decode(data)
    model = record.model
    return {
        "entry": entry_of(data).hex(),
        "output_id": format_output_id(record.output_id),
        "time": _time(record.time),
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
            "event_digest": model.event_digest.hex(),
            "link": model.link.name.lower(),
        },
        "context": _plain(record.context),
    }


def _genesis(data: bytes) -> Content:
    genesis = Genesis.decode(data)
    content: Content = {
        "origin": genesis.origin(data),
        "host": genesis.host,
        "time": _time(genesis.time),
        "note_key": genesis.note_key.hex(),
    }
    if genesis.tpm is not None:
        public = parse_public(genesis.tpm.ak)
        content |= {
            "ak_name": public.name.hex(),
            "ak_attributes": f"0x{public.attributes:08x}",
            "chain_pcr": genesis.tpm.chain_pcr,
            "workload_pcr": genesis.tpm.workload_pcr,
            "counter": genesis.tpm.counter.hex(),
        }
    return content


def _boot(data: bytes) -> Content:
    boot = Boot.decode(data)
    content: Content = {"time": _time(boot.time), "last_commit": boot.last_commit.hex()}
    if boot.tpm is not None:
        content |= {
            "boot": [boot.tpm.reset_count, boot.tpm.restart_count],
            "chain_before": boot.tpm.chain_before.hex(),
            "counter": _evidence(boot.tpm.counter_evidence),
        }
    return content


def _statement(data: bytes) -> Content:
    statement = Statement.decode(data)
    return {"time": _time(statement.time), "text": statement.text}


def _fresh(data: bytes) -> Content:
    fresh = FreshQuote.decode(data)
    return {
        "nonce": fresh.nonce.hex(),
        "genesis": _genesis(fresh.genesis),
        "evidence": _evidence(fresh.evidence),
        "support": _support(fresh.support),
    }


def _event(data: bytes) -> Content:
    return _event_content(WorkloadEvent.decode(data))


def _event_content(event: WorkloadEvent) -> Content:
    return {
        "type": event.type,
        "name": event.name,
        "digest": event.digest.hex(),
        "details": _plain(event.details),
    }


def _workload_log(data: bytes) -> Content:
    # the header names the PCR in its second TLV; every later record must agree with it
    pcr = data[18] if len(data) > 18 else 0
    records = list(parse_log(data, pcr=pcr))
    log = read_log([record.content for record in records])
    return {
        "pcr": pcr,
        "replays_to": log.value.hex(),
        "closed_epochs": log.epoch + 1,
        "events": [_event_content(WorkloadEvent.decode(record.content)) for record in records],
    }


def _commit(commit: Commit) -> Content:
    return {
        "first": commit.first,
        "note": _note(commit.note),
        "supports": [
            {
                "identifier": support.identifier,
                "pcrs": {str(pcr): value.hex() for pcr, value in support.pcrs.items()},
                "chain_before": support.chain_before.hex(),
                "certificates": [digest.hex() for digest in support.certificates],
                "workload_log": None if support.workload_log is None else _blob(support.workload_log),
            }
            for support in commit.supports
        ],
        "boot_logs": {name: _blob(blob) for name, blob in commit.boot_logs.items()},
    }


def _blob(blob: tuple[bytes, int]) -> Content:
    return {"sha256": blob[0].hex(), "bytes": blob[1]}


def _support(support: TpmSupport) -> Content:
    return {
        "identifier": support.identifier,
        "pcrs": {str(pcr): value.hex() for pcr, value in support.pcrs.items()},
        "chain_before": support.chain_before.hex(),
        "certificates": [_certificate_der(der) for der in support.certificates],
        "workload_log": [
            {"opaque": item.hex()} if len(item) == 32 else _event_content(WorkloadEvent.decode(item))
            for item in support.workload_log
        ],
    }


def _note(data: bytes) -> Content:
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


def _attest(data: bytes) -> Content:
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


def _evidence(data: bytes) -> Content:
    attest, signature = unpack_evidence(data)
    parsed = parse_signature(signature)
    return {
        **_attest(attest),
        "signature": {
            "algorithm": f"0x{parsed.alg:04x}",
            "hash": f"0x{parsed.hash_alg:04x}",
            "bytes": len(signature),
        },
    }


def _certificates(data: bytes) -> Content:
    from cryptography import x509

    try:
        found = (
            x509.load_pem_x509_certificates(data)
            if data[:1] == b"-"
            else [x509.load_der_x509_certificate(data)]
        )
    except UNREADABLE as error:
        raise MalformedError(f"not a certificate: {error}") from None
    return {"certificates": [_certificate(item) for item in found]}


def _certificate_der(der: bytes) -> Content:
    content: Content = _certificates(der)["certificates"][0]
    return content


def _certificate(certificate: Any) -> Content:
    from cryptography import x509

    content: Content = {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "serial": f"{certificate.serial_number:x}",
    }
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        content["names"] = [
            str(getattr(name.value, "rfc4514_string", lambda name=name: name.value)()) for name in names
        ]
    except x509.ExtensionNotFound:
        content["names"] = []
    except UNREADABLE as error:
        raise MalformedError(f"the certificate's extensions do not parse: {error}") from None
    return content


def _text(data: bytes) -> tuple[str, Content]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise MalformedError("the file is of no known kind") from None
    if "\n\n\u2014 " in text:
        return "signed note", _note(data)
    if "quotary-policy/" in text:
        return "policy", _policy(data)
    body, embedded = strip(data)
    if embedded is not None:
        return "response body", {"body_bytes": len(body), "attestation": _attestation(embedded)}
    raise MalformedError("the file is of no known kind")


def _policy(data: bytes) -> Content:
    from quotary_verifier.policy.load import load_policy

    try:
        policy = load_policy(data)
    except PolicyError as error:
        raise MalformedError(str(error)) from None
    return {
        "digest": policy.digest.hex(),
        "description": policy.description,
        "authorities": [
            {"name": item.name, "hosts": list(item.hosts) or "any"} for item in policy.authorities
        ],
        "pins": sorted(policy.pins),
        "software_tpm": policy.software_tpm,
        "unauthenticated_ak": policy.unauthenticated_ak,
        "safe_clock": policy.safe_clock,
        "pcrs": {
            str(pcr): sorted(value.hex() for value in values) for pcr, values in sorted(policy.pcrs.items())
        },
        "models": [
            {
                "name": model.name,
                "weights": None if model.weights is None else model.weights.hex(),
                "link": model.link.name.lower(),
            }
            for model in policy.models
        ],
        "opaque_events": policy.opaque_events,
        "states": sorted(state.name.lower() for state in policy.states),
        "freshness": {
            "nonce": policy.freshness.nonce,
            "max_age": policy.freshness.max_age,
            "trust_host_clock": policy.freshness.trust_host_clock,
        },
        "witnesses": {
            "threshold": policy.witnesses.threshold,
            "keys": [key.name for key in policy.witnesses.keys],
        },
    }


def _time(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"


def _plain(value: Any) -> Any:
    """Return decoded CBOR with byte strings in hexadecimal and text keys, so that JSON can hold it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


_READERS: dict[int, tuple[str, Callable[[bytes], Content]]] = {
    KIND_GENESIS: ("genesis record", _genesis),
    KIND_OUTPUT: ("output record", _record),
    KIND_BOOT: ("boot record", _boot),
    KIND_STATEMENT: ("statement", _statement),
    KIND_ATTESTATION: ("attestation", _attestation),
    18: ("workload event", _event),
    KIND_FRESH: ("fresh quote", _fresh),
}
