# SPDX-License-Identifier: Apache-2.0
"""Shows event logs as plain values, and as one line an event for people. It replays against nothing, so nothing that it
shows is known to have happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from quotary_cli.devicepath import device_path
from quotary_cli.output import clean
from quotary_verifier.errors import EvidenceError, QuotaryError, UnsupportedError
from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.banks import HASHES, bank_name
from quotary_verifier.logs.ccel import parse_ccel_table
from quotary_verifier.logs.cel_launcher import LAUNCHER_TYPES, parse_launcher_log
from quotary_verifier.logs.ima import ImaLog, ImaRecord, parse_ima_ascii, parse_ima_binary
from quotary_verifier.logs.ima_fields import decode
from quotary_verifier.logs.tcg import RawEvent, TcgLog, parse_tcg_log
from quotary_verifier.logs.tcg_cover import cover
from quotary_verifier.logs.tcg_types import Registers, Tolerance, type_name
from quotary_verifier.logs.uefi import parse_gpt, parse_image_load, parse_signature_lists, parse_variable
from quotary_verifier.wire.tpm_algorithms import ALG_SHA256

Content = dict[str, Any]

EVENT_LOG: Final = "event log"
IMA_LOG: Final = "IMA log"
LAUNCHER_LOG: Final = "launcher log"
CCEL_TABLE: Final = "CCEL table"
MAX_SHOWN: Final = 256
"""Bytes of an event's data that are shown in hexadecimal."""

_SIGNATURE_LISTS = frozenset({"PK", "KEK", "db", "dbx"})
_TEXTS = frozenset(
    {t.EV_ACTION, t.EV_EFI_ACTION, t.EV_IPL, t.EV_POST_CODE, t.EV_S_CRTM_VERSION, t.EV_NO_ACTION}
)
_GPT = frozenset({t.EV_EFI_GPT_EVENT, t.EV_EFI_GPT_EVENT2})


def event_log_view(data: bytes) -> Content:
    """Show a TCG event log; one whose first event is for register 1 is of a confidential VM."""
    registers = Registers.CC if data[0] == 1 else Registers.TPM
    log = parse_tcg_log(data, registers=registers, tolerate={Tolerance.PADDING})
    return {
        "format": "crypto-agile" if log.agile else "sha-1",
        "registers": registers.value,
        "banks": [bank_name(bank) for bank in log.banks],
        "startup_locality": log.locality,
        "padding": log.padding,
        "would_replay_to": {bank_name(bank): _values(log, bank) for bank in log.banks if bank in HASHES},
        "events": [_event(event) for event in log.unverified_events_do_not_trust()],
    }


def _values(log: TcgLog, bank: int) -> dict[str, str] | str:
    try:
        values = log.unverified_values_do_not_trust(bank, weak=True)
    except EvidenceError as error:
        return str(error)
    return {str(register): value.hex() for register, value in sorted(values.items())}


def _event(event: RawEvent) -> Content:
    bank = ALG_SHA256 if ALG_SHA256 in event.digests else next(iter(event.digests))
    coverage = t.Coverage.NOTHING
    if bank in HASHES and event.type != t.EV_NO_ACTION:
        coverage = cover(event.type, event.data, event.digests[bank], HASHES[bank])[0]
    return {
        "number": event.number,
        "register": event.register,
        "type": type_name(event.type),
        "digests": {bank_name(one): digest.hex() for one, digest in event.digests.items()},
        "digest_covers": coverage.value,
        "bytes": len(event.data),
        **_details(event),
    }


def _details(event: RawEvent) -> Content:
    """Return what the data says, as far as it has the form that its type should have."""
    try:
        if event.type in t.VARIABLE_TYPES:
            return _variable(event)
        if event.type in t.IMAGE_TYPES:
            return {"device_path": device_path(parse_image_load(event.data).device_path)}
        if event.type in _GPT:
            gpt = parse_gpt(event.data)
            names = [f"{one.unique} {one.name}".rstrip() for one in gpt.partitions]
            return {"disk": gpt.disk, "partitions": names}
    except QuotaryError:
        return {"data": event.data[:MAX_SHOWN].hex()}
    if event.type in _TEXTS and (text := _text(event.data)):
        return {"text": text}
    return {"data": event.data[:MAX_SHOWN].hex()}


def _variable(event: RawEvent) -> Content:
    variable = parse_variable(event.data)
    content: Content = {"variable": variable.name, "vendor": variable.vendor}
    if event.type == t.EV_EFI_VARIABLE_DRIVER_CONFIG and variable.name in _SIGNATURE_LISTS:
        return content | {"signatures": len(parse_signature_lists(variable.data))}
    return content | {"data": variable.data[:MAX_SHOWN].hex()}


def _text(data: bytes) -> str:
    """Return data that is a text in ASCII or UTF-16, an empty one if it is none."""
    for encoding in ("ascii", "utf-16-le"):
        try:
            text = data.decode(encoding).rstrip("\0")
        except UnicodeDecodeError:
            continue
        if text and all(char.isprintable() or char in "\t\n" for char in text) and text.isascii():
            return text
    return ""


def ima_binary_view(data: bytes) -> Content:
    """Show a binary IMA log."""
    return _ima(parse_ima_binary(data))


def ima_ascii_view(data: bytes) -> Content:
    """Show an ASCII IMA log."""
    return _ima(parse_ima_ascii(data))


def _ima(log: ImaLog) -> Content:
    records = [_record(record) for record in log.unverified_records_do_not_trust()]
    return {
        "template_hash_bytes": log.digest_size,
        "violations": sum(record["violation"] for record in records),
        "records": records,
    }


def _record(record: ImaRecord) -> Content:
    content: Content = {
        "number": record.number,
        "pcr": record.pcr,
        "template": record.template.decode("ascii", "backslashreplace"),
        "template_hash": record.digest.hex(),
        "violation": record.violation,
    }
    try:
        fields = decode(record.template, record.data)
    except UnsupportedError:
        return content | {"data": record.data[:MAX_SHOWN].hex()}
    if fields.digest is not None:
        kind = "" if fields.digest.kind == "ima" else f"{fields.digest.kind}:"
        content["digest"] = f"{kind}{fields.digest.algorithm}:{fields.digest.value.hex()}"
    if fields.path is not None:
        content["path"] = fields.path.decode("utf-8", "backslashreplace")
    for name, value in (("signature", fields.signature), ("buffer", fields.buffer), *fields.others):
        if value is not None:
            content[name] = value[:MAX_SHOWN].hex()
    return content


def launcher_view(data: bytes) -> Content:
    """Show a launcher's log."""
    log = parse_launcher_log(data)
    return {
        "register": log.register,
        "confidential_vm": log.confidential,
        "bank": bank_name(log.bank),
        "events": [
            {
                "number": event.number,
                "type": LAUNCHER_TYPES.get(event.type, str(event.type)),
                "value": event.value.decode("utf-8", "backslashreplace"),
            }
            for event in log.unverified_events_do_not_trust()
        ],
    }


def ccel_table_view(data: bytes) -> Content:
    """Show an ACPI CCEL table."""
    table = parse_ccel_table(data)
    return {
        "cc_type": table.name,
        "minimum_length": table.minimum_length,
        "address": f"0x{table.address:x}",
    }


def _event_line(event: Content) -> str:
    shown = event.get("text") or event.get("device_path") or event.get("value") or ""
    if "variable" in event:
        signatures = event.get("signatures")
        shown = f"{event['variable']} " + (
            f"({signatures} entries)" if signatures is not None else event["data"]
        )
    elif "partitions" in event:
        shown = f"disk {event['disk']}, {len(event['partitions'])} partitions"
    covered = event.get("digest_covers")
    register = f"{event['register']:>3} " if "register" in event else ""
    kind = event["type"].removeprefix("EV_").lower()
    mark = "" if covered is None else {"nothing": "? "}.get(covered, "= ")
    return f"{event['number']:>5} {register}{kind:<28} {mark}{shown or event.get('data', '')}"[:MAX_SHOWN]


def _record_line(record: Content) -> str:
    digest = "violation" if record["violation"] else record.get("digest", record.get("data", ""))
    signed = " (signed)" if "signature" in record else ""
    return (
        f"{record['number']:>6} {record['pcr']:>2} {record.get('path', record['template'])}{signed} {digest}"
    )


_LINES: Final[dict[str, tuple[str, Callable[[Content], str]]]] = {
    EVENT_LOG: ("events", _event_line),
    LAUNCHER_LOG: ("events", _event_line),
    IMA_LOG: ("records", _record_line),
}


def log_lines(kind: str, content: Content) -> tuple[Content, Iterator[str]]:
    """Split the content of a log into what is shown of the whole, and one line for each of its events.

    Of a firmware's event, `=` says that the digest covers what is shown or more, `?` that it does not.
    """
    if kind not in _LINES:
        return content, iter(())
    name, line = _LINES[kind]
    rest = {key: value for key, value in content.items() if key != name}
    return rest, (clean(line(item)) for item in content[name])
