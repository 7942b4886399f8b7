# SPDX-License-Identifier: Apache-2.0
"""Writes any event log in the JSON encoding of the TCG's Canonical Event Log (CEL 1.0, section 5, "JSON").

A record is an object of `recnum`, `pcr`, `digests` (objects of `hashAlg` and `digest`, hexadecimal), `content_type` and
`content`. Firmware's events are of type `pcclient_std`, the kernel's of `ima_template`; our own events and those of
Google's launcher keep their numbers, 200 and 80, with the content as it is in the TLV, in hexadecimal. A register of a
confidential VM stands as `ccmr`, for which the specification has no name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from quotary_cli.logviews import EVENT_LOG, IMA_LOG, LAUNCHER_LOG
from quotary_verifier.errors import UnsupportedError
from quotary_verifier.logs.banks import bank_name
from quotary_verifier.logs.cel import CONTENT_WORKLOAD, parse_log
from quotary_verifier.logs.cel_launcher import CONTENT_LAUNCHER, parse_launcher_log
from quotary_verifier.logs.ima import parse_ima_ascii, parse_ima_binary
from quotary_verifier.logs.tcg import parse_tcg_log
from quotary_verifier.logs.tcg_types import Registers, Tolerance
from quotary_verifier.wire.tpm_algorithms import ALG_SHA1, ALG_SHA256, ALG_SHA384, ALG_SHA512

Record = dict[str, Any]

_WORKLOAD_LOG = "workload log"
_WORKLOAD_PCR = 18
_BY_SIZE = {20: ALG_SHA1, 32: ALG_SHA256, 48: ALG_SHA384, 64: ALG_SHA512}


def print_cel_json(kind: str, data: bytes) -> None:
    """Print the records of a log as one JSON array; errors as `cel_json`."""
    click.echo(json.dumps(cel_json(kind, data), indent=1))


def cel_json(kind: str, data: bytes) -> list[Record]:
    """Return the records of a log of this kind (as `attest inspect` names it). Nothing in them is verified.

    Raises:
        MalformedError: it is no such log.
        EvidenceError: a digest in it is not that of its content.
        UnsupportedError: it is no event log, or one of an unknown version.
    """
    writers = {
        _WORKLOAD_LOG: _workload, LAUNCHER_LOG: _launcher, EVENT_LOG: _firmware, IMA_LOG: _kernel,
    }  # fmt: skip
    if kind not in writers:
        raise UnsupportedError(f"a file of the kind {kind!r} is no event log")
    return list(writers[kind](data))


def _record(
    number: int, register: Record, digests: dict[int, bytes], kind: str | int, content: Any
) -> Record:
    listed = [{"hashAlg": bank_name(bank), "digest": digest.hex()} for bank, digest in digests.items()]
    return {"recnum": number, **register, "digests": listed, "content_type": kind, "content": content}


def _workload(data: bytes) -> Iterator[Record]:
    for each in parse_log(data, pcr=data[_WORKLOAD_PCR]):
        content = each.content.hex()
        yield _record(each.number, {"pcr": each.pcr}, {ALG_SHA256: each.digest}, CONTENT_WORKLOAD, content)


def _launcher(data: bytes) -> Iterator[Record]:
    log = parse_launcher_log(data)
    register = {"ccmr" if log.confidential else "pcr": log.register}
    digests = log.unverified_digests_do_not_trust()
    for event, digest in zip(log.unverified_events_do_not_trust(), digests, strict=True):
        content = bytes((event.type,)) + len(event.value).to_bytes(4) + event.value
        yield _record(event.number, register, {log.bank: digest}, CONTENT_LAUNCHER, content.hex())


def _firmware(data: bytes) -> Iterator[Record]:
    registers = Registers.CC if data[0] == 1 else Registers.TPM
    log = parse_tcg_log(data, registers=registers, tolerate={Tolerance.PADDING})
    for event in log.unverified_events_do_not_trust():
        register = {"ccmr" if registers is Registers.CC else "pcr": event.register}
        content = {"event_type": event.type, "event_data": event.data.hex()}
        yield _record(event.number, register, dict(event.digests), "pcclient_std", content)


def _kernel(data: bytes) -> Iterator[Record]:
    log = (parse_ima_ascii if data[:3] == b"10 " else parse_ima_binary)(data)
    for record in log.unverified_records_do_not_trust():
        content = {
            "template_name": record.template.decode("ascii", "backslashreplace"),
            "template_data": record.data.hex(),
        }
        digests = {_BY_SIZE[len(record.digest)]: record.digest}
        yield _record(record.number, {"pcr": record.pcr}, digests, "ima_template", content)
