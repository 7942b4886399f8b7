# SPDX-License-Identifier: Apache-2.0
"""Whatever a log says where no digest covers it, a host that departs from the rules is never accepted."""

from __future__ import annotations

import hashlib
import random

import pytest
from appraising import accepted, appraised, evidence
from boot_defects import BOOT, FILES, aggregate_over, number_of
from ima_logs import counted, host_log, ima_entry, ng
from platform_defects import RULES, SECURE_BOOT
from tcg_logs import TcgWriter, Written, good_boot

from quotary_verifier.errors import EvidenceError, MalformedError
from quotary_verifier.logs import tcg_types as t

LINE = next(n for n, event in enumerate(BOOT.events) if event.data.startswith(b"kernel_cmdline"))
FILE = next(n for n, event in enumerate(BOOT.events) if event.register == 9)
IMAGE = number_of(t.EV_EFI_BOOT_SERVICES_APPLICATION)
DEBUGGED = good_boot()
DEBUGGED.events.insert(2, Written(7, t.EV_EFI_ACTION, b"UEFI Debug Mode"))
DEPARTING: dict[str, TcgWriter] = {
    "another image": BOOT.altered(IMAGE, measured=b"evil"),
    "one image more": good_boot().add(4, t.EV_EFI_BOOT_SERVICES_APPLICATION, b"", b"evil"),
    "another line": BOOT.altered(LINE, data=b"kernel_cmdline: init=/bin/sh\0", measured=b"init=/bin/sh"),
    "another file": BOOT.altered(FILE, measured=b"evil"),
    "Secure Boot off": good_boot(enabled=False),
    "a debugger": DEBUGGED,
}
TYPES = [*t.TYPE_NAMES, 0x12345]


def data(chance: random.Random, boot: TcgWriter, place: int) -> bytes:
    """Something that the writer of a log may try in the place of an event's data."""
    event = boot.events[place]
    measured = event.data if event.measured is None else event.measured
    return chance.choice(
        [
            b"",
            bytes(4),
            measured,
            b"kernel_cmdline: " + measured,
            measured + b"\0",
            chance.choice(boot.events).data,
            b"Calling EFI Application from Boot Option",
            ".linux\0".encode("utf-16-le"),
            chance.randbytes(chance.randrange(64)),
        ]
    )


def rewritten(chance: random.Random, boot: TcgWriter) -> TcgWriter:
    """The same digests in the same order under other types and data."""
    for _ in range(chance.randrange(1, 5)):
        place = chance.randrange(len(boot.events))
        event = boot.events[place]
        changes = {"type": chance.choice(TYPES)} if chance.random() < 0.6 else {}
        if event.type == t.EV_NO_ACTION or changes.get("type") == t.EV_NO_ACTION:
            continue
        measured = event.data if event.measured is None else event.measured
        boot = boot.altered(place, data=data(chance, boot, place), measured=measured, **changes)
    return boot


@pytest.mark.parametrize("name", DEPARTING)
def test_no_type_and_no_data_that_a_log_gives_hides_a_departure(name: str) -> None:
    chance = random.Random(name)
    boot = DEPARTING[name]
    records = host_log(aggregate_over(boot), FILES)
    for _ in range(150):
        try:
            of = evidence(boot, records, logged=rewritten(chance, boot))
        except (EvidenceError, MalformedError):
            continue
        assert not accepted(appraised(RULES, of))


def test_a_host_that_keeps_the_rules_is_accepted_by_the_same_measure() -> None:
    assert accepted(appraised(RULES, evidence()))
    assert accepted(appraised(SECURE_BOOT, evidence()))


EVIL = hashlib.sha256(b"evil").digest()
KNOWN = hashlib.sha256(b"program 0").digest()


def record(chance: random.Random) -> tuple[bytes, bytes]:
    """Template and data of a record of a file that no list has, in any dress."""
    path = chance.choice(
        [
            b"/usr/bin/program-0",
            b"boot_aggregate",
            b"",
            b"/usr/bin/program-0\0x",
            b"/usr/bin/program-0 ",
            b"/x\n",
        ]
    )
    label = chance.choice(
        [b"sha256:\0", b"ima:sha256:\0", b"verity:sha256:\0", b"sha256:", b"sm3:\0", b"SHA256:\0"]
    )
    digest = chance.choice([EVIL, EVIL + KNOWN, KNOWN[:31], EVIL[:20], b""])
    fields = [
        label + digest,
        path + b"\0",
        *[chance.randbytes(chance.randrange(5)) for _ in range(chance.randrange(3))],
    ]
    template = chance.choice(
        [b"ima-ng", b"ima-sig", b"ima-ngv2", b"ima-buf", b"d-ng|n-ng", b"n-ng|d-ng", b"new"]
    )
    encoded = counted(*fields)
    cut = len(encoded) - chance.choice([0, 0, 0, 1, 9])
    return template, encoded[:cut]


def test_no_form_of_a_record_lets_an_unknown_file_pass() -> None:
    chance = random.Random(7)
    records = host_log(aggregate_over(BOOT), FILES)
    head = b"".join(map(ima_entry, records))
    for _ in range(400):
        template, content = record(chance)
        of = evidence(records=[*records, content], entries=head + ima_entry(content, name=template))
        assert not accepted(appraised(RULES, of)), (template, content)


def test_the_same_record_of_a_known_file_passes() -> None:
    records = [*host_log(aggregate_over(BOOT), FILES), ng("/usr/bin/program-0", KNOWN)]
    assert accepted(appraised(RULES, evidence(records=records)))
