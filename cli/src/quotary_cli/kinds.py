# SPDX-License-Identifier: Apache-2.0
"""Finds out what kind of artefact some bytes are, and puts its content into plain values.

Binary formats are told apart by their first bytes and their kind field, never by trying until something fits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quotary_cli.logkinds import boot_log_view, log_view
from quotary_cli.policyviews import policy_view, signed_policy_view
from quotary_cli.teekinds import tee_view
from quotary_cli.views import (
    attest_view,
    certificates_view,
    commit_view,
    event_content_view,
    evidence_view,
    genesis_view,
    note_view,
    plain,
    record_view,
    support_view,
    time_view,
)
from quotary_verifier.errors import MalformedError, QuotaryError
from quotary_verifier.logs.cel import parse_log
from quotary_verifier.logs.workload import KIND_EVENT, WorkloadEvent, read_log
from quotary_verifier.policy.signed import is_signed_policy
from quotary_verifier.wire import cbor
from quotary_verifier.wire.attestation import KIND_ATTESTATION, Attestation
from quotary_verifier.wire.declaration import Declaration
from quotary_verifier.wire.fresh import KIND_FRESH, FreshQuote
from quotary_verifier.wire.history import KIND_COMMIT, Commit, split
from quotary_verifier.wire.inband import strip
from quotary_verifier.wire.limits import MAX_RECORD
from quotary_verifier.wire.records import (
    KIND_BOOT,
    KIND_GENESIS,
    KIND_OUTPUT,
    KIND_STATEMENT,
    Boot,
    Genesis,
    Statement,
)

Content = dict[str, Any]
_MAX = 64 * 1024 * 1024
_TPM_MAGIC = b"\xffTCG"
_SUPPORT_KEYS = {1, 6}
_ENROLMENT = {
    20: "enrolment request",
    21: "enrolment challenge",
    22: "enrolment activation",
    23: "enrolment grant",
}
_ENROLMENT_FIELDS = {
    20: ("salt", "genesis", "ek", "ek_certificate", "intermediates"),
    21: ("id", "request", "origin", "ak_name", "ek_sha256", "expires", "credential", "secret"),
    22: ("id", "challenge", "origin", "ak_name", "ek_sha256", "proof"),
    23: ("id", "origin", "ak_name", "ek_sha256", "certificates"),
}
"""Fields 2 and on of each enrolment file, in docs/spec/enrolment.cddl's order."""


def describe(data: bytes, folder: Path | None = None) -> tuple[str, Content]:
    """Return the kind of an artefact, and its content as plain values for people and JSON.

    `folder` is where it stands: a policy may name lists beside it.

    Raises:
        MalformedError: it is of no known kind, or not what its first bytes say.
        UnsupportedError: it is of a known kind and an unknown version or algorithm.
    """
    if not data:
        raise MalformedError("the file is empty")
    if data.startswith(_TPM_MAGIC):
        return "TPM attestation structure", attest_view(data)
    if data[2:6] == _TPM_MAGIC:
        return "TPM evidence", evidence_view(data)
    if data.startswith(b"-----BEGIN CERTIFICATE") or data[:1] == b"\x30":
        return "certificate", certificates_view(data)
    if data[0] >> 5 == 5:
        return _artefact(data)
    evidence = tee_view(data)
    if evidence is not None:
        return evidence
    if is_signed_policy(data):
        return "signed policy", signed_policy_view(data, folder)
    found = log_view(data)
    if found is not None:
        return found
    if data[:5] == b"\x00\x00\x00\x00\x08":
        return "workload log", _workload_log(data)
    return _text(data, folder)


def _artefact(data: bytes) -> tuple[str, Content]:
    """Describe a CBOR artefact, or a history file, which is a sequence of them."""
    first = data[: cbor.item_end(data, 0, max_bytes=_MAX, what="artefact")]
    value = cbor.decode(first, max_bytes=_MAX, what="artefact")
    kind = value.get(cbor.KIND)
    if kind is None and value.keys() == _SUPPORT_KEYS and len(first) == len(data):
        from quotary_cli.teelines import support_file_view

        return "TEE endorsements", support_file_view(value)
    if type(kind) is not int:
        raise MalformedError("an artefact's kind is not a number")
    if kind == KIND_COMMIT:
        return "history", {"commits": [commit_view(Commit.decode(item)) for item in split(data)]}
    if kind in _ENROLMENT:
        return _ENROLMENT[kind], _enrolment(kind, value)
    if kind not in _READERS:
        raise MalformedError(f"an artefact of kind {kind!r} is not known")
    name, reader = _READERS[kind]
    return name, reader(data)


def _enrolment(kind: int, value: dict[int, Any]) -> Content:
    """Name the fields of an enrolment file; those that are not known keep their numbers."""
    names = ("kind", "version", *_ENROLMENT_FIELDS[kind])
    known = dict(enumerate(names))
    shown: Content = {known.get(key, str(key)): plain(item) for key, item in value.items()}
    if isinstance(shown.get("expires"), int):
        shown["expires"] = time_view(shown["expires"])
    return shown


def _attestation(data: bytes) -> Content:
    attestation = Attestation.decode(data)
    genesis = Genesis.decode(attestation.genesis)
    origin = genesis.origin(attestation.genesis)
    return {
        "bytes": len(data),
        "origin": origin,
        "index": attestation.index,
        "path_hashes": len(attestation.path) // 32,
        "record": _record(attestation.record),
        "genesis": genesis_view(attestation.genesis),
        "note": note_view(attestation.note),
        "supports": [support_view(support) for support in attestation.supports],
        "tees": _tees(attestation, origin),
        "request_key": "present" if attestation.request_key else "dropped",
        "boot_logs": {name: boot_log_view(log) for name, log in attestation.boot_logs.items()},
        "later_checkpoints": [note_view(later.note) for later in attestation.later],
        "not_understood": list(attestation.not_understood),
    }


def _tees(attestation: Attestation, origin: str) -> list[Content]:
    if not attestation.tees:
        return []
    from quotary_cli.teelines import tee_lines_view

    return tee_lines_view(attestation, origin)


def _boot(data: bytes) -> Content:
    boot = Boot.decode(data)
    content: Content = {"time": time_view(boot.time), "last_commit": boot.last_commit.hex()}
    if boot.tpm is not None:
        content |= {
            "boot": [boot.tpm.reset_count, boot.tpm.restart_count],
            "chain_before": boot.tpm.chain_before.hex(),
            "counter": evidence_view(boot.tpm.counter_evidence),
        }
    return content


def _record(data: bytes) -> Content:
    """Describe the record in an attestation: of an output, or a statement."""
    value = cbor.decode(data, max_bytes=MAX_RECORD, what="record")
    statement = isinstance(value, dict) and value.get(cbor.KIND) == KIND_STATEMENT
    return _statement(data) if statement else record_view(data)


def _statement(data: bytes) -> Content:
    """Describe a statement: its text as it stands, and what it promises where that can be read."""
    statement = Statement.decode(data)
    try:
        services = [service.fields() for service in Declaration.parse(statement.text).services]
    except QuotaryError as error:
        return {"time": time_view(statement.time), "text": statement.text, "unread": str(error)}
    return {"time": time_view(statement.time), "text": statement.text, "services": services}


def _fresh(data: bytes) -> Content:
    fresh = FreshQuote.decode(data)
    return {
        "nonce": fresh.nonce.hex(),
        "genesis": genesis_view(fresh.genesis),
        "evidence": evidence_view(fresh.evidence),
        "support": support_view(fresh.support),
    }


def _event(data: bytes) -> Content:
    return event_content_view(WorkloadEvent.decode(data))


def _workload_log(data: bytes) -> Content:
    # the header names the PCR in its second TLV; every later record must agree with it
    pcr = data[18] if len(data) > 18 else 0
    records = list(parse_log(data, pcr=pcr))
    log = read_log([record.content for record in records])
    return {
        "pcr": pcr,
        "replays_to": log.value.hex(),
        "closed_epochs": log.epoch + 1,
        "events": [event_content_view(WorkloadEvent.decode(record.content)) for record in records],
    }


def _text(data: bytes, folder: Path | None) -> tuple[str, Content]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise MalformedError("the file is of no known kind") from None
    if "\n\n\u2014 " in text:
        return "signed note", note_view(data)
    if "quotary-policy/" in text:
        return "policy", policy_view(data, folder)
    body, embedded = strip(data)
    if embedded is not None:
        return "response body", {"body_bytes": len(body), "attestation": _attestation(embedded)}
    raise MalformedError("the file is of no known kind")


_READERS: dict[int, tuple[str, Callable[[bytes], Content]]] = {
    KIND_GENESIS: ("genesis record", genesis_view),
    KIND_OUTPUT: ("output record", record_view),
    KIND_BOOT: ("boot record", _boot),
    KIND_STATEMENT: ("statement", _statement),
    KIND_ATTESTATION: ("attestation", _attestation),
    KIND_EVENT: ("workload event", _event),
    KIND_FRESH: ("fresh quote", _fresh),
}
