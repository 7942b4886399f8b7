# SPDX-License-Identifier: Apache-2.0
"""What a replayed log says of a boot: separators, applications, Secure Boot, boot loaders."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tcg_logs import (
    SHA256,
    X509,
    TcgWriter,
    Written,
    good_boot,
    image_load,
    secure_boot_variables,
    signature_list,
    variable,
    vendor_of,
)

from quotary_verifier.errors import EvidenceError, MalformedError, UnsupportedError
from quotary_verifier.logs import tcg_types as t
from quotary_verifier.logs.tcg import ReplayedLog, parse_tcg_log
from quotary_verifier.logs.tcg_boot import read_boot
from quotary_verifier.logs.tcg_loaders import Kind, read_loader_events
from quotary_verifier.logs.tcg_secureboot import read_secure_boot
from quotary_verifier.logs.tcg_types import Registers, Tolerance
from quotary_verifier.logs.uefi import (
    GLOBAL,
    IMAGE_SECURITY,
    SHIM,
    parse_gpt,
    parse_signature_lists,
    parse_variable,
)

BOOT = good_boot()
EXIT = 2


def log_of(writer: TcgWriter) -> ReplayedLog:
    return parse_tcg_log(writer.agile()).replay(writer.values(), required=writer.values().keys())


def place(kind: int, register: int | None = None) -> int:
    return next(
        number
        for number, event in enumerate(BOOT.events)
        if event.type == kind and register in {None, event.register}
    )


def with_event(number: int, event: Written) -> TcgWriter:
    return replace(BOOT, events=[*BOOT.events[:number], event, *BOOT.events[number:]])


def test_a_good_boot_shows_its_applications_by_their_digests() -> None:
    boot = read_boot(log_of(BOOT))
    started = [event for event in BOOT.events if event.type == t.EV_EFI_BOOT_SERVICES_APPLICATION]
    assert [application.digest for application in boot.applications] == [one.digest(0x0B) for one in started]
    assert boot.applications[0].untrusted_device_path == b"\x7f\xff\x04\x00"
    assert (boot.firmware_applications, boot.exit_boot_services, boot.tolerances) == ((), True, ())


@pytest.mark.parametrize("pcr", range(8))
def test_each_firmware_pcr_has_exactly_one_separator(pcr: int) -> None:
    number = place(t.EV_SEPARATOR, pcr)
    with pytest.raises(EvidenceError, match=f"PCR {pcr} has 0 separators"):
        read_boot(log_of(BOOT.without(number)))
    with pytest.raises(EvidenceError, match=f"PCR {pcr} has 2 separators"):
        read_boot(log_of(with_event(number, BOOT.events[number])))


@pytest.mark.parametrize("value", [b"\x01\0\0\0", b"\0", b"\0\0\0\1", bytes(8)])
def test_a_separator_has_one_of_two_values(value: bytes) -> None:
    number = place(t.EV_SEPARATOR, 2)
    with pytest.raises(EvidenceError, match="separator of PCR 2"):
        read_boot(log_of(BOOT.altered(number, data=value)))
    read_boot(log_of(BOOT.altered(number, data=b"\xff\xff\xff\xff")))


def test_a_separators_digest_under_another_type_fails() -> None:
    writer = good_boot()
    writer.events.insert(0, Written(4, t.EV_EFI_ACTION, bytes(4)))
    with pytest.raises(EvidenceError, match="separator's digest"):
        read_boot(log_of(writer))


def test_a_boot_variable_of_four_zeros_is_no_separator() -> None:
    event = Written(1, t.EV_EFI_VARIABLE_BOOT, variable(GLOBAL, "Boot0000", bytes(4)), bytes(4))
    assert read_boot(log_of(with_event(0, event))).exit_boot_services


def test_an_application_retyped_as_a_separator_fails() -> None:
    number = place(t.EV_EFI_BOOT_SERVICES_APPLICATION)
    with pytest.raises(EvidenceError, match="PCR 4 has 2 separators"):
        read_boot(log_of(BOOT.altered(number, type=t.EV_SEPARATOR, data=bytes(4), measured=b"shimx64.efi")))


@pytest.mark.parametrize(
    ("register", "kind"),
    [(4, 0x40E), (4, 0xFFFFFFFF), (0, t.EV_IPL), (7, t.EV_EFI_BOOT_SERVICES_APPLICATION)],
)
def test_a_type_that_does_not_belong_into_a_pcr_fails(register: int, kind: int) -> None:
    with pytest.raises(EvidenceError, match=f"in PCR {register} has type"):
        read_boot(log_of(with_event(0, Written(register, kind, b"x"))))


def test_a_transfer_monitor_may_stand_in_pcr_0_and_nowhere_else() -> None:
    assert read_boot(log_of(with_event(0, Written(0, t.EV_TXT_STM_HASH, b"", b"monitor")))).exit_boot_services
    for number, register in ((0, 4), (len(BOOT.events), 0)):
        with pytest.raises(EvidenceError):
            read_boot(log_of(with_event(number, Written(register, t.EV_TXT_STM_HASH, b"", b"monitor"))))


@pytest.mark.parametrize("register", [0, 2])
def test_nothing_of_the_firmware_stands_behind_a_separator(register: int) -> None:
    late = Written(register, t.EV_EFI_PLATFORM_FIRMWARE_BLOB, b"x")
    with pytest.raises(EvidenceError, match="behind the separator"):
        read_boot(log_of(with_event(len(BOOT.events), late)))


def test_an_application_before_the_firmware_began_to_boot_needs_a_tolerance() -> None:
    writer = with_event(0, Written(4, t.EV_EFI_BOOT_SERVICES_APPLICATION, image_load(), b"early"))
    with pytest.raises(EvidenceError, match="no-calling-action"):
        read_boot(log_of(writer))
    boot = read_boot(log_of(writer), tolerate={Tolerance.NO_CALLING_ACTION})
    assert (len(boot.firmware_applications), len(boot.applications)) == (1, 2)
    assert boot.tolerances == (Tolerance.NO_CALLING_ACTION,)


def test_a_log_that_lost_the_calling_event_needs_a_tolerance() -> None:
    writer = BOOT.without(place(t.EV_EFI_ACTION, 4))
    with pytest.raises(EvidenceError, match="no-calling-action"):
        read_boot(log_of(writer))
    assert len(read_boot(log_of(writer), tolerate={Tolerance.NO_CALLING_ACTION}).applications) == 2


def test_a_log_that_lost_the_end_of_boot_services_needs_a_tolerance() -> None:
    writer = replace(BOOT, events=BOOT.events[:-EXIT])
    with pytest.raises(EvidenceError, match="no-exit-boot-services"):
        read_boot(log_of(writer))
    boot = read_boot(log_of(writer), tolerate={Tolerance.NO_EXIT_BOOT_SERVICES})
    assert (boot.exit_boot_services, boot.tolerances) == (False, (Tolerance.NO_EXIT_BOOT_SERVICES,))


def test_an_application_behind_the_end_of_boot_services_fails() -> None:
    late = Written(4, t.EV_EFI_BOOT_SERVICES_APPLICATION, image_load(), b"late")
    with pytest.raises(EvidenceError, match="behind the end of boot services"):
        read_boot(log_of(with_event(len(BOOT.events), late)))


def test_a_pcr_5_that_moved_on_leaves_the_end_of_boot_services_unknown() -> None:
    log = parse_tcg_log(BOOT.agile()).replay({**BOOT.values(), 5: bytes(32)})
    with pytest.raises(EvidenceError, match="no-exit-boot-services"):
        read_boot(log)
    boot = read_boot(log, tolerate={Tolerance.NO_EXIT_BOOT_SERVICES})
    assert (len(boot.applications), boot.exit_boot_services) == (2, False)


@pytest.mark.parametrize("pcr", [0, 1, 2, 3, 4, 6, 7])
def test_a_boot_with_a_firmware_pcr_that_is_not_confirmed_is_not_read(pcr: int) -> None:
    log = parse_tcg_log(BOOT.agile()).replay({**BOOT.values(), pcr: bytes(32)}, required={8})
    with pytest.raises(EvidenceError, match=f"register {pcr}"):
        read_boot(log)


@pytest.mark.parametrize(
    "text", [b"Returning from EFI Application from Boot Option", b"Calling EFI Application from Boot Option"]
)
def test_several_boot_attempts_need_a_tolerance(text: bytes) -> None:
    writer = with_event(place(t.EV_EFI_ACTION, 4) + 1, Written(4, t.EV_EFI_ACTION, text))
    with pytest.raises(EvidenceError, match="failed-boot-attempts"):
        read_boot(log_of(writer))
    assert Tolerance.FAILED_BOOT_ATTEMPTS in read_boot(log_of(writer), tolerate=set(Tolerance)).tolerances


def test_the_boot_of_a_confidential_vm_is_not_read_as_one_of_a_pc() -> None:
    writer = TcgWriter((0x0C,)).add(1, t.EV_SEPARATOR, bytes(4))
    log = parse_tcg_log(writer.agile(), registers=Registers.CC).replay(writer.values(0x0C), bank=0x0C)
    with pytest.raises(UnsupportedError):
        read_boot(log)


# --- Secure Boot ---------------------------------------------------------------------------------------------


def state_at(name: str) -> int:
    return next(
        number
        for number, event in enumerate(BOOT.events)
        if event.type == t.EV_EFI_VARIABLE_DRIVER_CONFIG and name.encode("utf-16-le") in event.data
    )


def state_event(name: str, content: bytes) -> Written:
    return Written(7, t.EV_EFI_VARIABLE_DRIVER_CONFIG, variable(vendor_of(name), name, content))


@pytest.mark.parametrize("enabled", [True, False])
def test_the_secure_boot_state_is_read_with_its_databases(enabled: bool) -> None:
    state = read_secure_boot(log_of(good_boot(enabled)))
    assert state.enabled is enabled
    assert [entry.data for entry in state.db] == [b"db" * 40]
    assert {entry.type for entry in state.pk + state.kek + state.db} == {X509}
    assert [entry.type for entry in state.dbx] == [SHA256] * 2
    assert [(one.variable.vendor, one.variable.name) for one in state.late_authorities if one.variable] == [
        (IMAGE_SECURITY, "db")
    ]


@pytest.mark.parametrize("name", ["SecureBoot", "PK", "KEK", "db", "dbx"])
def test_a_secure_boot_variable_is_there_once(name: str) -> None:
    number = state_at(name)
    with pytest.raises(EvidenceError, match=f"no variable {name} "):
        read_secure_boot(log_of(BOOT.without(number)))
    with pytest.raises(EvidenceError, match=f"variable {name} twice"):
        read_secure_boot(log_of(with_event(number, BOOT.events[number])))


@pytest.mark.parametrize("value", [b"", b"\x02", b"\x01\x00"])
def test_secure_boot_is_one_byte_zero_or_one(value: bytes) -> None:
    number = state_at("SecureBoot")
    with pytest.raises(EvidenceError, match="neither 0 nor 1"):
        read_secure_boot(log_of(BOOT.altered(number, data=state_event("SecureBoot", value).data)))


@pytest.mark.parametrize("name", ["PK", "KEK", "db"])
def test_secure_boot_that_is_on_without_keys_fails(name: str) -> None:
    number = state_at(name)
    with pytest.raises(EvidenceError, match="without keys"):
        read_secure_boot(log_of(BOOT.altered(number, data=state_event(name, b"").data)))


def test_a_flipped_value_under_its_old_digest_fails() -> None:
    number = state_at("SecureBoot")
    old = good_boot(enabled=False).events[number]
    log = parse_tcg_log(BOOT.altered(number, data=BOOT.events[number].data, measured=old.data).agile())
    quoted = good_boot(enabled=False).values()
    with pytest.raises(EvidenceError, match="not covered"):
        read_secure_boot(log.replay(quoted))


@pytest.mark.parametrize("kind", [t.EV_EFI_ACTION, t.EV_EFI_VARIABLE_AUTHORITY, t.EV_IPL, t.EV_SEPARATOR])
def test_a_retyped_event_of_pcr_7_fails(kind: int) -> None:
    for name in secure_boot_variables():
        with pytest.raises(EvidenceError):
            read_secure_boot(log_of(BOOT.altered(state_at(name), type=kind)))


def test_an_authority_retyped_as_configuration_fails() -> None:
    number = place(t.EV_EFI_VARIABLE_AUTHORITY)
    with pytest.raises((EvidenceError, MalformedError)):
        read_secure_boot(log_of(BOOT.altered(number, type=t.EV_EFI_VARIABLE_DRIVER_CONFIG)))


def test_a_configuration_behind_the_separator_or_in_another_pcr_fails() -> None:
    late = with_event(len(BOOT.events), state_event("dbr", b""))
    with pytest.raises(EvidenceError, match="behind the separator"):
        read_secure_boot(log_of(late))
    elsewhere = with_event(0, replace(state_event("SecureBoot", b"\x01"), register=1))
    with pytest.raises(EvidenceError, match="variable SecureBoot in register 1"):
        read_secure_boot(log_of(elsewhere))


def test_what_shim_measures_is_neither_a_database_nor_an_error() -> None:
    writer = good_boot()
    for name, content in (("SbatLevel", b"sbat,1,2021030218\n"), ("MokListTrusted", b"\x01")):
        writer.add(7, t.EV_EFI_VARIABLE_AUTHORITY, variable(SHIM, name, content))
    writer.add(7, t.EV_EFI_VARIABLE_AUTHORITY, b"nothing that parses")
    state = read_secure_boot(log_of(writer))
    names = [one.variable.name if one.variable else None for one in state.late_authorities]
    assert names == ["db", "SbatLevel", "MokListTrusted", None]


def test_lists_that_old_shim_logged_as_configuration_are_shown_and_must_be_covered() -> None:
    lists = variable(SHIM, "MokList", signature_list(X509, [b"key" * 9]))
    event = Written(7, t.EV_EFI_VARIABLE_DRIVER_CONFIG, lists)
    state = read_secure_boot(log_of(with_event(len(BOOT.events), event)))
    assert [one.variable.name for one in state.late_authorities if one.variable] == ["db", "MokList"]
    with pytest.raises(EvidenceError, match="behind the separator"):
        read_secure_boot(log_of(with_event(len(BOOT.events), replace(event, measured=b"else"))))


def test_further_variables_and_remarks_of_the_firmware_are_shown() -> None:
    writer = with_event(0, state_event("DeployedMode", b"\x01"))
    writer.events.insert(0, Written(7, t.EV_EFI_ACTION, b"UEFI Debug Mode"))
    writer.events.insert(0, Written(7, t.EV_EFI_SPDM_DEVICE_POLICY, b"policy"))
    state = read_secure_boot(log_of(writer))
    assert [one.variable for one in state.authorities] == [None]
    assert [one.name for one in state.others] == ["DeployedMode"]
    assert state.actions == ("UEFI Debug Mode",)


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        signature_list(X509, [b"a" * 40])[:-1],
        signature_list(X509, [b"a" * 40]) + b"x",
        signature_list(X509, [b"a" * 40])[:16] + b"\xff\xff\xff\xff" + signature_list(X509, [b"a" * 40])[20:],
        signature_list(X509, [b"a" * 40])[:24] + bytes(4) + signature_list(X509, [b"a" * 40])[28:],
    ],
)
def test_a_signature_database_whose_sizes_do_not_fit_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_signature_lists(data)


@pytest.mark.parametrize("size", [1025, 2**63])
def test_a_variable_whose_name_is_too_long_is_malformed(size: int) -> None:
    data = bytes(16) + size.to_bytes(8, "little") + bytes(8) + b"a\0" * 1025
    with pytest.raises(MalformedError, match="characters"):
        parse_variable(data)


def test_a_partition_table_is_read_and_a_false_one_is_malformed() -> None:
    header = b"EFI PART" + bytes(48) + bytes(range(16)) + bytes(8) + (4).to_bytes(4, "little")
    header += (128).to_bytes(4, "little") + bytes(4)
    entry = bytes(range(16)) * 2 + (34).to_bytes(8, "little") + (99).to_bytes(8, "little") + bytes(8)
    entry += "root".encode("utf-16-le").ljust(72, b"\0")
    gpt = parse_gpt(header + (1).to_bytes(8, "little") + entry)
    assert gpt.disk == "03020100-0504-0706-0809-0a0b0c0d0e0f"
    assert [(one.name, one.first, one.last) for one in gpt.partitions] == [("root", 34, 99)]
    for false in (
        b"",
        header,
        header + (2**60).to_bytes(8, "little"),
        header + (2).to_bytes(8, "little") + entry,
    ):
        with pytest.raises(MalformedError):
            parse_gpt(false)


def confidential(*changes: Written, without: str = "") -> ReplayedLog:
    """The log of a confidential VM: what a PC extends into PCR 1 and 7 goes into one register."""
    writer = TcgWriter((0x0C,)).add(1, t.EV_EFI_HANDOFF_TABLES2, b"TdxTable", b"the tables")
    for name, content in secure_boot_variables().items():
        if name != without:
            writer.add(1, t.EV_EFI_VARIABLE_DRIVER_CONFIG, variable(vendor_of(name), name, content))
    writer.events.extend(changes)
    for _ in range(2):
        writer.add(1, t.EV_SEPARATOR, bytes(4))
    writer.add(1, t.EV_EFI_VARIABLE_AUTHORITY, variable(IMAGE_SECURITY, "db", b"key"))
    log = parse_tcg_log(writer.agile(), registers=Registers.CC)
    return log.replay(writer.values(0x0C), bank=0x0C)


def test_the_secure_boot_state_of_a_confidential_vm_is_read_from_its_first_register() -> None:
    state = read_secure_boot(confidential())
    assert (state.enabled, len(state.dbx), len(state.late_authorities)) == (True, 2, 1)
    with pytest.raises(EvidenceError, match="register 1 has no variable KEK"):
        read_secure_boot(confidential(without="KEK"))
    again = replace(state_event("SecureBoot", b"\0"), register=1)
    with pytest.raises(EvidenceError, match="variable SecureBoot twice"):
        read_secure_boot(confidential(again))
    for kind in (t.EV_EFI_VARIABLE_BOOT, t.EV_IPL):
        with pytest.raises(EvidenceError, match="of another type"):
            read_secure_boot(confidential(replace(again, type=kind), without="SecureBoot"))
    with pytest.raises(EvidenceError, match="no variable SecureBoot"):
        read_secure_boot(confidential(replace(again, measured=b"else"), without="SecureBoot"))


# --- boot loaders --------------------------------------------------------------------------------------------


def test_grub_and_shim_are_shown_with_the_texts_that_are_covered() -> None:
    found = [(one.untrusted_kind, one.text) for one in read_loader_events(log_of(BOOT))]
    assert found == [
        (Kind.MOK, None),
        (Kind.COMMAND, "linux /vmlinuz quiet"),
        (Kind.FILE, None),
        (Kind.COMMAND_LINE, "/vmlinuz quiet"),
    ]


def test_systemd_and_linux_are_shown_with_the_texts_that_are_covered() -> None:
    line = "root=/dev/vda quiet\0".encode("utf-16-le")
    tag = (0x8F3B22ED).to_bytes(4, "little") + (26).to_bytes(4, "little") + b"LOADED_IMAGE::LoadOptions\0"
    writer = TcgWriter().add(11, t.EV_IPL, ".linux\0".encode("utf-16-le"), b".linux\0")
    writer.add(11, t.EV_IPL, ".linux\0".encode("utf-16-le"), b"the kernel").add(12, t.EV_IPL, line)
    writer.add(9, t.EV_EVENT_TAG, tag, line).add(9, t.EV_EVENT_TAG, tag[:6], line)
    writer.add(12, t.EV_EVENT_TAG, bytes(8), line)
    found = [
        (one.untrusted_kind, one.text, one.untrusted_label) for one in read_loader_events(log_of(writer))
    ]
    assert found == [
        (Kind.SECTION, ".linux", ".linux"),
        (Kind.SECTION, None, ".linux"),
        (Kind.COMMAND_LINE, "root=/dev/vda quiet", ""),
        (Kind.TAG, None, "command line of the Linux EFI stub: LOADED_IMAGE::LoadOptions"),
        (Kind.TAG, None, ""),
        (Kind.TAG, None, "0x00000000"),
    ]


def test_an_exchanged_label_changes_no_covered_text() -> None:
    number = next(n for n, event in enumerate(BOOT.events) if event.data.startswith(b"kernel_cmdline"))
    false = BOOT.altered(number, data=b"grub_cmd: /vmlinuz quiet\0", measured=b"/vmlinuz quiet")
    log = parse_tcg_log(false.agile()).replay(BOOT.values())
    assert read_loader_events(log)[-1].text == "/vmlinuz quiet"


def test_a_command_line_exchanged_under_its_old_digest_has_no_text() -> None:
    number = next(n for n, event in enumerate(BOOT.events) if event.data.startswith(b"kernel_cmdline"))
    false = BOOT.altered(number, data=b"kernel_cmdline: /vmlinuz init=/evil\0", measured=b"/vmlinuz quiet")
    log = parse_tcg_log(false.agile()).replay(BOOT.values())
    assert read_loader_events(log)[-1].text is None
