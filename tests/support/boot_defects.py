# SPDX-License-Identifier: Apache-2.0
"""Cases of step `boot-logs`, registered with those of `defects`."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from defects import Case, _case, case
from forge import Forge
from ima_logs import file_data, host_log, ima_entry, ng, replayed
from tcg_logs import TcgWriter, good_boot

from quotary_verifier import Step
from quotary_verifier.logs import tcg_types as t
from quotary_verifier.wire.attestation import Attestation

BOOT = good_boot()
"""The boot of the forged host."""
FILES = 3


def aggregate_over(boot: TcgWriter) -> dict[int, bytes]:
    """PCR 0-9 when the kernel starts, zero where the boot extended nothing."""
    return {pcr: boot.values().get(pcr, bytes(32)) for pcr in range(10)}


RECORDS = host_log(aggregate_over(BOOT), FILES)


def host(boot: TcgWriter = BOOT, records: list[bytes] = RECORDS) -> Forge:
    """A host whose quoted PCRs are those of a boot and of an IMA log."""
    return Forge(pcrs=boot.values() | {10: replayed(records)})


def carrying(forge: Forge, **logs: bytes) -> Attestation:
    """Its attestation with these boot logs."""
    return replace(forge.attestation(), boot_logs=logs)


def ima(records: list[bytes]) -> bytes:
    """A binary IMA log."""
    return b"".join(ima_entry(data) for data in records)


def number_of(kind: int, boot: TcgWriter = BOOT) -> int:
    """The place of the first event of a type."""
    return next(number for number, event in enumerate(boot.events) if event.type == kind)


# --- what verifies -------------------------------------------------------------------------------------------


@case
def boot_logs_that_replay() -> Case:
    forge = host()
    return _case(forge, carrying(forge, tcg=BOOT.agile(), ima=ima(RECORDS)), None)


@case
def boot_logs_given_by_their_digests() -> Case:
    forge = host()
    digest = hashlib.sha256(ima(RECORDS)).digest()
    return _case(forge, carrying(forge, tcg=BOOT.agile(), ima=digest), None)


def digest_of(log: bytes) -> bytes:
    """The name of a log that travels apart."""
    return hashlib.sha256(log).digest()


@case
def boot_logs_named_by_digest_and_given_beside() -> Case:
    forge, tcg, records = host(), BOOT.agile(), ima(RECORDS)
    logs = {digest_of(log): log for log in (tcg, records)}
    return _case(forge, carrying(forge, tcg=digest_of(tcg), ima=digest_of(records)), None, logs=logs)


@case
def boot_log_given_beside_under_the_digest_of_another() -> Case:
    """It is not the one that was asked for, so the step is not done, and nothing is false."""
    forge, records = host(), ima(RECORDS)
    logs = {digest_of(records): ima(RECORDS[:-1])}
    return _case(forge, carrying(forge, ima=digest_of(records)), None, logs=logs)


@case
def boot_log_of_an_unknown_name() -> Case:
    forge = host()
    return _case(forge, carrying(forge, ccel=BOOT.agile()), None)


@case
def ima_log_with_records_made_after_the_quote() -> Case:
    forge = host()
    later = ima([*RECORDS, file_data(FILES)])
    return _case(forge, carrying(forge, ima=later + later[:7]), None)


@case
def event_log_of_a_boot_whose_late_pcr_moved_on() -> Case:
    """PCR 14 holds more than the firmware's log says: its events are withheld, the others stand."""
    forge = host()
    forge = replace(forge, pcrs={**forge.pcrs, 14: hashlib.sha256(b"moved").digest()})
    return _case(forge, carrying(forge, tcg=BOOT.agile()), None)


# --- what does not -------------------------------------------------------------------------------------------


@case
def event_log_with_an_altered_digest() -> Case:
    forge = host()
    altered = BOOT.altered(number_of(t.EV_EFI_BOOT_SERVICES_APPLICATION), measured=b"another loader")
    return _case(forge, carrying(forge, tcg=altered.agile()), Step.BOOT_LOGS)


@case
def event_log_that_lacks_an_event() -> Case:
    forge = host()
    return _case(forge, carrying(forge, tcg=BOOT.without(0).agile()), Step.BOOT_LOGS)


@case
def event_log_given_beside_that_lacks_an_event() -> Case:
    forge, false = host(), BOOT.without(0).agile()
    logs = {digest_of(false): false}
    return _case(forge, carrying(forge, tcg=digest_of(false)), Step.BOOT_LOGS, logs=logs)


@case
def ima_log_given_beside_that_ends_before_the_quote() -> Case:
    forge, short = host(), ima(RECORDS[:-1])
    return _case(forge, carrying(forge, ima=digest_of(short)), Step.BOOT_LOGS, logs={digest_of(short): short})


@case
def event_log_without_one_pcr() -> Case:
    forge = host()
    events = [event for event in BOOT.events if event.register != 7]
    return _case(forge, carrying(forge, tcg=replace(BOOT, events=events).agile()), Step.BOOT_LOGS)


@case
def event_log_that_is_cut_off() -> Case:
    forge = host()
    return _case(forge, carrying(forge, tcg=BOOT.agile()[:-1]), Step.BOOT_LOGS)


@case
def event_log_with_padding() -> Case:
    forge = host()
    return _case(forge, carrying(forge, tcg=BOOT.agile() + b"\xff" * 64), Step.BOOT_LOGS)


@case
def event_log_of_the_sha1_format() -> Case:
    forge = host()
    return _case(forge, carrying(forge, tcg=BOOT.old()), Step.BOOT_LOGS)


@case
def event_log_of_another_boot() -> Case:
    forge = host()
    return _case(forge, carrying(forge, tcg=good_boot(enabled=False).agile()), Step.BOOT_LOGS)


@case
def event_log_of_a_boot_that_was_never_measured() -> Case:
    boot = TcgWriter(events=[event for event in BOOT.events if event.register > 8])
    forge = host(boot)
    return _case(forge, carrying(forge, tcg=boot.agile()), Step.BOOT_LOGS)


@case
def ima_log_in_the_place_of_the_event_log() -> Case:
    forge = host()
    return _case(forge, carrying(forge, tcg=ima(RECORDS)), Step.BOOT_LOGS)


@case
def ima_log_with_an_altered_record() -> Case:
    forge = host()
    records = [RECORDS[0], file_data(99), *RECORDS[2:]]
    return _case(forge, carrying(forge, ima=ima(records)), Step.BOOT_LOGS)


@case
def ima_log_that_lacks_a_record() -> Case:
    forge = host()
    return _case(forge, carrying(forge, ima=ima([*RECORDS[:2], *RECORDS[3:]])), Step.BOOT_LOGS)


@case
def ima_log_that_ends_before_the_quote() -> Case:
    forge = host()
    return _case(forge, carrying(forge, ima=ima(RECORDS[:-1])), Step.BOOT_LOGS)


@case
def ima_log_with_the_boot_aggregate_of_another_boot() -> Case:
    records = [ng("boot_aggregate", hashlib.sha256(b"another boot").digest()), *RECORDS[1:]]
    forge = host(records=records)
    return _case(forge, carrying(forge, tcg=BOOT.agile(), ima=ima(records)), Step.BOOT_LOGS)


@case
def false_boot_log_and_dropped_request_key() -> Case:
    """What is false goes before what could not be checked."""
    forge = host()
    attestation = replace(carrying(forge, tcg=BOOT.without(0).agile()), request_key=None)
    return _case(forge, attestation, Step.BOOT_LOGS)


import platform_defects  # noqa: E402, F401 - registers its cases, and needs what stands above
