# SPDX-License-Identifier: Apache-2.0
"""Makes the sides of a comparison: of verified evidence, or of raw logs, which nothing proves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from quotary_cli.bootdiff import Side
from quotary_cli.output import ExitCode, Failure
from quotary_verifier.errors import QuotaryError, UnsupportedError
from quotary_verifier.logs.ima import ImaLog, ImaRecord, parse_ima_ascii, parse_ima_binary
from quotary_verifier.logs.ima_fields import FileDigest, decode
from quotary_verifier.logs.tcg import ReplayedLog, TcgLog, parse_tcg_log
from quotary_verifier.logs.tcg_types import Tolerance
from quotary_verifier.policy.findings import PlatformEvidence
from quotary_verifier.wire.tpm_algorithms import ALG_SHA1, ALG_SHA256

MAX_RAW: Final = 64 * 1024 * 1024
BOOT_AGGREGATE: Final = b"boot_aggregate"
_SPEC_ID: Final = b"Spec ID Event"
_HEADER: Final = 32


def verified_side(name: str, evidence: PlatformEvidence) -> Side:
    """Make a side of evidence, of which every step but the platform's rules was done."""
    firmware, ima, clock = evidence.firmware, evidence.ima, evidence.clock
    facts = {
        "origin": evidence.origin,
        "reset count": str(clock.reset_count),
        "restart count": str(clock.restart_count),
    }
    if evidence.workload is not None:
        for logged in evidence.workload.current:
            event = logged.event
            if event is not None:
                facts[f"{event.type} {event.name}"] = event.digest.hex()
    return Side(
        name=name,
        verified=True,
        pcrs={pcr: value for pcr, value in evidence.pcrs.items() if pcr not in evidence.moving},
        events=None if firmware is None else firmware.events,
        unconfirmed=frozenset() if firmware is None else frozenset(firmware.unconfirmed),
        files=None if ima is None else files_of(ima.records()),
        facts=facts,
    )


def unverified_side_do_not_trust(path: Path) -> Side:
    """Make a side of a raw log, or of the logs in a folder. Nothing shows that any of it happened.

    Raises:
        Failure: there is no log, or two of one kind.
    """
    places = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    firmware: TcgLog | None = None
    ima: ImaLog | None = None
    for place in places:
        try:
            found = _parse(_read(place))
        except QuotaryError as error:
            if path.is_dir():
                continue
            raise Failure(f"{place}: not a boot log: {error}", code=ExitCode.REJECTED) from None
        if (firmware if isinstance(found, TcgLog) else ima) is not None:
            raise Failure(f"{path}: two logs of one kind are there", code=ExitCode.USAGE)
        if isinstance(found, TcgLog):
            firmware = found
        else:
            ima = found
    if firmware is None and ima is None:
        raise Failure(f"{path}: no event log and no IMA log is there", code=ExitCode.USAGE)
    try:
        events = None if firmware is None else _as_if_it_happened(firmware).events
        files = None if ima is None else files_of(ima.unverified_records_do_not_trust())
    except QuotaryError as error:
        raise Failure(f"{path}: {error}", code=ExitCode.REJECTED) from None
    return Side(str(path), False, events=events, files=files)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RAW + 1)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}".lower(), code=ExitCode.USAGE) from None
    if len(data) > MAX_RAW:
        raise Failure(f"{path}: larger than {MAX_RAW >> 20} MiB", code=ExitCode.REJECTED)
    return data


def _parse(data: bytes) -> TcgLog | ImaLog:
    if data[_HEADER : _HEADER + len(_SPEC_ID)] == _SPEC_ID:
        return parse_tcg_log(data, tolerate={Tolerance.PADDING})
    if data[:3] == b"10 ":
        return parse_ima_ascii(data)
    try:
        return parse_ima_binary(data)
    except QuotaryError:
        return parse_tcg_log(data, tolerate={Tolerance.PADDING})  # of the SHA-1 format, which has no mark


def _as_if_it_happened(log: TcgLog) -> ReplayedLog:
    """Replay a log against the values that it leads to itself, so that its events can be read and compared."""
    bank = ALG_SHA256 if ALG_SHA256 in log.banks else ALG_SHA1
    values = log.unverified_values_do_not_trust(bank, weak=True)
    return log.replay(values, bank=bank, required=(), tolerate={Tolerance.SHA1})


def files_of(records: Iterable[ImaRecord]) -> dict[str, frozenset[str]]:
    """Return path → digests, as IMA measured them; violations and templates that are not known are named as such."""
    found: dict[str, set[str]] = defaultdict(set)
    for record in records:
        try:
            fields = decode(record.template, record.data)
        except UnsupportedError:
            template = record.template.decode("ascii", "backslashreplace")
            found[f"records of the template {template}"].add(f"{len(record.data)} bytes")
            continue
        if fields.path == BOOT_AGGREGATE:
            continue  # it follows from the boot PCRs, which are compared by themselves
        path = "" if fields.path is None else fields.path.decode("utf-8", "backslashreplace")
        found[path].add("violation" if record.violation else digest_text(fields.digest))
    return {path: frozenset(digests) for path, digests in found.items()}


def digest_text(digest: FileDigest | None) -> str:
    """Return a file's digest as lists and reports write it: `sha256:…`, `verity:sha256:…`."""
    if digest is None:
        return "no digest"
    kind = "" if digest.kind == "ima" else f"{digest.kind}:"
    return f"{kind}{digest.algorithm}:{digest.value.hex()}"
