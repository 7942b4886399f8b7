# SPDX-License-Identifier: Apache-2.0
"""Cases of step `platform` by boot logs, registered with those of `defects`."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from boot_defects import BOOT, FILES, RECORDS, aggregate_over, carrying, host, ima, number_of
from defects import Case, _case, case
from forge import Forge
from ima_logs import host_log, ima_entry, ng
from tcg_logs import TcgWriter, good_boot

from quotary_verifier import Outcome, Step
from quotary_verifier.logs import tcg_types as t


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


SECURE_BOOT = (
    f'[platform.secure_boot]\ndb = ["x509:{digest(b"db" * 40)}"]\ndbx = ["sha256:{digest(b"refused 1")}"]\n'
)
STARTED = f'[platform.boot]\napplications = ["{digest(b"shimx64.efi")}", "{digest(b"grubx64.efi")}"]\n'
READ = f"files = [\"{digest(b'the kernel')}\"]\ncommand_lines = ['(linux )?/vmlinuz( [a-z]+)*']\n"
RAN = "".join(
    f'[[platform.ima.file]]\ndigest = "{digest(b"program %d" % number)}"\npath = "/usr/bin/program-{number}"\n'
    for number in range(FILES)
)
RULES = SECURE_BOOT + STARTED + READ + RAN
"""Rules of every kind that the host keeps."""

APPLICATION = number_of(t.EV_EFI_BOOT_SERVICES_APPLICATION)
EVIL = ng("/usr/bin/evil", hashlib.sha256(b"evil").digest())


def booted(
    boot: TcgWriter = BOOT, *more: bytes, logged: TcgWriter | None = None
) -> tuple[Forge, dict[str, bytes]]:
    """A host that ran its usual files and these, and its logs; `logged` is what its event log says instead, where it is
    false and yet replays."""
    records = [*host_log(aggregate_over(boot), FILES), *more]
    return host(boot, records), {"tcg": (logged or boot).agile(), "ima": ima(records)}


def judged(
    forge: Forge, logs: dict[str, bytes], step: Step | None, rules: str = RULES, **outcome: Outcome
) -> Case:
    """A case under these rules."""
    return _case(forge, carrying(forge, **logs), step, policy=forge.policy(rules), **outcome)


# --- what verifies -------------------------------------------------------------------------------------------


@case
def platform_that_keeps_every_rule() -> Case:
    forge, logs = booted()
    return judged(forge, logs, None)


@case
def platform_of_a_reference_set() -> Case:
    forge, logs = booted()
    sets = f'[[reference]]\nname = "other"\n[reference.pcrs]\n0 = ["{"0" * 64}"]\n'
    sets += f'[[reference]]\nname = "this"\n[reference.pcrs]\n0 = ["{BOOT.values()[0].hex()}"]\n'
    return judged(forge, logs, None, SECURE_BOOT + sets)


@case
def broken_rule_that_only_warns_yet() -> Case:
    forge, logs = booted(BOOT, EVIL)
    return judged(
        forge, logs, None, RULES + '[[warn]]\nrule = "platform.ima"\nuntil = 2026-12-01T00:00:00Z\n'
    )


@case
def rules_of_pcr_values_without_any_log() -> Case:
    forge, _ = booted()
    return judged(forge, {}, None, f'[platform.pcrs]\n7 = ["{BOOT.values()[7].hex()}"]\n')


# --- what does not -------------------------------------------------------------------------------------------


@case
def broken_rule_that_no_longer_only_warns() -> Case:
    forge, logs = booted(BOOT, EVIL)
    rules = RULES + '[[warn]]\nrule = "platform.ima"\nuntil = 2026-11-01T00:00:00Z\n'
    return judged(forge, logs, Step.PLATFORM, rules)


@case
def secure_boot_switched_off() -> Case:
    forge, logs = booted(good_boot(enabled=False))
    return judged(forge, logs, Step.PLATFORM)


@case
def secure_boot_with_a_stale_dbx() -> Case:
    forge, logs = booted()
    rules = f'[platform.secure_boot]\ndbx = ["sha256:{digest(b"an old shim")}"]\n'
    return judged(forge, logs, Step.PLATFORM, rules)


@case
def another_boot_loader() -> Case:
    forge, logs = booted(BOOT.altered(APPLICATION, measured=b"evil"))
    return judged(forge, logs, Step.PLATFORM)


@case
def another_boot_loader_that_the_log_calls_a_remark() -> Case:
    boot = BOOT.altered(APPLICATION, measured=b"evil")
    retyped = boot.altered(APPLICATION, type=t.EV_EFI_ACTION, data=b"Nothing happened")
    forge, logs = booted(boot, logged=retyped)
    return judged(forge, logs, Step.PLATFORM)


def _line(text: bytes, label: bytes) -> TcgWriter:
    place = next(n for n, event in enumerate(BOOT.events) if event.data.startswith(b"kernel_cmdline"))
    return BOOT.altered(place, data=label + text + b"\0", measured=text)


@case
def another_command_line() -> Case:
    forge, logs = booted(_line(b"/vmlinuz init=/bin/sh", b"kernel_cmdline: "))
    return judged(forge, logs, Step.PLATFORM)


@case
def another_command_line_under_another_label() -> Case:
    forge, logs = booted(_line(b"/vmlinuz init=/bin/sh", b"remark: "))
    return judged(forge, logs, Step.PLATFORM)


@case
def another_initrd() -> Case:
    place = next(n for n, event in enumerate(BOOT.events) if event.register == 9)
    forge, logs = booted(BOOT.altered(place, measured=b"another"))
    return judged(forge, logs, Step.PLATFORM)


@case
def unknown_file_that_ran() -> Case:
    forge, logs = booted(BOOT, EVIL)
    return judged(forge, logs, Step.PLATFORM)


@case
def known_file_at_another_path() -> Case:
    forge, logs = booted(BOOT, ng("/tmp/x", hashlib.sha256(b"program 0").digest()))
    return judged(forge, logs, Step.PLATFORM)


@case
def violation_in_the_ima_log() -> Case:
    forge, logs = host(BOOT, [*RECORDS, b""]), {"tcg": BOOT.agile()}
    logs["ima"] = ima(RECORDS) + ima_entry(RECORDS[1], violation=True)
    return judged(forge, logs, Step.PLATFORM)


@case
def platform_of_no_reference_set() -> Case:
    forge, logs = booted()
    sets = f'[[reference]]\nname = "other"\n[reference.pcrs]\n0 = ["{"0" * 64}"]\n'
    return judged(forge, logs, Step.PLATFORM, SECURE_BOOT + sets)


@case
def host_that_slept_under_a_policy_against_it() -> Case:
    forge = Forge()
    policy = forge.policy("[platform.clock]\nrestarts = 0\n")
    return _case(forge, forge.attestation(restart_count=1), Step.PLATFORM, policy=policy)


@case
def boot_that_was_never_measured_under_a_rule_on_secure_boot() -> Case:
    forge = Forge(pcrs={0: b"\1" * 32, 4: b"\1" * 32})
    return judged(forge, {}, Step.PLATFORM, SECURE_BOOT)


# --- what could not be checked -------------------------------------------------------------------------------


@case
def rule_on_secure_boot_without_the_log() -> Case:
    forge, logs = booted()
    return judged(forge, {"ima": logs["ima"]}, Step.PLATFORM, outcome=Outcome.COULD_NOT_CHECK)


@case
def rule_on_files_with_the_log_by_its_digest_only() -> Case:
    forge, logs = booted()
    logs["ima"] = hashlib.sha256(logs["ima"]).digest()
    return judged(forge, logs, Step.PLATFORM, outcome=Outcome.COULD_NOT_CHECK)


@case
def false_rule_beside_one_that_could_not_be_checked() -> Case:
    """What is false goes before what could not be checked, inside one step, too."""
    forge, logs = booted(good_boot(enabled=False))
    return judged(forge, {"tcg": logs["tcg"]}, Step.PLATFORM)


@case
def workload_rule_over_opaque_events() -> Case:
    forge = Forge()
    policy = forge.policy('[workload]\ntypes = ["agent", "model", "engine"]\n')
    return _case(forge, forge.attestation(), Step.PLATFORM, policy=policy, outcome=Outcome.COULD_NOT_CHECK)


@case
def workload_event_of_a_type_that_the_policy_does_not_allow() -> Case:
    forge = replace(Forge(), keep=frozenset({0, 1, 2}))
    policy = forge.policy('[workload]\ntypes = ["agent", "model"]\n')
    return _case(forge, forge.attestation(), Step.PLATFORM, policy=policy)
